--
-- What declaring global and resident tables has in common: checks, comparison of the
-- regions, sequences, rights; and the event triggers that keep declarations true.
--

-- Raises an error unless the table can be declared; returns it.  Runs in each region.
CREATE FUNCTION residency.check_table(relation pg_catalog.text, region_column pg_catalog.name)
	RETURNS pg_catalog.regclass
	LANGUAGE plpgsql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own    name := residency.own_region();
	found_relation regclass := to_regclass(relation);
	c      pg_class;
	a      pg_attribute;
	base   oid;
	reason text;
BEGIN
	PERFORM residency.require_superuser('declare tables');
	IF found_relation IS NULL THEN
		PERFORM residency.refuse(errcode => '42P01',
			message => format('table %s does not exist in region "%s"', relation, own),
			hint => 'Create it in all regions with residency.run_everywhere(''CREATE TABLE ...'').');
	END IF;
	SELECT * INTO c FROM pg_class WHERE oid = found_relation;
	reason := CASE
		WHEN EXISTS (SELECT FROM residency.rule r WHERE r.relation = found_relation) THEN 'It is declared already.'
		WHEN c.relkind <> 'r' THEN 'It is not an ordinary table.'
		WHEN c.relpersistence <> 'p' THEN 'It is temporary or unlogged.'
		WHEN c.relispartition THEN 'It is a partition.'
		WHEN c.reloftype <> 0 THEN 'It is a table of a composite type.'
		WHEN EXISTS (SELECT FROM pg_inherits i WHERE found_relation IN (i.inhrelid, i.inhparent)) THEN 'It is part of an inheritance tree.'
		WHEN EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = found_relation) THEN 'It has rules.'
		WHEN EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = found_relation AND d.deptype = 'e') THEN 'It belongs to an extension.'
		WHEN c.relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'residency'::regnamespace) THEN 'It belongs to the system.'
		END;
	IF reason IS NOT NULL THEN
		PERFORM residency.refuse(errcode => CASE WHEN reason LIKE '%already%' THEN '42710' ELSE '42809' END,
			message => format('table %s cannot be declared in region "%s"', found_relation, own), detail => reason,
			hint => CASE WHEN reason LIKE '%already%' THEN 'SELECT * FROM residency.tables lists the declared tables.'
				   ELSE 'Declare ordinary tables, without rules and inheritance.' END);
	END IF;

	SELECT * INTO a FROM pg_attribute
		WHERE attrelid = found_relation AND attname = region_column AND attnum > 0 AND NOT attisdropped;
	IF NOT FOUND THEN
		PERFORM residency.refuse(errcode => '42703',
			message => format('column "%s" of table %s does not exist in region "%s"', region_column, found_relation, own),
			hint => 'The region column holds the name of each row''s home region.');
	END IF;
	WITH RECURSIVE b (typ, typbasetype) AS (
		SELECT t.oid, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
		UNION ALL SELECT t.oid, t.typbasetype FROM b JOIN pg_type t ON t.oid = b.typbasetype)
	SELECT typ INTO base FROM b WHERE typbasetype = 0;
	IF base NOT IN ('text'::regtype, 'varchar'::regtype, 'name'::regtype) AND
	   NOT EXISTS (SELECT FROM pg_enum e WHERE e.enumtypid = base) THEN
		PERFORM residency.refuse(errcode => '42804',
			message => format('region column "%s" of table %s has type %s', region_column, found_relation, format_type(a.atttypid, a.atttypmod)),
			hint => 'Use text, varchar, name or an enum.');
	END IF;
	IF a.attgenerated <> '' THEN
		PERFORM residency.refuse(errcode => '42P16',
			message => format('region column "%s" of table %s is generated', region_column, found_relation),
			hint => 'Use an ordinary column.');
	END IF;
	IF NOT a.attnotnull THEN
		PERFORM residency.refuse(errcode => '42P16',
			message => format('region column "%s" of table %s may be null', region_column, found_relation),
			hint => format('Run SELECT residency.run_everywhere(''ALTER TABLE %s ALTER COLUMN %I SET NOT NULL'').', found_relation, region_column));
	END IF;
	RETURN found_relation;
END
$$;
COMMENT ON FUNCTION residency.check_table(pg_catalog.text, pg_catalog.name)
	IS 'step: raises an error unless this region''s table can be declared';

-- The table as all regions must have it, one line for each column, enum and key.
CREATE FUNCTION residency.table_shape(relation pg_catalog.regclass) RETURNS pg_catalog.text[]
	LANGUAGE sql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT array_agg(line ORDER BY part, position, line) FROM (
		SELECT 1, row_number() OVER (ORDER BY a.attnum),
			   format('column %I %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
					  CASE WHEN c.collname IS NOT NULL THEN format(' COLLATE %I', c.collname) ELSE '' END,
					  CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END,
					  CASE WHEN a.attgenerated <> '' THEN format(' GENERATED (%s)', pg_get_expr(d.adbin, d.adrelid)) ELSE '' END)
		FROM pg_attribute a
		LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		LEFT JOIN pg_collation c ON c.oid = a.attcollation AND c.collname <> 'default'
		WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
		UNION ALL
		SELECT 2, 0, format('type %s AS ENUM (%s)', format_type(e.enumtypid, NULL), string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder))
		FROM pg_enum e
		WHERE e.enumtypid IN (SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = relation AND NOT a.attisdropped)
		GROUP BY e.enumtypid
		UNION ALL
		SELECT 3, 0, pg_get_constraintdef(k.oid)
		FROM pg_constraint k WHERE k.conrelid = relation AND k.contype = 'p') s (part, position, line)
$$;
COMMENT ON FUNCTION residency.table_shape(pg_catalog.regclass) IS 'what a declared table must have in common in all regions';

-- Raises an error unless the shape found in a region is the one found here.
CREATE FUNCTION residency.compare_shapes(relation pg_catalog.text, region pg_catalog.name,
		here pg_catalog.text[], there pg_catalog.text[]) RETURNS pg_catalog.void
	LANGUAGE plpgsql IMMUTABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	IF here IS DISTINCT FROM there THEN
		FOR i IN 1 .. greatest(cardinality(here), cardinality(there)) LOOP
			CONTINUE WHEN here[i] IS NOT DISTINCT FROM there[i];
			PERFORM residency.refuse(errcode => '42P16',
				message => format('table %s is not the same in region "%s" as here', relation, region),
				detail => format('There: %s. Here: %s.', coalesce(there[i], 'nothing'), coalesce(here[i], 'nothing')),
				hint => 'Columns must have the same names, types and order in all regions, and the primary key the same columns.');
		END LOOP;
	END IF;
END
$$;
COMMENT ON FUNCTION residency.compare_shapes(pg_catalog.text, pg_catalog.name, pg_catalog.text[], pg_catalog.text[])
	IS 'raises an error unless a table is the same in another region';

-- Sequences that belong to columns of the table.
CREATE FUNCTION residency.owned_sequences(relation pg_catalog.regclass,
		OUT attname pg_catalog.name, OUT sequence pg_catalog.regclass, OUT is_identity pg_catalog.bool)
	RETURNS SETOF pg_catalog.record
	LANGUAGE sql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT a.attname, d.objid::regclass, a.attidentity <> ''
	FROM pg_depend d
	JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
	JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
	WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND
		  d.refobjid = relation AND d.deptype IN ('a', 'i')
	ORDER BY a.attnum
$$;
COMMENT ON FUNCTION residency.owned_sequences(pg_catalog.regclass) IS 'sequences that belong to columns of a table';

-- Highest value given out or stored so far, for each column with a sequence.
CREATE FUNCTION residency.sequence_floors(relation pg_catalog.regclass) RETURNS pg_catalog.jsonb
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	s      record;
	floor  int8;
	result jsonb := '{}';
BEGIN
	FOR s IN SELECT * FROM residency.owned_sequences(relation) LOOP
		EXECUTE format('SELECT greatest((SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM %s), (SELECT max(%I) FROM %s), 0)',
					   s.sequence, s.attname, relation) INTO floor;
		result := result || jsonb_build_object(s.attname, floor);
	END LOOP;
	RETURN result;
END
$$;
COMMENT ON FUNCTION residency.sequence_floors(pg_catalog.regclass) IS 'highest value so far of each column with a sequence';

-- The higher of two floors for each column.
CREATE FUNCTION residency.higher_floors(one pg_catalog.jsonb, other pg_catalog.jsonb) RETURNS pg_catalog.jsonb
	LANGUAGE sql IMMUTABLE CALLED ON NULL INPUT PARALLEL SAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(jsonb_object_agg(key, value), '{}')
	FROM (SELECT key, max(value::text::int8) AS value
		  FROM (SELECT * FROM jsonb_each(one) UNION ALL SELECT * FROM jsonb_each(other)) e
		  GROUP BY key) m
$$;
COMMENT ON FUNCTION residency.higher_floors(pg_catalog.jsonb, pg_catalog.jsonb) IS 'the higher of two values for each column';

-- Gives the table's sequences values that no other region will give out: above the
-- floor, in steps of 64, starting at this region's number modulo 64.
CREATE FUNCTION residency.spread_sequences(relation pg_catalog.regclass, floors pg_catalog.jsonb)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	s     record;
	own   int4 := (SELECT number FROM residency.self);
	floor int8;
	start int8;
BEGIN
	FOR s IN SELECT o.*, q.seqincrement
			 FROM residency.owned_sequences(relation) o JOIN pg_sequence q ON q.seqrelid = o.sequence LOOP
		IF s.seqincrement < 0 THEN
			PERFORM residency.refuse(errcode => '0A000',
				message => format('sequence %s counts downwards', s.sequence),
				hint => format('Run ALTER SEQUENCE %s INCREMENT BY 1 in all regions first.', s.sequence));
		END IF;
		floor := coalesce((floors ->> s.attname::text)::int8, 0);
		start := floor + 1 + ((own - floor - 1) % 64 + 64) % 64;
		EXECUTE format('ALTER SEQUENCE %s INCREMENT BY 64 RESTART WITH %s', s.sequence, start);
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.spread_sequences(pg_catalog.regclass, pg_catalog.jsonb)
	IS 'step: gives sequences values that no other region gives out';

-- Gives the target the rights on the source, and no others.  Both have the same owner,
-- by whom all is granted: a chain of grants by others becomes one of direct grants.
CREATE FUNCTION residency.copy_rights(source pg_catalog.regclass, target pg_catalog.regclass)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	g record;
BEGIN
	FOR g IN
		SELECT DISTINCT a.grantee FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a WHERE c.oid = target
		UNION
		SELECT a.grantee FROM pg_attribute t CROSS JOIN LATERAL aclexplode(t.attacl) a WHERE t.attrelid = target
	LOOP
		EXECUTE format('REVOKE ALL ON TABLE %s FROM %s CASCADE', target,
					   CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END);
	END LOOP;
	FOR g IN
		SELECT a.grantee, a.is_grantable, string_agg(DISTINCT a.privilege_type, ', ') AS rights
		FROM pg_class c CROSS JOIN LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
		WHERE c.oid = source GROUP BY 1, 2
		UNION ALL
		SELECT a.grantee, a.is_grantable, format('%s (%s)', a.privilege_type, string_agg(DISTINCT quote_ident(t.attname), ', '))
		FROM pg_attribute t CROSS JOIN LATERAL aclexplode(t.attacl) a
		WHERE t.attrelid = source AND NOT t.attisdropped GROUP BY 1, 2, a.privilege_type
	LOOP
		EXECUTE format('GRANT %s ON TABLE %s TO %s%s', g.rights, target,
					   CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END,
					   CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.copy_rights(pg_catalog.regclass, pg_catalog.regclass)
	IS 'gives one table the rights on another one';

-- Rights for the role that acts here for superusers of other regions.
CREATE FUNCTION residency.grant_operator(relation pg_catalog.regclass) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE %s TO residency_operator', relation);
END
$$;
COMMENT ON FUNCTION residency.grant_operator(pg_catalog.regclass)
	IS 'step: rights for the role that acts here for superusers of other regions';

-- The trigger that keeps rows in their region, on a home partition or a directory.
CREATE FUNCTION residency.fix_region(relation pg_catalog.regclass) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	IF NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = relation AND t.tgname = '~residency_region') THEN
		EXECUTE format('CREATE TRIGGER "~residency_region" BEFORE UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION residency.refuse_region_change()', relation);
		EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER "~residency_region"', relation);
	END IF;
END
$$;
COMMENT ON FUNCTION residency.fix_region(pg_catalog.regclass) IS 'step: keeps the rows of a table in their region';

-- Rows whose home is not this region may be sent elsewhere while user triggers rest.
CREATE FUNCTION residency.rest_triggers(rest pg_catalog.bool) RETURNS pg_catalog.void
	LANGUAGE sql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT set_config('session_replication_role', CASE WHEN rest THEN 'replica' ELSE 'origin' END, true)
$$;
COMMENT ON FUNCTION residency.rest_triggers(pg_catalog.bool) IS 'step: user triggers rest while rows are moved';

-- Forgets declared tables that are dropped, and refuses what would make a declaration
-- untrue.
CREATE FUNCTION residency.forget_dropped() RETURNS event_trigger
	LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	DELETE FROM residency.rule r
		WHERE r.relation::oid IN (SELECT d.objid FROM pg_event_trigger_dropped_objects() d
								  WHERE d.classid = 'pg_class'::regclass AND d.objsubid = 0);
END
$$;
COMMENT ON FUNCTION residency.forget_dropped() IS 'event trigger: forgets declared tables that are dropped';

-- Partitions belong to the owner of their resident table.
CREATE FUNCTION residency.sync_owner(parent pg_catalog.regclass) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	p record;
BEGIN
	FOR p IN SELECT c.oid::regclass AS partition, pg_get_userbyid(o.relowner) AS owner
			 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class o ON o.oid = i.inhparent
			 WHERE i.inhparent = parent AND c.relowner <> o.relowner LOOP
		EXECUTE format('ALTER TABLE %s OWNER TO %I', p.partition, p.owner);
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.sync_owner(pg_catalog.regclass) IS 'gives partitions the owner of their table';

-- The home partition has the row security of its resident table: other regions ask it
-- directly.
CREATE FUNCTION residency.sync_policies(parent pg_catalog.regclass) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	home    regclass := to_regclass(format('%I.%s', residency.own_region(), residency.bare_name(parent)));
	wanted  text[] := residency.policy_commands(parent, home);
	have    text[] := residency.policy_commands(home, home);
	command text;
BEGIN
	IF home IS NULL OR wanted = have THEN
		RETURN;
	END IF;
	FOR command IN SELECT format('DROP POLICY %I ON %s', p.polname, home) FROM pg_policy p WHERE p.polrelid = home LOOP
		EXECUTE command;
	END LOOP;
	FOREACH command IN ARRAY wanted LOOP
		EXECUTE command;
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.sync_policies(pg_catalog.regclass) IS 'gives the home partition the row security of its table';

-- Commands that give the target the row security of the source.
CREATE FUNCTION residency.policy_commands(source pg_catalog.regclass, target pg_catalog.regclass) RETURNS pg_catalog.text[]
	LANGUAGE sql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT array_agg(command ORDER BY command) FROM (
		SELECT format('CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s', p.polname, target,
					  CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
					  CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
					  (SELECT string_agg(CASE WHEN r = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', ') FROM unnest(p.polroles) r),
					  ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',
					  ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
		FROM pg_policy p WHERE p.polrelid = source
		UNION ALL
		SELECT format('ALTER TABLE %s %s ROW LEVEL SECURITY', target, CASE WHEN c.relrowsecurity THEN 'ENABLE' ELSE 'DISABLE' END)
		FROM pg_class c WHERE c.oid = source
		UNION ALL
		SELECT format('ALTER TABLE %s %s ROW LEVEL SECURITY', target, CASE WHEN c.relforcerowsecurity THEN 'FORCE' ELSE 'NO FORCE' END)
		FROM pg_class c WHERE c.oid = source) s (command)
$$;
COMMENT ON FUNCTION residency.policy_commands(pg_catalog.regclass, pg_catalog.regclass)
	IS 'commands that give a table the row security of another one';

CREATE FUNCTION residency.keep_declared() RETURNS event_trigger
	LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	broken record;
	p      record;
BEGIN
	SELECT r.relation, u.name INTO broken
		FROM residency.rule r
		CROSS JOIN LATERAL unnest(array_append(r.key, r.region_column)) u (name)
		WHERE NOT EXISTS (SELECT FROM pg_attribute a
						  WHERE a.attrelid = r.relation AND a.attname = u.name AND NOT a.attisdropped)
		LIMIT 1;
	IF FOUND THEN
		PERFORM residency.refuse(errcode => '2BP01',
			message => format('cannot drop or rename column "%s" of declared table %s', broken.name, broken.relation),
			detail => 'It is the region column or part of the key.');
	END IF;
	-- the commands that follow must not come back here
	IF current_setting('residency_rights.copying', true) = 'on' THEN
		RETURN;
	END IF;
	PERFORM set_config('residency_rights.copying', 'on', true);
	-- pg_restore, which sets row_security off, has the policies of both
	PERFORM residency.sync_owner(r.relation),
			CASE WHEN current_setting('row_security')::bool THEN residency.sync_policies(r.relation) END
		FROM residency.rule r WHERE r.kind = 'r';
	-- rights on a resident table hold for its partitions, which is where other regions ask
	FOR p IN
		SELECT r.relation AS parent, i.inhrelid::regclass AS partition
		FROM residency.rule r
		JOIN pg_inherits i ON i.inhparent = r.relation
		JOIN pg_class pc ON pc.oid = r.relation
		JOIN pg_class cc ON cc.oid = i.inhrelid
		WHERE r.kind = 'r' AND
			  (SELECT array_agg(DISTINCT (a.grantee, a.privilege_type, a.is_grantable)::text ORDER BY (a.grantee, a.privilege_type, a.is_grantable)::text)
			   FROM (SELECT * FROM aclexplode(coalesce(pc.relacl, acldefault('r', pc.relowner)))
					 UNION ALL
					 SELECT x.grantor, x.grantee, x.privilege_type || ' ' || t.attname, x.is_grantable
					 FROM pg_attribute t CROSS JOIN LATERAL aclexplode(t.attacl) x
					 WHERE t.attrelid = pc.oid AND NOT t.attisdropped) a)
			  IS DISTINCT FROM
			  (SELECT array_agg(DISTINCT (a.grantee, a.privilege_type, a.is_grantable)::text ORDER BY (a.grantee, a.privilege_type, a.is_grantable)::text)
			   FROM (SELECT * FROM aclexplode(coalesce(cc.relacl, acldefault('r', cc.relowner)))
					 UNION ALL
					 SELECT x.grantor, x.grantee, x.privilege_type || ' ' || t.attname, x.is_grantable
					 FROM pg_attribute t CROSS JOIN LATERAL aclexplode(t.attacl) x
					 WHERE t.attrelid = cc.oid AND NOT t.attisdropped) a)
	LOOP
		PERFORM residency.copy_rights(p.parent, p.partition);
	END LOOP;
	PERFORM set_config('residency_rights.copying', 'off', true);
END
$$;
COMMENT ON FUNCTION residency.keep_declared() IS 'event trigger: keeps columns and rights of declared tables as declared';

CREATE EVENT TRIGGER residency_forget_dropped ON sql_drop
	EXECUTE FUNCTION residency.forget_dropped();
CREATE EVENT TRIGGER residency_keep_declared ON ddl_command_end
	WHEN TAG IN ('ALTER TABLE', 'GRANT', 'REVOKE', 'CREATE POLICY', 'ALTER POLICY', 'DROP POLICY')
	EXECUTE FUNCTION residency.keep_declared();
COMMENT ON EVENT TRIGGER residency_forget_dropped IS 'forgets declared tables that are dropped';
COMMENT ON EVENT TRIGGER residency_keep_declared IS 'keeps columns, owner, rights and row security of declared tables as declared';
