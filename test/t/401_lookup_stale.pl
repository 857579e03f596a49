# A key that its recorded home does not hold is asked for again, and nothing else is; batches,
# NULLs, composite keys and rescans of region lookups.
use strict;
use warnings;

use People;
use Regions;
use Test::More;

my $r = Regions->new(relay => 1);

People::make($r);
$r->psql('usa', q{
	INSERT INTO app.identity SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'n' || i FROM generate_series(1, 30000) i;
	INSERT INTO app.details SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'person ' || i FROM generate_series(1, 30000) i;
	SELECT residency.run_everywhere('CREATE TABLE app.shop (a int, b text, region text NOT NULL, PRIMARY KEY (a, b))');
	SELECT residency.run_everywhere('CREATE TABLE app.sale (a int, b text, region text NOT NULL, v numeric, PRIMARY KEY (a, b))');
	SELECT residency.make_global('app.shop', 'region');
	SELECT residency.make_resident('app.sale', 'region', key => '{b,a}', directory => 'app.shop');
	INSERT INTO app.shop SELECT i, 'x"\\{,}' || i % 7, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3] FROM generate_series(1, 300) i;
	INSERT INTO app.sale SELECT a, b, region, a FROM app.shop;
	CREATE TABLE public.wanted (a int, b text);
	INSERT INTO wanted SELECT a, b FROM app.shop WHERE a <= 5;
	INSERT INTO wanted VALUES (NULL, 'x'), (1, NULL), (1, 'unknown');
	CREATE TABLE public.many (id int, n int);
	INSERT INTO many SELECT 1 + i % 25000, i FROM generate_series(1, 30000) i;
	CREATE TABLE public.few (id int);
	INSERT INTO few VALUES (1), (2), (3), (4);
	ANALYZE;
});
$r->delay(5);
my $session = $r->warm('usa', 'SELECT count(*) FROM app.details', 'SELECT count(*) FROM app.sale');

# composite keys, with characters that arrays quote
my $composite = 'SELECT w.a, w.b, s.v FROM wanted w LEFT JOIN app.sale s USING (a, b) ORDER BY 1, 2';
like($session->query("EXPLAIN $composite"), qr/Region Lookup/, 'a composite key is looked up');
is($r->round_trips('usa', $composite), 1, 'a composite key: one round trip');
my $with = $session->query($composite);
my $without = $session->query("SET residency.enable_lookup = off; $composite; RESET residency.enable_lookup");
is($with, $without, 'a composite key: same answer');

# more keys than a batch; the full scan is switched off by a table that looks larger than it is
my $long = 'SELECT count(*), count(d.name), sum(m.n) FROM many m LEFT JOIN app.details d ON d.id = m.id AND d.name <> $$person 7$$';
$session->query('SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_nestloop = off');
like($session->query("EXPLAIN $long"), qr/Region Lookup/, 'a long outer side is looked up');
# far enough away that the work on a batch hides behind the way of the next
$r->delay(100);
cmp_ok($r->round_trips('usa', $long), '<=', 2, 'several batches are on their way at once');
$r->delay(5);
is($session->query($long), '30000|29998|450015000', 'several batches: every outer row once');
$session->query('RESET enable_hashjoin; RESET enable_mergejoin; RESET enable_nestloop');
unlike($session->query("EXPLAIN SELECT count(*) FROM app.identity i JOIN app.details d USING (id)"), qr/Region Lookup/,
	'a full scan is cheaper for as many keys as rows');

# a lookup for each outer row
is($session->query('SELECT f.id, x.name FROM few f, LATERAL (SELECT name FROM app.details d WHERE d.id = f.id OFFSET 0) x ORDER BY 1'),
	join("\n", map { "$_|person $_" } 1 .. 4), 'LATERAL');

# a cursor read under a savepoint that is rolled back: batches on their way are asked for again
is($r->psql('usa', q{BEGIN; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_nestloop = off;
	DECLARE c CURSOR FOR SELECT m.n, d.name FROM many m JOIN app.details d USING (id);
	FETCH 1 FROM c; SAVEPOINT s; MOVE 12000 IN c; ROLLBACK TO s; MOVE 15000 IN c; FETCH 1 FROM c; COMMIT}),
	"1|person 2\n27002|person 2003", 'a cursor outlives a savepoint that it was read in');

# the directory of usa is behind: it says gbr for a row in aus, aus for one in usa
sub hand { my ($region, $sql) = @_; $r->psql($region, "SET session_replication_role = replica; ALTER TABLE app.identity DISABLE TRIGGER ALL; $sql; ALTER TABLE app.identity ENABLE TRIGGER ALL"); return; }
my $all = 'SELECT f.id, d.region, d.name FROM few f LEFT JOIN app.details d USING (id) ORDER BY 1';
my $answer = $session->query($all);

hand('usa', "UPDATE app.identity SET region = 'gbr' WHERE id = 2; UPDATE app.identity SET region = 'aus' WHERE id = 3");
is($session->query($all), $answer, 'rows are found where the directory does not say');
is($r->round_trips('usa', $all), 2, 'keys that are not held are asked for once more');
is($r->round_trips('usa', "SELECT * FROM app.details WHERE id = 1 AND name = 'nobody'"), 1, 'a condition causes no second round trip');
is($session->query('SELECT name FROM app.details WHERE id = 2'), 'person 2', 'a single key that is elsewhere');
hand('usa', "UPDATE app.identity SET region = 'aus' WHERE id = 2; UPDATE app.identity SET region = 'usa' WHERE id = 3");

# a row in two regions counts once
$r->psql('aus', "ALTER TABLE aus.details DISABLE TRIGGER ALL; INSERT INTO aus.details VALUES (1, 'aus', 'not this one')");
is($session->query($all), $answer, 'of two regions the home counts');
$r->psql('aus', "DELETE FROM aus.details WHERE id = 1; ALTER TABLE aus.details ENABLE TRIGGER ALL");

# regions that hold no key need not be there
$r->away('aus');
is($session->query("SELECT name FROM app.details WHERE id IN (1, 3) ORDER BY id"), "person 1\nperson 3", 'a region that holds none of the keys may be away');
is($session->query("SELECT name FROM app.details WHERE id = 3"), 'person 3', 'own residents always');
$r->back('aus');

done_testing();
