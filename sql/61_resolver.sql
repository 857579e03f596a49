-- What the resolver of one region asks of the others, and what it did.

CREATE FUNCTION residency.traces_here(incarnation pg_catalog.int8, without pg_catalog.text[],
									  OUT xid pg_catalog.xid8, OUT gids pg_catalog.text[], OUT regions pg_catalog.text[])
RETURNS SETOF pg_catalog.record
	LANGUAGE sql STABLE STRICT PARALLEL UNSAFE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT t.xid, t.gids, t.regions FROM residency.transaction t
	WHERE t.incarnation = traces_here.incarnation
	  AND t.origin = (SELECT r.name::text FROM residency.region r WHERE r.role = session_user)
	  AND NOT t.regions && traces_here.without
	ORDER BY t.xid LIMIT 2000
$$;
COMMENT ON FUNCTION residency.traces_here(pg_catalog.int8, pg_catalog.text[])
IS 'for gateways: traces here of their own distributed transactions, without those of some regions';

CREATE FUNCTION residency.resolver_actions(OUT at pg_catalog.timestamptz, OUT region pg_catalog.text,
										   OUT gid pg_catalog.text, OUT action pg_catalog.text)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'residency_resolver_actions' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.resolver_actions()
IS 'what was last done with transactions that a crash left, since the server started';

CREATE VIEW residency.transactions AS
	WITH known AS (
		SELECT t.origin, t.xid, t.regions, t.gids, t.decided_at AS since,
			   CASE WHEN t.origin OPERATOR(pg_catalog.=) s.region THEN 'decided'::pg_catalog.text
					ELSE 'applied here'::pg_catalog.text END AS state
		FROM residency.transaction t CROSS JOIN residency.self s
		UNION ALL
		SELECT coalesce(r.name::pg_catalog.text, '?'), pg_catalog.split_part(p.gid, ':', 3)::pg_catalog.xid8,
			   ARRAY[s.region::pg_catalog.text], ARRAY[p.gid], p.prepared, 'prepared here'::pg_catalog.text
		FROM pg_catalog.pg_prepared_xacts p
			 CROSS JOIN residency.self s
			 LEFT JOIN residency.region r
				ON pg_catalog.lpad(pg_catalog.to_hex(r.incarnation), 16, '0') OPERATOR(pg_catalog.=) pg_catalog.split_part(p.gid, ':', 2)
		WHERE p.database OPERATOR(pg_catalog.=) pg_catalog.current_database()
		  -- anybody may prepare something under a name that begins like ours
		  AND p.gid OPERATOR(pg_catalog.~) '^residency:[0-9a-f]{16}:[0-9]{1,19}:[0-9]+:[0-9a-f]{8}$')
	SELECT k.origin, k.xid, k.regions, k.gids, k.since, k.state,
		   a.region OPERATOR(pg_catalog.||) ': ' OPERATOR(pg_catalog.||) a.action AS resolver
	FROM known k
		 LEFT JOIN LATERAL (SELECT l.region, l.action FROM residency.resolver_actions() l
							WHERE l.gid OPERATOR(pg_catalog.=) ANY (k.gids)
							ORDER BY l.at DESC LIMIT 1) a ON true
	UNION ALL
	SELECT coalesce(r.name::pg_catalog.text, '?'), pg_catalog.split_part(l.gid, ':', 3)::pg_catalog.xid8,
		   ARRAY[l.region], ARRAY[l.gid], l.at, 'finished'::pg_catalog.text,
		   l.region OPERATOR(pg_catalog.||) ': ' OPERATOR(pg_catalog.||) l.action
	FROM residency.resolver_actions() l
		 LEFT JOIN residency.region r
			ON pg_catalog.lpad(pg_catalog.to_hex(r.incarnation), 16, '0') OPERATOR(pg_catalog.=) pg_catalog.split_part(l.gid, ':', 2)
	WHERE l.action OPERATOR(pg_catalog.=) ANY (ARRAY['committed', 'rolled back']);
COMMENT ON VIEW residency.transactions
IS 'distributed transactions that are not finished everywhere, and those that the resolver finished';
COMMENT ON COLUMN residency.transactions.state
IS 'decided: began here and committed; applied here, prepared here: its part of this region; finished: by the resolver';
COMMENT ON COLUMN residency.transactions.resolver IS 'what the resolver last did with it, and where';
GRANT SELECT ON residency.transactions TO PUBLIC;
