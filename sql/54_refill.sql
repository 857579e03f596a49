--
-- A region that was restored from a backup gets the copies of global tables anew.
--

-- Step: the copies here are emptied, and take rows that nobody captures.
CREATE FUNCTION residency.begin_refill(relation pg_catalog.text) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
	SET session_replication_role = replica
AS $$
#variable_conflict use_variable
BEGIN
	EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', relation::regclass);
	EXECUTE format('ALTER TABLE %s DISABLE TRIGGER residency_capture', relation::regclass);
	EXECUTE format('DELETE FROM ONLY %s', relation::regclass);
END
$$;
COMMENT ON FUNCTION residency.begin_refill(pg_catalog.text) IS 'step of refill: empties this region''s copy of a global table';

-- Step: the copy is whole again; its own sequences go on above all values in it.
CREATE FUNCTION residency.finish_refill(relation pg_catalog.text) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	t regclass := relation::regclass;
BEGIN
	EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER residency_capture', t);
	PERFORM residency.spread_sequences(t, residency.sequence_floors(t));
END
$$;
COMMENT ON FUNCTION residency.finish_refill(pg_catalog.text) IS 'step of refill: a global table is global again';

-- Step: resident tables with rows here whose keys the directory does not know any more,
-- and how many.
CREATE FUNCTION residency.orphans(OUT relation pg_catalog.text, OUT orphans pg_catalog.int8, OUT statement pg_catalog.text)
	RETURNS SETOF pg_catalog.record
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	r         residency.rule;
	home      regclass;
	condition text;
BEGIN
	FOR r IN SELECT * FROM residency.rule WHERE kind = 'r' AND directory IS NOT NULL ORDER BY residency.rule.relation::text LOOP
		SELECT i.inhrelid::regclass INTO home
			FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
			WHERE i.inhparent = r.relation AND c.relkind = 'r' AND
				  c.relnamespace = residency.own_region()::text::regnamespace;
		CONTINUE WHEN home IS NULL;
		-- as the home's foreign key has it, whose columns are the key and the region
		SELECT string_agg(format('d.%I = h.%I', f.attname, k.attname), ' AND ') INTO condition
			FROM pg_constraint c
			CROSS JOIN LATERAL unnest(c.conkey, c.confkey) u (k, f)
			JOIN pg_attribute k ON k.attrelid = c.conrelid AND k.attnum = u.k
			JOIN pg_attribute f ON f.attrelid = c.confrelid AND f.attnum = u.f
			WHERE c.conrelid = home AND c.conname = 'residency_home';
		CONTINUE WHEN condition IS NULL;
		relation := residency.full_name(home);
		statement := format('DELETE FROM %s h WHERE NOT EXISTS (SELECT FROM %s d WHERE %s)', home, r.directory, condition);
		EXECUTE format('SELECT count(*) FROM %s h WHERE NOT EXISTS (SELECT FROM %s d WHERE %s)', home, r.directory, condition) INTO orphans;
		IF orphans > 0 THEN
			RETURN NEXT;
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.orphans()
	IS 'resident tables with rows here that the directory does not know, their number, and how to delete them';

-- Step: what is undecided about this region, as the others know it; what a backup remembers may be
-- decided since.
CREATE FUNCTION residency.take_conflicts(conflicts pg_catalog.jsonb) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	DELETE FROM residency.conflict;
	INSERT INTO residency.conflict (relation, key, region, kind, home, constraint_name, content, noticed_at)
		SELECT (c ->> 0)::regclass, c ->> 1, c ->> 2, c ->> 3, c ->> 4, c ->> 5, (c ->> 6)::jsonb, (c ->> 7)::timestamptz
		FROM jsonb_array_elements(conflicts) c
		ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION residency.take_conflicts(pg_catalog.jsonb)
	IS 'step of refill: rows of residency.conflict that concern this region';

-- Warns of regions whose copies of rows at home in "region" are not like the ones here.  That one may have
-- noted what such a region has missed, and lost the notes.
CREATE FUNCTION residency.warn_of_differences(region pg_catalog.name, others pg_catalog.name[]) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own    name := residency.own_region();
	tables text;
	other  name;
BEGIN
	FOR other, tables IN
		SELECT d.region, string_agg(d.relation, ', ' ORDER BY d.relation)
		FROM (SELECT r.relation::text AS relation, a.region,
					 a.answer[1] <> first_value(a.answer[1]) OVER (PARTITION BY r.relation ORDER BY a.region <> own) AS differs
			  FROM residency.rule r
			  CROSS JOIN LATERAL residency.ask(others, 'SELECT residency.table_content($1::pg_catalog.text, $2::pg_catalog.name, $3::pg_catalog.text)',
											   ARRAY[residency.full_name(r.relation), r.region_column::text, region::text]) a
			  WHERE r.kind = 'g') d
		WHERE d.differs GROUP BY d.region
	LOOP
		RAISE WARNING 'region "%" has other rows of % at home in region "%" than this one', other, tables, region
			USING DETAIL = 'One of the two has not got the last changes that were made there, and what was noted about that is lost.',
				  HINT = format('If it is region "%s", run SELECT residency.refill(%L) here as well. If it is this one, run residency.refill() in region "%1$s" for both.', other, other);
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.warn_of_differences(pg_catalog.name, pg_catalog.name[])
	IS 'part of refill: compares what other regions have of the restored one';

CREATE FUNCTION residency.refill(region pg_catalog.text) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own    name := residency.own_region();
	others name[];
	conflicts jsonb;
	r      residency.rule;
	a      record;
BEGIN
	PERFORM residency.require_superuser('refill a region');
	IF region IS NULL OR region = own OR NOT EXISTS (SELECT FROM residency.region x WHERE x.name = region) THEN
		PERFORM residency.refuse(errcode => '22023', message => 'the region to refill must be another region of this deployment',
			hint => 'Run SELECT residency.refill(''name'') in a region that lost nothing; SELECT name FROM residency.regions; lists the names.');
	END IF;
	PERFORM residency.begin_change();
	SELECT array_agg(x.name) INTO others FROM residency.region x WHERE x.name <> region;
	PERFORM residency.require_complete(others);
	FOR r IN SELECT * FROM residency.rule WHERE kind = 'g' ORDER BY relation::text LOOP
		PERFORM FROM residency.ask(others, format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', residency.full_name(r.relation)));
	END LOOP;
	FOR r IN SELECT * FROM residency.rule WHERE kind = 'g' ORDER BY relation::text LOOP
		PERFORM FROM residency.ask(ARRAY[region::name], 'SELECT residency.begin_refill($1::pg_catalog.text)',
								   ARRAY[residency.full_name(r.relation)], deferred => true);
		PERFORM residency.copy_rows(r.relation, ARRAY[region::name], true);
		PERFORM FROM residency.ask(ARRAY[region::name], 'SELECT residency.finish_refill($1::pg_catalog.text)',
								   ARRAY[residency.full_name(r.relation)], deferred => true);
	END LOOP;
	SELECT coalesce(jsonb_agg(DISTINCT to_jsonb(c.answer)), '[]') INTO conflicts
		FROM residency.ask(others, 'SELECT residency.full_name(c.relation), c.key, c.region, c.kind, c.home, c.constraint_name, c.content, c.noticed_at
			FROM residency.conflict c WHERE $1::pg_catalog.name IN (c.region, c.home)', ARRAY[region]) c;
	PERFORM FROM residency.ask(ARRAY[region::name], 'SELECT residency.take_conflicts($1::pg_catalog.jsonb)',
							   ARRAY[conflicts::text], deferred => true);
	PERFORM residency.warn_of_differences(region::name, others);
	FOR a IN SELECT o.answer FROM residency.ask(ARRAY[region::name], 'SELECT o.relation, o.orphans, o.statement FROM residency.orphans() o') o LOOP
		RAISE WARNING '% rows of table % in region "%" have no row in their directory: nobody finds them', a.answer[2], a.answer[1], region
			USING DETAIL = 'They belong to keys that were deleted, or given another home, after the backup.',
				  HINT = format('Look at them in that region, then delete them there: %s;', a.answer[3]);
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.refill(pg_catalog.text)
	IS 'replaces all rows of global tables in a region that was restored from a backup by this region''s';

REVOKE ALL ON FUNCTION residency.begin_refill(pg_catalog.text), residency.finish_refill(pg_catalog.text),
	residency.take_conflicts(pg_catalog.jsonb), residency.warn_of_differences(pg_catalog.name, pg_catalog.name[]),
	residency.require_complete(pg_catalog.name[]), residency.orphans(), residency.refill(pg_catalog.text) FROM PUBLIC;
