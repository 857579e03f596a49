# A key that its home does not hold costs a second round trip only if the home is not sure that it
# is the home: a person without details costs none, a stale directory does.  Tables without a
# directory, keys with many rows, and one key in several batches.
use strict;
use warnings;

use People;
use Regions;
use Test::More;

my $r = Regions->new(relay => 1);

People::make($r);
$r->psql('usa', q{
	SELECT residency.run_everywhere('CREATE TABLE app.address (no int PRIMARY KEY, id int NOT NULL, region text NOT NULL, street text)');
	SELECT residency.run_everywhere('CREATE INDEX ON app.address (id)');
	SELECT residency.make_resident('app.address', 'region', key => '{id}', directory => 'app.identity');
	SELECT residency.run_everywhere('CREATE TABLE app.loose (id int, region text NOT NULL, v text, PRIMARY KEY (id, v))');
	SELECT residency.make_resident('app.loose', 'region', key => '{id}');
	INSERT INTO app.identity SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'n' || i FROM generate_series(1, 15000) i;
	INSERT INTO app.details SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'person ' || i FROM generate_series(1, 15000) i WHERE i % 10 <> 0;
	INSERT INTO app.address SELECT i, 1 + i % 1000, (ARRAY['usa', 'gbr', 'aus'])[1 + (1 + i % 1000) % 3], 'street ' || i FROM generate_series(1, 3000) i;
	INSERT INTO app.loose SELECT i % 500, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'v' || i FROM generate_series(1, 3000) i;
	CREATE TABLE public.few (id int);
	INSERT INTO few VALUES (1), (2), (3), (4), (10), (20), (30), (40), (4), (NULL), (-1);
	ANALYZE;
});
$r->psql('usa', q{SELECT residency.run_everywhere('CREATE ROLE clerk; GRANT USAGE ON SCHEMA app TO clerk; GRANT SELECT ON app.details TO clerk')});
$r->psql('usa', 'GRANT SELECT ON few TO clerk');
$r->delay(5);
my $session = $r->warm('usa', 'SELECT count(*) FROM app.details', 'SELECT count(*) FROM app.loose');

# the statement's answer with lookups is the one without; returns it
sub same
{
	my ($name, $sql) = @_;
	my $with = $session->query($sql);
	my $without = $session->query("SET residency.enable_lookup = off; $sql; RESET residency.enable_lookup");

	like($session->query("EXPLAIN $sql"), qr/Region Lookup/, "$name: a lookup");
	is($with, $without, "$name: same answer");
	return $with;
}

# people without details
my $left = 'SELECT f.id, d.name FROM few f LEFT JOIN app.details d USING (id) ORDER BY 1, 2';
same('people without details', $left);
is($r->round_trips('usa', $left), 1, 'people without details cost no second round trip');
is($r->round_trips('usa', 'SELECT name FROM app.details WHERE id = 10'), 1, 'nor does one alone');
is($r->round_trips('usa', 'SELECT name FROM app.details WHERE id IN (10, 20, 30, 40)'), 1, 'nor do several');
is($r->round_trips('usa', "BEGIN; SET LOCAL ROLE clerk; $left; COMMIT"), 1, 'nor without the right to read the directory');
$r->fails('usa', "SET ROLE clerk; SELECT residency.homed_here('app', 'details', '1')", '42501', qr/only another region/, 'a client is not told');

# stale directories
sub hand { my ($region, $sql) = @_; $r->psql($region, "SET session_replication_role = replica; ALTER TABLE app.identity DISABLE TRIGGER ALL; $sql; ALTER TABLE app.identity ENABLE TRIGGER ALL"); return; }
my $answer = $session->query($left);
hand('usa', "UPDATE app.identity SET region = 'gbr' WHERE id = 2");
is($session->query($left), $answer, 'the directory here is behind: same answer');
is($r->round_trips('usa', $left), 2, 'the directory here is behind: one more round trip');
is($r->round_trips('usa', 'SELECT name FROM app.details WHERE id IN (4, 10)'), 1, '... but not for other keys');
hand('usa', "UPDATE app.identity SET region = 'aus' WHERE id = 2");
hand('usa', "UPDATE app.identity SET region = 'gbr' WHERE id = 20");
is($session->query($left), $answer, 'a person without details, and a stale directory');
hand('usa', "UPDATE app.identity SET region = 'aus' WHERE id = 20");

# a person moved by hand, back and forth, each region in one transaction, the new home first,
# while queries run: never without and never twice
$r->psql($_, "ALTER TABLE app.identity DISABLE TRIGGER ALL; ALTER TABLE $_.details DISABLE TRIGGER ALL") foreach $r->regions;

sub move
{
	my ($from, $to) = @_;

	$r->psql($to, "BEGIN; UPDATE app.identity SET region = '$to' WHERE id = 4; INSERT INTO app.details VALUES (4, '$to', 'person 4'); COMMIT");
	$r->psql($from, "BEGIN; UPDATE app.identity SET region = '$to' WHERE id = 4; DELETE FROM $from.details WHERE id = 4; COMMIT");
	$r->psql('usa', "UPDATE app.identity SET region = '$to' WHERE id = 4");
	return;
}
$r->psql('usa', q{CREATE FUNCTION public.watch(seconds float) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE stop timestamptz := clock_timestamp() + seconds * interval '1 s'; n int; wrong int := 0; runs int := 0;
	BEGIN
		WHILE clock_timestamp() < stop LOOP
			SELECT count(*) INTO n FROM app.details d WHERE d.id = 4 AND d.name = 'person 4';
			wrong := wrong + (n <> 1)::int; runs := runs + 1;
			SELECT count(d.name) INTO n FROM (SELECT DISTINCT id FROM few) f JOIN app.details d USING (id);
			wrong := wrong + (n <> 4)::int;
		END LOOP;
		RETURN (runs > 10) || ' ' || wrong;
	END $$});
my $watcher = $r->session('usa');
$watcher->query_until(qr/begun/, "\\echo begun\nSELECT watch(6);\n");
for my $i (1 .. 6) { move('gbr', 'aus'); move('aus', 'gbr'); }
like($watcher->query('SELECT 1'), qr/^true 0$/m, 'a person moved by hand is always found, once');

# tables without a directory: all regions side by side, and all rows count
my $loose = 'SELECT f.id, l.region, l.v FROM few f JOIN app.loose l USING (id) ORDER BY 1, 2, 3';
same('no directory', $loose);
is($r->round_trips('usa', $loose), 1, 'no directory: one round trip');
same('no directory, left join', 'SELECT f.id, l.v FROM few f LEFT JOIN app.loose l ON l.id = f.id AND l.v <> $$v4$$ ORDER BY 1, 2');
same('no directory, antijoin', 'SELECT f.id FROM few f WHERE NOT EXISTS (SELECT FROM app.loose l WHERE l.id = f.id) ORDER BY 1');
is($r->round_trips('usa', 'SELECT * FROM app.loose WHERE id = ANY (ARRAY[1, 2, 3])'), 1, 'no directory, an array: one round trip');

# many rows for each key
same('many rows', 'SELECT a.* FROM app.address a WHERE id IN (1, 2, 3) ORDER BY no');
same('many rows, join', 'SELECT f.id, a.street FROM few f JOIN app.address a USING (id) ORDER BY 1, 2');
like($session->query('EXPLAIN SELECT * FROM app.address WHERE id = 4'), qr/Region Lookup.*rows=[234] /, 'many rows: expected about as they are');

# one key in several batches
my $many = q{SELECT count(*), sum(length(name)) FROM app.details WHERE id = ANY (ARRAY(SELECT 1 + i % 14000 FROM generate_series(1, 28000) i))};
$session->query('SET enable_seqscan = off; SET enable_hashjoin = off');
my $count = $session->query($many);
is($count, $session->query('SELECT count(*), sum(length(name)) FROM (SELECT name FROM app.details WHERE id <= 14000 OFFSET 0) d'), 'one key in several batches counts once');

done_testing();
