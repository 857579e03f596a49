--
-- DDL on declared tables must not make regions differ.
--
-- A column that is added with a default which is not immutable gets other values in
-- each copy of a global table, and an owned sequence that is added later counts alike
-- in every region.  Both are refused; what to do instead is in the hint.
--

CREATE FUNCTION residency.differing_column(relation pg_catalog.regclass, rewritten pg_catalog.bool)
	RETURNS pg_catalog.name
	LANGUAGE c STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_differing_column';
COMMENT ON FUNCTION residency.differing_column(pg_catalog.regclass, pg_catalog.bool)
	IS 'column that this transaction has added with other values in each region, or null';

-- Refuses such a column.
CREATE FUNCTION residency.refuse_differing(relation pg_catalog.regclass, attname pg_catalog.name)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM residency.refuse(errcode => '0A000',
		message => format('column "%s" of global table %s would get other values in each region', attname, relation),
		detail => 'Its default is not immutable, and each region fills its own copy.',
		hint => format('Add the column without a default, fill it by UPDATE at one gateway, and run ALTER TABLE %s ALTER COLUMN %I SET DEFAULT ... in all regions.', relation, attname));
END
$$;
COMMENT ON FUNCTION residency.refuse_differing(pg_catalog.regclass, pg_catalog.name)
	IS 'refuses a column that would make the copies of a global table differ';

-- Before a table is rewritten.
CREATE FUNCTION residency.keep_copies() RETURNS event_trigger
	LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	rewritten regclass := pg_event_trigger_table_rewrite_oid();
BEGIN
	IF EXISTS (SELECT FROM residency.rule r WHERE r.relation = rewritten AND r.kind = 'g') AND
	   pg_relation_size(rewritten) > 0 THEN
		PERFORM residency.refuse_differing(rewritten, residency.differing_column(rewritten, true));
	END IF;
END
$$;
COMMENT ON FUNCTION residency.keep_copies() IS 'event trigger: a rewrite must not make copies of global tables differ';

-- After ALTER TABLE: values stored for the rows that are there, and new sequences.
CREATE FUNCTION residency.keep_values() RETURNS event_trigger
	LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	wrong record;
BEGIN
	PERFORM residency.refuse_differing(r.relation, residency.differing_column(r.relation, false))
		FROM residency.rule r
		WHERE r.kind = 'g' AND pg_relation_size(r.relation) > 0;
	SELECT r.relation, o.attname INTO wrong
		FROM residency.rule r
		CROSS JOIN LATERAL residency.owned_sequences(r.relation) o
		JOIN pg_sequence q ON q.seqrelid = o.sequence
		WHERE q.seqincrement <> 64
		LIMIT 1;
	IF FOUND THEN
		PERFORM residency.refuse(errcode => '0A000',
			message => format('sequence of column "%s" of declared table %s would give out the same values in several regions', wrong.attname, wrong.relation),
			hint => 'Give the column a uuid, or a sequence with INCREMENT BY 64 that starts at the region''s number (SELECT number FROM residency.regions WHERE home).');
	END IF;
END
$$;
COMMENT ON FUNCTION residency.keep_values() IS 'event trigger: new columns must not get other values in each region';

CREATE EVENT TRIGGER residency_keep_copies ON table_rewrite
	EXECUTE FUNCTION residency.keep_copies();
COMMENT ON EVENT TRIGGER residency_keep_copies IS 'a rewrite must not make copies of global tables differ';
CREATE EVENT TRIGGER residency_keep_values ON ddl_command_end
	WHEN TAG IN ('ALTER TABLE')
	EXECUTE FUNCTION residency.keep_values();
COMMENT ON EVENT TRIGGER residency_keep_values IS 'new columns must not get other values in each region';

REVOKE EXECUTE ON FUNCTION residency.differing_column(pg_catalog.regclass, pg_catalog.bool),
	residency.refuse_differing(pg_catalog.regclass, pg_catalog.name) FROM PUBLIC;
