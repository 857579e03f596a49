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
	tried_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
	PRIMARY KEY (relation, key, region, kind)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 100);
CREATE INDEX conflict_tried_idx ON residency.conflict (region, tried_at) WHERE kind OPERATOR(pg_catalog.<>) 'key';
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

-- Step, for gateways and superusers: the entry of kind "key" of the region "loser", and those
-- of other kinds, are deleted here; see src/global_decide.c for what else becomes of the row.
CREATE FUNCTION residency.forget_conflict(relation pg_catalog.text, key pg_catalog.text, loser pg_catalog.text)
	RETURNS pg_catalog.void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_forget_conflict';
COMMENT ON FUNCTION residency.forget_conflict(pg_catalog.text, pg_catalog.text, pg_catalog.text)
	IS 'for gateways: a conflict of a global table''s row is decided';
REVOKE ALL ON FUNCTION residency.forget_conflict(pg_catalog.text, pg_catalog.text, pg_catalog.text) FROM PUBLIC;

CREATE FUNCTION residency.forget_conflict_in(region pg_catalog.name, relation pg_catalog.text, key pg_catalog.text,
		loser pg_catalog.text)
	RETURNS pg_catalog.void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_forget_conflict_in';
COMMENT ON FUNCTION residency.forget_conflict_in(pg_catalog.name, pg_catalog.text, pg_catalog.text, pg_catalog.text)
	IS 'part of resolve_conflict: tells another region that a conflict is decided';
REVOKE ALL ON FUNCTION residency.forget_conflict_in(pg_catalog.name, pg_catalog.text, pg_catalog.text, pg_catalog.text)
	FROM PUBLIC;

-- Writes a row of a global table: over the one with its key, unless that would be another one, or as
-- a new one.
CREATE FUNCTION residency.write_row(relation pg_catalog.regclass, content pg_catalog.jsonb, anew pg_catalog.bool)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	home_column name := (SELECT r.region_column FROM residency.rule r WHERE r.relation = relation AND r.kind = 'g');
	keys    name[] := (SELECT t.key FROM residency.tables t WHERE t.relation = relation);
	columns name[] := ARRAY(SELECT a.attname FROM pg_attribute a
							WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
							ORDER BY a.attnum);
	changes text := (SELECT string_agg(format('%1$I = excluded.%1$I', c), ', ') FROM unnest(columns) c
					 WHERE c <> home_column AND c <> ALL (keys));
BEGIN
	EXECUTE format('INSERT INTO %1$s AS t (%2$s) OVERRIDING SYSTEM VALUE SELECT %3$s FROM jsonb_populate_record(NULL::%1$s, $1) r '
				   '%4$s',
				   relation,
				   (SELECT string_agg(quote_ident(c), ', ') FROM unnest(columns) c),
				   (SELECT string_agg('r.' || quote_ident(c), ', ') FROM unnest(columns) c),
				   CASE WHEN NOT anew
				   THEN format('ON CONFLICT (%s) DO %s', (SELECT string_agg(quote_ident(c), ', ') FROM unnest(keys) c),
							   coalesce('UPDATE SET ' || changes, 'NOTHING')) END)
		USING content;
END
$$;
COMMENT ON FUNCTION residency.write_row(pg_catalog.regclass, pg_catalog.jsonb, pg_catalog.bool)
	IS 'part of resolve_conflict: writes a row of a global table';
REVOKE ALL ON FUNCTION residency.write_row(pg_catalog.regclass, pg_catalog.jsonb, pg_catalog.bool) FROM PUBLIC;

-- What belongs, in region "loser", to the row "content" that lost its key there: resident rows
-- whose directory is the relation.  They get the new key's values, or go with the row that is
-- dropped; with neither they must not be there.
CREATE FUNCTION residency.settle_residents(relation pg_catalog.regclass, loser pg_catalog.name, content pg_catalog.jsonb,
		keep pg_catalog.text, changes pg_catalog.jsonb)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	r     residency.rule;
	which text;
	given text;
	found bool;
BEGIN
	FOR r IN SELECT * FROM residency.rule u WHERE u.kind = 'r' AND u.directory = relation LOOP
		SELECT string_agg(format('%I = %L', k, content ->> k), ' AND ') INTO which FROM unnest(r.key) k;
		which := format('%s AND %I = %L', which, r.region_column, loser);
		SELECT string_agg(format('%I = %L', k, changes ->> k), ', ') INTO given FROM unnest(r.key) k WHERE changes ? k;
		IF keep = 'current' THEN
			EXECUTE format('DELETE FROM %s WHERE %s', r.relation, which);
		ELSIF given IS NOT NULL THEN
			EXECUTE format('UPDATE %s SET %s WHERE %s', r.relation, given, which);
		ELSE
			EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE %s)', r.relation, which) INTO found;
			IF found THEN
				RAISE EXCEPTION USING ERRCODE = '23503',
					MESSAGE = format('rows of table %s in region "%s" belong to the stored row', r.relation, loser),
					HINT = 'Give it another key with "changes", which these rows get too, or keep ''current'', which deletes them.';
			END IF;
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.settle_residents(pg_catalog.regclass, pg_catalog.name, pg_catalog.jsonb, pg_catalog.text, pg_catalog.jsonb)
	IS 'part of resolve_conflict: resident rows that belong to a row whose key another region has';
REVOKE ALL ON FUNCTION residency.settle_residents(pg_catalog.regclass, pg_catalog.name, pg_catalog.jsonb, pg_catalog.text, pg_catalog.jsonb)
	FROM PUBLIC;

CREATE FUNCTION residency.resolve_conflict(relation pg_catalog.regclass, key pg_catalog.text[],
		keep pg_catalog.text DEFAULT 'current', changes pg_catalog.jsonb DEFAULT '{}')
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	noted  text := residency.key_text(key);
	stored residency.conflict;
	loser  text;
	moved  bool;
	other  name;
BEGIN
	IF relation IS NULL OR key IS NULL OR keep IS NULL OR keep NOT IN ('current', 'stored') THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = 'table, key and which row to keep must be given',
			HINT = 'The last one is ''current'', the row that holds now, or ''stored'', the one in residency.conflicts.';
	END IF;
	SELECT c.* INTO stored FROM residency.conflict c
		WHERE c.relation = relation::oid AND c.key = noted
		ORDER BY c.kind <> 'key', c.noticed_at DESC LIMIT 1;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '02000',
			MESSAGE = format('no conflict of that key of table %s is known here', relation),
			HINT = 'SELECT * FROM residency.conflicts lists them; each is known in two regions.';
	END IF;
	IF keep = 'stored' AND stored.content IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = '22023',
			MESSAGE = 'what could not be shipped is that the row is no more',
			HINT = 'Keep ''current'', after what refers to the row is gone.';
	END IF;

	loser := CASE WHEN stored.kind = 'key' THEN stored.region ELSE '' END;
	moved := keep = 'stored' AND stored.kind = 'key' AND
		EXISTS (SELECT FROM residency.tables t CROSS JOIN LATERAL unnest(t.key) k
				WHERE t.relation = relation AND changes ->> k <> stored.content ->> k);
	-- with another key it is there before what belongs to it
	IF moved THEN
		PERFORM residency.write_row(relation, stored.content || changes, anew => true);
	END IF;
	IF stored.kind = 'key' AND stored.constraint_name IS NOT NULL THEN
		PERFORM residency.settle_residents(relation, stored.region, stored.content, keep,
										   CASE WHEN moved THEN changes ELSE '{}' END);
	END IF;

	-- the key is free to be written as soon as its home knows
	FOR other IN SELECT r.name FROM residency.regions r
				 WHERE r.name <> residency.own_region() AND
					   (r.state = 'up' OR r.name IN (SELECT unnest(ARRAY[c.region, c.home]) FROM residency.conflict c
													 WHERE c.relation = relation::oid AND c.key = noted)) LOOP
		PERFORM residency.forget_conflict_in(other, residency.full_name(relation), noted, loser);
	END LOOP;
	PERFORM residency.forget_conflict(residency.full_name(relation), noted, loser);
	IF keep = 'stored' AND NOT moved THEN
		PERFORM residency.write_row(relation, stored.content || changes, anew => false);
	END IF;
END
$$;
COMMENT ON FUNCTION residency.resolve_conflict(pg_catalog.regclass, pg_catalog.text[], pg_catalog.text, pg_catalog.jsonb)
	IS 'decides about a row in residency.conflicts: which row holds, and whether the other one is written after all';
REVOKE ALL ON FUNCTION residency.resolve_conflict(pg_catalog.regclass, pg_catalog.text[], pg_catalog.text, pg_catalog.jsonb)
	FROM PUBLIC;

-- Keys in residency.backlog and residency.conflict are read by the primary key of the time at
-- which they are shipped: it stays what it is as long as there are some.
CREATE FUNCTION residency.check_noted_keys(relation pg_catalog.regclass, types pg_catalog.bool) RETURNS pg_catalog.void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_check_noted_keys';
COMMENT ON FUNCTION residency.check_noted_keys(pg_catalog.regclass, pg_catalog.bool)
	IS 'refuses what this transaction has done to the key of a global table, or its types, while rows of it are noted here';
REVOKE ALL ON FUNCTION residency.check_noted_keys(pg_catalog.regclass, pg_catalog.bool) FROM PUBLIC;

CREATE FUNCTION residency.keep_noted() RETURNS event_trigger
	LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	-- a table that the command is not about must not be opened: somebody may have locked it
	PERFORM residency.check_noted_keys(r.relation, tg_tag <> 'ALTER TABLE') FROM residency.rule r
		WHERE r.kind = 'g' AND
			  (tg_tag <> 'ALTER TABLE' OR
			   r.relation IN (SELECT c.objid FROM pg_event_trigger_ddl_commands() c WHERE c.classid = 'pg_class'::regclass));
END
$$;
COMMENT ON FUNCTION residency.keep_noted() IS 'event trigger: keys that are noted must stay what they are';

CREATE EVENT TRIGGER residency_keep_noted ON ddl_command_end
	WHEN TAG IN ('ALTER TABLE', 'ALTER TYPE', 'ALTER DOMAIN')
	EXECUTE FUNCTION residency.keep_noted();
COMMENT ON EVENT TRIGGER residency_keep_noted IS 'keys that are noted for other regions must stay what they are';
