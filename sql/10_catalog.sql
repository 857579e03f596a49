--
-- Catalog of the extension: this region, all regions, all declared tables; and the
-- functions that make this database a region.
--
-- The tables are written by the extension's functions only.  C code reads them
-- through a cache in each backend, which the trigger residency.invalidate() empties.
-- pg_dump keeps their rows, so that a restored dump is the same region again.
--

GRANT USAGE ON SCHEMA residency TO PUBLIC;

-- Server and database that a row of residency.self was made in: elsewhere it is a copy.
CREATE FUNCTION residency.own_place() RETURNS pg_catalog.text
	LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'residency_own_place';
COMMENT ON FUNCTION residency.own_place() IS 'identifies this server and this database, to know a copy of a region from the original';

-- Column order is known to src/regions.c.
CREATE TABLE residency.self (
	region       pg_catalog.name NOT NULL,
	number       pg_catalog.int4 NOT NULL CHECK (number BETWEEN 1 AND 64),
	deployment   pg_catalog.int8 NOT NULL,
	incarnation  pg_catalog.int8 NOT NULL,
	connection   pg_catalog.text,
	only_row     pg_catalog.bool PRIMARY KEY DEFAULT true CHECK (only_row),
	place        pg_catalog.text NOT NULL DEFAULT residency.own_place(),
	announced    pg_catalog.int8[] NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE residency.self IS 'this database''s own region; one row, made by residency.init()';
COMMENT ON COLUMN residency.self.number IS '1 to 64, unique in the deployment; start of sequences';
COMMENT ON COLUMN residency.self.deployment IS 'random, the same in all regions of one deployment';
COMMENT ON COLUMN residency.self.incarnation IS 'random, renewed by residency.renew()';
COMMENT ON COLUMN residency.self.announced IS 'incarnations of calls of residency.renew() that did not commit: their parts elsewhere are this region''s too';
COMMENT ON COLUMN residency.self.place IS 'where this row was made, or renewed: a database that it is not true of is a copy';
COMMENT ON COLUMN residency.self.connection IS 'how other regions reach this one; null: as add_region() finds out';

-- Column order is known to src/regions.c.
CREATE TABLE residency.region (
	name         pg_catalog.name PRIMARY KEY,
	number       pg_catalog.int4 NOT NULL UNIQUE CHECK (number BETWEEN 1 AND 64),
	incarnation  pg_catalog.int8 NOT NULL UNIQUE,
	role         pg_catalog.name UNIQUE,
	joined_in    pg_catalog.xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
	replaced     pg_catalog.int8[] NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE residency.region IS 'all regions of the deployment, this one included';
COMMENT ON COLUMN residency.region.role IS 'role by which that region logs in here as a gateway; null for this region';
COMMENT ON COLUMN residency.region.joined_in IS 'transaction of this region that let it join, or replaced it';
COMMENT ON COLUMN residency.region.replaced IS 'incarnations of its databases that were lost and replaced: nobody lets them in any more';

CREATE TABLE residency.rule (
	relation       pg_catalog.regclass PRIMARY KEY,
	kind           pg_catalog."char" NOT NULL CHECK (kind IN ('g', 'r')),
	region_column  pg_catalog.name NOT NULL,
	key            pg_catalog.name[],
	directory      pg_catalog.regclass,
	CHECK (kind = 'r' OR directory IS NULL)
);
COMMENT ON TABLE residency.rule IS 'declared tables: g global, r resident';
COMMENT ON COLUMN residency.rule.region_column IS 'column that names each row''s home region';
COMMENT ON COLUMN residency.rule.key IS 'resident: columns that the directory knows the home of; null for global tables, whose primary key counts';
COMMENT ON COLUMN residency.rule.directory IS 'global table that tells where the rows of a key live';

SELECT pg_catalog.pg_extension_config_dump('residency.self', '');
SELECT pg_catalog.pg_extension_config_dump('residency.region', '');
SELECT pg_catalog.pg_extension_config_dump('residency.rule', '');

CREATE FUNCTION residency.invalidate() RETURNS trigger
	LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_invalidate';
COMMENT ON FUNCTION residency.invalidate() IS 'trigger of the catalog tables: empties the caches of all backends';

CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON residency.self
	FOR EACH STATEMENT EXECUTE FUNCTION residency.invalidate();
CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON residency.region
	FOR EACH STATEMENT EXECUTE FUNCTION residency.invalidate();
CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON residency.rule
	FOR EACH STATEMENT EXECUTE FUNCTION residency.invalidate();
-- also while session_replication_role is replica, as when rows are moved
ALTER TABLE residency.self ENABLE ALWAYS TRIGGER invalidate;
ALTER TABLE residency.region ENABLE ALWAYS TRIGGER invalidate;
ALTER TABLE residency.rule ENABLE ALWAYS TRIGGER invalidate;

CREATE FUNCTION residency.refuse_region_change() RETURNS trigger
	LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_refuse_region_change';
COMMENT ON FUNCTION residency.refuse_region_change() IS 'trigger of home partitions and directories: a row stays in its region';

CREATE FUNCTION residency.random_bits() RETURNS pg_catalog.int8
	LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'residency_random_bits';
COMMENT ON FUNCTION residency.random_bits() IS '64 random bits of the server''s strong generator';

-- What keeps this server from being a region, or null; asked by init() here, and by
-- add_region() in a form of its own that needs no extension.
CREATE FUNCTION residency.missing_setting() RETURNS pg_catalog.text
	LANGUAGE plpgsql STABLE PARALLEL SAFE
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	libraries text := current_setting('shared_preload_libraries');
BEGIN
	IF libraries !~ '(^|,)\s*"?(\$libdir/)?residency"?\s*(,|$)' THEN
		RETURN format('shared_preload_libraries = ''%s''',
					  CASE WHEN libraries = '' THEN 'residency' ELSE libraries || ', residency' END);
	END IF;
	IF current_setting('max_prepared_transactions')::int4 = 0 THEN
		RETURN 'max_prepared_transactions = 200';
	END IF;
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION residency.missing_setting() IS 'line that postgresql.conf lacks for this server to be a region, or null';

-- Raises an error unless the name can name a region, hence a schema and a server.
CREATE FUNCTION residency.check_name(region pg_catalog.text) RETURNS pg_catalog.void
	LANGUAGE plpgsql IMMUTABLE CALLED ON NULL INPUT PARALLEL SAFE
	SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF region IS NULL OR region = '' THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = 'the name of a region must not be empty',
			HINT = 'Choose a short name for the jurisdiction, such as ''usa'' or ''eu-west''.';
	END IF;
	IF octet_length(region) > 63 THEN
		RAISE EXCEPTION USING ERRCODE = '42622',
			MESSAGE = format('the name of a region must not be longer than 63 bytes, this one has %s', octet_length(region));
	END IF;
	IF region ~ '^pg_' OR region IN ('public', 'residency', 'information_schema') THEN
		RAISE EXCEPTION USING ERRCODE = '42939',
			MESSAGE = format('region name "%s" is reserved', region),
			DETAIL = 'The schema of the same name has another use.',
			HINT = 'Choose another name.';
	END IF;
	IF region ~ '[[:cntrl:]]' THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = 'the name of a region must not contain control characters';
	END IF;
END
$$;
COMMENT ON FUNCTION residency.check_name(pg_catalog.text) IS 'raises an error unless this can be the name of a region';

-- Makes the schema of a region's partitions.  Anybody may look into it: rights on the
-- tables decide what is seen there.
CREATE FUNCTION residency.make_schema(region pg_catalog.name) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
	SET client_min_messages = warning
AS $$
BEGIN
	EXECUTE format('CREATE SCHEMA IF NOT EXISTS %I', region);
	EXECUTE format('GRANT USAGE ON SCHEMA %I TO PUBLIC', region);
END
$$;
COMMENT ON FUNCTION residency.make_schema(pg_catalog.name) IS 'makes the schema that holds a region''s partitions';

-- The role that acts here for a gateway's superuser; never a superuser itself.  Row
-- security would make it see less than it may read anyway, without an error.
CREATE FUNCTION residency.make_operator() RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'residency_operator') THEN
		CREATE ROLE residency_operator NOLOGIN BYPASSRLS;
	END IF;
	IF (SELECT rolsuper FROM pg_roles WHERE rolname = 'residency_operator') THEN
		RAISE EXCEPTION USING ERRCODE = '42501',
			MESSAGE = 'role "residency_operator" must not be a superuser',
			HINT = 'Run ALTER ROLE residency_operator NOSUPERUSER.';
	END IF;
	GRANT pg_read_all_data, pg_write_all_data TO residency_operator;
END
$$;
COMMENT ON FUNCTION residency.make_operator() IS 'makes the role that acts here for superusers of other regions';

CREATE FUNCTION residency.init(region pg_catalog.text, connection pg_catalog.text DEFAULT NULL)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	missing text;
	known   name;
	own     int8 := residency.random_bits();
BEGIN
	IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
		RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'must be superuser to make this database a region';
	END IF;
	PERFORM residency.check_name(init.region);
	LOCK TABLE residency.self IN SHARE ROW EXCLUSIVE MODE;
	SELECT s.region INTO known FROM residency.self s;
	IF FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '55000',
			MESSAGE = format('this database is region "%s" already', known),
			HINT = 'A region keeps its name. SELECT * FROM residency.regions shows what is known here.';
	END IF;
	missing := residency.missing_setting();
	IF missing IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = '55000',
			MESSAGE = 'this server is not set up to be a region',
			HINT = format('Put this line into postgresql.conf and restart the server: %s', missing);
	END IF;
	IF init.connection IS NOT NULL THEN
		PERFORM residency.server_options(init.connection);
	END IF;
	PERFORM residency.make_schema(init.region::name);
	PERFORM residency.make_operator();
	INSERT INTO residency.self (region, number, deployment, incarnation, connection)
		VALUES (init.region, 1, residency.random_bits(), own, init.connection);
	INSERT INTO residency.region (name, number, incarnation) VALUES (init.region, 1, own);
END
$$;
COMMENT ON FUNCTION residency.init(pg_catalog.text, pg_catalog.text)
	IS 'makes this database a region; connection tells the others how to reach it';

CREATE VIEW residency.tables AS
	SELECT r.relation,
		   CASE r.kind WHEN 'g' THEN 'global' ELSE 'resident' END AS kind,
		   r.region_column,
		   CASE r.kind
		   WHEN 'g' THEN ARRAY(SELECT a.attname
							   FROM pg_catalog.pg_index i
							   CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[])
									WITH ORDINALITY AS k (attnum, position)
							   JOIN pg_catalog.pg_attribute a
									ON a.attrelid = i.indrelid AND a.attnum = k.attnum
							   WHERE i.indrelid = r.relation AND i.indisprimary
									 AND k.position <= i.indnkeyatts
							   ORDER BY k.position)
		   ELSE r.key END AS key,
		   r.directory
	FROM residency.rule r;
COMMENT ON VIEW residency.tables IS 'resident and global tables, their keys and directories';

GRANT SELECT ON residency.tables TO PUBLIC;
REVOKE EXECUTE ON FUNCTION residency.random_bits(), residency.missing_setting(),
	residency.make_schema(pg_catalog.name), residency.make_operator(),
	residency.init(pg_catalog.text, pg_catalog.text) FROM PUBLIC;
