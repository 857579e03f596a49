--
-- residency.add_region(): checks first, then one atomic commit in all regions.
--
-- Everything that can be wrong with the other side is found before anything is
-- changed anywhere; the server and the mapping made here beforehand, in order to
-- ask, vanish with the transaction.
--

-- Calls that may have left something in a newcomer, see src/commit_joining.c.  Rows are
-- committed apart from the call's own transaction.  They hold no secrets.
CREATE TABLE residency.joining (
	xid          pg_catalog.xid8 PRIMARY KEY,
	incarnation  pg_catalog.int8 NOT NULL,
	region       pg_catalog.name NOT NULL,
	connection   pg_catalog.text,
	admin        pg_catalog.name NOT NULL,
	since        pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE residency.joining IS 'calls of add_region() and replace_region() here that are not finished in the region that joins';
COMMENT ON COLUMN residency.joining.xid IS 'the call''s transaction';
COMMENT ON COLUMN residency.joining.connection IS 'how the call reached it; null: by the admin''s mapping, made beforehand';
COMMENT ON COLUMN residency.joining.admin IS 'the superuser who called';
REVOKE ALL ON residency.joining FROM PUBLIC;

CREATE FUNCTION residency.announce_attempt(region pg_catalog.name, connection pg_catalog.text)
	RETURNS pg_catalog.void
	LANGUAGE c VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_announce_attempt';
COMMENT ON FUNCTION residency.announce_attempt(pg_catalog.name, pg_catalog.text)
	IS 'part of add_region: puts the call on record, whatever becomes of its transaction';
REVOKE EXECUTE ON FUNCTION residency.announce_attempt(pg_catalog.name, pg_catalog.text) FROM PUBLIC;

-- Of a server's options those that say where the database is, in a fixed order.
CREATE FUNCTION residency.address(options pg_catalog.text[]) RETURNS pg_catalog.text[]
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(array_agg(u.x ORDER BY a.n, u.k), '{}')
	FROM unnest(ARRAY['host', 'hostaddr', 'port', 'dbname']) WITH ORDINALITY a (keyword, n)
	JOIN generate_series(1, cardinality(options), 2) i ON options[i] = a.keyword
	CROSS JOIN LATERAL unnest(options[i : i + 1]) WITH ORDINALITY u (x, k)
$$;
COMMENT ON FUNCTION residency.address(pg_catalog.text[]) IS 'host, port and database out of options of a server';

-- Changes a server's options to these.  The address is new as a whole; of the others it keeps those
-- that are not given: nobody has said that a certificate need not be verified any more.
CREATE FUNCTION residency.repoint_server(region pg_catalog.name, options pg_catalog.text[]) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	changes text;
BEGIN
	SELECT string_agg(c, ', ') INTO changes FROM (
		SELECT format('DROP %I', o.option_name)
		FROM pg_foreign_server s CROSS JOIN LATERAL pg_options_to_table(s.srvoptions) o
		WHERE s.srvname = region AND
			  (o.option_name IN ('host', 'hostaddr', 'port', 'dbname') OR
			   EXISTS (SELECT FROM generate_series(1, cardinality(options), 2) i WHERE options[i] = o.option_name))
		UNION ALL
		SELECT format('ADD %I %L', options[i], options[i + 1])
		FROM generate_series(1, cardinality(options), 2) i) x (c);
	IF changes IS NOT NULL THEN
		EXECUTE format('ALTER SERVER %I OPTIONS (%s)', region, changes);
	END IF;
END
$$;
COMMENT ON FUNCTION residency.repoint_server(pg_catalog.name, pg_catalog.text[])
	IS 'part of replace_region: a region is reached otherwise from now on';

-- Makes the server and the admin mapping of a region that is to join, from a
-- connection string; or checks those that the caller has made.  Of a region that is
-- replaced they are there, and lead to its new database from now on.  Returns the string
-- with the user in it, null if there was none.
CREATE FUNCTION residency.prepare_server(region pg_catalog.name, connection pg_catalog.text, replaced pg_catalog.bool)
	RETURNS pg_catalog.text
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	exists_already bool := EXISTS (SELECT FROM pg_foreign_server s WHERE s.srvname = region);
	options        record;
BEGIN
	IF connection IS NULL THEN
		IF NOT exists_already THEN
			PERFORM residency.refuse(errcode => '22023',
				message => format('region "%s" has no server yet, and no connection string is given', region),
				hint => format('Run SELECT residency.add_region(%L, ''host=... port=... dbname=...'').', region));
		END IF;
		RETURN NULL;
	END IF;
	IF exists_already AND NOT replaced THEN
		PERFORM residency.refuse(errcode => '42710',
			message => format('server "%s" exists already', region),
			hint => format('Run SELECT residency.add_region(%L) to join that server, or DROP SERVER %I first.', region, region));
	END IF;
	options := residency.server_options(connection);
	IF NOT ('user' = ANY (options.mapping)) THEN
		options.mapping := ARRAY['user', current_user::text] || options.mapping;
	END IF;
	IF exists_already THEN
		PERFORM residency.repoint_server(region, options.server);
		IF EXISTS (SELECT FROM pg_user_mappings m WHERE m.srvname = region AND m.usename = current_user) THEN
			EXECUTE format('DROP USER MAPPING FOR CURRENT_USER SERVER %I', region);
		END IF;
	ELSE
		EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER residency %s',
					   region, residency.options_clause(options.server));
	END IF;
	EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER %I %s',
				   region, residency.options_clause(options.mapping));
	RETURN residency.connection_string(residency.way_to(region) || options.mapping);
END
$$;
COMMENT ON FUNCTION residency.prepare_server(pg_catalog.name, pg_catalog.text, pg_catalog.bool)
	IS 'part of add_region: server and admin mapping of the region that joins';

-- Compares the other server with this one.  The first question asks nothing that needs
-- the extension, so that its absence can be told from other errors.
CREATE FUNCTION residency.check_newcomer(region pg_catalog.name) RETURNS pg_catalog.text[]
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	question CONSTANT text := $sql$
		SELECT pg_catalog.current_setting('server_version_num'),
			   pg_catalog.current_setting('is_superuser'),
			   (SELECT x.extversion FROM pg_catalog.pg_extension x
				WHERE x.extname OPERATOR(pg_catalog.=) 'residency'),
			   pg_catalog.pg_encoding_to_char(d.encoding),
			   d.datcollate, d.datctype,
			   pg_catalog.concat(d.datlocprovider, pg_catalog.to_jsonb(d) OPERATOR(pg_catalog.->>) 'daticulocale'),
			   pg_catalog.current_setting('max_prepared_transactions'),
			   CASE WHEN pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.=) 'on'
			   THEN pg_catalog.current_setting('shared_preload_libraries') END,
			   pg_catalog.host(pg_catalog.inet_client_addr()),
			   pg_catalog.pg_is_in_recovery()::pg_catalog.text,
			   (SELECT pg_catalog.string_agg(p.gid, ' ') FROM pg_catalog.pg_prepared_xacts p
				WHERE p.database OPERATOR(pg_catalog.=) pg_catalog.current_database()
				  AND pg_catalog.starts_with(p.gid, 'residency:'))
		FROM pg_catalog.pg_database d
		WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()$sql$;
	here  text[];
	there text[];
	label text;
	i     int4;
BEGIN
	SELECT a.answer INTO here FROM residency.ask(ARRAY[residency.own_region()], question) a;
	SELECT a.answer INTO there FROM residency.ask(ARRAY[region], question, joined => false) a;

	IF there[1]::int4 < 150000 THEN
		PERFORM residency.refuse(errcode => '0A000',
			message => format('server of region "%s" runs PostgreSQL %s, which is older than 15', region, there[1]::int4 / 10000),
			hint => 'Upgrade that server.');
	END IF;
	IF there[11]::bool THEN
		PERFORM residency.refuse(errcode => '25006',
			message => format('server of region "%s" is a standby', region),
			hint => 'Give the connection of its primary.');
	END IF;
	IF there[2] <> 'on' THEN
		PERFORM residency.refuse(errcode => '42501',
			message => format('must be superuser in region "%s" to let it join', region),
			hint => 'Name a superuser of that server in the connection string (user=...), or in the user mapping.');
	END IF;
	IF there[9] !~ '(^|,)\s*"?(\$libdir/)?residency"?\s*(,|$)' THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('server of region "%s" does not preload the extension', region),
			hint => format('Put this line into its postgresql.conf and restart it: shared_preload_libraries = ''%s''',
						  CASE WHEN there[9] = '' THEN 'residency' ELSE there[9] || ', residency' END));
	END IF;
	IF there[8]::int4 = 0 THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('server of region "%s" allows no prepared transactions', region),
			hint => 'Put this line into its postgresql.conf and restart it: max_prepared_transactions = 200');
	END IF;
	IF there[3] IS NULL THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('extension "residency" is not installed in the database of region "%s"', region),
			hint => 'Run CREATE EXTENSION residency there.');
	END IF;
	IF there[3] <> here[3] THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('extension "residency" has version %s in region "%s", and version %s here', there[3], region, here[3]),
			hint => 'Run ALTER EXTENSION residency UPDATE in the region with the older version.');
	END IF;
	FOR i, label IN VALUES (4, 'encoding'), (5, 'collation'), (6, 'character classification'), (7, 'locale provider') LOOP
		IF there[i] IS DISTINCT FROM here[i] THEN
			PERFORM residency.refuse(errcode => '55000',
				message => format('database of region "%s" has another %s: %s there, %s here', region, label, there[i], here[i]),
				detail => 'Texts would not compare alike in all regions.',
				hint => 'Make that database anew with CREATE DATABASE ... TEMPLATE template0 ENCODING ... LC_COLLATE ... LC_CTYPE ....');
		END IF;
	END LOOP;
	RETURN there;
END
$$;
COMMENT ON FUNCTION residency.check_newcomer(pg_catalog.name)
	IS 'part of add_region: what the other server is like, as the tenth item our address; raises an error if unfit';

-- The other side's own region: none yet, or that name and alone.  Returns its
-- incarnation (0: none yet), its connection, and the name of our role there.
CREATE FUNCTION residency.check_identity(region pg_catalog.name, roles pg_catalog.name[],
		OUT incarnation pg_catalog.int8, OUT connection pg_catalog.text, OUT role_names pg_catalog.name[])
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	there text[];
	self  residency.self;
BEGIN
	SELECT a.answer INTO there FROM residency.ask(ARRAY[region], $sql$
		SELECT s.region, s.deployment, s.incarnation, s.connection,
			   (SELECT pg_catalog.count(*) FROM residency.region),
			   (SELECT pg_catalog.count(*) FROM residency.rule),
			   (SELECT pg_catalog.array_agg(residency.gateway_role(g.name) ORDER BY g.ordinality)
				FROM pg_catalog.unnest($1::pg_catalog.name[]) WITH ORDINALITY g (name, ordinality))
		FROM (SELECT) one LEFT JOIN residency.self s ON true$sql$,
		ARRAY[roles::text], joined => false) a;
	SELECT * INTO self FROM residency.self;

	IF there[1] IS NOT NULL AND there[2]::int8 = self.deployment AND there[3]::int8 = self.incarnation THEN
		PERFORM residency.refuse(errcode => '22023',
			message => format('connection of region "%s" leads back to this region', region),
			hint => 'Check host, port and dbname.');
	ELSIF there[2]::int8 = self.deployment THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('database given for region "%s" is region "%s" of this deployment, or a copy of it', region, there[1]),
			hint => 'What was restored from a backup goes on with residency.renew() there, and residency.refill() here. A region is replaced by an empty database.');
	ELSIF there[1] IS NOT NULL AND there[1] <> region::text THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('database given for region "%s" is region "%s" already', region, there[1]),
			hint => 'Check host, port and dbname, or join it under its own name.');
	ELSIF there[5]::int8 > 1 THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('region "%s" belongs to another deployment already', region),
			detail => format('It knows %s regions.', there[5]),
			hint => 'Check host, port and dbname.');
	ELSIF there[6]::int8 > 0 THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('region "%s" has declared tables of its own', region),
			hint => 'Join a region first, and declare its tables afterwards.');
	END IF;
	IF EXISTS (SELECT FROM residency.region r WHERE r.incarnation = there[3]::int8) THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('region "%s" is a clone of a region that has joined', region),
			hint => 'Make its database anew, or run SELECT residency.renew() there.');
	END IF;
	incarnation := coalesce(there[3]::int8, 0);
	connection := there[4];
	role_names := there[7]::name[];
END
$$;
COMMENT ON FUNCTION residency.check_identity(pg_catalog.name, pg_catalog.name[])
	IS 'part of add_region: the other side''s own region; raises an error if unfit';

-- Raises an error unless PostgreSQL answers where one region believes another one is.
CREATE FUNCTION residency.check_way(from_region pg_catalog.name, to_region pg_catalog.name,
		options pg_catalog.text[], joined pg_catalog.bool) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	there text[];
	plain text[] := '{}';
BEGIN
	FOR i IN 1 .. cardinality(options) BY 2 LOOP
		IF options[i] IN ('host', 'hostaddr', 'port') THEN
			plain := plain || options[i : i + 1];
		END IF;
	END LOOP;
	SELECT a.answer INTO there FROM residency.ask(ARRAY[from_region],
		'SELECT residency.reachable($1::pg_catalog.text)',
		ARRAY[residency.connection_string(plain) || ' connect_timeout=5'], joined => joined) a;
	IF there[1] IS NOT NULL THEN
		PERFORM residency.refuse(errcode => '08001',
			message => format('region "%s" cannot reach region "%s" at %s', from_region, to_region, residency.connection_string(plain)),
			detail => format('Its answer: %s.', there[1]),
			hint => format('Run SELECT residency.set_connection(''host=... port=... dbname=...'') in region "%s" with an address at which all regions reach it.', to_region));
	END IF;
END
$$;
COMMENT ON FUNCTION residency.check_way(pg_catalog.name, pg_catalog.name, pg_catalog.text[], pg_catalog.bool)
	IS 'part of add_region: one region must reach the other';

-- How the newcomer will reach this region: as residency.self says, or else at the
-- address from which it sees us come (a socket directory stays one), with our port.
CREATE FUNCTION residency.way_back(region pg_catalog.name, address pg_catalog.text) RETURNS pg_catalog.text[]
	LANGUAGE plpgsql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	known   text;
	options text[];
	host    text := address;
BEGIN
	SELECT s.connection INTO known FROM residency.self s;
	IF known IS NOT NULL THEN
		RETURN (residency.server_options(known)).server;
	END IF;
	SELECT array_agg(x ORDER BY o.ordinality, k) INTO options
		FROM pg_foreign_server s
		CROSS JOIN LATERAL pg_options_to_table(s.srvoptions) WITH ORDINALITY o (option_name, option_value, ordinality)
		CROSS JOIN LATERAL unnest(ARRAY[o.option_name, o.option_value]) WITH ORDINALITY u (x, k)
		WHERE s.srvname = region AND o.option_name NOT IN ('host', 'hostaddr', 'port', 'dbname');
	IF host IS NULL THEN
		host := split_part(current_setting('unix_socket_directories'), ',', 1);
	END IF;
	RETURN ARRAY['host', host, 'port', current_setting('port'), 'dbname', current_database()::text]
		   || coalesce(options, '{}');
END
$$;
COMMENT ON FUNCTION residency.way_back(pg_catalog.name, pg_catalog.text)
	IS 'part of add_region: how the other side will reach this region';

-- How the other regions reach a region: the options of the server here, as a list.
CREATE FUNCTION residency.way_to(region pg_catalog.name) RETURNS pg_catalog.text[]
	LANGUAGE sql STABLE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(array_agg(u.x ORDER BY o.ordinality, u.k), '{}')
	FROM pg_foreign_server s
	CROSS JOIN LATERAL pg_options_to_table(s.srvoptions) WITH ORDINALITY o (option_name, option_value, ordinality)
	CROSS JOIN LATERAL unnest(ARRAY[o.option_name, o.option_value]) WITH ORDINALITY u (x, k)
	WHERE s.srvname = region
$$;
COMMENT ON FUNCTION residency.way_to(pg_catalog.name) IS 'options of a region''s server, as keyword, value, ...';

-- Takes the newcomer for this attempt: of two deployments that want the same region, the second
-- must see the first; and no session of an earlier attempt is at work there any more.  "there" is
-- what check_newcomer() has returned.  What an earlier attempt has prepared holds the lock; but
-- first the database must not be another region's, whose prepared parts mean something else.
CREATE FUNCTION residency.lock_newcomer(newcomer pg_catalog.name, there pg_catalog.text[]) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	mine  CONSTANT text := format('residency:%s:%%', lpad(to_hex((SELECT s.incarnation FROM residency.self s)), 16, '0'));
	gids  CONSTANT text := there[12];
BEGIN
	PERFORM residency.check_identity(newcomer, '{}');
	IF gids IS NOT NULL THEN
		PERFORM residency.refuse(errcode => '55000',
			message => format('database of region "%s" holds a prepared transaction of another attempt to let it join', newcomer),
			detail => format('Its name: %s.', gids),
			hint => CASE WHEN gids LIKE mine
					THEN 'The resolver finishes it: call again in a few seconds; if residency.workers is off, run SELECT residency.resolve() first.'
					ELSE 'Let the region that began it finish it, or run ROLLBACK PREPARED in that database if that region is gone.' END);
	END IF;
	PERFORM FROM residency.ask(ARRAY[newcomer],
		'SELECT pg_catalog.set_config(''lock_timeout'', $1::pg_catalog.text, true), pg_catalog.pg_advisory_xact_lock(7366837216)',
		ARRAY[current_setting('residency.lock_timeout')], deferred => true, joined => false);
END
$$;
COMMENT ON FUNCTION residency.lock_newcomer(pg_catalog.name, pg_catalog.text[])
	IS 'part of add_region: only one attempt at a time is at work in the region that joins';

-- How the newcomer and the regions named reach each other: each at the address that it gives
-- itself, or else at ours; raises an error if one does not.  "ways" and "servers" are by region:
-- the options by which the newcomer reaches it, and which server it is in, to whom roles belong.
CREATE FUNCTION residency.find_ways(newcomer pg_catalog.name, regions pg_catalog.name[], connection pg_catalog.text,
		address pg_catalog.text, OUT ways pg_catalog.jsonb, OUT servers pg_catalog.jsonb, OUT way_in pg_catalog.text[])
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own   name := residency.own_region();
	every record;
	way   text[];
BEGIN
	ways := '{}';
	servers := '{}';
	way_in := coalesce((residency.server_options(connection)).server, residency.way_to(newcomer));
	FOR every IN SELECT a.region AS name, a.answer[1] AS connection, a.answer[2] AS server
				 FROM residency.ask(regions, 'SELECT s.connection, c.system_identifier
					FROM residency.self s, pg_catalog.pg_control_system() c') a LOOP
		servers := servers || jsonb_build_object(every.name, every.server);
		way := CASE WHEN every.name = own THEN residency.way_back(newcomer, address)
			   ELSE coalesce((residency.server_options(every.connection)).server, residency.way_to(every.name)) END;
		ways := ways || jsonb_build_object(every.name, way);
		PERFORM residency.check_way(newcomer, every.name, way, false);
		IF every.name <> own THEN
			PERFORM residency.check_way(every.name, newcomer, way_in, true);
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.find_ways(pg_catalog.name, pg_catalog.name[], pg_catalog.text, pg_catalog.text)
	IS 'part of add_region: how the region that joins and the others reach each other';

-- The first change of a newcomer: it gets its number and its incarnation, which is returned.
CREATE FUNCTION residency.let_in(newcomer pg_catalog.name, number pg_catalog.int4) RETURNS pg_catalog.int8
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	PERFORM FROM residency.ask(ARRAY[newcomer], 'SELECT residency.log_nothing()', deferred => true, joined => false);
	PERFORM FROM residency.ask(ARRAY[newcomer],
		'SELECT residency.join_deployment($1::pg_catalog.name, $2::pg_catalog.int4, $3::pg_catalog.int8)',
		ARRAY[newcomer::text, number::text, (SELECT s.deployment::text FROM residency.self s)],
		deferred => true, joined => false);
	RETURN (SELECT a.answer[1]::int8
			FROM residency.ask(ARRAY[newcomer], 'SELECT s.incarnation FROM residency.self s', joined => false) a);
END
$$;
COMMENT ON FUNCTION residency.let_in(pg_catalog.name, pg_catalog.int4)
	IS 'part of add_region: the database becomes a region of the deployment';

-- The newcomer learns of another region, which knows it already and lets it in as role_here;
-- role_there is the other region's role there.  Each gets a secret for the other.
CREATE FUNCTION residency.introduce(newcomer pg_catalog.name, other pg_catalog.name, way pg_catalog.text[],
		role_there pg_catalog.name, role_here pg_catalog.name) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	PERFORM FROM residency.ask(ARRAY[newcomer],
		'SELECT residency.learn_region($1::pg_catalog.name, $2::pg_catalog.int4, $3::pg_catalog.int8, $4::pg_catalog.name, $5::pg_catalog.text[], $6::pg_catalog.int8[])',
		(SELECT ARRAY[r.name::text, r.number::text, r.incarnation::text, role_there::text, way::text, r.replaced::text]
		 FROM residency.region r WHERE r.name = other),
		deferred => true, joined => false);
	PERFORM residency.share_secret(other, newcomer, role_there, newcomer);
	PERFORM residency.share_secret(newcomer, other, role_here, newcomer);
END
$$;
COMMENT ON FUNCTION residency.introduce(pg_catalog.name, pg_catalog.name, pg_catalog.text[], pg_catalog.name, pg_catalog.name)
	IS 'part of add_region: the region that joins learns of another one, and each gets a secret for the other';

-- Nothing deferred is left unanswered: its error belongs to the statement that asked.
CREATE FUNCTION residency.settle_steps(newcomer pg_catalog.name, others pg_catalog.name[]) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	PERFORM FROM residency.ask(coalesce(others, '{}'), 'SELECT 1');
	PERFORM FROM residency.ask(ARRAY[newcomer], 'SELECT 1', joined => false);
END
$$;
COMMENT ON FUNCTION residency.settle_steps(pg_catalog.name, pg_catalog.name[])
	IS 'part of add_region: waits for all steps that were not waited for';

CREATE FUNCTION residency.add_region(region pg_catalog.text, connection pg_catalog.text DEFAULT NULL)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own        name := residency.own_region();
	newcomer   name := region;
	way_there  text;			-- to the newcomer, as its superuser
	there      text[];			-- what its server is like
	every      record;			-- one region of those that are in already
	others     name[];
	all_names  name[];
	identity   record;
	fresh      int4;			-- the newcomer's number
	ways       record;
	role_here  name;
	roles_made jsonb := '{}';	-- by server, the roles that its regions make for the newcomer
	taken      name[];
	i          int4 := 0;
BEGIN
	PERFORM residency.require_superuser('add a region');
	PERFORM residency.check_name(region);
	IF newcomer = own OR EXISTS (SELECT FROM residency.region r WHERE r.name = newcomer) THEN
		PERFORM residency.refuse(errcode => '42710',
			message => format('region "%s" has joined already', newcomer),
			hint => 'SELECT * FROM residency.regions lists the regions. ALTER SERVER ... OPTIONS changes how one is reached; residency.replace_region() gives one that is lost a new database.');
	END IF;
	IF (SELECT count(*) FROM residency.region) >= 64 THEN
		PERFORM residency.refuse(errcode => '54000', message => 'a deployment has at most 64 regions');
	END IF;

	way_there := residency.prepare_server(newcomer, connection, false);
	PERFORM residency.begin_change();
	SELECT array_agg(r.name ORDER BY r.number), array_agg(r.name ORDER BY r.number) FILTER (WHERE r.name <> own)
		INTO all_names, others FROM residency.region r;
	there := residency.check_newcomer(newcomer);
	PERFORM residency.lock_newcomer(newcomer, there);
	identity := residency.check_identity(newcomer, all_names);
	SELECT min(n) INTO fresh FROM generate_series(1, 64) n
		WHERE NOT EXISTS (SELECT FROM residency.region r WHERE r.number = n);
	ways := residency.find_ways(newcomer, all_names, identity.connection, there[10]);

	-- from here on things change, in all regions or in none; the lock above goes with it
	PERFORM residency.announce_attempt(newcomer, way_there);
	PERFORM FROM residency.ask(others || own, 'SELECT residency.log_nothing()', deferred => true);
	identity.incarnation := residency.let_in(newcomer, fresh);
	FOR every IN SELECT r.name FROM residency.region r ORDER BY r.number LOOP
		i := i + 1;
		taken := ARRAY(SELECT jsonb_array_elements_text(roles_made -> (ways.servers ->> every.name)));
		SELECT a.answer[1] INTO role_here FROM residency.ask(ARRAY[every.name],
			'SELECT residency.gateway_role($1::pg_catalog.name, $2::pg_catalog.name[])',
			ARRAY[newcomer::text, taken::text]) a;
		roles_made := roles_made || jsonb_build_object(ways.servers ->> every.name, taken || role_here);
		PERFORM FROM residency.ask(ARRAY[every.name],
			'SELECT residency.learn_region($1::pg_catalog.name, $2::pg_catalog.int4, $3::pg_catalog.int8, $4::pg_catalog.name, $5::pg_catalog.text[], $6::pg_catalog.int8[])',
			ARRAY[newcomer::text, fresh::text, identity.incarnation::text, role_here::text, ways.way_in::text, '{}'],
			deferred => true);
		PERFORM residency.introduce(newcomer, every.name, ARRAY(SELECT jsonb_array_elements_text(ways.ways -> every.name::text)),
									identity.role_names[i], role_here);
	END LOOP;
	PERFORM residency.extend_tables(newcomer, false);
	PERFORM residency.settle_steps(newcomer, others);
END
$$;
COMMENT ON FUNCTION residency.add_region(pg_catalog.text, pg_catalog.text)
	IS 'joins a region to the deployment; all regions learn of each other';
