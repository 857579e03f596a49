--
-- residency.make_resident(): a table whose rows are stored in their home regions only.
--
-- In each region the table becomes the home partition, in the region's schema and under
-- its old name; a partitioned table takes its place; foreign tables stand for the home
-- partitions of the other regions.  Rows that are in the wrong region at the start are
-- sent through the new table, so that they travel as every other row does.
--
-- Order, per region: declare (everything but keys), move rows, finish (attach, keys,
-- triggers).  Keys and the directory's foreign key come last, checked in one go.
--

-- Objects that refer to the table or to its row type, and would go on referring to the
-- home partition alone.
CREATE FUNCTION residency.dependents(relation pg_catalog.regclass) RETURNS SETOF pg_catalog.text
	LANGUAGE sql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT DISTINCT pg_describe_object(
				CASE WHEN w.ev_class IS NULL THEN d.classid ELSE 'pg_class'::regclass END,
				coalesce(w.ev_class, d.objid), CASE WHEN w.ev_class IS NULL THEN d.objsubid ELSE 0 END)
	FROM pg_depend d
	LEFT JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid
	LEFT JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
	LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
	WHERE d.deptype = 'n' AND
		  (d.refclassid = 'pg_class'::regclass AND d.refobjid = relation OR
		   d.refclassid = 'pg_type'::regclass AND
		   d.refobjid IN (SELECT t.oid FROM pg_type t
						  WHERE t.typrelid = relation OR
								t.typelem = (SELECT c.reltype FROM pg_class c WHERE c.oid = relation))) AND
		  (w.ev_class IS NOT NULL OR d.classid IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_type'::regclass) OR
		   p.polrelid <> relation OR k.contype = 'f' AND k.confrelid = relation)
$$;
COMMENT ON FUNCTION residency.dependents(pg_catalog.regclass)
	IS 'objects that would go on referring to the home partition of a table alone';

-- The directory as an OID, checked: global, its primary key the key, types equal.
CREATE FUNCTION residency.check_directory(relation pg_catalog.regclass, region_column pg_catalog.name,
		key pg_catalog.name[], directory pg_catalog.text) RETURNS pg_catalog.regclass
	LANGUAGE plpgsql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own   name := residency.own_region();
	d     regclass := to_regclass(directory);
	rule  residency.rule;
	wrong name;
BEGIN
	SELECT * INTO rule FROM residency.rule r WHERE r.relation = d AND r.kind = 'g';
	IF NOT FOUND THEN
		PERFORM residency.refuse(errcode => '42809',
			message => format('directory %s is not a global table in region "%s"', directory, own),
			hint => format('Run SELECT residency.make_global(%L, ''region-column'') first.', directory));
	END IF;
	IF (SELECT array_agg(a.attname ORDER BY a.attname) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
		WHERE i.indrelid = d AND i.indisprimary)
	   IS DISTINCT FROM (SELECT array_agg(k ORDER BY k) FROM unnest(key) k) THEN
		PERFORM residency.refuse(errcode => '42830',
			message => format('key {%s} is not the primary key of directory %s', array_to_string(key, ', '), d),
			hint => 'Name the key columns like those of the directory''s primary key.');
	END IF;
	SELECT a.attname INTO wrong
		FROM pg_attribute a
		JOIN pg_attribute b ON b.attrelid = d AND
			 b.attname = CASE WHEN a.attname = region_column THEN rule.region_column ELSE a.attname END
		WHERE a.attrelid = relation AND a.attname = ANY (key || region_column) AND
			  (a.atttypid, a.attcollation) <> (b.atttypid, b.attcollation)
		LIMIT 1;
	IF FOUND THEN
		PERFORM residency.refuse(errcode => '42804',
			message => format('column "%s" has another type in table %s than in directory %s', wrong, relation, d),
			hint => 'Give it the same type and collation in both.');
	END IF;
	RETURN d;
END
$$;
COMMENT ON FUNCTION residency.check_directory(pg_catalog.regclass, pg_catalog.name, pg_catalog.name[], pg_catalog.text)
	IS 'part of make_resident: checks the directory';

-- Step: raises an error unless this region's table can become resident.  Returns it,
-- locked.  Only the region that moves rows may hold some of other regions.
CREATE FUNCTION residency.check_resident(relation pg_catalog.text, region_column pg_catalog.name,
		key pg_catalog.name[], directory pg_catalog.text, mover pg_catalog.bool) RETURNS pg_catalog.regclass
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own       name := residency.own_region();
	t         regclass := residency.check_table(relation, region_column);
	item      text;
	strangers bool;
BEGIN
	EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', t);
	SELECT string_agg(d, ', ' ORDER BY d) INTO item FROM residency.dependents(t) d;
	IF item IS NOT NULL THEN
		PERFORM residency.refuse(errcode => '2BP01',
			message => format('cannot make table %s resident in region "%s" because other objects depend on it', t, own),
			detail => format('They are: %s.', item),
			hint => 'Drop them in all regions, and create them again afterwards; a foreign key that refers to the table goes to the home partitions.');
	END IF;
	SELECT k INTO item FROM unnest(key) k
		WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t AND a.attname = k AND a.attnum > 0) LIMIT 1;
	IF FOUND THEN
		PERFORM residency.refuse(errcode => '42703',
			message => format('key column "%s" of table %s does not exist in region "%s"', item, t, own),
			hint => 'Name the columns with key => ''{column, ...}''.');
	END IF;
	IF directory IS NOT NULL THEN
		PERFORM residency.check_directory(t, region_column, key, directory);
	END IF;
	FOR item IN SELECT r.name FROM residency.region r
			  WHERE to_regclass(format('%I.%s', r.name, residency.bare_name(t))) IS NOT NULL LOOP
		PERFORM residency.refuse(errcode => '42P07',
			message => format('schema "%s" of region "%s" holds a relation of the name of table %s already', item, own, t),
			detail => 'Partitions have the name of the table that they belong to.',
			hint => 'Rename one of the two tables.');
	END LOOP;
	IF mover THEN
		PERFORM residency.check_regions(t, region_column);
	ELSE
		EXECUTE format('SELECT EXISTS (SELECT FROM ONLY %s WHERE %I::text <> %L)', t, region_column, own) INTO strangers;
		IF strangers THEN
			PERFORM residency.refuse(errcode => '55000',
				message => format('table %s holds rows of other regions in region "%s"', t, own),
				hint => 'Rows are moved from one region only: run residency.make_resident() there, and delete rows of other regions in all others.');
		END IF;
	END IF;
	RETURN t;
END
$$;
COMMENT ON FUNCTION residency.check_resident(pg_catalog.text, pg_catalog.name, pg_catalog.name[], pg_catalog.text, pg_catalog.bool)
	IS 'step of make_resident: checks this region''s table';

-- Quoted name of a table without its schema.
CREATE FUNCTION residency.bare_name(relation pg_catalog.regclass) RETURNS pg_catalog.text
	LANGUAGE sql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT quote_ident(c.relname) FROM pg_class c WHERE c.oid = relation
$$;
COMMENT ON FUNCTION residency.bare_name(pg_catalog.regclass) IS 'quoted name of a table, without its schema';

-- Commands that give the partitioned table what the old table had and LIKE does not
-- copy: checks, statement triggers, row security, comment.  To be read while the table
-- has its old name, so that they name the new table when they run.
CREATE FUNCTION residency.rebuild_commands(relation pg_catalog.regclass) RETURNS pg_catalog.text[]
	LANGUAGE sql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(array_agg(command ORDER BY part, command), '{}') FROM (
		SELECT 1, format('ALTER TABLE %s ADD CONSTRAINT %I %s', relation, k.conname, pg_get_constraintdef(k.oid))
		FROM pg_constraint k
		WHERE k.conrelid = relation AND k.contype = 'c' AND NOT k.connoinherit AND k.convalidated
		UNION ALL
		SELECT 2, pg_get_triggerdef(t.oid)
		FROM pg_trigger t WHERE t.tgrelid = relation AND NOT t.tgisinternal AND t.tgtype & 1 = 0
		UNION ALL
		SELECT 3, format('ALTER TABLE %s %s TRIGGER %I', relation,
						 CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE REPLICA' END, t.tgname)
		FROM pg_trigger t WHERE t.tgrelid = relation AND NOT t.tgisinternal AND t.tgtype & 1 = 0 AND t.tgenabled <> 'O'
		UNION ALL
		SELECT 4, c FROM unnest(residency.policy_commands(relation, relation)) c
		UNION ALL
		SELECT 6, format('COMMENT ON TABLE %s IS %L', relation, obj_description(relation, 'pg_class'))
		WHERE obj_description(relation, 'pg_class') IS NOT NULL) s (part, command)
$$;
COMMENT ON FUNCTION residency.rebuild_commands(pg_catalog.regclass)
	IS 'part of make_resident: what the partitioned table takes over from the old one';

-- Makes the foreign table that stands for a resident table's partition elsewhere.
CREATE FUNCTION residency.add_partition(parent pg_catalog.regclass, region pg_catalog.name) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	partition text := format('%I.%s', region, residency.bare_name(parent));
	s         record;
BEGIN
	EXECUTE format('CREATE FOREIGN TABLE %s PARTITION OF %s FOR VALUES IN (%L) SERVER %I',
				   partition, parent, region, region);
	EXECUTE format('ALTER FOREIGN TABLE %s OWNER TO %I', partition,
				   (SELECT pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = parent));
	FOR s IN SELECT * FROM residency.owned_sequences(parent) o WHERE o.is_identity LOOP
		EXECUTE format('ALTER FOREIGN TABLE %s ALTER COLUMN %I SET DEFAULT pg_catalog.nextval(%L::pg_catalog.regclass)',
					   partition, s.attname, s.sequence);
	END LOOP;
	PERFORM residency.copy_rights(parent, partition::regclass);
END
$$;
COMMENT ON FUNCTION residency.add_partition(pg_catalog.regclass, pg_catalog.name)
	IS 'step of make_resident and add_region: the foreign table of another region''s partition';

-- Step: puts the partitioned table into the place of the old one, which becomes the
-- home partition (attached only by finish_resident).  Returns shape and floors.
CREATE FUNCTION residency.declare_resident(relation pg_catalog.text, region_column pg_catalog.name,
		key pg_catalog.name[], directory pg_catalog.text, mover pg_catalog.bool,
		OUT shape pg_catalog.text[], OUT floors pg_catalog.jsonb)
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
	SET check_function_bodies = off
AS $$
#variable_conflict use_variable
DECLARE
	own      name := residency.own_region();
	home     regclass := residency.check_resident(relation, region_column, key, directory, mover);
	parent   text := residency.full_name(home);
	bare     text := residency.bare_name(home);
	commands text[] := residency.rebuild_commands(home);
	c        pg_class;
	s        record;
	command  text;
BEGIN
	SELECT * INTO c FROM pg_class WHERE oid = home;
	shape := residency.table_shape(home);
	floors := residency.sequence_floors(home);
	FOR s IN SELECT t.tgname FROM pg_trigger t WHERE t.tgrelid = home AND NOT t.tgisinternal AND t.tgtype & 1 = 0 LOOP
		EXECUTE format('DROP TRIGGER %I ON %s', s.tgname, home);
	END LOOP;

	-- a sequence of a serial column stays where it is, and goes over to the new table
	FOR s IN SELECT * FROM residency.owned_sequences(home) q WHERE NOT q.is_identity LOOP
		EXECUTE format('ALTER SEQUENCE %s OWNED BY NONE', s.sequence);
		commands := format('ALTER SEQUENCE %s OWNED BY %s.%I', s.sequence, parent, s.attname) || commands;
	END LOOP;
	EXECUTE format('ALTER TABLE %s SET SCHEMA %I', home, own);
	EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING IDENTITY INCLUDING STORAGE INCLUDING COMPRESSION INCLUDING COMMENTS) PARTITION BY LIST (%I)',
				   parent, home, region_column);
	EXECUTE format('ALTER TABLE %s OWNER TO %I', parent, pg_get_userbyid(c.relowner));
	-- an identity column of a partition would count by itself
	FOR s IN SELECT * FROM residency.owned_sequences(parent::regclass) q WHERE q.is_identity LOOP
		EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP IDENTITY', home, s.attname);
		EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT pg_catalog.nextval(%L::pg_catalog.regclass)',
					   home, s.attname, s.sequence);
	END LOOP;
	FOREACH command IN ARRAY commands LOOP
		EXECUTE command;
	END LOOP;
	PERFORM residency.copy_rights(home, parent::regclass);
	PERFORM residency.grant_operator(parent::regclass);
	PERFORM residency.grant_operator(home);
	PERFORM residency.add_partition(parent::regclass, r.name) FROM residency.region r WHERE r.name <> own;
	INSERT INTO residency.rule (relation, kind, region_column, key, directory)
		VALUES (parent::regclass, 'r', declare_resident.region_column, declare_resident.key, to_regclass(declare_resident.directory));
END
$$;
COMMENT ON FUNCTION residency.declare_resident(pg_catalog.text, pg_catalog.name, pg_catalog.name[], pg_catalog.text, pg_catalog.bool)
	IS 'step of make_resident: the partitioned table takes the place of the old one';

-- Adds the foreign key from the home partition to its directory, and what the directory
-- needs for it.  The server's own message would show a key.
CREATE FUNCTION residency.add_home_key(home pg_catalog.regclass, region_column pg_catalog.name,
		key pg_catalog.name[], directory pg_catalog.regclass) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own     name := residency.own_region();
	their   name := (SELECT r.region_column FROM residency.rule r WHERE r.relation = directory);
	columns text := (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(key) WITH ORDINALITY u (k, n));
BEGIN
	IF NOT EXISTS (
		SELECT FROM pg_index i
		WHERE i.indrelid = directory AND i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND
			  (SELECT array_agg(a.attname ORDER BY a.attname)
			   FROM unnest(i.indkey::int2[]) WITH ORDINALITY x (attnum, n) JOIN pg_attribute a ON a.attrelid = directory AND a.attnum = x.attnum
			   WHERE x.n <= i.indnkeyatts)
			  = (SELECT array_agg(k ORDER BY k) FROM unnest(key || their) k)) THEN
		EXECUTE format('ALTER TABLE %s ADD UNIQUE (%s, %I)', directory, columns, their);
	END IF;
	EXECUTE format('ALTER TABLE %s ADD CONSTRAINT residency_home FOREIGN KEY (%s, %I) REFERENCES %s (%s, %I) DEFERRABLE INITIALLY DEFERRED',
				   home, columns, region_column, directory, columns, their);
EXCEPTION WHEN foreign_key_violation THEN
	PERFORM residency.refuse(errcode => '23503',
		message => format('table %s holds rows in region "%s" that directory %s does not know', home, own, directory),
		hint => format('Each row needs a row of the directory with the same %s and the same region. Find the others with a left join.', columns));
END
$$;
COMMENT ON FUNCTION residency.add_home_key(pg_catalog.regclass, pg_catalog.name, pg_catalog.name[], pg_catalog.regclass)
	IS 'part of make_resident: foreign key from the home partition to the directory';

-- Step: attaches the home partition, and gives it keys and triggers.
CREATE FUNCTION residency.finish_resident(relation pg_catalog.text, region_column pg_catalog.name,
		key pg_catalog.name[], directory pg_catalog.text, floors pg_catalog.jsonb) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own    name := residency.own_region();
	parent regclass := relation::regclass;
	home   regclass := format('%I.%s', own, residency.bare_name(parent))::regclass;
BEGIN
	PERFORM residency.require_superuser('declare tables');
	-- first: the event triggers of declared tables check it
	PERFORM residency.spread_sequences(parent, floors);
	EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES IN (%L)', parent, home, own);
	IF NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = home AND k.contype = 'p') AND cardinality(key) > 0 THEN
		BEGIN
			EXECUTE format('ALTER TABLE %s ADD PRIMARY KEY (%s)', home,
						   (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(key) WITH ORDINALITY u (k, n)));
		EXCEPTION WHEN unique_violation THEN
			PERFORM residency.refuse(errcode => '23505',
				message => format('table %s holds more than one row of a key in region "%s"', parent, own),
				hint => 'Give the table a primary key of its own in all regions first, if a key may have several rows.');
		END;
	END IF;
	IF directory IS NOT NULL THEN
		PERFORM residency.add_home_key(home, region_column, key, directory::regclass);
		PERFORM residency.fix_region(directory::regclass);
	END IF;
	PERFORM residency.fix_region(home);
END
$$;
COMMENT ON FUNCTION residency.finish_resident(pg_catalog.text, pg_catalog.name, pg_catalog.name[], pg_catalog.text, pg_catalog.jsonb)
	IS 'step of make_resident: attaches the home partition, adds keys and triggers';

-- Sends the rows of other regions to their homes, and deletes them here.
CREATE FUNCTION residency.move_strangers(parent pg_catalog.regclass, region_column pg_catalog.name)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own     name := residency.own_region();
	home    text := format('%I.%s', own, residency.bare_name(parent));
	others  name[] := ARRAY(SELECT r.name FROM residency.region r WHERE r.name <> own ORDER BY 1);
	target  name;
	columns text;
	waiting int8;
	moved   int8;
	total   int8 := 0;
BEGIN
	SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO columns
		FROM pg_attribute a
		WHERE a.attrelid = parent AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '';
	PERFORM residency.rest_triggers(true);
	FOREACH target IN ARRAY others LOOP
		EXECUTE format('SELECT count(*) FROM ONLY %s WHERE %I::text = %L', home, region_column, target) INTO waiting;
		CONTINUE WHEN waiting = 0;
		RAISE NOTICE 'moving % rows of table % to region "%"', waiting, parent, target;
		PERFORM FROM residency.ask(ARRAY[target], 'SELECT residency.rest_triggers(true)', deferred => true);
		EXECUTE format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM ONLY %s WHERE %I::text = %L',
					   parent, columns, columns, home, region_column, target);
		PERFORM FROM residency.ask(ARRAY[target], 'SELECT residency.rest_triggers(false)', deferred => true);
		total := total + waiting;
	END LOOP;
	IF total > 0 THEN
		EXECUTE format('DELETE FROM ONLY %s WHERE %I::text <> %L', home, region_column, own);
		GET DIAGNOSTICS moved = ROW_COUNT;
		IF moved <> total THEN
			PERFORM residency.refuse(errcode => 'XX000', message => format('moved %s rows, but deleted %s', total, moved));
		END IF;
		RAISE NOTICE 'moved % rows of table %; their space here is cleared by VACUUM FULL %, and their WAL by a checkpoint and by new base backups', total, parent, home;
	END IF;
	PERFORM residency.rest_triggers(false);
END
$$;
COMMENT ON FUNCTION residency.move_strangers(pg_catalog.regclass, pg_catalog.name)
	IS 'part of make_resident: sends rows to their homes';

CREATE FUNCTION residency.make_resident(relation pg_catalog.regclass, region_column pg_catalog.name,
		key pg_catalog.name[] DEFAULT '{uuid}', directory pg_catalog.regclass DEFAULT NULL)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own    name := residency.own_region();
	table_name text := residency.full_name(relation);
	directory_name text := residency.full_name(directory);
	declare_sql CONSTANT text := 'SELECT s.shape, s.floors FROM residency.declare_resident($1::pg_catalog.text, $2::pg_catalog.name,
		$3::pg_catalog.name[], $4::pg_catalog.text, $5::pg_catalog.bool) s';
	others name[];
	a      record;
	mine   record;
	floors jsonb;
BEGIN
	IF relation IS NULL OR region_column IS NULL OR key IS NULL OR cardinality(key) = 0 THEN
		PERFORM residency.refuse(errcode => '22004',
			message => 'table, region column and key must be given',
			hint => 'Run SELECT residency.make_resident(''schema.table'', ''region'', key => ''{uuid}'', directory => ''schema.directory'').');
	END IF;
	PERFORM residency.require_superuser('declare tables');
	PERFORM residency.begin_change();
	SELECT coalesce(array_agg(r.name), '{}') INTO others FROM residency.region r WHERE r.name <> own;
	mine := residency.declare_resident(table_name, region_column, key, directory_name, true);
	floors := mine.floors;
	FOR a IN SELECT i.region, i.answer FROM residency.ask(others, declare_sql,
				ARRAY[table_name, region_column::text, key::text, directory_name, 'false']) i LOOP
		PERFORM residency.compare_shapes(table_name, a.region, mine.shape, a.answer[1]::text[]);
		floors := residency.higher_floors(floors, a.answer[2]::jsonb);
	END LOOP;
	PERFORM residency.move_strangers(table_name::regclass, region_column);
	PERFORM FROM residency.ask(others || own,
		'SELECT residency.finish_resident($1::pg_catalog.text, $2::pg_catalog.name, $3::pg_catalog.name[],
			$4::pg_catalog.text, $5::pg_catalog.jsonb)',
		ARRAY[table_name, region_column::text, key::text, directory_name, floors::text]);
END
$$;
COMMENT ON FUNCTION residency.make_resident(pg_catalog.regclass, pg_catalog.name, pg_catalog.name[], pg_catalog.regclass)
	IS 'makes a table resident: each row is stored in its home region only';
