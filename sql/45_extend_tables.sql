--
-- A region that joins later gets the declared tables: the part of add_region() that
-- deals with them, and the last word on who may call what of the SQL parts so far.
--

-- Raises an error unless this region's copies of global tables are complete, and keeps the
-- other regions from leaving it out until the transaction ends.  A row that it could not take is noted
-- nowhere, but in residency.conflict.
CREATE FUNCTION residency.require_complete(others pg_catalog.name[]) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own    name := residency.own_region();
	behind text;
BEGIN
	SELECT string_agg(format('"%s"', w.region), ', ') INTO behind
		FROM residency.ask(others, 'SELECT residency.withholds($1::pg_catalog.name)', ARRAY[own::text]) w
		WHERE w.answer[1]::bool;
	IF behind IS NOT NULL THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('region "%s" has not got all rows of global tables from %s yet', own, behind),
			hint => 'Wait until SELECT * FROM residency.catch_up there shows no notes about it, or call this in another region.');
	END IF;
	IF EXISTS (SELECT FROM residency.conflict c
			   WHERE c.region = own AND (c.kind <> 'key' OR c.constraint_name IS NOT NULL)) THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('region "%s" lacks rows of global tables that it could not take', own),
			hint => 'SELECT * FROM residency.conflicts shows them: decide with residency.resolve_conflict(), or call this in another region.');
	END IF;
END
$$;
COMMENT ON FUNCTION residency.require_complete(pg_catalog.name[])
	IS 'part of add_region and refill: raises an error unless this region can be copied';

-- Gives a region that is joining every table that is declared: copies of the global
-- ones, a home partition of the resident ones, and its foreign tables everywhere else, where
-- those of a region that is replaced are already.
-- The tables must be there as plain tables, of the same shape; resident ones may hold
-- the newcomer's own rows.
CREATE FUNCTION residency.extend_tables(newcomer pg_catalog.name, replaced pg_catalog.bool) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	others     name[] := ARRAY(SELECT n.name FROM residency.region n WHERE n.name <> newcomer ORDER BY 1);
	r          residency.rule;
	table_name text;
	parameters text[];
	answer     text[];
	floors     jsonb;
	a          record;
BEGIN
	PERFORM residency.require_complete(others);
	FOR r IN SELECT * FROM residency.rule ORDER BY kind, relation::text LOOP
		table_name := residency.full_name(r.relation);
		floors := residency.all_floors(table_name, others);
		IF r.kind = 'g' THEN
			-- everywhere, and until each region knows the newcomer: another one's writer would leave it out
			PERFORM FROM residency.ask(others, format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', table_name));
			SELECT i.answer INTO answer FROM residency.ask(ARRAY[newcomer],
				'SELECT s.shape, s.filled, s.floors FROM residency.inspect_global($1::pg_catalog.text, $2::pg_catalog.name) s',
				ARRAY[table_name, r.region_column::text], joined => false) i;
			PERFORM residency.compare_shapes(table_name, newcomer, residency.table_shape(r.relation), answer[1]::text[]);
			IF answer[2]::bool THEN
				PERFORM residency.refuse(errcode => '55000',
					message => format('global table %s holds rows in region "%s", which is joining', table_name, newcomer),
					hint => 'Empty it there: the region gets a copy of all rows.');
			END IF;
			PERFORM residency.copy_rows(r.relation, ARRAY[newcomer], false);
			-- numbers of a lost region's rows are in the copies only
			floors := residency.higher_floors(floors, residency.sequence_floors(r.relation));
			PERFORM FROM residency.ask(ARRAY[newcomer],
				'SELECT residency.declare_global($1::pg_catalog.text, $2::pg_catalog.name, $3::pg_catalog.jsonb)',
				ARRAY[table_name, r.region_column::text, floors::text], joined => false);
		ELSE
			parameters := ARRAY[table_name, r.region_column::text, r.key::text, residency.full_name(r.directory)];
			SELECT i.answer INTO answer FROM residency.ask(ARRAY[newcomer],
				'SELECT s.shape, s.floors FROM residency.declare_resident($1::pg_catalog.text, $2::pg_catalog.name,
					$3::pg_catalog.name[], $4::pg_catalog.text, false) s', parameters, joined => false) i;
			PERFORM FROM residency.ask(CASE WHEN replaced THEN '{}' ELSE others END,
				'SELECT residency.add_partition($1::pg_catalog.regclass, $2::pg_catalog.name)',
				ARRAY[table_name, newcomer::text]);
			PERFORM residency.compare_newcomer(r.relation, newcomer, answer[1]::text[]);
			floors := residency.higher_floors(floors, answer[2]::jsonb);
			PERFORM FROM residency.ask(ARRAY[newcomer],
				'SELECT residency.finish_resident($1::pg_catalog.text, $2::pg_catalog.name, $3::pg_catalog.name[],
					$4::pg_catalog.text, $5::pg_catalog.jsonb)', parameters || floors::text, joined => false);
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.extend_tables(pg_catalog.name, pg_catalog.bool)
	IS 'part of add_region: declared tables of a region that joins';

-- Compares a newcomer's plain table with a resident one.  The partitioned table has the
-- columns as they were declared, its home partition the primary key; a newcomer without
-- one gets the same key as the others had got.
CREATE FUNCTION residency.compare_newcomer(parent pg_catalog.regclass, newcomer pg_catalog.name,
		there pg_catalog.text[]) RETURNS pg_catalog.void
	LANGUAGE plpgsql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	home text := format('%I.%s', residency.own_region(), residency.bare_name(parent));
	here text[] := residency.table_shape(parent);
	key  text := (SELECT s FROM unnest(residency.table_shape(home::regclass)) s WHERE s ~ '^PRIMARY KEY');
BEGIN
	IF array_to_string(there, E'\n') ~ '(^|\n)PRIMARY KEY' THEN
		here := here || key;
	END IF;
	PERFORM residency.compare_shapes(residency.full_name(parent), newcomer, here, there);
END
$$;
COMMENT ON FUNCTION residency.compare_newcomer(pg_catalog.regclass, pg_catalog.name, pg_catalog.text[])
	IS 'part of add_region: compares a newcomer''s table with a resident one';

-- Highest values of a table's sequences in all the regions named.
CREATE FUNCTION residency.all_floors(relation pg_catalog.text, regions pg_catalog.name[]) RETURNS pg_catalog.jsonb
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	floors jsonb := '{}';
	a      record;
BEGIN
	FOR a IN SELECT i.answer FROM residency.ask(regions,
				'SELECT residency.sequence_positions($1::pg_catalog.regclass)', ARRAY[relation]) i LOOP
		floors := residency.higher_floors(floors, a.answer[1]::jsonb);
	END LOOP;
	RETURN floors;
END
$$;
COMMENT ON FUNCTION residency.all_floors(pg_catalog.text, pg_catalog.name[])
	IS 'part of add_region: highest values of a table''s sequences anywhere';

-- Highest value that each sequence of a declared table has given out here.
CREATE FUNCTION residency.sequence_positions(relation pg_catalog.regclass) RETURNS pg_catalog.jsonb
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	s      record;
	value  int8;
	result jsonb := '{}';
BEGIN
	FOR s IN SELECT * FROM residency.owned_sequences(relation) LOOP
		EXECUTE format('SELECT last_value FROM %s', s.sequence) INTO value;
		result := result || jsonb_build_object(s.attname, value);
	END LOOP;
	RETURN result;
END
$$;
COMMENT ON FUNCTION residency.sequence_positions(pg_catalog.regclass)
	IS 'step: highest values given out by a table''s sequences';

-- Nobody but superusers has business with what changes regions and tables, save for what
-- is granted to gateways.
DO $$
DECLARE
	f regprocedure;
BEGIN
	FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p
			 WHERE p.pronamespace = 'residency'::regnamespace AND p.proname = ANY (ARRAY[
				 'accept_secret', 'accept_verifier', 'add_home_key', 'add_partition', 'add_region', 'all_floors',
				 'ask', 'begin_change', 'check_directory', 'check_identity', 'check_newcomer', 'check_regions',
				 'check_resident', 'check_table', 'check_way', 'connection_options', 'copy_rights', 'copy_rows',
				 'declare_global', 'declare_resident', 'extend_tables', 'find_ways', 'finish_resident', 'fix_region',
				 'gateway_role', 'grant_operator', 'inspect_global', 'introduce', 'join_deployment', 'learn_region',
				 'let_in', 'lock_newcomer', 'log_nothing', 'make_global', 'make_resident', 'move_strangers',
				 'prepare_server', 'reachable', 'refuse', 'renew', 'repoint_server', 'rest_triggers',
				 'run_everywhere', 'sequence_floors', 'sequence_positions', 'set_connection', 'settle_steps',
				 'share_secret', 'spread_sequences', 'table_content', 'take_rows', 'way_back', 'way_to'])
	LOOP
		EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
	END LOOP;
END
$$;
