--
-- Rows of global tables whose home is lost: part of residency.replace_region().
--
-- Their home was the only place that knew which regions lacked their latest version, and those
-- notes are lost with it.  So the copies of the regions that live may differ, and nothing tells
-- which one is newer.  They are compared; differences are an error, unless the caller says that his
-- region is right.  Then the new home notes the keys that differ, and ships its rows as any home
-- does to who has been away.
--
-- What is in residency.conflicts is known to differ: the new home gets the entries of the old one
-- from the regions that could not take its rows, and goes on trying.
--

-- Step: keys and digests of the rows of a global table that have that region as their home,
-- under formats that are the same everywhere.
CREATE FUNCTION residency.homed_rows(relation pg_catalog.text, home pg_catalog.name,
		OUT key pg_catalog.text, OUT digest pg_catalog.int8)
	RETURNS SETOF pg_catalog.record
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
	SET DateStyle = 'ISO, MDY'
	SET IntervalStyle = 'postgres'
	SET TimeZone = 'UTC'
	SET extra_float_digits = 3
	SET bytea_output = 'hex'
	SET lc_monetary = 'C'
AS $$
#variable_conflict use_variable
DECLARE
	t record;
BEGIN
	SELECT u.relation, u.region_column,
		   (SELECT string_agg(format('t.%I::pg_catalog.text', k), ', ' ORDER BY n) FROM unnest(u.key) WITH ORDINALITY x (k, n)) AS keys
		INTO t FROM residency.tables u WHERE u.relation = relation::regclass;
	RETURN QUERY EXECUTE format('SELECT residency.key_text(ARRAY[%s]), hashtextextended((t.*)::text, 0) FROM ONLY %s t WHERE t.%I::text = %L',
								t.keys, t.relation, t.region_column, home);
END
$$;
COMMENT ON FUNCTION residency.homed_rows(pg_catalog.text, pg_catalog.name)
	IS 'step of replace_region: keys and digests of a region''s rows of a global table';

-- Rows that another region has otherwise than this one, of those that have that home; what is in
-- conflict is not counted.
CREATE FUNCTION residency.differing_rows(relation pg_catalog.text, home pg_catalog.name, region pg_catalog.name,
		OUT keys pg_catalog.text[], OUT differing pg_catalog.int8, OUT missing_here pg_catalog.int8,
		OUT missing_there pg_catalog.int8)
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	known text[] := ARRAY(SELECT a.answer[1] FROM residency.ask(ARRAY[region],
		'SELECT c.key FROM residency.conflict c WHERE c.relation OPERATOR(pg_catalog.=) $1::pg_catalog.regclass::pg_catalog.oid',
		ARRAY[relation]) a);
BEGIN
	SELECT array_agg(coalesce(h.key, o.key)),
		   count(*) FILTER (WHERE u.new AND h.key = o.key),
		   count(*) FILTER (WHERE u.new AND h.key IS NULL),
		   count(*) FILTER (WHERE u.new AND o.key IS NULL)
		INTO keys, differing, missing_here, missing_there
		FROM residency.homed_rows(relation, home) h
		FULL JOIN (SELECT a.answer[1] AS key, a.answer[2]::int8 AS digest FROM residency.ask(ARRAY[region],
			'SELECT r.key, r.digest FROM residency.homed_rows($1::pg_catalog.text, $2::pg_catalog.name) r',
			ARRAY[relation, home::text]) a) o ON o.key = h.key
		CROSS JOIN LATERAL (SELECT coalesce(h.key, o.key) <> ALL (known)) u (new)
		WHERE h.digest IS DISTINCT FROM o.digest;
END
$$;
COMMENT ON FUNCTION residency.differing_rows(pg_catalog.text, pg_catalog.name, pg_catalog.name)
	IS 'part of replace_region: rows of a home that another region has otherwise than this one';

-- Compares the copies of a lost home's rows in the regions named with those here, which must be
-- complete otherwise.  All are locked against writes.  Returns the keys that differ, as
-- [{relation, region, keys}, ...].
CREATE FUNCTION residency.compare_copies(lost pg_catalog.name, regions pg_catalog.name[], overwrite pg_catalog.bool)
	RETURNS pg_catalog.jsonb
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own    name := residency.own_region();
	result jsonb := '[]';
	t      record;
	a      record;
	d      record;
BEGIN
	PERFORM residency.require_complete(regions);
	FOR t IN SELECT residency.full_name(r.relation) AS name FROM residency.rule r WHERE r.kind = 'g' ORDER BY r.relation::text LOOP
		PERFORM FROM residency.ask(regions, format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', t.name));
	END LOOP;
	FOR t IN SELECT residency.full_name(r.relation) AS name, r.region_column FROM residency.rule r WHERE r.kind = 'g' ORDER BY r.relation::text LOOP
		FOR a IN WITH answers AS MATERIALIZED (
					SELECT c.region, c.answer[1] AS content
					FROM residency.ask(regions, 'SELECT residency.table_content($1::pg_catalog.text, $2::pg_catalog.name, $3::pg_catalog.text)',
									   ARRAY[t.name, t.region_column::text, lost::text]) c)
				 SELECT c.region FROM answers c
				 WHERE c.content <> (SELECT o.content FROM answers o WHERE o.region = own) ORDER BY 1 LOOP
			d := residency.differing_rows(t.name, lost, a.region);
			IF d.differing + d.missing_here + d.missing_there > 0 AND NOT overwrite THEN
				PERFORM residency.refuse(errcode => '55000',
					message => format('rows of global table %s whose home was region "%s" are not the same in region "%s" as here', t.name, lost, a.region),
					detail => format('%s differ, %s are missing here, %s are missing there.', d.differing, d.missing_here, d.missing_there),
					hint => 'One of the regions was away when they were written last. Compare them; then call in the region that is right, with overwrite => true.');
			END IF;
			result := result || jsonb_build_object('relation', t.name, 'region', a.region, 'keys', to_jsonb(d.keys));
		END LOOP;
	END LOOP;
	RETURN result;
END
$$;
COMMENT ON FUNCTION residency.compare_copies(pg_catalog.name, pg_catalog.name[], pg_catalog.bool)
	IS 'part of replace_region: raises an error if copies of a lost home''s rows differ, or tells which do';

-- Step, in the new home: what is noted, or in conflict, about another region.
CREATE FUNCTION residency.inherit(region pg_catalog.name, relation pg_catalog.text, keys pg_catalog.text[],
		conflicts pg_catalog.jsonb) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	INSERT INTO residency.conflict (relation, key, region, kind, home, constraint_name, content, noticed_at)
		SELECT c.relation::regclass, c.key, region, c.kind, residency.own_region(), c.constraint_name, c.content, c.noticed_at
		FROM jsonb_to_recordset(conflicts) c (relation text, key text, kind text, constraint_name text, content jsonb, noticed_at timestamptz);
	INSERT INTO residency.backlog (region, relation, key)
		SELECT region, relation::regclass, k FROM unnest(keys) k
		UNION
		SELECT region, c.relation::regclass, c.key FROM jsonb_to_recordset(conflicts) c (relation text, key text, kind text, constraint_name text)
		WHERE c.kind <> 'key' OR c.constraint_name IS NOT NULL
		ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION residency.inherit(pg_catalog.name, pg_catalog.text, pg_catalog.text[], pg_catalog.jsonb)
	IS 'step of replace_region: what the new database has to ship to another region';

-- The new home gets the keys that differ, and the conflicts of its rows that the regions named know.
CREATE FUNCTION residency.hand_down(lost pg_catalog.name, regions pg_catalog.name[], differing pg_catalog.jsonb)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	inherit CONSTANT text := 'SELECT residency.inherit($1::pg_catalog.name, $2::pg_catalog.text, $3::pg_catalog.text[], $4::pg_catalog.jsonb)';
	a record;
BEGIN
	FOR a IN SELECT d.region, d.relation, d.keys FROM jsonb_to_recordset(differing) d (region text, relation text, keys text[]) LOOP
		PERFORM FROM residency.ask(ARRAY[lost], inherit, ARRAY[a.region, a.relation, a.keys::text, '[]'], joined => false);
	END LOOP;
	FOR a IN SELECT c.region, c.answer FROM residency.ask(regions, $sql$
				SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('relation', residency.full_name(c.relation), 'key', c.key, 'kind', c.kind,
					'constraint_name', c.constraint_name, 'content', c.content, 'noticed_at', c.noticed_at))
				FROM residency.conflict c JOIN residency.self s ON s.region OPERATOR(pg_catalog.=) c.region
				WHERE c.home OPERATOR(pg_catalog.=) $1::pg_catalog.name$sql$, ARRAY[lost::text]) c
			 WHERE c.answer[1] IS NOT NULL LOOP
		PERFORM FROM residency.ask(ARRAY[lost], inherit, ARRAY[a.region::text, NULL, '{}', a.answer[1]], joined => false);
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.hand_down(pg_catalog.name, pg_catalog.name[], pg_catalog.jsonb)
	IS 'part of replace_region: the new database gets what its rows'' home has to know about other regions';

REVOKE ALL ON FUNCTION residency.homed_rows(pg_catalog.text, pg_catalog.name),
	residency.differing_rows(pg_catalog.text, pg_catalog.name, pg_catalog.name),
	residency.compare_copies(pg_catalog.name, pg_catalog.name[], pg_catalog.bool),
	residency.inherit(pg_catalog.name, pg_catalog.text, pg_catalog.text[], pg_catalog.jsonb),
	residency.hand_down(pg_catalog.name, pg_catalog.name[], pg_catalog.jsonb) FROM PUBLIC;
