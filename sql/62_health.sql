--
-- The regions as this one knows them, with what its health worker finds out.
--

CREATE FUNCTION residency.region_states(OUT region pg_catalog.name, OUT state pg_catalog.text,
		OUT since pg_catalog.timestamptz, OUT round_trip_time pg_catalog.float8,
		OUT version pg_catalog.text, OUT problem pg_catalog.text)
	RETURNS SETOF pg_catalog.record
	LANGUAGE c VOLATILE CALLED ON NULL INPUT PARALLEL SAFE AS 'MODULE_PATHNAME', 'residency_region_states';
COMMENT ON FUNCTION residency.region_states()
	IS 'what the health worker of this database knows of other regions; no row while it does not run';

-- Asked by the health worker of another region, over a session of its own.
CREATE FUNCTION residency.ping(pause pg_catalog.int4) RETURNS pg_catalog.bool
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_ping';
COMMENT ON FUNCTION residency.ping(pg_catalog.int4)
	IS 'a gateway asks whether this region is there, and will again after so many ms';
REVOKE EXECUTE ON FUNCTION residency.ping(pg_catalog.int4) FROM PUBLIC;

CREATE VIEW residency.regions AS
	SELECT r.name,
		   r.number,
		   r.name = s.region AS home,
		   CASE WHEN r.name = s.region THEN s.connection
		   ELSE (SELECT pg_catalog.string_agg(o.option_name || '=' || o.option_value, ' ' ORDER BY o.option_name)
				 FROM pg_catalog.pg_foreign_server f
				 CROSS JOIN LATERAL pg_catalog.pg_options_to_table(f.srvoptions) o
				 WHERE f.srvname = r.name AND o.option_name IN ('host', 'hostaddr', 'port', 'dbname'))
		   END AS connection,
		   CASE WHEN r.name = s.region THEN 'up' ELSE h.state END AS state,
		   h.since,
		   h.round_trip_time,
		   CASE WHEN r.name = s.region THEN x.extversion ELSE h.version END AS version,
		   h.problem
	FROM residency.region r
	CROSS JOIN residency.self s
	JOIN pg_catalog.pg_extension x ON x.extname = 'residency'
	LEFT JOIN residency.region_states() h ON h.region = r.name;
COMMENT ON VIEW residency.regions IS 'all regions as this one knows them';

GRANT SELECT ON residency.regions TO PUBLIC;
