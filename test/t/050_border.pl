# EXPLAIN ANALYZE and residency.border say what crossed the borders, and how often
# somebody waited for it: as many round trips as the relay counts from outside, as many rows as
# there are; for scans, lookups, writes, global tables; in all formats; per region and table.
use strict;
use warnings;

use JSON::PP;
use Regions;
use Test::More;

my $r = Regions->new(relay => 1);

$r->psql('usa', "SELECT residency.run_everywhere(\$ddl\$$_\$ddl\$)") foreach
  'CREATE TABLE public.who (id int PRIMARY KEY, region text NOT NULL, name text)',
  'CREATE TABLE public.person (id int PRIMARY KEY, region text NOT NULL, ref int, name text)',
  'CREATE TABLE public.visit (id int PRIMARY KEY, region text NOT NULL, person int, place text)',
  'CREATE TABLE public.slow (id int PRIMARY KEY, region text NOT NULL, name text)',
  q{CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS $f$BEGIN RETURN NEW; END $f$ };
$r->psql('usa', q{
	SELECT residency.make_global('who', 'region');
	SELECT residency.make_resident('person', 'region', key => '{id}', directory => 'who');
	SELECT residency.make_resident('visit', 'region', key => '{id}');
	SELECT residency.make_resident('slow', 'region', key => '{id}');
	SELECT residency.run_everywhere('CREATE TRIGGER keep BEFORE INSERT ON public.slow FOR EACH ROW EXECUTE FUNCTION public.keep()');
	INSERT INTO who SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'name ' || i FROM generate_series(1, 900) i;
	INSERT INTO person SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], i % 10, 'person ' || i FROM generate_series(1, 900) i;
	INSERT INTO visit SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], i % 100, 'place' FROM generate_series(1, 900) i;
	ANALYZE who;
	SET client_min_messages = error;
	ANALYZE person, visit;
});
$r->delay(5);
my $session = $r->warm('usa', 'SELECT count(*) FROM person', 'SELECT count(*) FROM visit');

# the statement's figures in an explanation
sub figures
{
	my ($text) = @_;
	my ($regions, $trips, $rows_out, $rows_in, $bytes_out, $bytes_in) =
	  $text =~ /^Regions: (.*)\nRound Trips: (\d+)\nBorder: rows out=(\d+) in=(\d+)  bytes out=(\d+) in=(\d+)$/m;
	return { regions => $regions // '', trips => $trips, rows_out => $rows_out, rows_in => $rows_in,
		bytes_out => $bytes_out, bytes_in => $bytes_in };
}

my $explain = 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF)';

# name, regions, rows out, rows in, statement; %d gives new keys, 3 at a time, whose home is gbr, aus, usa
my @cases = (
	[ 'own rows', '', undef, undef, "SELECT * FROM person WHERE region = 'usa'" ],
	[ 'a scan of all', 'aus, gbr', 0, 600, 'SELECT * FROM person' ],
	[ 'a scan of one', 'gbr', 0, 300, "SELECT * FROM person WHERE region = 'gbr'" ],
	[ 'an ordered scan with a limit', 'aus, gbr', 0, 20, 'SELECT * FROM person ORDER BY name LIMIT 10' ],
	[ 'a join', 'aus, gbr', 0, undef, 'SELECT count(*) FROM person p JOIN visit v ON v.person = p.id' ],
	[ 'two scans one after the other', 'aus, gbr', 0, 600 + 300 + 1, "SELECT count(*) FROM visit, (SELECT * FROM person WHERE region = (SELECT 'gbr' FROM visit WHERE id = 1) OFFSET 0) x" ],
	[ 'a lookup of three keys', 'aus, gbr', 2, 2, 'SELECT * FROM person WHERE id IN (3, 4, 5)' ],
	[ 'a lookup by join', 'gbr', 4, 4, 'SELECT * FROM person p JOIN (SELECT id FROM who WHERE id % 3 = 1 ORDER BY id LIMIT 4) w ON w.id = p.id' ],
	[ 'a direct UPDATE', 'aus, gbr', 0, 0, 'UPDATE person SET ref = ref + 1 WHERE ref = 3' ],
	[ 'a direct UPDATE with RETURNING', 'aus, gbr', 0, 60, 'UPDATE person SET ref = ref + 1 WHERE ref = 5 RETURNING id' ],
	[ 'an UPDATE row by row', 'gbr', 3, undef, q{UPDATE person p SET ref = x.ref FROM (VALUES (1, 7), (4, 7), (7, 7)) x (id, ref) WHERE x.id = p.id AND p.region = 'gbr'} ],
	[ 'an INSERT into a partition', 'gbr', 1, 0, "INSERT INTO gbr.visit VALUES (%d0000, 'gbr', 1, 'x')" ],
	[ 'an INSERT into two regions and this one', 'aus, gbr', 2, 0, "INSERT INTO visit VALUES (%d0001, 'gbr', 1, 'x'), (%d0002, 'aus', 1, 'x'), (%d0003, 'usa', 1, 'x')" ],
	[ 'an INSERT of 5,000 rows', 'aus, gbr', 3334, 0, "INSERT INTO visit SELECT %d0003 + i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 1, 'y' FROM generate_series(1, 5000) i" ],
	[ 'an INSERT with a trigger at home', 'gbr', 2, 0, "INSERT INTO slow VALUES (%d0000, 'gbr', 'x'), (%d0001, 'gbr', 'x')" ],
	[ 'a change of a global table', 'aus, gbr', 2 * 3, 2, "UPDATE who SET name = 'x' WHERE id IN (1, 2, 3)" ],
	[ 'a DELETE in all', 'aus, gbr', 0, 0, 'DELETE FROM visit WHERE id > 1000' ],
);
my $n = 100;
foreach my $case (@cases)
{
	my ($name, $regions, $rows_out, $rows_in, $sql) = @$case;
	my $before = $r->psql('usa', 'SELECT coalesce(sum(rows_out), 0), coalesce(sum(rows_in), 0), coalesce(sum(bytes_out), 0), coalesce(sum(bytes_in), 0) FROM residency.border');

	$n++;
	$sql =~ s/%d/$n/g;
	$session->query('BEGIN');
	my $text;
	my ($trips) = $r->relay->waited(sub { $text = $session->query("$explain $sql") });
	my $got = figures($text);

	$session->query('COMMIT');
	is($got->{regions}, $regions, "$name: regions") or diag($text);
	is($got->{trips} // 0, $trips, "$name: as many round trips as the relay counts") or diag($text);
	is($got->{rows_out}, $rows_out, "$name: rows out") if defined $rows_out;
	is($got->{rows_in}, $rows_in, "$name: rows in") or diag($text) if defined $rows_in;

	# the view's sums: the commit adds statements, but no rows that EXPLAIN has not seen
	my @before = split /\|/, $before;
	my @after = split /\|/, $r->psql('usa', 'SELECT sum(rows_out), sum(rows_in), sum(bytes_out), sum(bytes_in) FROM residency.border');
	is($after[0] - $before[0], $got->{rows_out} // 0, "$name: the same rows out in residency.border");
	cmp_ok($after[2] - $before[2], '>=', $got->{bytes_out} // 0, "$name: at least the same bytes out");
	is($after[3] - $before[3], $got->{bytes_in} // 0, "$name: the same bytes in") if $name !~ /global|INSERT|UPDATE|DELETE/;
}

# nodes: each shows its own
my $plan = $session->query("$explain SELECT * FROM person");
like($plan, qr/Foreign Scan on person.*\n +Regions: $_\n +Round Trips: 1\n +Border: rows out=0 in=300  bytes out=\d+ in=\d+\n/, "a scan of $_ shows its own figures")
  foreach qw(gbr aus);
my @bytes = $plan =~ /^ .*bytes out=\d+ in=(\d+)/mg;
is($bytes[0] + $bytes[1], figures($plan)->{bytes_in}, 'bytes in of the nodes add up to those of the statement');
is($bytes[0] + $bytes[1], $r->psql('usa', "SELECT sum(octet_length(id::text) + octet_length(region) + octet_length(ref::text) + octet_length(name)) FROM person WHERE region <> 'usa'"),
	'... and are the length of the values');
$plan = $session->query("$explain SELECT * FROM person WHERE id IN (4, 5, 6)");
like($plan, qr/Keys: 3\n +Regions: (aus, gbr|gbr, aus), local\n +Round Trips: 1\n +Border: rows out=2 in=2 /, 'a lookup shows keys, regions and figures');
$plan = $session->query('EXPLAIN (VERBOSE, COSTS OFF) SELECT name FROM person WHERE ref = 1');
like($plan, qr/Regions: $_\n +Remote SQL: SELECT name FROM $_\.person WHERE/, "without ANALYZE: the region and the SQL for $_") foreach qw(gbr aus);
unlike($plan, qr/Border|Round Trips/, '... and nothing that is not known');
like($session->query('EXPLAIN SELECT * FROM person WHERE id IN (SELECT id FROM who WHERE id = 4)'), qr/Region Lookup.*Regions: [^\n]*\n +Expected Keys: 1\n +Expected Round Trips: 1\n/s, 'with costs: what is expected of a lookup');
like($session->query('EXPLAIN SELECT name FROM person'), qr/Foreign Scan.*Regions: gbr\n +Expected Round Trips: 1\n/s, '... and of a scan');
unlike($session->query("$explain SELECT count(*) FROM who"), qr/Regions|Border|Round Trips/, 'nothing about a statement that crossed no border');
like($session->query("$explain DELETE FROM gbr.visit WHERE id = 4 RETURNING *"), qr/Foreign Delete on visit .*\n +Regions: gbr\n +Round Trips: 1\n +Border: rows out=0 in=1 /,
	'a direct DELETE');
like($session->query("$explain INSERT INTO gbr.visit VALUES (4, 'gbr', 1, 'x') RETURNING ctid IS NULL"), qr/^Insert on visit.*\n +Regions: gbr\n +Round Trips: 1\n +Border: rows out=1 in=1 /m,
	'an INSERT into a partition');

# formats
my $json = decode_json($session->query('EXPLAIN (ANALYZE, FORMAT json) SELECT * FROM person'));
is(scalar @$json, 1, 'JSON: one query');
is_deeply($json->[0]{Border}{Regions}, [ 'aus', 'gbr' ], 'JSON: regions of the statement');
is($json->[0]{Border}{'Round Trips'}, 1, 'JSON: round trips');
is($json->[0]{Border}{'Rows In'}, 600, 'JSON: rows');
my ($scan) = grep { $_->{'Node Type'} eq 'Foreign Scan' } @{ $json->[0]{Plan}{Plans} };
is($scan->{'Rows In'}, 300, 'JSON: rows of a node');
is(ref $scan->{Regions}, 'ARRAY', 'JSON: regions of a node');
ok(!exists decode_json($session->query('EXPLAIN (ANALYZE, FORMAT json) SELECT * FROM who'))->[0]{Border}, 'JSON: nothing without a border');
like($session->query('EXPLAIN (ANALYZE, FORMAT yaml, SUMMARY OFF) SELECT * FROM person'),
	qr/\n  Border: *\n    Regions: *\n      - "aus"\n      - "gbr"\n    Round Trips: 1\n    Rows Out: 0\n    Rows In: 600\n/, 'YAML');
is($r->psql('usa', q{CREATE FUNCTION pg_temp.x() RETURNS xml LANGUAGE plpgsql AS $$DECLARE x xml; BEGIN EXECUTE 'EXPLAIN (ANALYZE, FORMAT xml) SELECT * FROM person' INTO x; RETURN x; END$$;
	SELECT xpath('/e:explain/e:Query/e:Border/e:Rows-In/text()', pg_temp.x(), '{{e,http://www.postgresql.org/2009/explain}}')}), '{600}', 'XML');

# a new connection: to log in takes round trips too
my $fresh = $r->session('usa', client => 1);
$fresh->query('SELECT 1');
my $text;
my ($trips) = $r->relay->waited(sub { $text = $fresh->query("$explain SELECT * FROM person") });
is(figures($text)->{trips}, $trips, "as many round trips as the relay counts when there is no connection yet: $trips");

# the view
sub border { return $r->psql('usa', 'SELECT region, relation, statements, round_trips, rows_out, rows_in, bytes_out > 0, bytes_in FROM residency.border ORDER BY 1, 2::text'); }
$r->psql('usa', 'SELECT residency.border_reset()');
is(border(), '', 'residency.border is empty after a reset');
$session->query($_) foreach 'SELECT string_agg(name, $$$$) FROM person', 'SELECT name FROM person WHERE id = 4', "INSERT INTO visit VALUES (5000, 'gbr', 1, 'x'), (5001, 'gbr', 1, 'x')";
my @rows = split /\n/, border();
is($rows[0], 'aus|person|3|1|0|300|t|' . $r->psql('usa', "SELECT sum(length(name)) FROM person WHERE region = 'aus'"), 'figures of a table in one region');
like($rows[1], qr/^aus\|\|\d+\|0\|0\|0\|t\|0$/, 'what is about no table stands by itself');
like($rows[2], qr/^gbr\|person\|4\|2\|1\|301\|t\|\d+$/, 'scan and lookup');
like($rows[3], qr/^gbr\|visit\|1\|[01]\|2\|0\|t\|0$/, 'rows written');
$fresh->query('SELECT count(*) FROM (SELECT FROM person OFFSET 0) x');
$fresh->quit;
like(border(), qr/^aus\|person\|\d+\|3\|0\|601\|/m, 'what a session has counted outlives it');
is($r->psql('usa', q{CREATE ROLE reader; SET ROLE reader; SELECT count(*) > 0 FROM residency.border}), 't', 'everybody may read it');
$r->fails('usa', 'SET ROLE reader; SELECT residency.border_reset()', '42501', qr/border_reset/, '... and not everybody reset it');
$r->psql('usa', 'CREATE TABLE public.plain (i int); INSERT INTO plain VALUES (1); SELECT count(*) FROM plain');
unlike(border(), qr/plain/, 'what crosses no border is not counted');
is($r->psql('gbr', 'SELECT count(*) FROM residency.border WHERE relation::text = $$person$$'), '0', 'each region counts what it asked others itself');
$r->psql('usa', q{SELECT count(*) FROM (SELECT FROM person OFFSET 0) x; BEGIN; SAVEPOINT a; SELECT count(*) FROM (SELECT FROM person OFFSET 0) x; ROLLBACK TO a; ROLLBACK});
like(border(), qr/^aus\|person\|\d+\|5\|0\|1201\|/m, 'what was rolled back has crossed all the same');

$r->psql('usa', 'SELECT residency.border_reset()');
$r->psql('usa', 'UPDATE person SET ref = 1 WHERE id IN (4, 5)');
is($r->psql('usa', 'SELECT region, relation, round_trips FROM residency.border ORDER BY 1, 2::text'), "aus|person|1\naus||2\ngbr|person|1\ngbr||2",
	'the round trips of two-phase commit are about no table');

done_testing();
