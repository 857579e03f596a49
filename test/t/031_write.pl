# Writes to another region do what they do to a local table: the same rows, the same
# counts, the same RETURNING, the same errors.
use strict;
use warnings;

use Regions;
use Test::More;

my $r = Regions->new(regions => [qw(usa gbr)]);

$r->psql('usa', "SELECT residency.run_everywhere(\$\$$_\$\$)") foreach
  'CREATE TABLE public.item (gone int, id int PRIMARY KEY, region text NOT NULL, name text DEFAULT $x$unnamed$x$, n int CHECK (n >= 0),
	twice int GENERATED ALWAYS AS (n * 2) STORED, made timestamptz DEFAULT now())',
  'ALTER TABLE public.item DROP COLUMN gone',
  'CREATE TABLE public.numbered (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, region text NOT NULL, "Mixed Case" text)',
  'CREATE TABLE public.watched (id int PRIMARY KEY, region text NOT NULL, name text, log text)',
  'CREATE ROLE writer LOGIN',
  'CREATE ROLE reader LOGIN';
$r->psql('usa', "SELECT residency.make_resident('$_', 'region', key => '{id}')") foreach qw(item numbered watched);

my $all = sub { my ($where) = @_; return $r->psql('gbr', "SELECT id, region, name, n, twice FROM gbr.item WHERE $where ORDER BY id"); };

# psql's command tags, which hold the counts
my $tag = sub { my ($sql) = @_; my ($code, $out, $err) = $r->try('usa', "\\set QUIET off\n$sql"); return $out . ($code ? $err : ''); };

# INSERT
is($tag->(q{INSERT INTO item (id, region, n) VALUES (1, 'gbr', 5), (2, 'usa', 6)}), 'INSERT 0 2', 'INSERT counts rows of all regions');
is($all->('true'), '1|gbr|unnamed|5|10', 'defaults and generated columns are filled in');
is($r->psql('gbr', 'SELECT made IS NOT NULL FROM gbr.item'), 't', 'a default that is a function');
is($r->psql('usa', q{INSERT INTO item (id, region, n) VALUES (3, 'gbr', 7) RETURNING id, name, twice, tableoid::regclass}), '3|unnamed|14|gbr.item', 'INSERT with RETURNING');
is($r->psql('usa', q{INSERT INTO gbr.item (id, region, n) VALUES (4, 'gbr', 8) RETURNING ctid < '(1000,1)', *}) =~ /^t\|4\|gbr\|unnamed\|8\|16\|/, 1, 'INSERT into a partition, with ctid in RETURNING');
is($tag->(q{INSERT INTO item (id, region) SELECT i, 'gbr' FROM generate_series(1001, 8500) i}), 'INSERT 0 7500', 'many batches');
is($r->psql('gbr', 'SELECT count(*), count(DISTINCT id) FROM gbr.item WHERE id > 1000'), '7500|7500', 'and all rows of them');
is($tag->(q{INSERT INTO item (id, region) SELECT i, 'gbr' FROM generate_series(8000, 9000) i ON CONFLICT DO NOTHING}), 'INSERT 0 500', 'ON CONFLICT DO NOTHING counts what was inserted');
is($r->psql('usa', q{INSERT INTO item (id, region) VALUES (8999, 'gbr'), (9001, 'gbr') ON CONFLICT DO NOTHING RETURNING id}), 9001, 'and returns only that');
$r->fails('usa', q{INSERT INTO item (id, region) VALUES (1, 'gbr')}, '23505', qr/region "gbr".*item_pkey/s, 'a duplicate key');
$r->fails('usa', q{INSERT INTO item (id, region, n) VALUES (5, 'gbr', -1)}, '23514', qr/region "gbr".*item_n_check/s, 'a check constraint');
$r->fails('usa', q{INSERT INTO gbr.item (id, region) VALUES (5, 'usa')}, '23514', qr/violates partition constraint/, 'a row of another region in a partition');
$r->fails('usa', q{INSERT INTO item (id, region) VALUES (5, 'fra')}, '23514', qr/no partition/, 'a row of no region');
$r->fails('usa', q{INSERT INTO item (id, region) VALUES (1, 'gbr') ON CONFLICT (id) DO UPDATE SET n = 1}, '42P10', qr/ON CONFLICT/, 'ON CONFLICT with a target is refused');
is($r->psql('usa', q{INSERT INTO numbered (region, "Mixed Case") VALUES ('gbr', 'a'), ('gbr', 'b') RETURNING "Mixed Case"}), "a\nb", 'an identity column');
is($r->psql('gbr', 'SELECT count(DISTINCT id) FROM gbr.numbered WHERE id IS NOT NULL'), 2, 'and its values');

$r->fails('usa', q{MERGE INTO item USING (VALUES (9)) v(id) ON item.id = v.id WHEN MATCHED THEN DELETE}, '0A000', qr/MERGE/, 'MERGE is refused');
$r->fails('usa', q{MERGE INTO item USING (VALUES (9)) v(id) ON item.id = v.id AND item.region = 'usa' WHEN NOT MATCHED THEN INSERT (id, region) VALUES (9, 'gbr')}, '0A000', qr/MERGE cannot insert rows of region "gbr"/, 'also where it would insert only');

# COPY, from both ends
is($tag->(q{COPY item (id, region, n) FROM PROGRAM 'for i in $(seq 20001 22500); do echo "$i,gbr,$i"; done' (FORMAT csv)}), 'COPY 2500', 'COPY counts rows');
is($r->psql('gbr', 'SELECT count(*), sum(twice) FROM gbr.item WHERE id > 20000'), '2500|' . 2 * (20001 + 22500) / 2 * 2500, 'and stores them');
is($tag->(q{COPY gbr.item (id, region, n) FROM PROGRAM 'echo "30000,gbr,1"' (FORMAT csv)}), 'COPY 1', 'COPY into a partition');
is($r->psql('usa', q{COPY (SELECT id, n FROM item WHERE id = 30000) TO STDOUT}), "30000\t1", 'COPY of a query');
is($tag->('DELETE FROM item WHERE id > 1000'), 'DELETE ' . (7500 + 501 + 2500 + 1), 'DELETE counts rows');

# UPDATE and DELETE, done at the home
is($tag->(q{UPDATE item SET n = n + 1 WHERE id <= 2}), 'UPDATE 2', 'UPDATE in both regions');
is($all->('id = 1'), '1|gbr|unnamed|6|12', 'and what it stores');
is($r->psql('usa', q{UPDATE item SET name = 'new' WHERE id IN (1, 3) RETURNING id, name, twice}), "1|new|12\n3|new|14", 'UPDATE with RETURNING');
is($r->psql('usa', q{UPDATE gbr.item SET n = 0 WHERE id = 3 RETURNING 10 / (n + 1), tableoid::regclass}), '10|gbr.item', 'UPDATE of a partition');
is($r->psql('usa', q{WITH u AS (UPDATE item SET n = n + 1 RETURNING id) SELECT count(*) FROM u}), 4, 'UPDATE in a CTE');
is($r->psql('usa', q{DELETE FROM item WHERE id = 4 RETURNING id, n}), '4|9', 'DELETE with RETURNING');
is($r->psql('usa', q{UPDATE item SET n = 100 / (n - n + 5) WHERE id = 1 RETURNING n}), 20, 'an expression that would fail if it were computed twice');
$r->psql('usa', q{UPDATE item SET n = 10 / n WHERE id = 1});

# ... and row by row, because the gateway must be asked
$r->psql('usa', q{
	CREATE TABLE public.change (id int, d int);
	INSERT INTO change VALUES (1, 10), (1, 20), (2, 30), (77, 1);
	CREATE FUNCTION local_only(i int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN i * 2; END';
	INSERT INTO item (id, region, n) SELECT i, 'gbr', i FROM generate_series(100, 200) i;
});
is($tag->(q{UPDATE item i SET n = c.d FROM change c WHERE c.id = i.id}), 'UPDATE 2', 'UPDATE joined to a local table; a row that matches twice counts once');
like($all->('id = 1'), qr/^1\|gbr\|new\|(10\|20|20\|40)$/, 'and is written once');
is($tag->(q{UPDATE item SET n = local_only(n) WHERE id BETWEEN 100 AND 200}), 'UPDATE 101', 'UPDATE with a local function');
is($r->psql('gbr', 'SELECT sum(n), sum(twice) FROM gbr.item WHERE id BETWEEN 100 AND 200'), '30300|60600', 'and what it stores');
is($r->psql('usa', q{UPDATE item SET n = local_only(1), name = 'x' WHERE id BETWEEN 100 AND 101 RETURNING id, n, name, twice}), "100|2|x|4\n101|2|x|4", 'with RETURNING');
is($r->psql('usa', q{DELETE FROM item i USING change c WHERE c.d = 1 AND i.id = c.id + 23 RETURNING i.id, i.n, i.name, c.id}), '100|2|x|77', 'DELETE joined to a local table, with RETURNING');
is($tag->(q{DELETE FROM item WHERE local_only(id) = 202}), 'DELETE 1', 'DELETE with a local condition');
is($tag->(q{UPDATE item SET n = local_only(id) WHERE local_only(id) < 0}), 'UPDATE 0', 'no row');

# the region of a row
foreach my $sql (
	q{UPDATE item SET region = 'usa' WHERE id = 1}, q{UPDATE item SET region = 'gbr' WHERE id = 2},
	q{UPDATE gbr.item SET region = 'usa'}, q{UPDATE item SET region = lower('USA') WHERE id = 1},
	q{UPDATE item SET region = upper(name) WHERE id = 1}, q{UPDATE item i SET region = 'usa' FROM change c WHERE i.id = c.id},
	q{UPDATE item SET region = 'gbr' WHERE region = 'usa'},
	q{WITH u AS (UPDATE item SET region = 'usa' WHERE id = 1 RETURNING 1) SELECT * FROM u})
{
	$r->fails('usa', $sql, '0A000', qr/cannot change the region of a row of table "item"/, "refused: $sql");
}
is($tag->(q{UPDATE item SET region = 'gbr', n = 3 WHERE id = 1 AND region = 'gbr'}), 'UPDATE 1', 'the same region is no change');
is($tag->(q{UPDATE item SET region = region, n = 3 WHERE id IN (1, 2)}), 'UPDATE 2', 'nor is the column itself');

# views, with and without check
$r->psql('usa', q{CREATE VIEW small AS SELECT id, region, n FROM item WHERE n < 1000 WITH CHECK OPTION});
is($tag->(q{INSERT INTO small VALUES (300, 'gbr', 1)}), 'INSERT 0 1', 'INSERT through a view');
$r->fails('usa', q{INSERT INTO small VALUES (301, 'gbr', 1000)}, '44000', qr/check option/, 'INSERT that the view forbids');
$r->fails('usa', q{UPDATE small SET n = 1000 WHERE id = 300}, '44000', qr/check option/, 'UPDATE that the view forbids');
is($r->psql('gbr', 'SELECT count(*) FROM gbr.item WHERE n >= 1000'), 0, 'nothing of it is stored');

# row triggers run at the home, once, and their word counts
$r->psql('usa', "SELECT residency.run_everywhere(\$r\$$_\$r\$)") foreach
  q{CREATE FUNCTION public.watch() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF TG_OP = 'DELETE' THEN
			RETURN CASE WHEN OLD.name = 'keep' THEN NULL ELSE OLD END;
		END IF;
		IF NEW.name = 'skip' THEN RETURN NULL; END IF;
		NEW.log := concat(NEW.log, ' ', TG_OP, ' in ', (SELECT region FROM residency.self));
		RETURN NEW;
	END $$},
  q{CREATE TRIGGER watch BEFORE INSERT OR UPDATE OR DELETE ON public.watched FOR EACH ROW EXECUTE FUNCTION public.watch()};
is($tag->(q{INSERT INTO watched VALUES (1, 'gbr', 'a'), (2, 'usa', 'b'), (3, 'gbr', 'skip'), (4, 'usa', 'skip'), (5, 'gbr', 'keep')}), 'INSERT 0 3', 'INSERT counts rows that a trigger at the home let pass');
is($r->psql('usa', 'SELECT * FROM watched ORDER BY id'), "1|gbr|a| INSERT in gbr\n2|usa|b| INSERT in usa\n5|gbr|keep| INSERT in gbr", 'row triggers run once, at the home');
is($r->psql('usa', q{INSERT INTO watched VALUES (6, 'gbr', 'c'), (7, 'gbr', 'skip') RETURNING id, log}), '6| INSERT in gbr', 'RETURNING shows what the trigger made');
is($tag->(q{UPDATE watched SET name = CASE id WHEN 1 THEN 'skip' ELSE 'd' END WHERE id IN (1, 2, 6)}), 'UPDATE 2', 'UPDATE counts rows that a trigger let pass');
is($r->psql('usa', q{UPDATE watched SET name = 'e' WHERE id = 6 RETURNING log}), ' INSERT in gbr UPDATE in gbr UPDATE in gbr', 'UPDATE with RETURNING');
is($tag->(q{DELETE FROM watched WHERE id IN (2, 5, 6)}), 'DELETE 2', 'DELETE counts rows that a trigger let go');
is($r->psql('usa', 'DELETE FROM watched WHERE id IN (1, 5) RETURNING id'), 1, 'DELETE with RETURNING');
is($tag->(q{COPY watched (id, region, name) FROM PROGRAM 'for i in $(seq 11 20); do echo $i,gbr,x; echo 1$i,gbr,skip; done' (FORMAT csv)}), 'COPY 10', 'COPY counts rows that a trigger let pass');
is($tag->(q{INSERT INTO watched SELECT i, 'gbr', CASE WHEN i % 3 = 0 THEN 'skip' END FROM generate_series(1001, 6000) i}), 'INSERT 0 3333', 'many rows with a trigger');
is($tag->(q{UPDATE watched SET n = 1 WHERE false}) =~ /does not exist/, 1, 'an error of the gateway');
is($r->psql('usa', q{DO $$ DECLARE c bigint; BEGIN
	INSERT INTO watched SELECT i, 'gbr', CASE WHEN i % 2 = 0 THEN 'skip' END FROM generate_series(7001, 7010) i;
	GET DIAGNOSTICS c = ROW_COUNT; INSERT INTO item (id, region, n) VALUES (900, 'usa', c); END $$; SELECT n FROM item WHERE id = 900}), 5, 'ROW_COUNT in a function');

# subtransactions: what is rolled back is gone, what is not is not
is($r->psql('usa', q{
	BEGIN;
	INSERT INTO item (id, region) VALUES (401, 'gbr');
	SAVEPOINT a;
	INSERT INTO item (id, region) VALUES (402, 'gbr');
	ROLLBACK TO a;
	INSERT INTO item (id, region) VALUES (403, 'gbr');
	RELEASE a;
	SELECT id FROM item WHERE id BETWEEN 401 AND 403 ORDER BY 1;
	COMMIT;
}), "401\n403", 'savepoints');
is($r->psql('usa', q{
	DO $$ BEGIN
		FOR i IN 501..510 LOOP
			BEGIN
				INSERT INTO item (id, region, n) VALUES (i, 'gbr', CASE WHEN i % 2 = 0 THEN -1 ELSE 1 END);
			EXCEPTION WHEN check_violation THEN
				INSERT INTO item (id, region, n) VALUES (i, 'gbr', 2);
			END;
		END LOOP;
	END $$;
	SELECT n, count(*) FROM item WHERE id BETWEEN 501 AND 510 GROUP BY n ORDER BY n;
}), "1|5\n2|5", 'errors of deferred writes are caught in their own block');
$r->psql('usa', q{
	CREATE FUNCTION maybe(i int) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE c int;
	BEGIN
		SELECT count(*) INTO c FROM item WHERE id = 1;
		IF i % 2 = 0 THEN RAISE EXCEPTION 'no'; END IF;
		RETURN 'yes ' || c;
	EXCEPTION WHEN raise_exception THEN
		RETURN 'no';
	END $$;
});
is($tag->(q{INSERT INTO item (id, region, name) SELECT i, 'gbr', maybe(i) FROM generate_series(601, 620) i}), 'INSERT 0 20', 'rows whose statement calls a function that reads and rolls back');
is($r->psql('gbr', 'SELECT name, count(*) FROM gbr.item WHERE id BETWEEN 601 AND 620 GROUP BY 1 ORDER BY 1'), "no|10\nyes 1|10", 'and none of them is lost');
$r->fails('usa', q{BEGIN; INSERT INTO item (id, region) VALUES (1, 'gbr'); SELECT 'not reached'; COMMIT}, '23505', qr/item_pkey/, 'a deferred error is the statement\'s own');
is($r->psql('usa', q{BEGIN; INSERT INTO item (id, region) VALUES (701, 'gbr'); SELECT count(*) FROM item WHERE id = 701; UPDATE item SET n = 9 WHERE id = 701 RETURNING n; DELETE FROM item WHERE id = 701; SELECT count(*) FROM item WHERE id = 701; COMMIT}),
	"1\n9\n0", 'a transaction sees what it wrote');

# TRUNCATE
is($tag->('TRUNCATE item'), 'TRUNCATE TABLE', 'TRUNCATE');
is($r->psql($_, 'SELECT count(*) FROM item'), 0, "$_ is empty") foreach $r->regions;
is($r->psql('usa', q{BEGIN; INSERT INTO item (id, region) VALUES (1, 'gbr'); TRUNCATE gbr.item; INSERT INTO item (id, region) VALUES (2, 'gbr'); SELECT id FROM item; ROLLBACK; SELECT count(*) FROM item}), "2\n0", 'TRUNCATE of a partition, in order and rolled back');

# what a role may not do at the home it may not do from a gateway
$r->psql('usa', 'GRANT SELECT ON item TO reader; GRANT SELECT, INSERT, UPDATE, DELETE ON item TO writer');
$r->psql('gbr', 'GRANT SELECT ON item TO reader; GRANT SELECT, INSERT (id, region, name, n), UPDATE (n), DELETE ON item TO writer');
$r->psql('usa', q{INSERT INTO item (id, region, n) VALUES (1, 'gbr', 1)});
is($r->psql('usa', 'SET ROLE reader; SELECT id FROM item'), 1, 'a reader reads');
$r->fails('usa', q{SET ROLE reader; INSERT INTO item (id, region) VALUES (9, 'gbr')}, '42501', qr/permission denied/, 'a reader writes nothing');
is($r->psql('usa', q{SET ROLE writer; UPDATE item SET n = 2 WHERE id = 1 RETURNING n}), 2, 'a writer writes what it may');
$r->fails('usa', q{SET ROLE writer; UPDATE item SET name = 'x' WHERE id = 1}, '42501', qr/region "gbr".*permission denied/s, 'and nothing else');
$r->psql('usa', 'CREATE VIEW by_owner AS SELECT * FROM item; GRANT SELECT, UPDATE ON by_owner TO reader');
is($r->psql('usa', q{SET ROLE reader; UPDATE by_owner SET n = 3; SELECT n FROM by_owner}), 3, 'a view acts with its owner\'s rights');

# a trigger that the table had before it was resident is at each home, and may leave rows out there
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE TABLE public.picky (id int PRIMARY KEY, region text NOT NULL);
	CREATE FUNCTION public.pick() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN CASE WHEN new.id % 10 <> 0 THEN new END; END';
	CREATE TRIGGER pick BEFORE INSERT ON public.picky FOR EACH ROW EXECUTE FUNCTION public.pick() $$);
	SELECT residency.make_resident('picky', 'region', key => '{id}')});
is($tag->(q{INSERT INTO picky SELECT i, 'gbr' FROM generate_series(1, 30) i}), 'INSERT 0 27', 'rows that an older trigger leaves out are not counted');
is($r->psql('gbr', 'SELECT count(*) FROM gbr.picky'), 27, 'and nothing else is lost');

done_testing();
