--
-- Statistics of foreign partitions, as numbers: ANALYZE of a foreign table asks its
-- home, which answers with counts, widths and fractions, never with a value.  Written
-- by src/fdw_stats.c, read by the planner hooks in src/fdw_stats_planner.c, which
-- know the order of columns.
--

CREATE TABLE residency.table_statistic (
	relation    pg_catalog.regclass PRIMARY KEY,
	row_count   pg_catalog.float8 NOT NULL,
	page_count  pg_catalog.int4 NOT NULL,
	taken_at    pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE residency.table_statistic IS 'size of each analyzed foreign table, as its home told it';
COMMENT ON COLUMN residency.table_statistic.page_count IS 'blocks of 8 kB at the home';

CREATE TABLE residency.column_statistic (
	relation         pg_catalog.regclass,
	column_name      pg_catalog.name,
	null_fraction    pg_catalog.float4 NOT NULL,
	width            pg_catalog.int4 NOT NULL,
	distinct_values  pg_catalog.float4 NOT NULL,
	is_unique        pg_catalog.bool NOT NULL,
	PRIMARY KEY (relation, column_name)
);
COMMENT ON TABLE residency.column_statistic IS 'columns of each analyzed foreign table, as numbers';
COMMENT ON COLUMN residency.column_statistic.width IS 'bytes per value, average';
COMMENT ON COLUMN residency.column_statistic.distinct_values IS
'number of distinct values; if negative, minus the number divided by that of rows; 0: unknown';
COMMENT ON COLUMN residency.column_statistic.is_unique IS 'the home has a unique index on this column alone';

-- What a home tells a gateway about a table.  The tables it reads also hold sampled
-- values, so callers get no access to them, only to this choice of columns: gateways
-- for any table, others for tables they may read.
CREATE FUNCTION residency.statistics(schema_name pg_catalog.text, table_name pg_catalog.text)
RETURNS TABLE (column_name pg_catalog.name, null_fraction pg_catalog.float4, width pg_catalog.int4,
			   distinct_values pg_catalog.float4, is_unique pg_catalog.bool,
			   row_count pg_catalog.float8, page_count pg_catalog.int4)
LANGUAGE sql STABLE STRICT PARALLEL SAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
	WITH t AS (
		SELECT c.oid, c.reltuples, c.relpages,
			   pg_catalog.ceil(pg_catalog.pg_relation_size(c.oid) / 8192.0)::pg_catalog.int4 AS pages
		  FROM pg_catalog.pg_class c
		  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		 WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'r'
		   AND (EXISTS (SELECT FROM residency.region r WHERE r.role = session_user)
				OR pg_catalog.has_table_privilege(session_user, c.oid, 'SELECT')))
	SELECT a.attname,
		   COALESCE(s.stanullfrac, 0),
		   COALESCE(s.stawidth, 0),
		   CASE WHEN u.is_unique THEN -1 ELSE COALESCE(s.stadistinct, 0) END::pg_catalog.float4,
		   u.is_unique,
		   -- as many rows per page as ANALYZE found, else as fit with 100 bytes each
		   CASE WHEN t.reltuples >= 0 AND t.relpages > 0
				THEN t.reltuples::pg_catalog.float8 / t.relpages * t.pages
				ELSE t.pages * 60.0 END,
		   t.pages
	  FROM t
	  JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
	  LEFT JOIN pg_catalog.pg_statistic s
		   ON s.starelid = t.oid AND s.staattnum = a.attnum AND NOT s.stainherit
	 CROSS JOIN LATERAL (
		SELECT EXISTS (SELECT FROM pg_catalog.pg_index i
						WHERE i.indrelid = t.oid AND i.indisunique AND i.indisvalid
						  AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum
						  AND i.indpred IS NULL) AS is_unique) u
$$;
COMMENT ON FUNCTION residency.statistics(pg_catalog.text, pg_catalog.text) IS
'what ANALYZE in another region may know about a table here: numbers, no values';
