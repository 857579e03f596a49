--
-- residency.make_global(): a table of which every region has a full copy.
--

-- Step: what this region's table is like: its shape, whether it holds rows, and the
-- highest values of its sequences.  Locks it against writes.
CREATE FUNCTION residency.inspect_global(relation pg_catalog.text, region_column pg_catalog.name,
		OUT shape pg_catalog.text[], OUT filled pg_catalog.bool, OUT floors pg_catalog.jsonb)
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	t regclass := residency.check_table(relation, region_column);
BEGIN
	EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', t);
	IF NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = t AND k.contype = 'p') THEN
		PERFORM residency.refuse(errcode => '42P16',
			message => format('table %s has no primary key in region "%s"', t, residency.own_region()),
			detail => 'The rows of a global table are told apart by it.',
			hint => format('Run SELECT residency.run_everywhere(''ALTER TABLE %s ADD PRIMARY KEY (...)'').', t));
	END IF;
	shape := residency.table_shape(t);
	floors := residency.sequence_floors(t);
	EXECUTE format('SELECT EXISTS (SELECT FROM %s)', t) INTO filled;
END
$$;
COMMENT ON FUNCTION residency.inspect_global(pg_catalog.text, pg_catalog.name)
	IS 'step of make_global: what this region''s table is like';

-- Step: number and digest of the rows, or of those at home in one region, under formats that are the
-- same everywhere.
CREATE FUNCTION residency.table_content(relation pg_catalog.text, region_column pg_catalog.name DEFAULT NULL,
		home pg_catalog.text DEFAULT NULL) RETURNS pg_catalog.text
	LANGUAGE plpgsql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
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
	content text;
BEGIN
	EXECUTE format('SELECT count(*) || '' '' || coalesce(sum(hashtextextended((t.*)::text, 0)::numeric), 0) FROM %s t',
				   relation::regclass) || CASE WHEN home IS NULL THEN '' ELSE format(' WHERE %I = %L', region_column, home) END INTO content;
	RETURN content;
END
$$;
COMMENT ON FUNCTION residency.table_content(pg_catalog.text, pg_catalog.name, pg_catalog.text) IS 'number and digest of a table''s rows';

-- Step: rows of a global table, each as the text of its row.
CREATE FUNCTION residency.take_rows(relation pg_catalog.text, literals pg_catalog.text[]) RETURNS pg_catalog.int8
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
	SET DateStyle = 'ISO, MDY'
	SET IntervalStyle = 'postgres'
	SET TimeZone = 'UTC'
	SET lc_monetary = 'C'
	SET session_replication_role = replica
AS $$
#variable_conflict use_variable
DECLARE
	columns text;
	fields  text;
	taken   int8;
BEGIN
	SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum),
		   string_agg('(r).' || quote_ident(a.attname), ', ' ORDER BY a.attnum)
		INTO columns, fields
		FROM pg_attribute a
		WHERE a.attrelid = relation::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '';
	EXECUTE format('INSERT INTO %1$s (%2$s) OVERRIDING SYSTEM VALUE SELECT %3$s FROM (SELECT x::%1$s AS r FROM unnest($1) x OFFSET 0) s',
				   relation::regclass, columns, fields)
		USING literals;
	GET DIAGNOSTICS taken = ROW_COUNT;
	RETURN taken;
END
$$;
COMMENT ON FUNCTION residency.take_rows(pg_catalog.text, pg_catalog.text[]) IS 'step: takes rows of a global table';

-- Sends all rows of this region's table to the regions named, in batches of about
-- 2 MB (256 blocks) that are not waited for one by one.
CREATE FUNCTION residency.copy_rows(relation pg_catalog.regclass, regions pg_catalog.name[], joined pg_catalog.bool)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
	SET DateStyle = 'ISO, MDY'
	SET IntervalStyle = 'postgres'
	SET TimeZone = 'UTC'
	SET extra_float_digits = 3
	SET lc_monetary = 'C'
AS $$
#variable_conflict use_variable
DECLARE
	step CONSTANT int8 := 256;
	blocks int8 := pg_relation_size(relation) / current_setting('block_size')::int8;
	block  int8 := -step;
	batch  text[];
BEGIN
	LOOP
		block := block + step;
		EXIT WHEN block >= blocks;
		EXECUTE format('SELECT array_agg((t.*)::text) FROM ONLY %s t WHERE ctid >= %L::tid AND ctid < %L::tid',
					   relation, format('(%s,0)', block), format('(%s,0)', block + step)) INTO batch;
		CONTINUE WHEN batch IS NULL;
		PERFORM FROM residency.ask(regions,
			'SELECT residency.take_rows($1::pg_catalog.text, $2::pg_catalog.text[])',
			ARRAY[residency.full_name(relation), batch::text], deferred => true, joined => joined);
	END LOOP;
	RAISE NOTICE 'rows of table % are copied to %', relation,
		(SELECT string_agg(format('region "%s"', r), ', ') FROM unnest(regions) r);
END
$$;
COMMENT ON FUNCTION residency.copy_rows(pg_catalog.regclass, pg_catalog.name[], pg_catalog.bool)
	IS 'part of make_global: sends all rows to other regions';

-- Step: this region's table becomes global.
CREATE FUNCTION residency.declare_global(relation pg_catalog.text, region_column pg_catalog.name, floors pg_catalog.jsonb)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	t regclass := residency.check_table(declare_global.relation, declare_global.region_column);
BEGIN
	EXECUTE format('CREATE TRIGGER residency_capture AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION residency.capture()', t);
	EXECUTE format('CREATE TRIGGER residency_capture_truncate AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION residency.capture()', t);
	EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER residency_capture', t);
	EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER residency_capture_truncate', t);
	PERFORM residency.spread_sequences(t, floors);
	PERFORM residency.grant_operator(t);
	INSERT INTO residency.rule (relation, kind, region_column) VALUES (t, 'g', declare_global.region_column);
END
$$;
COMMENT ON FUNCTION residency.declare_global(pg_catalog.text, pg_catalog.name, pg_catalog.jsonb)
	IS 'step of make_global: this region''s table becomes global';

-- Qualified name of a table, whatever the search_path.
CREATE FUNCTION residency.full_name(relation pg_catalog.regclass) RETURNS pg_catalog.text
	LANGUAGE sql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('%I.%I', n.nspname, c.relname)
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.oid = relation
$$;
COMMENT ON FUNCTION residency.full_name(pg_catalog.regclass) IS 'qualified and quoted name of a table';

-- Refuses rows whose region column names no region.  Names of regions are not personal.
CREATE FUNCTION residency.check_regions(relation pg_catalog.regclass, region_column pg_catalog.name)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	unknown text;
BEGIN
	EXECUTE format('SELECT string_agg(quote_literal(v), '', '') FROM (SELECT DISTINCT %I::text AS v FROM ONLY %s EXCEPT SELECT name::text FROM residency.region ORDER BY 1 LIMIT 5) u',
				   region_column, relation) INTO unknown;
	IF unknown IS NOT NULL THEN
		PERFORM residency.refuse(errcode => '23514',
			message => format('column "%s" of table %s names unknown regions: %s', region_column, relation, unknown),
			hint => 'Correct these rows, or join these regions with residency.add_region() first.');
	END IF;
END
$$;
COMMENT ON FUNCTION residency.check_regions(pg_catalog.regclass, pg_catalog.name)
	IS 'raises an error if rows of a table name unknown regions';

CREATE FUNCTION residency.make_global(relation pg_catalog.regclass, region_column pg_catalog.name)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own    name := residency.own_region();
	table_name text := residency.full_name(relation);
	every  name[];
	a      record;
	shape  text[];
	floors jsonb := '{}';
	full_regions  name[] := '{}';
	empty_regions name[] := '{}';
BEGIN
	IF relation IS NULL OR region_column IS NULL THEN
		PERFORM residency.refuse(errcode => '22004', message => 'table and region column must be given',
			hint => 'Run SELECT residency.make_global(''schema.table'', ''region'').');
	END IF;
	PERFORM residency.require_superuser('declare tables');
	PERFORM residency.begin_change();
	SELECT array_agg(r.name ORDER BY r.name <> own, r.name) INTO every FROM residency.region r;
	PERFORM residency.check_table(table_name, region_column);
	-- this region answers first
	FOR a IN SELECT i.region, i.answer FROM residency.ask(every,
				'SELECT s.shape, s.filled, s.floors FROM residency.inspect_global($1::pg_catalog.text, $2::pg_catalog.name) s',
				ARRAY[table_name, region_column::text]) i ORDER BY i.region <> own LOOP
		IF a.region = own THEN
			shape := a.answer[1]::text[];
		ELSE
			PERFORM residency.compare_shapes(table_name, a.region, shape, a.answer[1]::text[]);
		END IF;
		IF a.answer[2]::bool THEN
			full_regions := full_regions || a.region;
		ELSE
			empty_regions := empty_regions || a.region;
		END IF;
		floors := residency.higher_floors(floors, a.answer[3]::jsonb);
	END LOOP;

	IF cardinality(full_regions) > 0 THEN
		IF own <> ALL (full_regions) THEN
			PERFORM residency.refuse(errcode => '55000',
				message => format('table %s is empty here, but holds rows in region "%s"', table_name, full_regions[1]),
				hint => 'Run residency.make_global() in that region: its rows are then copied to the others.');
		END IF;
		PERFORM residency.check_regions(relation, region_column);
		IF cardinality(full_regions) > 1 THEN
			FOR a IN SELECT c.region, c.answer, first_value(c.answer) OVER (ORDER BY c.region <> own, c.region) AS here
					 FROM residency.ask(full_regions, 'SELECT residency.table_content($1::pg_catalog.text)', ARRAY[table_name]) c LOOP
				IF a.answer IS DISTINCT FROM a.here THEN
					PERFORM residency.refuse(errcode => '55000',
						message => format('table %s holds other rows in region "%s" than here', table_name, a.region),
						hint => 'Empty it in all regions but one, whose rows are then copied, or make all equal.');
				END IF;
			END LOOP;
		END IF;
		IF cardinality(empty_regions) > 0 THEN
			PERFORM residency.copy_rows(relation, empty_regions, true);
		END IF;
	END IF;
	PERFORM FROM residency.ask(every,
		'SELECT residency.declare_global($1::pg_catalog.text, $2::pg_catalog.name, $3::pg_catalog.jsonb)',
		ARRAY[table_name, region_column::text, floors::text]);
END
$$;
COMMENT ON FUNCTION residency.make_global(pg_catalog.regclass, pg_catalog.name)
	IS 'makes a table global: every region has a full copy';
