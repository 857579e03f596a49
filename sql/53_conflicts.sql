--
-- Rows of global tables that could not be shipped to a region.
--

CREATE TABLE residency.conflict (
	relation pg_catalog.oid NOT NULL,
	key pg_catalog.text NOT NULL,
	region pg_catalog.name NOT NULL,
	kind pg_catalog.text NOT NULL CHECK (kind IN ('key', 'unique', 'reference', 'other')),
	home pg_catalog.name NOT NULL,
	constraint_name pg_catalog.text,
	content pg_catalog.jsonb,
	noticed_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
	PRIMARY KEY (relation, key, region, kind)
);
COMMENT ON TABLE residency.conflict
	IS 'rows of global tables that a region could not take, kept there and at the row''s home';
REVOKE ALL ON residency.conflict FROM PUBLIC;

CREATE FUNCTION residency.key_values(key pg_catalog.text) RETURNS pg_catalog.text[]
	LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'residency_key_values';
COMMENT ON FUNCTION residency.key_values(pg_catalog.text) IS 'values of a key that was noted';

CREATE FUNCTION residency.key_text(key pg_catalog.text[]) RETURNS pg_catalog.text
	LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'residency_key_text';
COMMENT ON FUNCTION residency.key_text(pg_catalog.text[]) IS 'a key as it is noted, from its values';

CREATE VIEW residency.conflicts AS
	SELECT c.relation::pg_catalog.regclass AS relation, residency.key_values(c.key) AS key, c.kind,
		   c.home, c.region, c.constraint_name, c.content AS row, c.noticed_at AS since
	FROM residency.conflict c;
COMMENT ON VIEW residency.conflicts
	IS 'rows of global tables that a region could not take; decide with residency.resolve_conflict()';
REVOKE ALL ON residency.conflicts FROM PUBLIC;
