# Joins whose rows lie in one region at a time are done by each region: of resident tables on their
# regions, and with global tables; aggregates over them, too.  One round trip, and the answers are those of plain
# tables with the same rows, pushed or not.
use strict;
use warnings;

use Regions;
use Test::More;

my $r = Regions->new(relay => 1);

$r->psql('usa', q{
	SELECT residency.run_everywhere($ddl$
		CREATE SCHEMA shared;
		CREATE TABLE shared.who (id int PRIMARY KEY, region text NOT NULL, note text, boss int);
		CREATE TABLE shared.kind (k int PRIMARY KEY, region text NOT NULL, label text);
		CREATE TABLE shared.person (id int NOT NULL, region text NOT NULL, name text, k int);
		CREATE TABLE shared.visit (id int NOT NULL, region text NOT NULL, person int NOT NULL, place text, n numeric);
		CREATE TABLE shared.bill (id int NOT NULL, region text NOT NULL, amount int);
	$ddl$);
	SELECT residency.make_global('shared.who', 'region');
	SELECT residency.make_global('shared.kind', 'region');
	SELECT residency.make_resident('shared.person', 'region', key => '{id}', directory => 'shared.who');
	SELECT residency.make_resident('shared.visit', 'region', key => '{id}');
	SELECT residency.make_resident('shared.bill', 'region', key => '{id}');
	CREATE SCHEMA plain;
	CREATE TABLE plain.who (LIKE shared.who);
	CREATE TABLE plain.kind (LIKE shared.kind);
	CREATE TABLE plain.person (LIKE shared.person);
	CREATE TABLE plain.visit (LIKE shared.visit);
	CREATE TABLE plain.bill (LIKE shared.bill);
	INSERT INTO plain.who SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'note ' || i % 17, CASE WHEN i % 5 > 0 THEN i / 5 END FROM generate_series(1, 900) i;
	INSERT INTO plain.kind SELECT i, 'usa', CASE WHEN i % 4 > 0 THEN 'kind ' || i END FROM generate_series(0, 9) i;
	INSERT INTO plain.person SELECT id, region, 'name ' || id % 50, CASE WHEN id % 13 > 0 THEN id % 12 END FROM plain.who WHERE id % 7 > 0;
	INSERT INTO plain.visit SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + (1 + i * 7 % 850) % 3], 1 + i * 7 % 850, CASE WHEN i % 9 > 0 THEN 'place ' || i % 6 END, i / 4.0 FROM generate_series(1, 700) i;
	INSERT INTO plain.visit SELECT id + 1000, region, person, place, n FROM plain.visit WHERE person % 10 = 0;
	INSERT INTO plain.bill SELECT id, region, id * 3 FROM plain.person WHERE id % 4 = 0;
	INSERT INTO shared.who SELECT * FROM plain.who;
	INSERT INTO shared.kind SELECT * FROM plain.kind;
	INSERT INTO shared.person SELECT * FROM plain.person;
	INSERT INTO shared.visit SELECT * FROM plain.visit;
	INSERT INTO shared.bill SELECT * FROM plain.bill;
	SET client_min_messages = error;
	ANALYZE;
	CREATE FUNCTION public.plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS
	$f$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (VERBOSE, COSTS OFF) ' || query; END $f$;
});
$r->delay(5);
my $session = $r->warm('usa', 'SELECT count(*) FROM shared.person', 'SELECT count(*) FROM shared.visit', "\\pset null '-'");

sub answer
{
	my ($sql) = @_;
	return $session->query($sql) // '';
}

# Test: same answer from plain tables, pushed, and not.  How many scans of other regions are joins there.
sub same
{
	my ($joins, $sql) = @_;
	my $plain = $sql =~ s/\bshared\./plain./gr;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$session->{stderr} = '';
	my $expected = answer($plain);
	my $plan = $session->query('SELECT * FROM public.plan($q$' . $sql . '$q$)');
	my $got = () = $plan =~ /Done There: (aggregate of )?join/g;

	is($got, $joins, "$joins joins there: $sql") or diag($plan);
	is(answer($sql), $expected, 'same answer') or diag($plan);
	is(scalar $r->round_trips('usa', $sql), 1, 'one round trip') if $joins;
	$session->query('SET residency.enable_push = off');
	is(answer($sql), $expected, 'same answer without');
	unlike($session->query('SELECT * FROM public.plan($q$' . $sql . '$q$)'), qr/Done There/, 'nothing is pushed when switched off');
	$session->query('RESET residency.enable_push');
	is($session->{stderr}, '', 'no error') if $session->{stderr};
	return;
}

my $pv = 'shared.person p JOIN shared.visit v ON v.person = p.id AND v.region = p.region';

# resident tables, on key and region
same(2, $_) foreach
	"SELECT p.name, v.place FROM $pv ORDER BY 1, 2",
	"SELECT count(*), sum(v.n), min(p.name) FROM $pv",
	"SELECT p.region, count(*) FROM $pv GROUP BY p.region ORDER BY 1",
	"SELECT v.place, count(*), avg(v.n) FROM $pv WHERE p.k < 6 GROUP BY v.place HAVING count(*) > 5 ORDER BY 1",
	"SELECT DISTINCT v.place FROM $pv ORDER BY 1",
	"SELECT p.id, v.place, b.amount FROM $pv JOIN shared.bill b ON b.id = p.id AND b.region = p.region ORDER BY 1, 2",
	'SELECT p.id, v.place FROM shared.person p LEFT JOIN shared.visit v ON v.person = p.id AND v.region = p.region AND v.n > 50 ORDER BY 1, 2',
	'SELECT count(*), count(v.place) FROM shared.person p LEFT JOIN shared.visit v ON v.person = p.id AND v.region = p.region WHERE v.n IS NULL OR p.k = 3',
	'SELECT p.id, v.place, b.amount FROM shared.person p LEFT JOIN (shared.visit v JOIN shared.bill b ON b.id = v.person AND b.region = v.region) ON v.person = p.id AND v.region = p.region ORDER BY 1, 2, 3',
	'SELECT count(*) FROM shared.person p WHERE EXISTS (SELECT FROM shared.visit v WHERE v.person = p.id AND v.region = p.region AND v.n > 20)',
	'SELECT count(*) FROM shared.person p WHERE NOT EXISTS (SELECT FROM shared.visit v WHERE v.person = p.id AND v.region = p.region)',
	'SELECT count(*) FROM shared.person p JOIN shared.person q USING (region) WHERE p.id < q.id AND p.k = 3 AND q.k = 4';

# one region
same(1, $_) foreach
	"SELECT p.id, v.place FROM $pv WHERE p.region = 'gbr' ORDER BY 1, 2",
	"SELECT p.id, v.place FROM shared.person p JOIN shared.visit v ON v.person > p.id + 840 WHERE p.region = 'gbr' AND v.region = 'gbr' ORDER BY 1, 2",
	"SELECT count(*), count(DISTINCT v.place), round(stddev(v.n), 3) FROM $pv WHERE p.region = 'gbr'",
	"SELECT k.label, count(p.id) FROM shared.kind k LEFT JOIN shared.person p ON p.k = k.k AND p.id < 200 AND p.region = 'gbr' WHERE k.k > 5 GROUP BY 1 ORDER BY 1",
	q{SELECT count(*), count(k.label) FROM shared.kind k WHERE EXISTS (SELECT FROM shared.person p WHERE p.k = k.k AND p.region = 'gbr')},
	'SELECT p.id, v.n FROM gbr.person p JOIN gbr.visit v ON v.person = p.id ORDER BY 1, 2' =~ s/gbr\./shared./gr =~ s/ORDER/WHERE p.region = 'gbr' AND v.region = 'gbr' ORDER/r;

# with global tables
same(2, $_) foreach
	'SELECT p.id, p.name FROM shared.person p JOIN shared.kind k ON k.k = p.k WHERE k.label = $$kind 5$$ ORDER BY 1',
	'SELECT k.label, count(*) FROM shared.person p JOIN shared.kind k ON k.k = p.k GROUP BY k.label ORDER BY 1',
	'SELECT k.label, p.region, count(*) FROM shared.person p LEFT JOIN shared.kind k ON k.k = p.k GROUP BY 1, 2 ORDER BY 1, 2',
	'SELECT k.label, count(*) FROM shared.person p, shared.kind k WHERE k.k = p.k AND k.label > $$kind 3$$ AND p.id % 2 = 0 GROUP BY 1 ORDER BY 1',
	"SELECT k.label, sum(v.n) FROM $pv JOIN shared.kind k ON k.k = p.k GROUP BY 1 ORDER BY 1",
	'SELECT count(*) FROM shared.person p WHERE p.k IN (SELECT k FROM shared.kind WHERE label IS NULL)',
	'SELECT count(*) FROM shared.person p WHERE NOT EXISTS (SELECT FROM shared.kind k WHERE k.k = p.k)',
	'SELECT a.label, b.label, count(*) FROM shared.person p JOIN shared.kind a ON a.k = p.k JOIN shared.kind b ON b.k = p.k + 1 GROUP BY 1, 2 ORDER BY 1, 2';

# what must not be done region by region
same(0, $_) foreach
	'SELECT count(*) FROM shared.person p JOIN shared.visit v ON v.person = p.id',
	'SELECT count(*) FROM shared.person p JOIN shared.visit v ON v.region <> p.region AND v.person = p.id + 1',
	'SELECT count(*) FROM shared.person p FULL JOIN shared.visit v ON v.person = p.id AND v.region = p.region',
	'SELECT k.k, p.id FROM shared.kind k LEFT JOIN shared.person p ON p.k = k.k AND p.id < 100 ORDER BY 1, 2',
	'SELECT k.k FROM shared.kind k WHERE EXISTS (SELECT FROM shared.person p WHERE p.k = k.k) ORDER BY 1',
	'SELECT count(*) FROM shared.person p JOIN shared.kind k ON k.k = p.k WHERE random() >= 0',
	'SELECT p.id FROM shared.person p JOIN shared.kind k ON k.k = p.k AND length(p.name || k.label) > 11 WHERE p.id IN (SELECT 8 FOR UPDATE) FOR UPDATE OF p';
same(0, "SELECT p.name, w.note FROM shared.who w JOIN shared.person p USING (id) WHERE w.boss = 20 ORDER BY 1");

# plans for any parameter ask only the regions that the parameter leaves
$session->query(qq{SET plan_cache_mode = force_generic_plan;
	PREPARE a(text, int) AS SELECT p.name, v.place FROM $pv WHERE p.region = \$1 AND p.k = \$2 ORDER BY 1, 2;
	PREPARE b(text, int) AS SELECT count(*), sum(p.k + \$2) FROM shared.person p JOIN shared.kind k ON k.k = p.k WHERE p.region = \$1;
	PREPARE pb(text, int) AS SELECT count(*), sum(p.k + \$2) FROM plain.person p JOIN plain.kind k ON k.k = p.k WHERE p.region = \$1});
my $expected = answer("SELECT p.name, v.place FROM plain.person p JOIN plain.visit v ON v.person = p.id WHERE p.region = 'gbr' AND p.k = 4 ORDER BY 1, 2");
is(answer(q{EXECUTE a('gbr', 4)}), $expected, 'prepared join');
is(answer("EXECUTE b($_, 1)"), answer("EXECUTE pb($_, 1)"), "prepared aggregate over a join: $_") foreach "'gbr'", "'usa'", "'x'", 'NULL';
is(scalar $r->round_trips('usa', $_->[0]), $_->[1], "$_->[0]: $_->[1] round trips") foreach
	[ q{EXECUTE a('gbr', 4)}, 1 ], [ q{EXECUTE a('usa', 4)}, 0 ], [ q{EXECUTE b('aus', 4)}, 1 ], [ q{EXECUTE b('usa', 4)}, 0 ];
$session->query('RESET plan_cache_mode');

# a region joins with what this transaction has written
my $count = 'SELECT count(*), count(k.label) FROM shared.person p JOIN shared.kind k ON k.k = p.k WHERE p.region = $$gbr$$';
is(answer("BEGIN; UPDATE shared.kind SET label = 'x'; INSERT INTO shared.person VALUES (7, 'gbr', 'new', 5); $count; ROLLBACK"),
	answer("BEGIN; UPDATE plain.kind SET label = 'x'; INSERT INTO plain.person VALUES (7, 'gbr', 'new', 5); " . ($count =~ s/shared/plain/gr) . '; ROLLBACK'),
	'own writes of both tables');
is(answer("WITH u AS (UPDATE shared.kind SET label = NULL RETURNING 1) $count"), answer($count =~ s/shared/plain/gr), 'but not those of the same statement');
$session->query("UPDATE plain.kind SET label = NULL");
is(answer($count), answer($count =~ s/shared/plain/gr), '... until the next one');

# rights and policies
$r->psql('usa', q{SELECT residency.run_everywhere($$CREATE ROLE reader; CREATE ROLE owner_of_view; GRANT USAGE ON SCHEMA shared, usa, gbr, aus TO reader, owner_of_view;
	GRANT SELECT ON shared.person, shared.kind TO reader; GRANT SELECT ON shared.person TO owner_of_view;
	ALTER TABLE shared.person ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON shared.person FOR SELECT TO reader USING (id < 30);
	CREATE POLICY many ON shared.person FOR SELECT TO owner_of_view USING (id < 60);
	CREATE VIEW shared.people AS SELECT * FROM shared.person; ALTER VIEW shared.people OWNER TO owner_of_view; GRANT SELECT ON shared.people TO reader$$)});
is(answer('SET ROLE reader; SELECT count(*), max(p.id) FROM shared.person p JOIN shared.kind k ON k.k = p.k; RESET ROLE'),
	answer('SELECT count(*), max(p.id) FROM plain.person p JOIN plain.kind k ON k.k = p.k WHERE id < 30'), 'row security') or diag($session->{stderr});
is(answer('SET ROLE reader; SELECT count(*), max(p.id) FROM shared.people p JOIN shared.kind k ON k.k = p.k; RESET ROLE'),
	answer('SELECT count(*), max(p.id) FROM plain.person p JOIN plain.kind k ON k.k = p.k WHERE id < 60'), "tables with different users' rights") or diag($session->{stderr});

done_testing();
