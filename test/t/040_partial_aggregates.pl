# Aggregates over several regions: partial results cross, not rows; one round trip is waited for;
# and the answers are those of one table with the same rows, pushed or not.
use strict;
use warnings;

use Regions;
use Test::More;

my $r = Regions->new(relay => 1);

$r->psql('usa', q{
	SELECT residency.run_everywhere($ddl$
		CREATE SCHEMA shared;
		CREATE TABLE shared.m (id int NOT NULL, region text NOT NULL, g int, s smallint, i int, b bigint, n numeric, f float4, d float8,
			t text, u text COLLATE "ucs_basic", o bool, at timestamptz, v interval);
		CREATE TABLE shared.nobody (id int NOT NULL, region text NOT NULL, n numeric);
	$ddl$);
	SELECT residency.make_resident('shared.m', 'region', key => '{id}');
	SELECT residency.make_resident('shared.nobody', 'region', key => '{id}');
	CREATE SCHEMA plain;
	CREATE TABLE plain.m (LIKE shared.m);
	CREATE TABLE plain.nobody (LIKE shared.nobody);
	INSERT INTO plain.m SELECT k, (ARRAY['usa', 'gbr', 'aus'])[1 + k % 3], CASE WHEN k % 11 > 0 THEN k % 7 END, k % 5, CASE WHEN k % 4 > 0 THEN k * 1000 END,
		k * 10000000000, CASE WHEN k % 9 > 0 THEN k * 1.25 END, k / 8.0, k / 7.0, CASE WHEN k % 5 > 0 THEN 'text ' || k % 13 END,
		'u' || k % 3, CASE k % 4 WHEN 0 THEN true WHEN 1 THEN false WHEN 2 THEN k % 3 > 0 END, '2024-01-01 00:00+00'::timestamptz + k * interval '1 hour',
		k * interval '1 day 2 minutes' FROM generate_series(1, 600) k;
	INSERT INTO shared.m SELECT * FROM plain.m;
	ANALYZE shared.m;
	ANALYZE plain.m;
	CREATE VIEW shared.v AS SELECT region, g, i + 1 AS j FROM shared.m WHERE i > 50000;
	CREATE VIEW plain.v AS SELECT region, g, i + 1 AS j FROM plain.m WHERE i > 50000;
	CREATE FUNCTION public.plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS
	$f$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (VERBOSE, COSTS OFF) ' || query; END $f$;
	CREATE FUNCTION public.twice(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1 * 2; END';
});
$r->delay(5);
my $session = $r->warm('usa', 'SELECT count(*) FROM shared.m', "\\pset null '-'");

sub answer
{
	my ($sql) = @_;
	return $session->query($sql) // '';
}

# Test: same answer from the plain table, pushed, and not; "how" is partial, complete or rows.
sub same
{
	my ($how, $sql, $before) = @_;
	my $plain = $sql =~ s/\bshared\./plain./gr;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$session->query($before) if $before;
	$session->{stderr} = '';
	my $expected = answer($plain);
	my $plan = $session->query('SELECT * FROM public.plan($q$' . $sql . '$q$)');
	my $got = $plan =~ /Region Aggregate/ ? 'partial' : $plan =~ /Done There: aggregate/ ? 'complete' : 'rows';

	is($got, $how, "$how: $sql") or diag($plan);
	is(answer($sql), $expected, 'same answer');
	$session->query('SET residency.enable_push = off');
	is(answer($sql), $expected, 'same answer without');
	is($session->query('SELECT * FROM public.plan($q$' . $sql . '$q$)') =~ /Done There/, '', 'nothing is pushed when switched off');
	$session->query('RESET residency.enable_push');
	is($session->{stderr}, '', 'no error') if $session->{stderr};
	return $plan;
}

# each aggregate, without groups
same('partial', "SELECT $_ FROM shared.m") foreach
	'count(*)', 'count(i), count(t), count(1)', 'sum(s), sum(i), sum(b), sum(n)', 'avg(s), avg(i), avg(b), avg(n)',
	'round(sum(d)::numeric, 6), round(avg(d)::numeric, 6), round(avg(f)::numeric, 5)', 'min(i), max(i), min(n), max(n), min(d), max(f)',
	'min(t), max(t), min(at), max(at)', 'sum(v), min(v), max(v)', 'bool_and(o), bool_or(o), every(o IS NULL)', 'bit_and(i), bit_or(b)',
	'sum(i) FILTER (WHERE o), count(*) FILTER (WHERE t > $$text 3$$), avg(n) FILTER (WHERE id > 1000)',
	'sum(i + s * 2), max(upper(t)), min(-i), avg(n / 3)', 'count(*) + sum(i) * 2, 1 + 1, avg(i) > 5', 'count(*), count(*) c, sum(i), avg(i)',
	'max(t COLLATE "C")', 'sum(n) / 3, avg(n::numeric(20, 6)), avg(CASE WHEN id % 2 = 0 THEN $$NaN$$::numeric END)';
same('rows', "SELECT $_ FROM shared.m") foreach
	'max(u)', 'round(sum(f)::numeric, 0)', 'count(DISTINCT (id, g))', 'sum(public.twice(i))', 'round(stddev(i), 3)',
	'string_agg(t, $$,$$ ORDER BY id)', 'count(*), count(tableoid)';

# groups, conditions, what stands above
same('partial', $_) foreach
	'SELECT g, count(*), sum(i), avg(n), min(t) FROM shared.m GROUP BY g ORDER BY g',
	'SELECT g % 2, o, count(*) FROM shared.m WHERE id > 40 AND t IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2',
	'SELECT upper(t), avg(b), upper(t) || $$!$$ FROM shared.m GROUP BY upper(t) ORDER BY 1',
	'SELECT g, count(*) FROM shared.m GROUP BY g HAVING count(*) > 80 OR avg(i) < 290000 ORDER BY g',
	'SELECT g FROM shared.m GROUP BY g HAVING max(i) > 590000 ORDER BY g',
	'SELECT sum(i) FROM shared.m HAVING count(*) > 1000',
	'SELECT u, count(*) FROM shared.m GROUP BY u ORDER BY u',
	'SELECT g, count(*) FROM shared.m GROUP BY g ORDER BY count(*) DESC, g LIMIT 3',
	'SELECT count(*), max(c) FROM (SELECT g, count(*) c FROM shared.m GROUP BY g) x',
	'SELECT count(*) FROM shared.m WHERE false OR id < 0',
	'SELECT g, rank() OVER (ORDER BY sum(i)) FROM shared.m GROUP BY g ORDER BY 1',
	'SELECT g, generate_series(1, 2), count(*) FROM shared.m GROUP BY g ORDER BY 1, 2',
	'SELECT g FROM shared.m GROUP BY g ORDER BY g',
	'SELECT DISTINCT g FROM shared.m ORDER BY g',
	'SELECT DISTINCT g % 3, o FROM shared.m WHERE id < 100 ORDER BY 1 DESC, 2 LIMIT 4',
	'SELECT count(*) FROM (SELECT DISTINCT t FROM shared.m) x',
	'SELECT count(*), sum(n), avg(n), min(n), bool_and(n > 0) FROM shared.nobody',
	'SELECT id, count(*) FROM shared.nobody GROUP BY id',
	'SELECT (SELECT count(*) FROM shared.m), (SELECT max(i) FROM shared.m)',
	'SELECT count(*) FROM shared.m UNION ALL SELECT sum(i) FROM shared.m WHERE g = 3 ORDER BY 1',
	'WITH c AS MATERIALIZED (SELECT g, sum(i) s FROM shared.m GROUP BY g) SELECT max(s) FROM c',
	'SELECT x, (SELECT count(*) FROM shared.m WHERE g = x) FROM generate_series(1, 3) x',
	'SELECT x, l.* FROM generate_series(1, 3) x, LATERAL (SELECT sum(i), $$a$$ || x FROM shared.m WHERE g = x) l',
	'SELECT g, sum(j) FROM shared.v GROUP BY g ORDER BY g',
	'SELECT count(*) FROM shared.m WHERE at < now()';
same('rows', $_) foreach
	'SELECT g, count(*) FROM shared.m GROUP BY ROLLUP (g) ORDER BY 1, 2',
	'SELECT count(*) FROM shared.m WHERE random() >= 0',
	'SELECT public.twice(g), count(*) FROM shared.m GROUP BY 1 ORDER BY 1';

# DISTINCT inside of aggregates: regions send each value once
same('partial', $_) foreach
	'SELECT count(DISTINCT t) FROM shared.m',
	'SELECT count(DISTINCT g), sum(DISTINCT g), avg(DISTINCT i), count(*), sum(i) FROM shared.m',
	'SELECT o, count(DISTINCT t), count(*), max(i) FROM shared.m GROUP BY o ORDER BY o',
	'SELECT count(DISTINCT g) FILTER (WHERE o), count(*) FROM shared.m',
	'SELECT count(DISTINCT n) FROM shared.nobody',
	'SELECT g, count(DISTINCT t) FROM shared.m GROUP BY g HAVING count(DISTINCT t) > 11 ORDER BY g';

# every group in one region: nothing is left to do here
same('complete', $_) foreach
	'SELECT region, count(*) FROM shared.m GROUP BY region ORDER BY region',
	'SELECT g, region, count(*), round(stddev(i), 3), sum(i) + 1 FROM shared.m GROUP BY g, region HAVING count(*) > 25 ORDER BY 1, 2',
	'SELECT region, count(*) FROM shared.v GROUP BY region HAVING public.twice(count(*)::int) > 100 ORDER BY 1',
	'SELECT DISTINCT region FROM shared.m ORDER BY 1',
	q{SELECT count(*), count(DISTINCT t), round(stddev(i), 3), string_agg(t, ',' ORDER BY id DESC) FROM shared.m WHERE region = 'gbr' AND id < 100},
	q{SELECT g, count(*) FROM shared.m WHERE region = 'gbr' GROUP BY g HAVING count(*) > (SELECT 25) ORDER BY g},
	q{SELECT max(id), region FROM shared.m WHERE region = 'gbr' GROUP BY region},
	q{SELECT DISTINCT g, o FROM shared.m WHERE region = 'aus' ORDER BY 1, 2},
	q{SELECT count(*) FROM shared.m WHERE region = 'gbr' HAVING count(*) > 1000},
	q{SELECT array_agg(DISTINCT g ORDER BY g) FROM shared.m WHERE region = 'gbr'};
same('rows', q{SELECT region, count(DISTINCT t) FROM shared.nobody m, LATERAL (SELECT 'x' AS t) x GROUP BY region});
is(answer(q{SELECT tableoid::regclass, count(*) FROM shared.m GROUP BY 1 ORDER BY 1}), "usa.m|200\ngbr.m|200\naus.m|200", 'groups by what is known here only');

# plans made once for any parameter
$session->query(q{SET plan_cache_mode = force_generic_plan;
	PREPARE a(int) AS SELECT count(*), sum(i + $1) FROM shared.m WHERE g = $1;
	PREPARE pa(int) AS SELECT count(*), sum(i + $1) FROM plain.m WHERE g = $1;
	PREPARE b(text) AS SELECT count(*), max(t) FROM shared.m WHERE region = $1;
	PREPARE c(int) AS SELECT count(*) FROM shared.m WHERE $1 = 1;
	PREPARE d(int) AS SELECT g % $1, count(*) FROM shared.m GROUP BY g % $1 ORDER BY 1;
	PREPARE pd(int) AS SELECT g % $1, count(*) FROM plain.m GROUP BY g % $1 ORDER BY 1});
is(answer("EXECUTE a($_)"), answer("EXECUTE pa($_)"), "prepared: $_") foreach 1, 3, 'NULL';
is(answer("EXECUTE d($_)"), answer("EXECUTE pd($_)"), "prepared, in GROUP BY: $_") foreach 2, 3, 'NULL';
is(answer(q{EXECUTE c(1)}), 600, 'a condition without columns');
is(answer(q{EXECUTE c(2)}), 0, 'that is false');
is(scalar $r->round_trips('usa', q{EXECUTE c(2)}), 0, 'asks nobody');
is(answer(q{EXECUTE b('gbr')}), '200|text 9', 'one region');
is(scalar $r->round_trips('usa', q{EXECUTE b('gbr')}), 1, 'one round trip for one region');
is(scalar $r->round_trips('usa', q{EXECUTE b('usa')}), 0, 'none for the own one');
is(answer(q{EXECUTE b('nowhere')}), '0|-', 'no region at all') or diag(answer('EXPLAIN EXECUTE b(NULL)'));
$session->query('RESET plan_cache_mode');
is(answer(q{DO $$ DECLARE c bigint; BEGIN FOR k IN 1..8 LOOP SELECT count(*) INTO c FROM shared.m WHERE g < k; END LOOP; ASSERT c = (SELECT count(*) FROM plain.m WHERE g < k), c; END $$}), '', 'in PL/pgSQL');
is(answer(q{BEGIN; DECLARE c CURSOR FOR SELECT g, count(*) FROM shared.m GROUP BY g ORDER BY g; FETCH 2 FROM c; FETCH 1 FROM c; COMMIT}), "0|78\n1|78\n2|78", 'by a cursor');
is(answer(q{BEGIN; INSERT INTO shared.m (id, region, g) VALUES (1000, 'gbr', 3); SELECT count(*) FROM shared.m; ROLLBACK}), '601', 'sees own writes');
is(answer(q{WITH i AS (INSERT INTO shared.m (id, region) VALUES (1001, 'gbr') RETURNING 1) SELECT (SELECT count(*) FROM shared.m), count(*) FROM i}), '600|1',
	'does not see writes of its own statement');
$session->query('DELETE FROM shared.m WHERE id > 1000');

# conditions of policies are checked before anything is added up
$r->psql('usa', q{SELECT residency.run_everywhere($$CREATE ROLE reader; GRANT USAGE ON SCHEMA shared, usa, gbr, aus TO reader; GRANT SELECT ON shared.m TO reader;
	ALTER TABLE shared.m ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON shared.m FOR SELECT TO reader USING (id < 10)$$)});
is(answer('SET ROLE reader; SELECT count(*), sum(id) FROM shared.m; SELECT region, max(id) FROM shared.m GROUP BY region ORDER BY 1; RESET ROLE'),
	"9|45\naus|8\ngbr|7\nusa|9", 'row security') or diag($session->{stderr});

# what crosses, counted by the relay and by the answers
my @waited = (
	[ 'count(*)', 1, 'SELECT count(*) FROM shared.m' ],
	[ 'count by region', 1, 'SELECT region, count(*) FROM shared.m GROUP BY region' ],
	[ 'several kinds', 1, 'SELECT g, avg(n), count(DISTINCT o), min(t) FROM shared.m GROUP BY g' ],
	[ 'minimum and maximum', 1, 'SELECT min(id), max(id), min(n) FROM shared.m' ],
	[ 'two aggregates of a union', 1, 'SELECT count(*) FROM shared.m UNION ALL SELECT sum(i) FROM shared.m' ],
	[ 'DISTINCT', 1, 'SELECT DISTINCT g FROM shared.m' ],
	[ 'own region only', 0, q{SELECT count(*) FROM shared.m WHERE region = 'usa'} ],
);
is(scalar $r->round_trips('usa', $_->[2]), $_->[1], "$_->[0]: $_->[1]") foreach @waited;

# rows that cross: one for each group and region
my %crossing = (
	'SELECT count(*), sum(i), avg(n) FROM shared.m' => 2,
	'SELECT region, count(*) FROM shared.m GROUP BY region' => 2,
	'SELECT o, count(*) FROM shared.m GROUP BY o' => 6,
	'SELECT count(DISTINCT o) FROM shared.m' => 6,
	q{SELECT g, count(*) FROM shared.m WHERE region = 'gbr' GROUP BY g HAVING count(*) > 1000} => 0,
);
foreach my $sql (sort keys %crossing)
{
	my $plan = answer("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) $sql");
	my $rows = 0;

	$rows += $1 while $plan =~ /Foreign Scan.*\(actual rows=(\d+)/g;
	is($rows, $crossing{$sql}, "$crossing{$sql} rows cross: $sql") or diag($plan);
}

# distance: one round trip to the farthest region, and little more
$r->delay(40, 'usa', 'gbr');
$r->delay(100, 'usa', 'aus');
$r->round_trips('usa', 'SELECT region, count(*) FROM shared.m GROUP BY region');
my @ms = sort { $a <=> $b } map { ($r->round_trips('usa', 'SELECT region, count(*) FROM shared.m GROUP BY region'))[1] } 1 .. 3;
cmp_ok($ms[1], '<=', 1.15 * 200, 'count(*) by region takes one round trip to the farthest region') or diag("@ms ms");

done_testing();
