-- What the resolver of one region asks of the others, and what it did.

CREATE FUNCTION residency.traces_here(within pg_catalog.text[],
									  OUT incarnation pg_catalog.int8, OUT xid pg_catalog.xid8,
									  OUT gids pg_catalog.text[], OUT regions pg_catalog.text[])
RETURNS SETOF pg_catalog.record
	LANGUAGE sql STABLE STRICT PARALLEL UNSAFE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT t.incarnation, t.xid, t.gids, t.regions FROM residency.transaction t
	WHERE t.origin = (SELECT r.name::text FROM residency.region r WHERE r.role = session_user)
	  AND t.regions <@ traces_here.within
	ORDER BY t.incarnation, t.xid LIMIT 2000
$$;
COMMENT ON FUNCTION residency.traces_here(pg_catalog.text[])
IS 'for gateways: traces here of their own distributed transactions, of those within some regions';

-- The part of a gid that all parts of its transaction share, or null if it is none of ours.
CREATE FUNCTION residency.transaction_key(gid pg_catalog.text) RETURNS pg_catalog.text
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
BEGIN ATOMIC
	SELECT CASE WHEN gid OPERATOR(pg_catalog.~) '^residency:[0-9a-f]{16}:[0-9]{1,19}:[0-9]{1,3}:[0-9a-f]{8}$'
				THEN pg_catalog.regexp_replace(gid, ':[0-9]+:([0-9a-f]{8})$', ':\1') END;
END;
COMMENT ON FUNCTION residency.transaction_key(pg_catalog.text)
IS 'what the gids of all parts of a distributed transaction have in common; null for other gids';

CREATE FUNCTION residency.transaction_of(gid pg_catalog.text, OUT incarnation pg_catalog.int8, OUT xid pg_catalog.xid8)
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
BEGIN ATOMIC
	SELECT CASE WHEN residency.transaction_key(gid) IS NOT NULL
				THEN ('x' OPERATOR(pg_catalog.||) pg_catalog.split_part(gid, ':', 2))::pg_catalog.bit(64)::pg_catalog.int8 END,
		   CASE WHEN residency.transaction_key(gid) IS NOT NULL
				THEN pg_catalog.split_part(gid, ':', 3)::pg_catalog.xid8 END;
END;
COMMENT ON FUNCTION residency.transaction_of(pg_catalog.text)
IS 'incarnation and transaction id of the origin, from a gid; null for other gids';

CREATE TABLE residency.decision (
	transaction pg_catalog.text PRIMARY KEY,
	gid pg_catalog.text NOT NULL,
	commit pg_catalog.bool NOT NULL,
	role pg_catalog.name NOT NULL,
	decided_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
	proposed pg_catalog.bool NOT NULL
);
COMMENT ON TABLE residency.decision IS 'what residency.decide() was told, kept as a record';
COMMENT ON COLUMN residency.decision.transaction IS 'residency.transaction_key(gid)';
COMMENT ON COLUMN residency.decision.proposed IS 'not decided: so that of two who decide at once one sees the other';
REVOKE ALL ON residency.decision FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('residency.decision', '');

CREATE FUNCTION residency.outcomes_here(gids pg_catalog.text[],
										OUT gid pg_catalog.text, OUT outcome pg_catalog.text)
RETURNS SETOF pg_catalog.record
	LANGUAGE sql STABLE STRICT PARALLEL UNSAFE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT g.gid, o.outcome
	FROM residency.self s
		 CROSS JOIN unnest(gids) g (gid)
		 CROSS JOIN LATERAL residency.transaction_of(g.gid) i
		 CROSS JOIN LATERAL (
			-- what this very incarnation has decided its own resolver makes known
			SELECT CASE WHEN i.incarnation = s.incarnation OR i.incarnation = ANY (s.announced) THEN 'origin'
				   WHEN EXISTS (SELECT FROM residency.transaction t
								WHERE t.incarnation = i.incarnation AND t.xid = i.xid AND g.gid = ANY (t.gids))
				   THEN 'committed'
				   ELSE (SELECT CASE WHEN d.proposed THEN 'proposed: ' ELSE 'operator: ' END || CASE WHEN d.commit THEN 'commit' ELSE 'roll back' END
						 FROM residency.decision d WHERE d.transaction = residency.transaction_key(g.gid)
							-- what somebody was about to decide about a part that is gone concerns nobody
							AND (NOT d.proposed OR EXISTS (SELECT FROM pg_prepared_xacts p
														   WHERE p.database = current_database() AND residency.transaction_key(p.gid) = d.transaction))) END) o (outcome)
	WHERE o.outcome IS NOT NULL
		  AND EXISTS (SELECT FROM residency.region r WHERE r.role = session_user)
$$;
COMMENT ON FUNCTION residency.outcomes_here(pg_catalog.text[])
IS 'for gateways: what this region knows of the outcome of these parts'' transactions';

-- add_region grants them to each gateway's role.
REVOKE EXECUTE ON FUNCTION residency.traces_here(pg_catalog.text[]), residency.outcomes_here(pg_catalog.text[]) FROM PUBLIC;

-- Parts of other regions' transactions that are prepared here; those that were decided first.
CREATE FUNCTION residency.parts_here(OUT gid pg_catalog.text, OUT origin pg_catalog.name,
									 OUT word pg_catalog.bool, OUT age_ms pg_catalog.int8)
RETURNS SETOF pg_catalog.record
	LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT p.gid, r.name, d.commit, (1000 * extract(epoch FROM clock_timestamp() - p.prepared))::int8
	FROM pg_prepared_xacts p
		 JOIN residency.region r ON r.role = p.owner
		 LEFT JOIN residency.decision d ON d.transaction = residency.transaction_key(p.gid) AND NOT d.proposed
	WHERE p.database = current_database() AND residency.transaction_key(p.gid) IS NOT NULL
	ORDER BY d.commit IS NULL, p.prepared
$$;
COMMENT ON FUNCTION residency.parts_here()
IS 'prepared parts of other regions'' transactions, with what residency.decide() said';
REVOKE EXECUTE ON FUNCTION residency.parts_here() FROM PUBLIC;

CREATE FUNCTION residency.ask_outcome(gid pg_catalog.text, OUT region pg_catalog.text, OUT outcome pg_catalog.text)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'residency_ask_outcome' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.ask_outcome(pg_catalog.text)
IS 'step of decide: what each other region knows of the outcome of this part''s transaction';
REVOKE EXECUTE ON FUNCTION residency.ask_outcome(pg_catalog.text) FROM PUBLIC;

CREATE FUNCTION residency.wake_resolver() RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'residency_wake_resolver' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.wake_resolver()
IS 'lets the resolver look at all regions when this transaction commits; false if workers are switched off';
REVOKE EXECUTE ON FUNCTION residency.wake_resolver() FROM PUBLIC;

CREATE FUNCTION residency.propose(gid pg_catalog.text, commit pg_catalog.bool) RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'residency_propose' LANGUAGE C CALLED ON NULL INPUT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.propose(pg_catalog.text, pg_catalog.bool)
IS 'step of decide: puts on record what is about to be decided here, or withdraws that (null); false if it is decided otherwise';
REVOKE EXECUTE ON FUNCTION residency.propose(pg_catalog.text, pg_catalog.bool) FROM PUBLIC;

-- Of two who decide at once each has put its word on record before it asks the other: at least one
-- of them sees the other's, and gives way.
CREATE FUNCTION residency.decide(gid pg_catalog.text, commit pg_catalog.bool) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	known record;
	problem text;
	advice text;
	contrary text := CASE WHEN commit THEN 'roll back' ELSE 'commit' END;
BEGIN
	PERFORM residency.require_superuser('decide a transaction in doubt');
	IF NOT EXISTS (SELECT FROM residency.parts_here() p WHERE p.gid = decide.gid) THEN
		RAISE EXCEPTION USING ERRCODE = '42704',
			MESSAGE = format('no part "%s" of another region''s transaction is prepared here', gid),
			HINT = 'SELECT gids FROM residency.transactions WHERE state = ''prepared here'' lists them.';
	END IF;
	IF NOT residency.propose(gid, commit) THEN
		RAISE EXCEPTION USING ERRCODE = '55000',
			MESSAGE = format('transaction "%s" was decided otherwise in region "%s"', gid, residency.own_region()),
			HINT = 'The first decision counts; the resolver carries it out here by itself.';
	END IF;
	FOR known IN SELECT a.region, a.outcome FROM residency.ask_outcome(gid) a LOOP
		IF known.outcome = 'origin' THEN
			problem := format('region "%s", where transaction "%s" began, answers and knows its outcome', known.region, gid);
			advice := format('Its resolver finishes it within seconds; SELECT * FROM residency.resolve(); in region "%s" does it now.', known.region);
		ELSIF known.outcome = 'committed' AND NOT commit THEN
			problem := format('region "%s" has committed its part of transaction "%s"', known.region, gid);
			advice := 'Commit it here as well; the resolver does so by itself.';
		ELSIF known.outcome = 'operator: ' || contrary THEN
			problem := format('transaction "%s" was decided otherwise in region "%s"', gid, known.region);
			advice := 'The first decision counts; the resolver carries it out here by itself.';
		ELSIF known.outcome = 'proposed: ' || contrary THEN
			problem := format('transaction "%s" is being decided otherwise in region "%s"', gid, known.region);
			advice := format('Agree on one outcome. If nobody is at it in region "%s", call residency.decide() there: the latest call counts.', known.region);
		END IF;
	END LOOP;
	IF problem IS NOT NULL THEN
		PERFORM residency.propose(gid, NULL);
		RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = problem, HINT = advice;
	END IF;
	UPDATE residency.decision d SET proposed = false, decided_at = clock_timestamp()
		WHERE d.transaction = residency.transaction_key(gid) AND d.commit = decide.commit;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING ERRCODE = '55000',
			MESSAGE = format('transaction "%s" is being decided by somebody else, or under an older snapshot', gid),
			HINT = 'Call residency.decide() again, under READ COMMITTED.';
	END IF;
	IF NOT residency.wake_resolver() THEN
		RAISE WARNING USING MESSAGE = 'the workers of this server are switched off',
			HINT = format('The decision is recorded. Set residency.workers = on, or run %s PREPARED %L.',
						  CASE WHEN commit THEN 'COMMIT' ELSE 'ROLLBACK' END, gid);
	END IF;
END
$$;
COMMENT ON FUNCTION residency.decide(pg_catalog.text, pg_catalog.bool)
IS 'the operator''s last word on a distributed transaction whose origin is gone for good';
REVOKE EXECUTE ON FUNCTION residency.decide(pg_catalog.text, pg_catalog.bool) FROM PUBLIC;

CREATE FUNCTION residency.resolver_actions(OUT at pg_catalog.timestamptz, OUT region pg_catalog.text,
										   OUT gid pg_catalog.text, OUT action pg_catalog.text)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'residency_resolver_actions' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION residency.resolver_actions()
IS 'what was last done with transactions that a crash left, since the server started';

CREATE VIEW residency.transactions AS
	WITH known AS (
		SELECT t.origin, t.xid, t.regions, t.gids, t.decided_at AS since,
			   CASE WHEN t.origin OPERATOR(pg_catalog.=) s.region THEN 'decided'::pg_catalog.text
					ELSE 'applied here'::pg_catalog.text END AS state
		FROM residency.transaction t CROSS JOIN residency.self s
		UNION ALL
		SELECT coalesce(r.name::pg_catalog.text, '?'), pg_catalog.split_part(p.gid, ':', 3)::pg_catalog.xid8,
			   ARRAY[s.region::pg_catalog.text], ARRAY[p.gid], p.prepared, 'prepared here'::pg_catalog.text
		FROM pg_catalog.pg_prepared_xacts p
			 CROSS JOIN residency.self s
			 LEFT JOIN residency.region r ON r.role OPERATOR(pg_catalog.=) p.owner
		WHERE p.database OPERATOR(pg_catalog.=) pg_catalog.current_database()
		  -- anybody may prepare something under a name that begins like ours
		  AND residency.transaction_key(p.gid) IS NOT NULL)
	SELECT k.origin, k.xid, k.regions, k.gids, k.since, k.state,
		   a.region OPERATOR(pg_catalog.||) ': ' OPERATOR(pg_catalog.||) a.action AS resolver
	FROM known k
		 LEFT JOIN LATERAL (SELECT l.region, l.action FROM residency.resolver_actions() l
							WHERE l.gid OPERATOR(pg_catalog.=) ANY (k.gids)
							ORDER BY l.at DESC LIMIT 1) a ON true
	UNION ALL
	SELECT coalesce(r.name::pg_catalog.text, '?'), pg_catalog.split_part(l.gid, ':', 3)::pg_catalog.xid8,
		   ARRAY[l.region], ARRAY[l.gid], l.at, 'finished'::pg_catalog.text,
		   l.region OPERATOR(pg_catalog.||) ': ' OPERATOR(pg_catalog.||) l.action
	FROM residency.resolver_actions() l
		 LEFT JOIN residency.region r
			ON pg_catalog.lpad(pg_catalog.to_hex(r.incarnation), 16, '0') OPERATOR(pg_catalog.=) pg_catalog.split_part(l.gid, ':', 2)
	WHERE l.action OPERATOR(pg_catalog.=) ANY (ARRAY['committed', 'rolled back'])
	UNION ALL
	SELECT s.region::pg_catalog.text, j.xid, ARRAY[j.region::pg_catalog.text], '{}'::pg_catalog.text[], j.since,
		   'joining'::pg_catalog.text, NULL::pg_catalog.text
	FROM residency.joining j CROSS JOIN residency.self s
	UNION ALL
	SELECT coalesce(r.name::pg_catalog.text, '?'), pg_catalog.split_part(d.gid, ':', 3)::pg_catalog.xid8,
		   ARRAY[s.region::pg_catalog.text], ARRAY[d.gid], d.decided_at, 'operator'::pg_catalog.text,
		   CASE WHEN d.commit THEN 'commit' ELSE 'roll back' END
	FROM residency.decision d
		 CROSS JOIN residency.self s
		 LEFT JOIN residency.region r
			ON pg_catalog.lpad(pg_catalog.to_hex(r.incarnation), 16, '0') OPERATOR(pg_catalog.=) pg_catalog.split_part(d.gid, ':', 2)
	WHERE NOT d.proposed;
COMMENT ON VIEW residency.transactions
IS 'distributed transactions that are not finished everywhere, and those that the resolver finished';
COMMENT ON COLUMN residency.transactions.state
IS 'decided: began here and committed; applied here, prepared here: its part of this region; finished: by the resolver; joining: add_region() or replace_region() began here, and is not finished in that region; operator: what residency.decide() said';
COMMENT ON COLUMN residency.transactions.resolver IS 'what the resolver last did with it, and where';
GRANT SELECT ON residency.transactions TO PUBLIC;
