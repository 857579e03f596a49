-- The example: identities, their personal details, and who manages whom.
--
-- Run it once, with psql, as a superuser of any one of the joined regions; it
-- reaches all of them.  Each step looks first whether it is done already, so a
-- run that was interrupted is finished by the next one.
--
--   psql -d identity -f examples/identity/schema.sql
\set ON_ERROR_STOP on
\set QUIET on

-- Tables.  Nothing here differs from tables of one server; what makes them
-- global or resident comes below.
SELECT pg_catalog.to_regclass('shared.identity') IS NULL AS missing \gset
\if :missing
SELECT residency.run_everywhere($everywhere$

DO $do$
BEGIN
	-- The owner is an ordinary role: nothing in the example needs more.
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'identity') THEN
		CREATE ROLE identity LOGIN;
	END IF;
END
$do$;

CREATE EXTENSION IF NOT EXISTS "uuid-ossp" WITH SCHEMA public;

CREATE SCHEMA shared AUTHORIZATION identity;
CREATE SCHEMA util AUTHORIZATION identity;

CREATE TABLE shared.identity (
	uuid         pg_catalog.uuid PRIMARY KEY,
	manager_uuid pg_catalog.uuid REFERENCES shared.identity (uuid),
	region       text NOT NULL,
	note         text,
	created_on   timestamptz NOT NULL DEFAULT pg_catalog.now()
);
CREATE INDEX identity_manager_uuid ON shared.identity (manager_uuid);
COMMENT ON TABLE shared.identity IS
	'who exists and in which region; no personal data, a full copy in every region';

CREATE TABLE shared.identity_details (
	uuid   pg_catalog.uuid PRIMARY KEY,
	region text NOT NULL,
	name   text NOT NULL
);
COMMENT ON TABLE shared.identity_details IS
	'personal data of an identity, stored in its home region and nowhere else';

-- Only identities that have a manager have a row here; anybody else's path is
-- the identity alone.  So a change of one manager writes the rows below it and
-- no other, and new identities without a manager write nothing.
CREATE TABLE shared.hierarchy_path (
	uuid   pg_catalog.uuid PRIMARY KEY REFERENCES shared.identity (uuid) ON DELETE CASCADE,
	region text NOT NULL,
	depth  integer NOT NULL CHECK (depth > 1),
	path   pg_catalog.uuid[] NOT NULL
);
COMMENT ON TABLE shared.hierarchy_path IS
	'path from the root to each managed identity, kept by the triggers of shared.identity';

-- One row, homed in one region, that every change of a manager writes: the
-- home lets one writer of a row commit and refuses the other, so two changes
-- that do not know of each other can never commit both.
CREATE TABLE shared.hierarchy_lock (
	id     integer PRIMARY KEY CHECK (id = 1),
	region text NOT NULL,
	turn   bigint NOT NULL
);
COMMENT ON TABLE shared.hierarchy_lock IS
	'one row that orders the changes of managers over all regions';

CREATE VIEW shared.hierarchy WITH (security_invoker = true) AS
	SELECT i.uuid, i.manager_uuid, i.region, i.note, i.created_on,
		   coalesce(p.depth, 1) AS depth,
		   coalesce(p.path, ARRAY[i.uuid]) AS path
	  FROM shared.identity i
	  LEFT JOIN shared.hierarchy_path p ON p.uuid = i.uuid;
COMMENT ON VIEW shared.hierarchy IS
	'identities with their depth (1: no manager) and the path from the root; path[depth] is the identity itself';

ALTER TABLE shared.identity OWNER TO identity;
ALTER TABLE shared.identity_details OWNER TO identity;
ALTER TABLE shared.hierarchy_path OWNER TO identity;
ALTER TABLE shared.hierarchy_lock OWNER TO identity;
ALTER VIEW shared.hierarchy OWNER TO identity;

$everywhere$);
\endif

-- What is copied everywhere, and what stays at home.
SELECT pg_catalog.format('SELECT residency.make_global(%L, %L)', name, 'region')
  FROM pg_catalog.unnest(ARRAY['shared.identity', 'shared.hierarchy_path', 'shared.hierarchy_lock']) AS name
 WHERE NOT EXISTS (SELECT FROM residency.rule WHERE relation = name::pg_catalog.regclass)
 ORDER BY name = 'shared.identity' DESC, name
\gexec
SELECT NOT EXISTS (SELECT FROM residency.rule
                    WHERE relation = 'shared.identity_details'::pg_catalog.regclass) AS missing \gset
\if :missing
SELECT residency.make_resident('shared.identity_details', 'region',
                               key => '{uuid}', directory => 'shared.identity');
\endif

-- The lock row is homed where this script runs.
INSERT INTO shared.hierarchy_lock (id, region, turn)
SELECT 1, name, 0 FROM residency.regions WHERE home
ON CONFLICT DO NOTHING;

-- Functions.
SELECT pg_catalog.to_regproc('util.create_manager_tree') IS NULL AS missing \gset
\if :missing
SELECT residency.run_everywhere($everywhere$

CREATE FUNCTION shared.follow_managers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off		-- a recursive plan is estimated far above what it costs
AS $function$
-- Brings shared.hierarchy_path up to date with the managers that one statement
-- changed, for all of them together.
DECLARE
	moved uuid[];
	affected_count bigint;
	placed_count bigint;
BEGIN
	IF TG_OP = 'INSERT' THEN
		SELECT array_agg(n.uuid) INTO moved
		  FROM new_rows n WHERE n.manager_uuid IS NOT NULL;
	ELSE
		SELECT array_agg(n.uuid) INTO moved
		  FROM new_rows n JOIN old_rows o ON o.uuid = n.uuid
		 WHERE n.manager_uuid IS DISTINCT FROM o.manager_uuid;
	END IF;
	IF moved IS NULL THEN
		RETURN NULL;
	END IF;

	-- Whoever changes managers writes this row, and its home lets only one do so
	-- at a time.  It comes before the tree is read: when the home accepts our
	-- version of the row, then all that was committed under earlier versions is
	-- here, and the statement below sees it.
	UPDATE shared.hierarchy_lock SET turn = turn + 1 WHERE id = 1;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'table "shared.hierarchy_lock" has no row'
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'Run examples/identity/schema.sql again.';
	END IF;

	-- "affected" is everybody whose manager changed and everybody below; the
	-- UNION ends even where managers run in a circle.  "placed" walks down from
	-- those whose own manager is not affected.  Everybody has one manager, so
	-- no walk enters a circle from outside: who is affected but not placed is in
	-- a circle, or below one.
	WITH RECURSIVE affected (uuid) AS (
		SELECT unnest(moved)
		UNION
		SELECT i.uuid
		  FROM affected a JOIN shared.identity i ON i.manager_uuid = a.uuid
	), placed (uuid, region, depth, path) AS (
		SELECT i.uuid, i.region,
			   CASE WHEN i.manager_uuid IS NULL THEN 1
					ELSE coalesce(p.depth, 1) + 1 END,
			   CASE WHEN i.manager_uuid IS NULL THEN ARRAY[i.uuid]
					ELSE coalesce(p.path, ARRAY[i.manager_uuid]) || i.uuid END
		  FROM shared.identity i
		  LEFT JOIN shared.hierarchy_path p ON p.uuid = i.manager_uuid
		 WHERE i.uuid = ANY (moved)
		   AND NOT EXISTS (SELECT FROM affected a WHERE a.uuid = i.manager_uuid)
		UNION ALL
		SELECT i.uuid, i.region, p.depth + 1, p.path || i.uuid
		  FROM placed p JOIN shared.identity i ON i.manager_uuid = p.uuid
	), written AS (
		INSERT INTO shared.hierarchy_path AS h (uuid, region, depth, path)
		SELECT p.uuid, p.region, p.depth, p.path FROM placed p WHERE p.depth > 1
		ON CONFLICT (uuid) DO UPDATE SET depth = excluded.depth, path = excluded.path
		 WHERE h.path <> excluded.path
	), removed AS (
		DELETE FROM shared.hierarchy_path h
		 USING placed p WHERE p.uuid = h.uuid AND p.depth = 1
	)
	SELECT (SELECT count(*) FROM affected), (SELECT count(*) FROM placed)
	  INTO affected_count, placed_count;

	IF affected_count <> placed_count THEN
		RAISE EXCEPTION 'an identity cannot be managed by itself or by somebody below it'
			USING ERRCODE = 'check_violation',
				  SCHEMA = 'shared', TABLE = 'identity', COLUMN = 'manager_uuid',
				  DETAIL = 'The change would close a circle of managers.',
				  HINT = 'Take the new manager out of the identity''s own tree first.';
	END IF;
	RETURN NULL;
END
$function$;
COMMENT ON FUNCTION shared.follow_managers() IS
	'trigger: keeps shared.hierarchy_path, and refuses circles of managers';

CREATE TRIGGER follow_managers_insert AFTER INSERT ON shared.identity
	REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION shared.follow_managers();
CREATE TRIGGER follow_managers_update AFTER UPDATE ON shared.identity
	REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION shared.follow_managers();

CREATE TYPE shared.upserted AS (uuid pg_catalog.uuid, created boolean, local boolean);

CREATE FUNCTION shared.upsert_identity(uuid pg_catalog.uuid, name text, region text, note text)
RETURNS shared.upserted
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
AS $function$
-- The details of a new identity are inserted without asking whether they exist:
-- the extension sends such a row and waits for nothing.  An update has to wait
-- for its count.
#variable_conflict use_column
DECLARE
	result shared.upserted;
BEGIN
	result.uuid := upsert_identity.uuid;
	INSERT INTO shared.identity (uuid, region, note)
	VALUES (upsert_identity.uuid, upsert_identity.region, upsert_identity.note)
	ON CONFLICT (uuid) DO UPDATE SET region = excluded.region, note = excluded.note
	RETURNING xmax = 0 INTO result.created;	-- a row just inserted was locked by nobody

	IF result.created THEN
		INSERT INTO shared.identity_details (uuid, region, name)
		VALUES (upsert_identity.uuid, upsert_identity.region, upsert_identity.name);
	ELSE
		UPDATE shared.identity_details d SET name = upsert_identity.name
		 WHERE d.uuid = upsert_identity.uuid AND d.region = upsert_identity.region;
	END IF;

	SELECT EXISTS (SELECT FROM residency.regions r
					WHERE r.home AND r.name = upsert_identity.region)
	  INTO result.local;
	RETURN result;
END
$function$;
COMMENT ON FUNCTION shared.upsert_identity(uuid, text, text, text) IS
	'creates or updates an identity and its details; created: was it new, local: is this region its home';

CREATE FUNCTION util.generate_identities(first integer, last integer, give_managers boolean)
RETURNS TABLE (region text, instances bigint)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
AS $function$
-- One INSERT for all identities and one for all details, whatever their number.
#variable_conflict use_column
DECLARE
	people uuid[];
	homes text[];
BEGIN
	SELECT array_agg(gen_random_uuid()) INTO people
	  FROM generate_series(first, last);
	SELECT array_agg(r.name ORDER BY r.name) INTO homes
	  FROM residency.regions r;

	-- A manager is picked among those before, so no circle can arise.
	INSERT INTO shared.identity (uuid, manager_uuid, region, note)
	SELECT p.uuid,
		   CASE WHEN give_managers AND p.n > 1
				THEN people[1 + floor(random() * (p.n - 1))::integer] END,
		   homes[1 + (p.n - 1) % cardinality(homes)],
		   'generated as number ' || first + p.n - 1
	  FROM unnest(people) WITH ORDINALITY AS p (uuid, n);

	INSERT INTO shared.identity_details (uuid, region, name)
	SELECT p.uuid,
		   homes[1 + (p.n - 1) % cardinality(homes)],
		   'Person ' || first + p.n - 1
	  FROM unnest(people) WITH ORDINALITY AS p (uuid, n);

	RETURN QUERY
	SELECT homes[1 + n % cardinality(homes)], count(*)
	  FROM generate_series(0, cardinality(people) - 1) AS n
	 GROUP BY 1 ORDER BY 1;
END
$function$;
COMMENT ON FUNCTION util.generate_identities(integer, integer, boolean) IS
	'makes one identity for each number from first to last, spread evenly over the regions';

CREATE FUNCTION util.create_manager_tree(depth integer)
RETURNS uuid
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
AS $function$
-- Level k holds k people, all under one manager picked from level k - 1: with a
-- root, 1 + depth * (depth + 1) / 2 in all.  "people" has them level by level:
-- the root, then one of level 1, two of level 2, and so on.
#variable_conflict use_column
DECLARE
	people uuid[];
	wanted integer := 1 + depth * (depth + 1) / 2;
BEGIN
	IF depth < 1 THEN
		RAISE EXCEPTION 'depth must be at least 1'
			USING ERRCODE = 'invalid_parameter_value';
	END IF;

	-- Somebody who manages others already would bring a tree along.
	SELECT array_agg(free.uuid) INTO people
	  FROM (SELECT i.uuid
			  FROM shared.identity i
			 WHERE i.manager_uuid IS NULL
			   AND NOT EXISTS (SELECT FROM shared.identity e WHERE e.manager_uuid = i.uuid)
			 ORDER BY random()
			 LIMIT wanted) free;
	IF cardinality(people) IS DISTINCT FROM wanted THEN
		RAISE EXCEPTION 'not enough identities without manager and employees'
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  DETAIL = format('A tree of depth %s needs %s, there are %s.',
								  depth, wanted, coalesce(cardinality(people), 0)),
				  HINT = format('Make some: SELECT * FROM util.generate_identities(1, %s, false);', wanted);
	END IF;

	UPDATE shared.identity i
	   SET manager_uuid = level.manager
	  FROM (SELECT k,
				   CASE k WHEN 1 THEN people[1]
						  ELSE people[2 + (k - 1) * (k - 2) / 2 + floor(random() * (k - 1))::integer]
				   END AS manager
			  FROM generate_series(1, depth) AS k) AS level,
		   generate_series(1, level.k) AS j
	 WHERE i.uuid = people[1 + level.k * (level.k - 1) / 2 + j];

	RETURN people[1];
END
$function$;
COMMENT ON FUNCTION util.create_manager_tree(integer) IS
	'builds a random tree of managers with so many levels and returns its root';

ALTER FUNCTION shared.follow_managers() OWNER TO identity;
ALTER TYPE shared.upserted OWNER TO identity;
ALTER FUNCTION shared.upsert_identity(uuid, text, text, text) OWNER TO identity;
ALTER FUNCTION util.generate_identities(integer, integer, boolean) OWNER TO identity;
ALTER FUNCTION util.create_manager_tree(integer) OWNER TO identity;

$everywhere$);
\endif
