--
-- What crossed the borders of this region: figures that the backends add up in shared
-- memory (src/border_counters.c), with names.  Everybody may read them, as they may
-- pg_stat_user_tables, of which they are the counterpart: numbers, no values.
--

CREATE FUNCTION residency.border_counters(
		OUT server pg_catalog.oid, OUT relation pg_catalog.oid,
		OUT statements pg_catalog.int8, OUT round_trips pg_catalog.int8,
		OUT rows_out pg_catalog.int8, OUT rows_in pg_catalog.int8,
		OUT bytes_out pg_catalog.int8, OUT bytes_in pg_catalog.int8, OUT since pg_catalog.timestamptz)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'residency_border_counters' LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION residency.border_counters()
IS 'figures behind the view residency.border, by object identifiers';

CREATE FUNCTION residency.border_reset()
RETURNS pg_catalog.void
AS 'MODULE_PATHNAME', 'residency_border_reset' LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION residency.border_reset()
IS 'sets the figures of residency.border to zero, for this database';
REVOKE ALL ON FUNCTION residency.border_reset() FROM PUBLIC;

-- Figures of tables and regions that are no more stay, without their names.
CREATE VIEW residency.border AS
	SELECT s.srvname AS region, c.oid::pg_catalog.regclass AS relation,
		   pg_catalog.sum(b.statements)::pg_catalog.int8 AS statements,
		   pg_catalog.sum(b.round_trips)::pg_catalog.int8 AS round_trips,
		   pg_catalog.sum(b.rows_out)::pg_catalog.int8 AS rows_out,
		   pg_catalog.sum(b.rows_in)::pg_catalog.int8 AS rows_in,
		   pg_catalog.sum(b.bytes_out)::pg_catalog.int8 AS bytes_out,
		   pg_catalog.sum(b.bytes_in)::pg_catalog.int8 AS bytes_in,
		   pg_catalog.min(b.since) AS since
	FROM residency.border_counters() b
		 LEFT JOIN pg_catalog.pg_foreign_server s ON s.oid OPERATOR(pg_catalog.=) b.server
		 LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) b.relation
	GROUP BY s.srvname, c.oid;
COMMENT ON VIEW residency.border IS 'what crossed the border to each region for each table, since the server started or the last reset';
COMMENT ON COLUMN residency.border.relation IS 'declared table; NULL: what is about none, such as BEGIN, PREPARE and COMMIT';
COMMENT ON COLUMN residency.border.statements IS 'statements sent there';
COMMENT ON COLUMN residency.border.round_trips IS 'flights whose answer a session here stood still for';
COMMENT ON COLUMN residency.border.rows_out IS 'rows and keys sent there';
COMMENT ON COLUMN residency.border.rows_in IS 'rows that came from there';
COMMENT ON COLUMN residency.border.bytes_out IS 'their payload, and that of the statements, in bytes';
COMMENT ON COLUMN residency.border.bytes_in IS 'payload of the rows that came, in bytes';
GRANT SELECT ON residency.border TO PUBLIC;
