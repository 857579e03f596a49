# Remote scans that an answer needs start together, whatever stands above them; those
# that it may not need start when they are needed (round trips are counted by the relay).
use strict;
use warnings;

use Regions;
use Test::More;

my $r = Regions->new(relay => 1);

$r->psql('usa', "SELECT residency.run_everywhere(\$\$$_\$\$)") foreach
  'CREATE TABLE public.person (id int PRIMARY KEY, region text NOT NULL, ref int, name text)',
  'CREATE TABLE public.visit (id int PRIMARY KEY, region text NOT NULL, person int, place text)';
$r->psql('usa', "SELECT residency.make_resident('$_', 'region', key => '{id}')") foreach qw(person visit);
$r->psql('usa', q{
	INSERT INTO person SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], i % 10, 'person ' || i FROM generate_series(1, 9000) i;
	INSERT INTO visit SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], i % 100, 'place ' || i % 7 FROM generate_series(1, 900) i;
	CREATE TABLE public.here (id int, region text);
	INSERT INTO here VALUES (1, 'gbr'), (2, 'aus');
	CREATE TABLE public.nothing (id int);
	ANALYZE here; ANALYZE nothing;
});
$r->delay(5);
$r->warm('usa', 'SELECT count(*) FROM person', 'SELECT count(*) FROM visit');

# name, round trips, statement; with settings the statement runs in a session that has them
my @cases = (
	[ 'one row by key and region', 1, "SELECT * FROM person WHERE id = 4 AND region = 'gbr'" ],
	[ 'one row by key', 1, 'SELECT * FROM person WHERE id = 4' ],
	[ 'own rows only', 0, "SELECT * FROM person WHERE region = 'usa'" ],
	[ 'all rows of all regions', 1, 'SELECT * FROM person' ],
	[ 'sorted', 1, 'SELECT * FROM person ORDER BY id' ],
	[ 'sorted and limited', 1, 'SELECT * FROM person ORDER BY id LIMIT 10' ],
	[ 'an aggregate', 1, 'SELECT count(*) FROM person' ],
	[ 'groups', 1, 'SELECT region, count(*), max(name) FROM person GROUP BY region' ],
	[ 'distinct', 1, 'SELECT DISTINCT ref FROM person' ],
	[ 'a window', 1, 'SELECT id, row_number() OVER (ORDER BY id) FROM person' ],
	[ 'a set operation', 1, 'SELECT id FROM person EXCEPT SELECT id FROM visit' ],
	[ 'UNION ALL', 1, 'SELECT id FROM person UNION ALL SELECT id FROM visit' ],
	[ 'a join of two resident tables', 1, 'SELECT count(*) FROM person p JOIN visit v ON v.person = p.id' ],
	[ 'a left join', 1, 'SELECT count(*) FROM person p LEFT JOIN visit v ON v.person = p.id' ],
	[ 'a join of partitions of two regions', 1, 'SELECT count(*) FROM gbr.person p JOIN aus.visit v ON v.person = p.id' ],
	[ 'a merge join', 1, 'SELECT count(*) FROM gbr.person p JOIN aus.person v USING (ref, name)', 'enable_hashjoin = off; SET enable_nestloop = off' ],
	[ 'a nested loop without parameters', 1, 'SELECT count(*) FROM gbr.visit p JOIN aus.visit v ON p.id < v.id', 'enable_hashjoin = off; SET enable_mergejoin = off' ],
	[ 'three partitions joined', 1, 'SELECT count(*) FROM gbr.person p JOIN aus.visit v ON v.person = p.id JOIN gbr.visit w ON w.person = p.id' ],
	[ 'a subquery in FROM', 1, 'SELECT count(*) FROM (SELECT * FROM person OFFSET 0) p' ],
	[ 'a subquery with a limit, on demand', 2, 'SELECT count(*) FROM (SELECT * FROM visit LIMIT 2000) p' ],
	[ 'a materialized CTE', 1, 'WITH c AS MATERIALIZED (SELECT * FROM person) SELECT count(*) FROM c' ],
	[ 'a join with a local table that has rows', 1, 'SELECT count(*) FROM person p JOIN here h ON h.id = p.id' ],
	[ 'a join with a local table that is empty', 0, 'SELECT count(*) FROM person p JOIN nothing n ON n.id = p.ref', 'enable_mergejoin = off; SET enable_nestloop = off' ],
	[ 'a limit that own rows satisfy', 0, "SELECT id FROM (SELECT * FROM ONLY usa.person UNION ALL SELECT * FROM gbr.person) x LIMIT 5" ],
	[ 'EXISTS that own rows satisfy', 0, "SELECT EXISTS (SELECT FROM usa.person UNION ALL SELECT FROM gbr.person)" ],
	[ 'a condition that is false', 0, "SELECT count(*) FROM person WHERE current_setting('server_version') = ''" ],
	[ 'an init plan that is not read', 0, "SELECT CASE WHEN current_setting('server_version') = '' THEN (SELECT count(*) FROM person) ELSE 0 END" ],
	[ 'an init plan that is read', 1, 'SELECT (SELECT count(*) FROM person)' ],
	[ 'regions pruned at run time', 2, "SELECT count(*) FROM person WHERE region = (SELECT region FROM gbr.visit WHERE id = 1)" ],
	[ 'regions pruned at run time, by own rows', 1, 'SELECT count(*) FROM person WHERE region = (SELECT region FROM here WHERE id = 2)' ],
	[ 'regions pruned at run time, two remain', 1, 'SELECT count(*) FROM person WHERE region = ANY (ARRAY(SELECT region FROM here))' ],
	[ 'a generic plan', 1, q{EXECUTE by_region('gbr')} ],
	[ 'a generic plan for own rows', 0, q{EXECUTE by_region('usa')} ],
	[ 'UPDATE of one row, autocommit', 2, "UPDATE person SET name = 'x' WHERE id = 4 AND region = 'gbr'" ],
	[ 'DELETE of one row, autocommit', 2, "DELETE FROM person WHERE id = 7 AND region = 'gbr'" ],
	[ 'INSERT of one row, autocommit', 1, "INSERT INTO person VALUES (7, 'gbr', 1, 'y')" ],
);

my $session = $r->warm('usa', 'PREPARE by_region(text) AS SELECT count(*) FROM person WHERE region = $1; SET plan_cache_mode = force_generic_plan',
	"EXECUTE by_region('gbr')");
foreach my $case (@cases)
{
	my ($name, $trips, $sql, $settings) = @$case;

	$session->query("SET $settings") if $settings;
	my $got = $r->round_trips('usa', $sql);
	is($got, $trips, "$name: $trips") or diag($session->query("EXPLAIN $sql"));
	$session->query('RESET enable_hashjoin; RESET enable_nestloop; RESET enable_mergejoin') if $settings;
}

# in a transaction block, where nothing of the commit is counted
my @inside = (
	[ 'UPDATE of rows in two regions', 1, 'UPDATE person SET name = name || $$ $$ WHERE id IN (4, 5)' ],
	[ 'UPDATE with RETURNING', 1, 'UPDATE person SET name = name || $$ $$ WHERE id IN (4, 5) RETURNING *' ],
	[ 'DELETE in two regions', 1, 'DELETE FROM visit WHERE id IN (4, 5)' ],
	[ 'UPDATE joined to a local table, two regions', 2, 'UPDATE person p SET ref = h.id FROM here h WHERE h.id + 3 = p.id', 'enable_nestloop = off; SET LOCAL residency.enable_lookup = off' ],
	[ 'INSERT into two regions', 1, q{INSERT INTO visit VALUES (4, 'gbr', 1, 'a'), (5, 'aus', 1, 'b')} ],
	[ 'INSERT with RETURNING', 1, q{INSERT INTO visit VALUES (1004, 'gbr', 1, 'a'), (1005, 'aus', 1, 'b') RETURNING *} ],
	[ 'INSERT of many rows into two regions', 1, q{INSERT INTO visit SELECT i, (ARRAY['gbr', 'aus'])[1 + i % 2], 1, 'c' FROM generate_series(2001, 9000) i} ],
	[ 'ON CONFLICT DO NOTHING', 1, q{INSERT INTO visit SELECT i, (ARRAY['gbr', 'aus'])[1 + i % 2], 1, 'c' FROM generate_series(9000, 11001) i ON CONFLICT DO NOTHING} ],
	[ 'COPY', 1, q{COPY visit FROM PROGRAM 'for i in $(seq 20001 23000); do echo "$i,gbr,1,x"; done' (FORMAT csv)} ],
	[ 'TRUNCATE', 1, 'TRUNCATE visit' ],
	[ 'a write and a scan of the same statement', 1, q{WITH w AS (INSERT INTO visit VALUES (1, 'gbr', 1, 'a') RETURNING 1) SELECT count(*) FROM person, w} ],
);
foreach my $case (@inside)
{
	my ($name, $trips, $sql, $settings) = @$case;

	$session->query('BEGIN');
	$session->query("SET LOCAL $settings") if $settings;
	$session->query('SELECT count(*) FROM person');
	is(scalar $r->round_trips('usa', $sql), $trips, "$name: $trips") or diag($session->query("EXPLAIN $sql"));
	$session->query('COMMIT');
}

# a statement does not see what it writes itself
is($r->psql('usa', q{WITH w AS (INSERT INTO visit VALUES (2, 'gbr', 1, 'a'), (3, 'aus', 1, 'b') RETURNING 1)
	SELECT (SELECT count(*) FROM visit), count(*) FROM w}), '1|2', 'a scan does not see rows inserted by its own statement');
is($r->psql('usa', q{WITH w AS (DELETE FROM gbr.visit RETURNING id) SELECT (SELECT count(*) FROM visit), (SELECT count(*) FROM w)}), '3|2',
	'a scan does not see rows deleted by its own statement');

done_testing();
