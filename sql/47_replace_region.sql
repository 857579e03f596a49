--
-- residency.replace_region(): a region whose server, disks and backups are lost for good gets a
-- new, empty database, under the same name and number.
--
-- To the others it is the same region: rows that name it keep it as their home, servers and
-- foreign tables stay.  To the new database it is joining, so it takes the steps of add_region().
--
-- The copies that it gets are taken while nobody can write them here, by a region that has got
-- all that the others have.  So they hold whatever was noted about the lost region up to the
-- moment when the notes are deleted; who leaves it out later notes that as always, and ships it.
--

CREATE FUNCTION residency.still_answers(region pg_catalog.name) RETURNS pg_catalog.text
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_still_answers';
COMMENT ON FUNCTION residency.still_answers(pg_catalog.name)
	IS 'step of replace_region: can the region be reached from here, whatever its state? "yes", "no", "unknown"';

CREATE FUNCTION residency.sessions_of(region pg_catalog.name) RETURNS pg_catalog.int4[]
	LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'residency_sessions_of';
COMMENT ON FUNCTION residency.sessions_of(pg_catalog.name)
	IS 'step of replace_region: processes here whose session serves that region, administration included';

-- Step: ends the sessions here that serve that region; what they have not prepared is undone.
-- Those for administration log in as any superuser, and are known by what they said in hello.
CREATE FUNCTION residency.end_sessions(region pg_catalog.name) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
	-- who has come since the last call in this transaction counts
	PERFORM pg_stat_clear_snapshot();
	PERFORM pg_terminate_backend(a.pid, 1000)
		FROM pg_stat_activity a JOIN residency.region r ON r.name = region
		WHERE a.datname = current_database() AND (a.usename = r.role OR a.pid = ANY (residency.sessions_of(region)));
END
$$;
COMMENT ON FUNCTION residency.end_sessions(pg_catalog.name)
	IS 'step of replace_region: ends sessions that a region has here';

-- Step: parts of that region's transactions that are prepared here, and lock global tables.
CREATE FUNCTION residency.parts_in_the_way(region pg_catalog.name) RETURNS SETOF pg_catalog.text
	LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT p.gid
	FROM pg_prepared_xacts p
	JOIN residency.region r ON r.role = p.owner AND r.name = parts_in_the_way.region
	WHERE p.database = current_database() AND residency.transaction_key(p.gid) IS NOT NULL AND
		  EXISTS (SELECT FROM pg_locks x
				  JOIN pg_locks l ON l.virtualtransaction = x.virtualtransaction AND l.pid IS NULL
				  JOIN residency.rule u ON u.relation = l.relation AND u.kind = 'g'
				  WHERE x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.pid IS NULL AND
						l.locktype = 'relation' AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) AND
						l.mode NOT IN ('AccessShareLock', 'RowShareLock'))
	ORDER BY p.prepared
$$;
COMMENT ON FUNCTION residency.parts_in_the_way(pg_catalog.name)
	IS 'step of replace_region: parts in doubt of that region''s transactions that write global tables';

-- Raises an error unless nobody reaches the region, and nothing of it is in doubt that the copies
-- may have to hold.  Who refuses a login may be the region, unless it is asked where the new database
-- is, "address".  Sessions that it left behind go first: they hold locks, and might still prepare.
CREATE FUNCTION residency.check_lost(region pg_catalog.name, regions pg_catalog.name[], address pg_catalog.text[]) RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	a record;
BEGIN
	FOR a IN SELECT s.region AS name, s.answer FROM residency.ask(regions,
				'SELECT residency.still_answers($1::pg_catalog.name), residency.way_to($1::pg_catalog.name)', ARRAY[region::text]) s LOOP
		IF a.answer[1] = 'yes' THEN
			PERFORM residency.refuse(errcode => '55000',
				message => format('region "%s" still answers region "%s", so it is not lost', region, a.name),
				hint => 'If it was restored from a backup: residency.renew() there, and residency.refill() here. If it shall be given up all the same, stop its server first.');
		ELSIF a.answer[1] = 'unknown' AND residency.address(a.answer[2]::text[]) <> address THEN
			PERFORM residency.refuse(errcode => '55000',
				message => format('region "%s" cannot tell whether region "%s" is lost', a.name, region),
				detail => format('It cannot ask the server at %s: its login is refused, or the extension there is another version.', residency.connection_string(residency.address(a.answer[2]::text[]))),
				hint => format('If it is that region, stop it, or correct its pg_hba.conf and the user mapping for PUBLIC. If it is the new database, run ALTER SERVER %I OPTIONS (SET host ..., SET port ..., SET dbname ...) in region "%s" so that it has the same address as here.', region, a.name));
		END IF;
	END LOOP;
	PERFORM FROM residency.ask(regions, 'SELECT residency.end_sessions($1::pg_catalog.name)', ARRAY[region::text]);
	FOR a IN SELECT s.region AS name, s.answer FROM residency.ask(regions,
				'SELECT p FROM residency.parts_in_the_way($1::pg_catalog.name) p', ARRAY[region::text]) s LOOP
		PERFORM residency.refuse(errcode => '55000',
			message => format('transaction "%s" that region "%s" began is in doubt in region "%s"', a.answer[1], region, a.name),
			detail => 'It wrote global tables, of which the new database gets copies.',
			hint => format('Decide it there first: SELECT residency.decide(%L, false), or true if its client was told that it is committed.', a.answer[1]));
	END LOOP;
END
$$;
COMMENT ON FUNCTION residency.check_lost(pg_catalog.name, pg_catalog.name[], pg_catalog.text[])
	IS 'part of replace_region: raises an error unless the region is lost';

-- Step: that region has a new database, with this incarnation.  Whatever still serves the old one
-- here is ended, and none of it is let in again.  The role stays: parts that the lost database has
-- prepared here belong to it, and wait for residency.decide().  Options null: the server is right.
CREATE FUNCTION residency.relearn_region(region pg_catalog.name, incarnation pg_catalog.int8, options pg_catalog.text[])
	RETURNS pg_catalog.name
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	role name;
BEGIN
	PERFORM residency.require_superuser('replace a region');
	-- the call that let it join is done with; its row tells that by joined_in, which changes now
	DELETE FROM residency.joining j USING residency.region r
		WHERE r.name = region AND j.region = region AND j.xid = r.joined_in;
	UPDATE residency.region r
		SET replaced = r.replaced || r.incarnation, incarnation = incarnation, joined_in = pg_current_xact_id()
		WHERE r.name = region RETURNING r.role INTO role;
	IF options IS NOT NULL THEN
		PERFORM residency.repoint_server(region, options);
	END IF;
	PERFORM residency.end_sessions(region);
	-- it gets complete copies; what it alone had made stays, to be decided about
	DELETE FROM residency.backlog b WHERE b.region = region;
	DELETE FROM residency.backlog_move b WHERE b.region = region;
	DELETE FROM residency.conflict c WHERE c.region = region AND c.kind <> 'key';
	UPDATE residency.conflict c SET constraint_name = NULL WHERE c.region = region;
	RETURN role;
END
$$;
COMMENT ON FUNCTION residency.relearn_region(pg_catalog.name, pg_catalog.int8, pg_catalog.text[])
	IS 'step of replace_region: a region has a new database; returns the role by which it logs in here';

CREATE FUNCTION residency.replace_region(region pg_catalog.text, connection pg_catalog.text DEFAULT NULL,
		overwrite pg_catalog.bool DEFAULT false)
	RETURNS pg_catalog.void
	LANGUAGE plpgsql VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	own        name := residency.own_region();
	lost       name := region;
	given      text[];			-- what the caller says of how to reach it
	way_there  text;			-- to the new database, as its superuser
	there      text[];			-- what its server is like
	all_names  name[];			-- the regions that live, this one included
	others     name[];
	identity   record;
	ways       record;
	every      name;
	role_here  name;
	fresh      int8;			-- the new incarnation
	differing  jsonb;			-- what the others have otherwise than we, of the lost home's rows
	i          int4 := 0;
BEGIN
	PERFORM residency.require_superuser('replace a region');
	IF lost IS NULL OR lost = own OR NOT EXISTS (SELECT FROM residency.region r WHERE r.name = lost) THEN
		PERFORM residency.refuse(errcode => '22023', message => 'the region to replace must be another region of this deployment',
			hint => 'Run SELECT residency.replace_region(''name'', ''host=... port=... dbname=...'') in a region that lost nothing; SELECT name FROM residency.regions lists the names.');
	END IF;
	-- asked twice: a session that the lost region left behind may hold the lock of a change, or one that it needs
	given := coalesce((residency.server_options(connection)).server, residency.address(residency.way_to(lost)));
	PERFORM residency.check_lost(lost, ARRAY(SELECT r.name FROM residency.region r WHERE r.name <> lost ORDER BY r.number),
								 residency.address(given));
	PERFORM residency.begin_change(lost);
	SELECT array_agg(r.name ORDER BY r.number), array_agg(r.name ORDER BY r.number) FILTER (WHERE r.name <> own)
		INTO all_names, others FROM residency.region r WHERE r.name <> lost;
	PERFORM residency.check_lost(lost, all_names, residency.address(given));
	way_there := residency.prepare_server(lost, connection, true);
	there := residency.check_newcomer(lost);
	PERFORM residency.lock_newcomer(lost, there);
	identity := residency.check_identity(lost, all_names);
	ways := residency.find_ways(lost, all_names, identity.connection, there[10]);
	-- how the others log in and what certificates they trust is their own business, see repoint_server
	given := coalesce((residency.server_options(identity.connection)).server, given);
	differing := residency.compare_copies(lost, all_names, overwrite);

	-- from here on things change, in all regions or in none
	PERFORM residency.announce_attempt(lost, way_there);
	PERFORM FROM residency.ask(all_names, 'SELECT residency.log_nothing()', deferred => true);
	fresh := residency.let_in(lost, (SELECT r.number FROM residency.region r WHERE r.name = lost));
	FOREACH every IN ARRAY all_names LOOP
		i := i + 1;
		SELECT a.answer[1] INTO role_here FROM residency.ask(ARRAY[every],
			'SELECT residency.relearn_region($1::pg_catalog.name, $2::pg_catalog.int8, $3::pg_catalog.text[])',
			ARRAY[lost::text, fresh::text, CASE WHEN every <> own THEN given::text END]) a;
		PERFORM residency.introduce(lost, every, ARRAY(SELECT jsonb_array_elements_text(ways.ways -> every::text)),
									identity.role_names[i], role_here);
	END LOOP;
	-- it tells regions that join later, as the others do
	PERFORM FROM residency.ask(ARRAY[lost],
		'UPDATE residency.region SET replaced = $2::pg_catalog.int8[] WHERE name OPERATOR(pg_catalog.=) $1::pg_catalog.name',
		(SELECT ARRAY[r.name::text, r.replaced::text] FROM residency.region r WHERE r.name = lost),
		deferred => true, joined => false);
	PERFORM residency.extend_tables(lost, true);
	PERFORM residency.hand_down(lost, all_names, differing);
	PERFORM residency.settle_steps(lost, others);
END
$$;
COMMENT ON FUNCTION residency.replace_region(pg_catalog.text, pg_catalog.text, pg_catalog.bool)
	IS 'gives a region that is lost for good a new, empty database';

REVOKE ALL ON FUNCTION residency.still_answers(pg_catalog.name), residency.sessions_of(pg_catalog.name), residency.end_sessions(pg_catalog.name),
	residency.parts_in_the_way(pg_catalog.name),
	residency.check_lost(pg_catalog.name, pg_catalog.name[], pg_catalog.text[]),
	residency.relearn_region(pg_catalog.name, pg_catalog.int8, pg_catalog.text[]),
	residency.replace_region(pg_catalog.text, pg_catalog.text, pg_catalog.bool) FROM PUBLIC;
