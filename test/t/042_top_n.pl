# ORDER BY ... LIMIT n fetches no more than n rows (and OFFSET) from each region, side by side, over
# tables, joins, groups and DISTINCT; and the answers are those of plain tables with the same rows.
use strict;
use warnings;

use Regions;
use Test::More;

my $r = Regions->new(relay => 1);

$r->psql('usa', q{
	SELECT residency.run_everywhere($ddl$
		CREATE SCHEMA shared;
		CREATE TABLE shared.p (id int NOT NULL, region text NOT NULL, name text, n numeric, u text COLLATE "ucs_basic");
		CREATE TABLE shared.v (id int NOT NULL, region text NOT NULL, p int, n int);
	$ddl$);
	SELECT residency.make_resident('shared.p', 'region', key => '{id}');
	SELECT residency.make_resident('shared.v', 'region', key => '{id}');
	CREATE SCHEMA plain;
	CREATE TABLE plain.p (LIKE shared.p);
	CREATE TABLE plain.v (LIKE shared.v);
	INSERT INTO plain.p SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], CASE WHEN i % 7 > 0 THEN 'name' || i % 41 END, CASE WHEN i % 5 > 0 THEN i * 37 % 101 END, 'u' || i
		FROM generate_series(1, 900) i;
	INSERT INTO plain.v SELECT id, region, id, id * 17 % 97 FROM plain.p WHERE id % 2 = 0;
	INSERT INTO shared.p SELECT * FROM plain.p;
	INSERT INTO shared.v SELECT * FROM plain.v;
	SET client_min_messages = error;
	ANALYZE;
});
$r->delay(5);
my $session = $r->warm('usa', 'SELECT count(*) FROM shared.p', 'SELECT count(*) FROM shared.v', "\\pset null '-'");

sub answer
{
	my ($sql) = @_;
	return $session->query($sql) // '';
}

# Test: same answer as the plain tables, and at most so many rows from each region.
sub top
{
	my ($rows, $sql) = @_;
	my $plain = $sql =~ s/\bshared\./plain./gr;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$session->{stderr} = '';
	my $plan = answer("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) $sql");
	my @crossed = sort { $b <=> $a } $plan =~ /^ +Border: rows out=\d+ in=(\d+)/mg;

	is($crossed[0] // 0, $rows, "$rows rows at most: $sql") or diag($plan);
	is(answer($sql), answer($plain), 'same answer') or diag($plan);
	is(scalar $r->round_trips('usa', $sql), 1, 'one round trip');
	$session->query('SET residency.enable_push = off');
	is(answer($sql), answer($plain), 'same answer without pushing');
	$session->query('RESET residency.enable_push');
	is($session->{stderr}, '', 'no error') if $session->{stderr};
	return;
}

my $pv = 'shared.p JOIN shared.v ON v.p = p.id AND v.region = p.region';

# a table
top(5, 'SELECT id FROM shared.p ORDER BY id LIMIT 5');
top(5, 'SELECT id, name FROM shared.p ORDER BY name DESC NULLS LAST, id DESC LIMIT 5');
top(8, 'SELECT id FROM shared.p ORDER BY n, id LIMIT 5 OFFSET 3');
top(3, 'SELECT id FROM shared.p WHERE n > 50 ORDER BY lower(name), id LIMIT 3');
top(4, 'SELECT id FROM shared.p ORDER BY id FETCH FIRST 4 ROWS ONLY');
top(4, 'SELECT id FROM shared.p ORDER BY -id LIMIT (SELECT 4)');
top(6, 'SELECT * FROM (SELECT id, n FROM shared.p ORDER BY n DESC NULLS LAST, id LIMIT 6) x ORDER BY id');

# what must see more rows than that
top(300, $_) foreach
	'SELECT u FROM shared.p ORDER BY u LIMIT 3',
	'SELECT n FROM shared.p ORDER BY n FETCH FIRST 3 ROWS WITH TIES',
	'SELECT id, rank() OVER (ORDER BY n, id) FROM shared.p ORDER BY id LIMIT 3',
	'SELECT id, generate_series(1, 2) FROM shared.p ORDER BY id, 2 LIMIT 3';

# joins
top(5, "SELECT p.id, v.n FROM $pv ORDER BY p.id LIMIT 5");
top(7, "SELECT p.id, v.n, p.name FROM $pv ORDER BY v.n DESC, p.id LIMIT 5 OFFSET 2");
top(4, 'SELECT p.id, v.n FROM shared.p LEFT JOIN shared.v ON v.p = p.id AND v.region = p.region WHERE p.n IS NULL ORDER BY v.n NULLS FIRST, p.id LIMIT 4');
top(3, "SELECT p.id, v.n FROM $pv WHERE p.region = 'gbr' AND v.region = 'gbr' ORDER BY v.n, p.id LIMIT 3");

# groups that lie in one region each, and DISTINCT
top(3, 'SELECT region, name, count(*), sum(n) FROM shared.p GROUP BY region, name ORDER BY sum(n) DESC NULLS LAST, name, region LIMIT 3');
top(4, "SELECT name, count(*) FROM shared.p WHERE region = 'gbr' GROUP BY name HAVING count(*) > 5 ORDER BY count(*) DESC, name LIMIT 3 OFFSET 1");
top(2, "SELECT p.region, p.name, max(v.n) FROM $pv GROUP BY 1, 2 ORDER BY 3 DESC, 2, 1 LIMIT 2");
top(5, 'SELECT DISTINCT region, name FROM shared.p ORDER BY name, region LIMIT 5');
top(5, "SELECT DISTINCT n FROM shared.p WHERE region = 'aus' ORDER BY n DESC LIMIT 5");
top(42, 'SELECT name, count(*) FROM shared.p GROUP BY name ORDER BY count(*) DESC, name LIMIT 3');
top(42, "SELECT name, count(*) FROM shared.p WHERE region = 'gbr' GROUP BY name ORDER BY count(*) + 1 DESC, name LIMIT 3");
top(42, "SELECT DISTINCT count(*) FROM shared.p WHERE region = 'gbr' GROUP BY name ORDER BY 1 LIMIT 1");

# plans for any parameter
$session->query(qq{SET plan_cache_mode = force_generic_plan;
	PREPARE a(bigint, bigint) AS SELECT id, name FROM shared.p ORDER BY name, id LIMIT \$1 OFFSET \$2;
	PREPARE pa(bigint, bigint) AS SELECT id, name FROM plain.p ORDER BY name, id LIMIT \$1 OFFSET \$2;
	PREPARE b(bigint, bigint) AS SELECT p.id, v.n FROM $pv ORDER BY v.n, p.id LIMIT \$1 OFFSET \$2;
	PREPARE pb(bigint, bigint) AS SELECT p.id, v.n FROM plain.p JOIN plain.v ON v.p = p.id ORDER BY v.n, p.id LIMIT \$1 OFFSET \$2;
	PREPARE c(bigint, bigint) AS SELECT region, name, count(*) FROM shared.p GROUP BY region, name ORDER BY 3, 2, 1 LIMIT \$1 OFFSET \$2;
	PREPARE pc(bigint, bigint) AS SELECT region, name, count(*) FROM plain.p GROUP BY region, name ORDER BY 3, 2, 1 LIMIT \$1 OFFSET \$2});
foreach my $statement (qw(a b c))
{
	is(answer("EXECUTE $statement($_)"), answer("EXECUTE p$statement($_)"), "prepared $statement: $_") foreach
		'3, 2', '3, NULL', 'NULL, 440', '0, 0', '9223372036854775807, 120';
	my $plan = answer("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE $statement(3, 2)");
	is((sort { $b <=> $a } $plan =~ /^ +Border: rows out=\d+ in=(\d+)/mg)[0], 5, "prepared $statement: 5 rows from each region") or diag($plan);
}

done_testing();
