--
-- Joining regions, and changes of all regions in one atomic commit.
--
-- Whatever changes regions or tables is done by steps: functions that each region
-- performs from its own catalogs, asked of all regions side by side with
-- residency.ask().  Steps may be called by superusers only, and are no interface.
--

-- What a step refuses has to say so in another region, where a plain RAISE would count
-- as a user's, which may hold values and loses its text.
CREATE FUNCTION residency.refuse(errcode pg_catalog.text, message pg_catalog.text,
		hint pg_catalog.text DEFAULT NULL, detail pg_catalog.text DEFAULT NULL)
	RETURNS pg_catalog.void
	LANGUAGE c VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_refuse';
COMMENT ON FUNCTION residency.refuse(pg_catalog.text, pg_catalog.text, pg_catalog.text, pg_catalog.text)
	IS 'raises an error of this extension''s own functions';

CREATE FUNCTION residency.ask(
		regions pg_catalog.name[], statement pg_catalog.text,
		parameters pg_catalog.text[] DEFAULT '{}', deferred pg_catalog.bool DEFAULT false,
		joined pg_catalog.bool DEFAULT true,
		OUT region pg_catalog.name, OUT answer pg_catalog.text[])
	RETURNS SETOF pg_catalog.record
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_ask';
COMMENT ON FUNCTION residency.ask(pg_catalog.name[], pg_catalog.text, pg_catalog.text[], pg_catalog.bool, pg_catalog.bool)
	IS 'runs a statement in the regions named, as their admin, side by side; rows as text';

CREATE FUNCTION residency.run_everywhere(sql pg_catalog.text) RETURNS pg_catalog.void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_run_everywhere';
COMMENT ON FUNCTION residency.run_everywhere(pg_catalog.text)
	IS 'runs SQL statements in all regions, in one atomic commit';

CREATE FUNCTION residency.connection_options(connection pg_catalog.text,
		OUT keyword pg_catalog.text, OUT value pg_catalog.text)
	RETURNS SETOF pg_catalog.record
	LANGUAGE c STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_connection_options';
COMMENT ON FUNCTION residency.connection_options(pg_catalog.text)
	IS 'keywords and values of a libpq connection string';

CREATE FUNCTION residency.reachable(connection pg_catalog.text) RETURNS pg_catalog.text
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_reachable';
COMMENT ON FUNCTION residency.reachable(pg_catalog.text)
	IS 'null if a PostgreSQL server answers there, otherwise the reason';

CREATE FUNCTION residency.accept_verifier(role pg_catalog.name, verifier pg_catalog.text)
	RETURNS pg_catalog.void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_accept_verifier';
COMMENT ON FUNCTION residency.accept_verifier(pg_catalog.name, pg_catalog.text)
	IS 'step of add_region: password of a gateway''s role, as a SCRAM verifier';

CREATE FUNCTION residency.accept_secret(server pg_catalog.name, role pg_catalog.name, secret pg_catalog.text)
	RETURNS pg_catalog.void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_accept_secret';
COMMENT ON FUNCTION residency.accept_secret(pg_catalog.name, pg_catalog.name, pg_catalog.text)
	IS 'step of add_region: how this gateway logs in at a home';

CREATE FUNCTION residency.share_secret(gateway pg_catalog.name, home pg_catalog.name,
		role pg_catalog.name, newcomer pg_catalog.name) RETURNS pg_catalog.void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_share_secret';
COMMENT ON FUNCTION residency.share_secret(pg_catalog.name, pg_catalog.name, pg_catalog.name, pg_catalog.name)
	IS 'part of add_region: draws a secret and hands gateway and home their halves';

-- Splits a connection string into server options and options of a user mapping, each
-- as an array of keyword, value, keyword, value, ...  A password is refused: it would
-- be in the statement's text, hence in logs.
CREATE FUNCTION residency.server_options(connection pg_catalog.text,
		OUT server pg_catalog.text[], OUT mapping pg_catalog.text[])
	LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	item record;
BEGIN
	server := '{}';
	mapping := '{}';
	FOR item IN SELECT o.keyword, o.value FROM residency.connection_options(connection) o LOOP
		IF item.keyword IN ('password', 'sslpassword') THEN
			PERFORM residency.refuse(errcode => '22023',
				message => 'a connection string must not contain a password',
				detail => 'It would be seen in logs and in pg_stat_activity.',
				hint => 'Run CREATE SERVER and CREATE USER MAPPING FOR CURRENT_USER ... OPTIONS (user, password), and then residency.add_region() with the name alone; or use a passfile.');
		ELSIF item.keyword IN ('user', 'passfile', 'sslcert', 'sslkey') THEN
			mapping := mapping || ARRAY[item.keyword, item.value];
		ELSE
			server := server || ARRAY[item.keyword, item.value];
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.server_options(pg_catalog.text)
	IS 'options of a server and of a user mapping out of a connection string';

-- OPTIONS clause of a list of keyword, value, ...; empty for an empty list.
CREATE FUNCTION residency.options_clause(options pg_catalog.text[]) RETURNS pg_catalog.text
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce('OPTIONS (' || string_agg(format('%I %L', options[i], options[i + 1]), ', ' ORDER BY i) || ')', '')
	FROM generate_series(1, cardinality(options), 2) i
$$;
COMMENT ON FUNCTION residency.options_clause(pg_catalog.text[]) IS 'OPTIONS clause of keywords and values';

-- Connection string of a list of keyword, value, ..., as libpq quotes it.
CREATE FUNCTION residency.connection_string(options pg_catalog.text[]) RETURNS pg_catalog.text
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(string_agg(options[i] || '=''' ||
							   replace(replace(options[i + 1], '\', '\\'), '''', '\''') || '''', ' ' ORDER BY i), '')
	FROM generate_series(1, cardinality(options), 2) i
$$;
COMMENT ON FUNCTION residency.connection_string(pg_catalog.text[]) IS 'libpq connection string of keywords and values';

CREATE FUNCTION residency.own_region() RETURNS pg_catalog.name
	LANGUAGE plpgsql STABLE PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own name;
BEGIN
	SELECT s.region INTO own FROM residency.self s;
	IF NOT FOUND THEN
		PERFORM residency.refuse(errcode => '55000',
			message => 'this database is not a region yet',
			hint => 'Run SELECT residency.init(''name-of-this-region'') first.');
	END IF;
	RETURN own;
END
$$;
COMMENT ON FUNCTION residency.own_region() IS 'name of this region; an error before residency.init()';

CREATE FUNCTION residency.require_superuser(what pg_catalog.text) RETURNS pg_catalog.void
	LANGUAGE plpgsql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	IF NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
		PERFORM residency.refuse(errcode => '42501', message => format('must be superuser to %s', what));
	END IF;
END
$$;
COMMENT ON FUNCTION residency.require_superuser(pg_catalog.text) IS 'raises an error unless the current user is a superuser';

CREATE FUNCTION residency.begin_change(without pg_catalog.name DEFAULT NULL) RETURNS pg_catalog.void
	LANGUAGE c VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_begin_change_sql';
COMMENT ON FUNCTION residency.begin_change(pg_catalog.name)
	IS 'serialises changes of regions and tables, and bounds their lock waits; without a region that is lost';

-- Name of the role by which a gateway logs in here.  Roles belong to the whole server,
-- where another database may be a region of its own, so the plain name may be taken; or be
-- about to be, which this session cannot see: "others" are such names.
CREATE FUNCTION residency.gateway_role(gateway pg_catalog.name, others pg_catalog.name[] DEFAULT '{}')
	RETURNS pg_catalog.name
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	candidate text := 'residency_' || gateway;
BEGIN
	WHILE octet_length(candidate) > 63 OR candidate = ANY (others) OR
		  EXISTS (SELECT FROM pg_roles r WHERE r.rolname = candidate) LOOP
		candidate := 'residency_' || left(gateway, 10) || '_' || to_hex(residency.random_bits() & 4294967295);
	END LOOP;
	RETURN candidate;
END
$$;
COMMENT ON FUNCTION residency.gateway_role(pg_catalog.name, pg_catalog.name[]) IS 'free name for the role of a gateway';

-- Functions that a gateway's own role calls here; everybody else is kept out of them.
CREATE FUNCTION residency.gateway_functions() RETURNS SETOF pg_catalog.regprocedure
	LANGUAGE sql STABLE PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT p.oid::regprocedure
	FROM pg_proc p
	WHERE p.pronamespace = 'residency'::regnamespace AND
		  p.proname = ANY (ARRAY['apply', 'apply_shipped', 'apply_truncate', 'forget', 'forget_conflict',
								 'hello', 'outcomes_here', 'participate', 'ping', 'prepared_here', 'replicated_here',
								 'statistics', 'traces_here'])
	ORDER BY 1
$$;
COMMENT ON FUNCTION residency.gateway_functions() IS 'functions of this extension that gateways may call';

-- Step: this region learns of another one.  Makes the row, the schema, the server, and
-- the role by which that region logs in here; secrets come separately.  "replaced" are its
-- incarnations that are not to be let in.
CREATE FUNCTION residency.learn_region(name pg_catalog.name, number pg_catalog.int4,
		incarnation pg_catalog.int8, role pg_catalog.name, options pg_catalog.text[], replaced pg_catalog.int8[])
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	wrapper name;
	f       regprocedure;
BEGIN
	PERFORM residency.require_superuser('add a region');
	SELECT w.fdwname INTO wrapper
		FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
		WHERE s.srvname = learn_region.name;
	IF NOT FOUND THEN
		EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER residency %s',
					   learn_region.name, residency.options_clause(options));
	ELSIF wrapper <> 'residency' THEN
		PERFORM residency.refuse(errcode => '42710',
			message => format('server "%s" belongs to the foreign data wrapper "%s"', learn_region.name, wrapper),
			hint => 'Choose another name for the region, or rename that server.');
	END IF;
	INSERT INTO residency.region (name, number, incarnation, role, replaced)
		VALUES (learn_region.name, learn_region.number, learn_region.incarnation, learn_region.role, learn_region.replaced);
	PERFORM residency.make_schema(learn_region.name);
	EXECUTE format('CREATE ROLE %I LOGIN NOINHERIT', role);
	EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
	FOR f IN SELECT g FROM residency.gateway_functions() g LOOP
		EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', f, role);
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.learn_region(pg_catalog.name, pg_catalog.int4, pg_catalog.int8, pg_catalog.name, pg_catalog.text[], pg_catalog.int8[])
	IS 'step of add_region: this region learns of another one';

-- Step: this database becomes a region of an existing deployment.
CREATE FUNCTION residency.join_deployment(name pg_catalog.name, number pg_catalog.int4,
		deployment pg_catalog.int8) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	PERFORM residency.require_superuser('join a deployment');
	IF NOT EXISTS (SELECT FROM residency.self) THEN
		PERFORM residency.init(join_deployment.name);
	END IF;
	UPDATE residency.self s SET number = join_deployment.number, deployment = join_deployment.deployment
		WHERE s.region = join_deployment.name;
	UPDATE residency.region r SET number = join_deployment.number WHERE r.name = join_deployment.name;
END
$$;
COMMENT ON FUNCTION residency.join_deployment(pg_catalog.name, pg_catalog.int4, pg_catalog.int8)
	IS 'step of add_region: this database becomes a region of a deployment';

-- Step: keeps secrets out of this session's log until the transaction ends.
CREATE FUNCTION residency.log_nothing() RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	PERFORM set_config(s.name, s.value, true)
	FROM (VALUES ('log_statement', 'none'), ('log_min_duration_statement', '-1'),
				 ('log_min_duration_sample', '-1'), ('log_duration', 'off'),
				 ('log_transaction_sample_rate', '0'), ('log_min_error_statement', 'panic'),
				 ('log_parameter_max_length', '0'), ('log_parameter_max_length_on_error', '0'),
				 ('debug_print_parse', 'off'), ('debug_print_rewritten', 'off'),
				 ('debug_print_plan', 'off'), ('track_activities', 'off')) s (name, value);
END
$$;
COMMENT ON FUNCTION residency.log_nothing() IS 'keeps secrets out of this session''s log until the transaction ends';

CREATE FUNCTION residency.set_connection(connection pg_catalog.text) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	PERFORM residency.require_superuser('tell how this region is reached');
	PERFORM residency.own_region();
	PERFORM residency.server_options(connection);
	UPDATE residency.self s SET connection = set_connection.connection WHERE s.only_row;
END
$$;
COMMENT ON FUNCTION residency.set_connection(pg_catalog.text)
	IS 'tells how regions that join later reach this one; null: as add_region() finds out';

CREATE FUNCTION residency.announce_incarnation(incarnation pg_catalog.int8) RETURNS pg_catalog.void
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_announce_incarnation';
COMMENT ON FUNCTION residency.announce_incarnation(pg_catalog.int8)
	IS 'part of renew: puts the new incarnation on record, whatever becomes of the transaction';
REVOKE EXECUTE ON FUNCTION residency.announce_incarnation(pg_catalog.int8) FROM PUBLIC;

CREATE FUNCTION residency.renew() RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own   name := residency.own_region();
	fresh int8 := residency.random_bits();
	every name[];
	lost  name;
BEGIN
	PERFORM residency.require_superuser('renew the incarnation of this region');
	PERFORM residency.begin_change();
	PERFORM residency.announce_incarnation(fresh);
	UPDATE residency.self s SET incarnation = fresh, announced = array_remove(s.announced, fresh),
			place = residency.own_place() WHERE s.only_row;
	-- what its former self has begun is that one's business
	FOR lost IN DELETE FROM residency.joining j RETURNING j.region LOOP
		RAISE WARNING 'a call of add_region() for region "%" that this region has begun is not finished any more', lost
			USING HINT = 'Look into that database: what pg_prepared_xacts shows there must be rolled back by hand.';
	END LOOP;
	SELECT array_agg(r.name) INTO every FROM residency.region r;
	PERFORM FROM residency.ask(every,
		'UPDATE residency.region SET incarnation = $2::pg_catalog.int8
		 WHERE name OPERATOR(pg_catalog.=) $1::pg_catalog.name',
		ARRAY[own, fresh::text]);
END
$$;
COMMENT ON FUNCTION residency.renew()
	IS 'draws a new incarnation, after point-in-time recovery or cloning, and tells all regions';
