-- Transactions that wrote in more than one region.

CREATE TABLE residency.transaction (
	origin pg_catalog.text NOT NULL,
	incarnation pg_catalog.int8 NOT NULL,
	xid pg_catalog.xid8 NOT NULL,
	gids pg_catalog.text[] NOT NULL,
	regions pg_catalog.text[] NOT NULL,
	decided_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
	-- an xid alone can come again: a crash forgets those of transactions that did not commit
	PRIMARY KEY (incarnation, xid, gids)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE residency.transaction
IS 'at the origin the decision to commit a distributed transaction, at a participant the trace of its part';
REVOKE ALL ON residency.transaction FROM PUBLIC;

CREATE FUNCTION residency.participate(origin pg_catalog.text, incarnation pg_catalog.int8, xid pg_catalog.xid8,
									  gids pg_catalog.text[], regions pg_catalog.text[], finished pg_catalog.xid8[])
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'residency_participate' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.participate(pg_catalog.text, pg_catalog.int8, pg_catalog.xid8, pg_catalog.text[], pg_catalog.text[], pg_catalog.xid8[])
IS 'for gateways: leaves the trace of a distributed transaction''s part, and deletes traces of finished ones';

CREATE FUNCTION residency.forget(incarnation pg_catalog.int8, xids pg_catalog.xid8[])
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'residency_forget' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.forget(pg_catalog.int8, pg_catalog.xid8[])
IS 'for gateways: deletes the traces of finished distributed transactions';

CREATE FUNCTION residency.prepared_here()
RETURNS SETOF pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
	SELECT p.gid
	FROM pg_catalog.pg_prepared_xacts p
	WHERE (p.owner OPERATOR(pg_catalog.=) SESSION_USER
		   -- its role is made by the very transaction that is prepared: a superuser has to finish it
		   OR (p.owner IS NULL AND pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.=) 'on'))
	  AND p.database OPERATOR(pg_catalog.=) pg_catalog.current_database()
	  AND pg_catalog.starts_with(p.gid, 'residency:');
END;
COMMENT ON FUNCTION residency.prepared_here()
IS 'gids of the prepared transactions in this database that belong to the role that logged in; to a superuser also those of no visible role';

CREATE FUNCTION residency.replicated_here() RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'residency_replicated_here' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.replicated_here()
IS 'for gateways: true if all that is committed here is where synchronous_standby_names wants it; waits a second for it';
REVOKE EXECUTE ON FUNCTION residency.replicated_here() FROM PUBLIC;

CREATE FUNCTION residency.resolve(OUT region pg_catalog.text, OUT gid pg_catalog.text, OUT action pg_catalog.text)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'residency_resolve' LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.resolve()
IS 'finishes what a crash left of this region''s distributed transactions in all other regions';
REVOKE ALL ON FUNCTION residency.resolve() FROM PUBLIC;
