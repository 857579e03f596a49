# All regions that a statement needs are asked side by side, whatever stands above the scans: joins,
# set operations, subqueries, CTEs, sorted and unsorted appends, lookups next to scans, cursors, writes of all
# kinds.  Each statement with the round trips that it waits for, with three regions and with six.
use strict;
use warnings;

use Regions;
use Test::More;

# name, round trips, statement; [trips with three regions, with six] where they differ for a reason
my @reads = (
	# joins
	[ 'join of two resident tables on any column', 1, 'SELECT count(*) FROM person p JOIN visit v ON v.person = p.ref' ],
	[ 'join of three', 1, 'SELECT count(*) FROM person p JOIN visit v ON v.person = p.ref JOIN visit w ON w.person = v.id' ],
	[ 'join on key and region', 1, 'SELECT count(*) FROM person p JOIN detail d USING (id, region)' ],
	[ 'join on the key', 1, 'SELECT count(*) FROM person p JOIN detail d USING (id)' ],
	[ 'left join', 1, 'SELECT count(d.id) FROM person p LEFT JOIN detail d USING (id)' ],
	[ 'right join', 1, 'SELECT count(d.id) FROM person p RIGHT JOIN visit d ON d.person = p.ref' ],
	[ 'full join', 1, 'SELECT count(*) FROM person p FULL JOIN visit d ON d.person = p.ref' ],
	[ 'cross join', 1, 'SELECT count(*) FROM (SELECT * FROM visit WHERE person = 1) p, (SELECT * FROM visit WHERE person = 2) q' ],
	[ 'join on an inequality', 1, 'SELECT count(*) FROM visit p JOIN visit q ON p.id < q.person AND p.person = 1' ],
	[ 'semi join', 1, 'SELECT count(*) FROM person p WHERE EXISTS (SELECT FROM visit v WHERE v.person = p.ref)' ],
	[ 'anti join', 1, 'SELECT count(*) FROM person p WHERE NOT EXISTS (SELECT FROM visit v WHERE v.person = p.ref)' ],
	[ 'NOT IN', 1, 'SELECT count(*) FROM person p WHERE ref NOT IN (SELECT person FROM visit)' ],
	[ 'IN', 1, 'SELECT count(*) FROM person p WHERE ref IN (SELECT person FROM visit)' ],
	[ 'join with a global table', 1, 'SELECT count(*) FROM person p JOIN who w ON w.id = p.id' ],
	[ 'join with a local table', 1, 'SELECT count(*) FROM visit p JOIN here h ON h.id = p.person' ],
	[ 'self join of partitions of different regions', 1, 'SELECT count(*) FROM gbr.visit a JOIN aus.visit b USING (person) JOIN usa.visit c USING (person)' ],
	[ 'merge join', 1, 'SELECT count(*) FROM person p JOIN visit v ON v.person = p.ref', 'enable_hashjoin = off; SET enable_nestloop = off' ],
	[ 'nested loop', 1, 'SELECT count(*) FROM visit p JOIN visit v ON v.person < p.person - 90', 'enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off' ],
	[ 'hash join, no partition-wise', 1, 'SELECT count(*) FROM person p JOIN detail d USING (id, region)', 'enable_partitionwise_join = off; SET enable_mergejoin = off' ],
	# set operations
	[ 'UNION ALL of two tables', 1, 'SELECT id FROM person UNION ALL SELECT id FROM visit' ],
	[ 'UNION ALL of three, one of them local', 1, 'SELECT id FROM person UNION ALL SELECT id FROM here UNION ALL SELECT id FROM visit' ],
	[ 'UNION', 1, 'SELECT ref FROM person UNION SELECT person FROM visit' ],
	[ 'INTERSECT and EXCEPT', 1, '(SELECT ref FROM person INTERSECT SELECT person FROM visit) EXCEPT SELECT id FROM detail' ],
	[ 'UNION ALL of aggregates', 1, 'SELECT count(*) FROM person UNION ALL SELECT sum(person) FROM visit UNION ALL SELECT max(id) FROM detail' ],
	[ 'sorted UNION ALL', 1, 'SELECT id FROM person UNION ALL SELECT id FROM visit ORDER BY 1' ],
	# subqueries
	[ 'scalar subquery', 1, 'SELECT (SELECT count(*) FROM person)' ],
	[ 'two scalar subqueries', 1, 'SELECT (SELECT count(*) FROM person), (SELECT count(*) FROM visit)' ],
	[ 'three scalar subqueries and a scan', 1, 'SELECT (SELECT count(*) FROM person), (SELECT max(id) FROM visit), count(*) FROM detail' ],
	[ 'scalar subquery as a condition of this region', 1, 'SELECT * FROM here WHERE id < (SELECT max(person) FROM visit)' ],
	[ 'subquery in FROM with a limit and order', 1, 'SELECT * FROM (SELECT * FROM person ORDER BY name LIMIT 5) x' ],
	[ 'two subqueries in FROM with limits', 1, 'SELECT * FROM (SELECT * FROM person ORDER BY name LIMIT 5) x, (SELECT * FROM visit ORDER BY place, id LIMIT 5) y' ],
	[ 'hashed subplan', 1, 'SELECT count(*) FROM here WHERE id IN (SELECT person FROM visit) OR id = 0' ],
	[ 'scan and hashed subplan', 1, 'SELECT count(*) FROM person WHERE ref IN (SELECT person FROM visit) OR ref < 0' ],
	[ 'ARRAY subquery', 1, 'SELECT ARRAY(SELECT id FROM visit ORDER BY 1)' ],
	[ 'EXISTS alone', 1, "SELECT EXISTS (SELECT FROM visit WHERE place = 'nowhere')" ],
	[ 'LATERAL that does not need its outer row', 1, 'SELECT count(*) FROM here, LATERAL (SELECT * FROM visit WHERE person < 5) x' ],
	[ 'window functions', 1, 'SELECT id, rank() OVER (PARTITION BY ref ORDER BY id), count(*) OVER () FROM person' ],
	[ 'DISTINCT ON', 1, 'SELECT DISTINCT ON (ref) ref, id FROM person ORDER BY ref, id' ],
	[ 'grouping sets', 1, 'SELECT region, ref, count(*) FROM person GROUP BY GROUPING SETS ((region), (ref), ())' ],
	[ 'HAVING', 1, 'SELECT ref, count(*) FROM person GROUP BY ref HAVING count(*) > 3' ],
	[ 'top ten of each', 1, 'SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY region ORDER BY name) n FROM person) x WHERE n <= 10' ],
	# CTEs
	[ 'CTE used once', 1, 'WITH c AS (SELECT * FROM person) SELECT count(*) FROM c' ],
	[ 'CTE used twice', 1, 'WITH c AS (SELECT * FROM person) SELECT count(*) FROM c a JOIN c b USING (id)' ],
	[ 'two materialized CTEs', 1, 'WITH c AS MATERIALIZED (SELECT * FROM person), d AS MATERIALIZED (SELECT * FROM visit) SELECT count(*) FROM c JOIN d ON d.person = c.ref' ],
	[ 'materialized CTE next to a scan', 1, 'WITH c AS MATERIALIZED (SELECT * FROM person) SELECT count(*) FROM visit v JOIN c ON v.person = c.ref' ],
	[ 'CTE and scalar subquery', 1, 'WITH c AS MATERIALIZED (SELECT * FROM person) SELECT (SELECT count(*) FROM visit), count(*) FROM c' ],
	[ 'recursive CTE', 1, 'WITH RECURSIVE c AS (SELECT id FROM visit WHERE id = 1 UNION ALL SELECT c.id + 1 FROM c WHERE c.id < 5) SELECT count(*) FROM c' ],
	[ 'CTE that is not used', 0, 'WITH c AS MATERIALIZED (SELECT * FROM person) SELECT 1' ],
	# appends
	[ 'all rows', 1, 'SELECT * FROM person' ],
	[ 'all rows in order', 1, 'SELECT * FROM person ORDER BY id' ],
	[ 'first ten in order', 1, 'SELECT * FROM person ORDER BY name LIMIT 10' ],
	[ 'first ten behind an offset', 1, 'SELECT * FROM person ORDER BY name LIMIT 10 OFFSET 30' ],
	[ 'some rows, however many', 1, "SELECT * FROM person WHERE name LIKE '%9%'" ],
	[ 'max over all', 1, 'SELECT max(id), min(id) FROM person' ],
	[ 'regions by name', 1, "SELECT count(*) FROM person WHERE region IN ('gbr', 'aus')" ],
	[ 'all other regions', 1, "SELECT count(*) FROM person WHERE region <> 'usa'" ],
	[ 'regions from a parameter', 1, q{EXECUTE by_regions('{gbr,aus}')} ],
	[ 'regions known at run time', 1, 'SELECT count(*) FROM person WHERE region = ANY (ARRAY(SELECT region FROM here))' ],
	[ 'regions known at run time, of two tables', 1, 'SELECT count(*) FROM person p JOIN visit v ON v.person = p.ref WHERE p.region = ANY (ARRAY(SELECT region FROM here)) AND v.region = ANY (ARRAY(SELECT region FROM here))' ],
	# lookups
	[ 'a lookup', 1, 'SELECT * FROM person WHERE id IN (4, 5, 6)' ],
	[ 'a lookup next to a scan', 1, 'SELECT count(*) FROM (SELECT * FROM person WHERE id IN (4, 5, 6)) p, visit v WHERE v.person = p.ref' ],
	[ 'a lookup and a scan, UNION ALL', 1, 'SELECT id FROM person WHERE id IN (4, 5, 6) UNION ALL SELECT id FROM visit' ],
	[ 'a scan and a lookup, UNION ALL', 1, 'SELECT id FROM visit UNION ALL SELECT id FROM person WHERE id IN (4, 5, 6)' ],
	[ 'two lookups, UNION ALL', 1, 'SELECT id FROM detail WHERE id IN (4, 5) UNION ALL SELECT id FROM person WHERE id IN (4, 5, 6)' ],
	[ 'two lookups joined', 1, 'SELECT count(*) FROM (SELECT * FROM detail WHERE id IN (4, 5)) d CROSS JOIN (SELECT * FROM person WHERE id IN (4, 5)) p' ],
	[ 'a lookup as scalar subquery', 1, 'SELECT (SELECT name FROM person WHERE id = 4)' ],
	[ 'two lookups as scalar subqueries', 1, 'SELECT (SELECT name FROM person WHERE id = 4), (SELECT text FROM detail WHERE id = 5)' ],
	[ 'lookups of two tables by the same keys', 2, 'SELECT p.name, d.text FROM who w JOIN person p USING (id) JOIN detail d USING (id) WHERE w.id IN (4, 5, 6)' ],
	[ 'a lookup of keys found by a scan', 2, 'SELECT count(*) FROM (SELECT person FROM visit WHERE id = 4 OFFSET 0) v JOIN person p ON p.id = v.person' ],
	# cursors
	[ 'a cursor', 1, 'DECLARE c CURSOR FOR SELECT * FROM person; FETCH 10 FROM c; CLOSE c', undef, 1 ],
	[ 'two cursors, one after the other', 2, 'DECLARE c CURSOR FOR SELECT * FROM person ORDER BY id; DECLARE d CURSOR FOR SELECT * FROM visit ORDER BY id; FETCH 10 FROM c; FETCH 10 FROM d', undef, 1 ],
	[ 'a cursor to its end', 1, 'DECLARE c CURSOR FOR SELECT * FROM person; FETCH ALL FROM c', undef, 1 ],
	[ 'a cursor back to its start', 1, 'DECLARE c SCROLL CURSOR FOR SELECT * FROM person ORDER BY id; FETCH 10 FROM c; FETCH BACKWARD ALL FROM c; FETCH ALL FROM c', undef, 1 ],
	# functions
	[ 'a query in PL/pgSQL', 1, 'DO $$BEGIN PERFORM count(*) FROM person; END$$' ],
	[ 'rows read one by one in PL/pgSQL', 1, 'DO $$DECLARE x record; n int := 0; BEGIN FOR x IN SELECT * FROM person LOOP n := n + 1; END LOOP; IF n <> 900 THEN RAISE $x$wrong$x$; END IF; END$$' ],
	[ 'CREATE TEMPORARY TABLE AS', 1, 'CREATE TEMP TABLE t AS SELECT id FROM person; DROP TABLE t', undef, 1 ],
	[ 'COPY TO', 1, q{COPY (SELECT * FROM person) TO PROGRAM 'cat >/dev/null'} ],
);

# inside a transaction block that has read before; the commit is not counted
my @writes = (
	[ 'UPDATE of all', 1, "UPDATE person SET name = name || ' '" ],
	[ 'UPDATE of all with RETURNING', 1, "UPDATE person SET name = name || ' ' RETURNING *" ],
	[ 'UPDATE with a value of this region', 1, "UPDATE person SET ref = (SELECT min(id) FROM here) WHERE id < 20" ],
	[ 'UPDATE by a function of this region', 2, 'UPDATE person SET name = local_name(name) WHERE id < 20' ],
	[ 'UPDATE by a function of this region with RETURNING', 2, 'UPDATE person SET name = local_name(name) WHERE id < 20 RETURNING id, name' ],
	[ 'UPDATE joined with a local table', 2, 'UPDATE visit v SET place = h.region FROM here h WHERE h.id = v.person' ],
	[ 'UPDATE joined with a local table, RETURNING of both', 2, 'UPDATE visit v SET place = h.region FROM here h WHERE h.id = v.person RETURNING v.*, h.id' ],
	[ 'UPDATE joined with another resident table', 2, 'UPDATE visit v SET place = p.name FROM person p WHERE p.id = v.person' ],
	[ 'UPDATE with a condition of this region', 2, "UPDATE person SET name = name || ' ' WHERE local_name(name) = 'person 5'" ],
	[ 'DELETE of some', 1, 'DELETE FROM visit WHERE id IN (4, 5, 6, 7, 8)' ],
	[ 'DELETE with RETURNING', 1, 'DELETE FROM visit WHERE id < 30 RETURNING *' ],
	[ 'DELETE with a condition of this region', 2, "DELETE FROM visit WHERE local_name(place) = 'place 3'" ],
	[ 'DELETE with a condition of this region, RETURNING', 2, "DELETE FROM visit WHERE local_name(place) = 'place 3' RETURNING *" ],
	[ 'DELETE joined with a local table', 2, 'DELETE FROM visit v USING here h WHERE h.id = v.person' ],
	[ 'DELETE joined with a local table, RETURNING', 2, 'DELETE FROM visit v USING here h WHERE h.id = v.person RETURNING v.id, v.place, h.region' ],
	[ 'DELETE joined with another resident table', 2, 'DELETE FROM visit v USING person p WHERE p.id = v.person AND p.ref = 3' ],
	[ 'DELETE with IN', 2, 'DELETE FROM visit v WHERE v.person IN (SELECT id FROM here)' ],
	[ 'INSERT into all', 1, 'INSERT INTO visit SELECT 10000 + i, regions[1 + i % nregions], 1, $$x$$ FROM generate_series(1, 50) i, regions' ],
	[ 'INSERT into all with RETURNING', 1, 'INSERT INTO visit SELECT 10000 + i, regions[1 + i % nregions], 1, $$x$$ FROM generate_series(1, 50) i, regions RETURNING id, place' ],
	[ 'INSERT into all where a trigger is at home', 1, 'INSERT INTO slow SELECT 10000 + i, regions[1 + i % nregions], $$x$$ FROM generate_series(1, 50) i, regions' ],
	[ 'INSERT ... SELECT from all', 2, 'INSERT INTO visit SELECT 20000 + id, region, 1, name FROM person' ],
	[ 'INSERT ... SELECT from all into a local table', 1, 'INSERT INTO copied SELECT id FROM person' ],
	[ 'SELECT FOR UPDATE of all', 1, 'SELECT * FROM person FOR UPDATE' ],
	[ 'data-modifying CTEs of two tables', 1, 'WITH a AS (DELETE FROM visit WHERE id < 30 RETURNING id), b AS (UPDATE person SET ref = 1 WHERE id < 30 RETURNING id) SELECT count(*) FROM a, b' ],
	[ 'a data-modifying CTE whose rows are inserted', 2, 'WITH a AS (DELETE FROM visit WHERE id < 30 RETURNING *) INSERT INTO visit SELECT id + 30000, region, person, place FROM a' ],
	[ 'TRUNCATE of two tables', 1, 'TRUNCATE visit, slow' ],
);

foreach my $n (3, 6)
{
	my @names = (qw(usa gbr aus bra can deu))[ 0 .. $n - 1 ];
	my $r = Regions->new(regions => \@names, one_server => 1, relay => 1);
	my $array = "ARRAY['" . join("', '", @names) . "']";

	$r->psql('usa', "SELECT residency.run_everywhere(\$ddl\$$_\$ddl\$)") foreach
	  'CREATE TABLE public.who (id int PRIMARY KEY, region text NOT NULL)',
	  'CREATE TABLE public.person (id int PRIMARY KEY, region text NOT NULL, ref int, name text)',
	  'CREATE TABLE public.detail (id int PRIMARY KEY, region text NOT NULL, text text)',
	  'CREATE TABLE public.visit (id int PRIMARY KEY, region text NOT NULL, person int, place text)',
	  'CREATE TABLE public.slow (id int PRIMARY KEY, region text NOT NULL, name text)',
	  'CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS $f$BEGIN RETURN NEW; END $f$ ';
	$r->psql('usa', qq{
		SELECT residency.make_global('who', 'region');
		SELECT residency.make_resident('person', 'region', key => '{id}', directory => 'who');
		SELECT residency.make_resident('detail', 'region', key => '{id}', directory => 'who');
		SELECT residency.make_resident('visit', 'region', key => '{id}');
		SELECT residency.make_resident('slow', 'region', key => '{id}');
		SELECT residency.run_everywhere('CREATE TRIGGER keep BEFORE INSERT ON public.slow FOR EACH ROW EXECUTE FUNCTION public.keep()');
		INSERT INTO who SELECT i, ($array)[1 + i % $n] FROM generate_series(1, 900) i;
		INSERT INTO person SELECT i, ($array)[1 + i % $n], i % 100, 'person ' || i FROM generate_series(1, 900) i;
		INSERT INTO detail SELECT i, ($array)[1 + i % $n], 'text ' || i FROM generate_series(1, 900) i;
		INSERT INTO visit SELECT i, ($array)[1 + i % $n], i % 100, 'place ' || i % 7 FROM generate_series(1, 900) i;
		CREATE TABLE here (id int PRIMARY KEY, region text);
		INSERT INTO here VALUES (1, 'gbr'), (2, 'aus'), (3, 'usa');
		CREATE TABLE copied (id int);
		CREATE TABLE regions AS SELECT $array AS regions, $n AS nregions;
		CREATE FUNCTION local_name(text) RETURNS text LANGUAGE plpgsql STABLE AS \$\$BEGIN RETURN rtrim(\$1); END\$\$;
		ANALYZE who, here, regions;
		SET client_min_messages = error;
		ANALYZE person, detail, visit;
	});
	$r->delay(10);
	my $session = $r->warm('usa', 'PREPARE by_regions(text[]) AS SELECT count(*) FROM person WHERE region = ANY ($1)',
		'SELECT count(*) FROM person', 'SELECT count(*) FROM visit');

	# counts a statement in a transaction block that is rolled back; a busy machine can make an answer
	# late, and the relay then sees more than there was: not three times
	my $check = sub {
		my ($case, $before, $escaped) = @_;
		my ($name, $trips, $sql, $settings, $block) = @$case;
		my $got;

		for (1 .. 3)
		{
			$session->query('BEGIN');
			$session->query($before) if $before;
			$session->query("SET LOCAL $settings") if $settings;
			$got = $r->round_trips('usa', $escaped);
			last if $got == $trips;
			$session->query('ROLLBACK');
		}
		is($got, $trips, "$n regions: $name: $trips")
		  or diag($block || $sql =~ /^(DO|COPY|TRUNCATE)/ ? $sql : join("\n", $session->query("EXPLAIN (COSTS OFF) $sql")));
		$session->query('ROLLBACK');
	};

	# one request, however many statements; for six regions every third of the questions will do
	foreach my $i (grep { $n == 3 || $_ % 3 == 0 } 0 .. $#reads)
	{
		my $sql = $reads[$i][2];
		$check->($reads[$i], undef, $sql =~ /^DO/ ? $sql : $sql =~ s/;/\\;/gr);
	}
	$check->($_, 'SELECT count(*) FROM person', $_->[2]) foreach @writes;
	$r->teardown;
}
done_testing();
