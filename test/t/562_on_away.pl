# Reading all regions while one is away: an error, or with residency.on_away = skip the rows of
# the rest and a warning; never for what writes.  States are set by hand, so that round
# trips can be counted.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 5);
People::make($r);
$r->psql('usa', join(';', map { People::add($_, (qw(usa gbr aus))[ $_ % 3 ], "name$_") } 1 .. 9));
$r->psql('usa', q{CREATE TABLE app.private (n int);
	CREATE FUNCTION app.people() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM app.details); END'});

sub set_state { my ($region, $state) = @_; $r->psql('usa', "SELECT residency.set_region_state('$region', '$state')"); return; }

# a session that reads without regions that are away
my $session = $r->session('usa', on_error_stop => 0);
$session->query_safe(q{SET residency.on_away = 'skip'});

# runs SQL there; returns its output
sub run
{
	my ($sql) = @_;
	$session->{stderr} = '';
	return $session->query($sql);
}

# how many warnings about a region the last run gave
sub warnings { my ($region) = @_; return scalar(() = $session->{stderr} =~ /WARNING:  rows of region "$region" are missing: it is away/g); }

# Test: the query gives this and one warning about gbr
sub reads
{
	my ($sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $out = run($sql);

	is($out, $expected, $name);
	is(warnings('gbr'), 1, "$name: one warning") or diag($session->{stderr});
	unlike($session->{stderr}, qr/ERROR/, "$name: no error");
	return;
}

# Test: the statement fails, although reading goes on without regions
sub refused
{
	my ($sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	run("BEGIN; $sql; ROLLBACK");
	run('ROLLBACK') if $session->{stderr} =~ /aborted/;
	return like($session->{stderr}, qr/ERROR:  (region "gbr": it is|region "gbr" is) away/, $name);
}

# --- nobody is away ----------------------------------------------------------------------
is(run('SELECT count(*) FROM app.details'), '9', 'all are there');
is($session->{stderr}, '', 'without a warning');

# prepared before, with generic plans
run('SET plan_cache_mode = force_generic_plan');
run($_) foreach 'PREPARE counted AS SELECT count(*) FROM app.details', 'EXECUTE counted',
  'PREPARE ids AS SELECT id FROM app.details ORDER BY 1', 'EXECUTE ids',
  'PREPARE found(int[]) AS SELECT name FROM app.details WHERE id = ANY($1) ORDER BY id', q{EXECUTE found('{1,2}')},
  "SET residency.on_away = 'error'", q{PREPARE there AS SELECT count(*) FROM app.details WHERE region = 'gbr'}, 'EXECUTE there',
  q{PREPARE matched AS SELECT i.id, d.name FROM app.identity i LEFT JOIN app.details d ON d.name = i.note AND d.region = 'gbr'}, 'EXECUTE matched',
  "SET residency.on_away = 'skip'";
run('RESET plan_cache_mode');

# --- one is ------------------------------------------------------------------------------
set_state('gbr', 'away');
$r->fails('usa', 'SELECT count(*) FROM app.details', '08001', qr/region "gbr": it is away.*HINT:.*on_away/s, 'by default that is an error');
$r->fails('usa', 'SELECT name FROM app.details WHERE id = 1', '08001', qr/region "gbr": it is away/, 'also for a key at home there');
is($r->psql('usa', 'SELECT name FROM app.details WHERE id IN (2, 3) ORDER BY id'), "name2\nname3", 'not for keys at home elsewhere');

reads('SELECT count(*) FROM app.details', '6', 'count of all');
reads('SELECT region, count(*), min(id) FROM app.details GROUP BY region ORDER BY 1', "aus|3|2\nusa|3|3", 'groups');
reads('SELECT id FROM app.details ORDER BY id', "2\n3\n5\n6\n8\n9", 'rows');
reads('SELECT id FROM app.details ORDER BY id LIMIT 3', "2\n3\n5", 'the first rows');
reads('SELECT DISTINCT region FROM app.details ORDER BY 1', "aus\nusa", 'distinct values');
reads('SELECT avg(id), max(name), count(DISTINCT name) FROM app.details WHERE id > 1', '5.5000000000000000|name9|6', 'aggregates');
reads(q{SELECT count(*) FROM app.details WHERE region = 'gbr'}, '0', 'a count of nothing is 0');
reads(q{SELECT sum(id), count(name) FROM app.details WHERE region = 'gbr'}, '|0', 'a sum of nothing is NULL');
reads(q{SELECT string_agg(name, ',') FROM app.details WHERE region = 'gbr'}, '', 'so is any other aggregate');
reads(q{SELECT count(*) FROM app.details WHERE region = 'gbr' GROUP BY name}, '', 'no row has no group');
reads(q{SELECT count(*) FROM app.details WHERE region = 'gbr' HAVING count(*) = 0}, '0', 'HAVING sees the 0');
reads('SELECT name FROM app.details WHERE id IN (1, 2, 3) ORDER BY id', "name2\nname3", 'keys');
reads('SELECT name FROM app.details WHERE id = 1', '', 'one key');
reads('SELECT i.id, d.name FROM app.identity i LEFT JOIN app.details d USING (id) WHERE i.id < 4 ORDER BY 1', "1|\n2|name2\n3|name3",
	'a left join');
reads(q{SELECT i.id, d.name FROM app.identity i LEFT JOIN app.details d ON d.id = i.id AND d.region = 'gbr' WHERE i.id < 3 ORDER BY 1}, "1|\n2|",
	'a left join with that region alone');
reads(q{SELECT count(*) FROM app.identity i WHERE NOT EXISTS (SELECT FROM app.details d WHERE d.id = i.id AND d.region = 'gbr')}, '9', 'an anti-join');
reads('SELECT count(*) FROM app.identity i JOIN app.details d USING (id, region)', '6', 'a join');
reads('SELECT a.id FROM app.details a JOIN app.details b ON a.id = b.id + 1 ORDER BY 1', "3\n6\n9", 'a join of the table with itself');
reads('SELECT i.id FROM app.identity i WHERE EXISTS (SELECT FROM app.details d WHERE d.id = i.id AND d.name > \'name\') ORDER BY 1',
	"2\n3\n5\n6\n8\n9", 'a semi-join');
reads('SELECT (SELECT count(*) FROM app.details d WHERE d.id >= i.id) FROM app.identity i ORDER BY id LIMIT 2', "6\n6", 'a subquery for each row');
reads('WITH c AS MATERIALIZED (SELECT * FROM app.details) SELECT count(*) FROM c', '6', 'a CTE');
reads('SELECT app.people()', '6', 'a function');
reads('COPY (SELECT id FROM app.details WHERE id < 4 ORDER BY 1) TO STDOUT', "2\n3", 'COPY of a query');
reads(q{EXECUTE counted}, '6', 'a prepared count');
reads(q{EXECUTE ids}, "2\n3\n5\n6\n8\n9", 'a prepared scan');
reads(q{EXECUTE found('{1,2}')}, 'name2', 'a prepared lookup');
run('EXECUTE there');
like($session->{stderr}, qr/ERROR:  region "gbr": it is away/, 'a plan that was made before regions could be left out fails where it would be wrong');
my $matched = run('EXECUTE matched');
ok($session->{stderr} =~ /ERROR:  region "gbr": it is away/ || $matched =~ tr/|// == 9, 'and never loses rows of a global table');

# --- it costs nothing --------------------------------------------------------------------
$r->warm('usa', "SET residency.on_away = 'skip'", 'SELECT count(*) FROM app.details');
$r->relay->reset;
is($r->round_trips('usa', 'SELECT count(*) FROM app.details'), 1, 'one round trip, to the region that is there');
is($r->round_trips('usa', 'SELECT name FROM app.details WHERE id IN (1, 3)'), 0, 'none if none is needed');
is($r->relay->counts('usa>gbr')->{messages_out}, 0, 'not a word to the one that is away');

# --- what writes -------------------------------------------------------------------------
refused("UPDATE app.details SET name = 'x'", 'UPDATE of all regions');
refused("UPDATE app.details SET name = 'x' WHERE region = 'gbr'", 'UPDATE there');
refused('DELETE FROM app.details WHERE id > 0', 'DELETE');
refused("INSERT INTO app.details VALUES (1, 'gbr', 'x')", 'INSERT');
refused('INSERT INTO app.private SELECT id FROM app.details', 'INSERT of what is read');
refused('WITH w AS (INSERT INTO app.private VALUES (1) RETURNING n) SELECT count(*) FROM app.details, w', 'a writing CTE');
refused('SELECT * FROM app.details FOR UPDATE', 'locking rows');
refused('CREATE TABLE app.stolen AS SELECT id FROM app.details', 'CREATE TABLE AS');
refused('SELECT id INTO app.stolen FROM app.details', 'SELECT INTO');
refused('INSERT INTO app.private SELECT app.people()', 'a function inside of a write');
is($r->psql('usa', 'SELECT count(*) FROM app.private'), '0', 'nothing was written');

# --- transactions ------------------------------------------------------------------------
reads(q{BEGIN; SELECT count(*) FROM app.details; UPDATE app.details SET name = 'three' WHERE id = 3 AND region = 'usa';
	UPDATE app.details SET name = 'two' WHERE id = 2 AND region = 'aus'; COMMIT}, '6', 'reading without it, then writing elsewhere');
is($r->psql('aus', 'SELECT name FROM aus.details WHERE id = 2'), 'two', 'is committed');
run('BEGIN; SAVEPOINT s; SELECT name FROM app.details WHERE id = 1 FOR UPDATE; ROLLBACK TO s; SELECT count(*) FROM app.details; COMMIT');
like($session->{stderr}, qr/ERROR.*WARNING:  rows of region "gbr"/s, 'after an error and ROLLBACK TO it goes on');
is(run('SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NULL'), 't', 'and ends');

run(q{SET residency.on_away = 'error'; DO $$BEGIN
	BEGIN PERFORM count(*) FROM app.details; EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN INSERT INTO app.private VALUES (7); END;
	UPDATE app.details SET name = 'caught' WHERE id = 2 AND region = 'aus';
END$$; SET residency.on_away = 'skip'});
is($session->{stderr}, '', 'the error can be caught');
is($r->psql('usa', 'SELECT n FROM app.private') . $r->psql('aus', 'SELECT name FROM aus.details WHERE id = 2'), '7caught', 'and what follows is committed in two regions');

# --- the state changes while a statement runs ---------------------------------------------
run(q{BEGIN; SET LOCAL residency.fetch_size = '64kB'; DECLARE c CURSOR FOR SELECT d.id FROM app.details d, generate_series(1, 3) ORDER BY region, 1});
is(run('FETCH c'), '2', 'a cursor is opened without gbr');
set_state('gbr', 'up');
is(run('FETCH ALL c; COMMIT') =~ tr/\n// + 1, 17, 'and stays without it although it is back');
is(run('EXECUTE counted'), '9', 'the next statement reads it');
is($session->{stderr}, '', 'without a warning');
$r->psql('gbr', "ALTER TABLE gbr.details DISABLE TRIGGER ALL; INSERT INTO gbr.details SELECT n, 'gbr', 'x' FROM generate_series(1000, 31000) n");
run(q{BEGIN; DECLARE c CURSOR FOR SELECT name FROM app.details WHERE region = 'gbr'; FETCH 10 c});
set_state('gbr', 'away');
run('FETCH ALL c');
like($session->{stderr}, qr/ERROR:  region "gbr": it is away/, 'a region that goes away in the middle is an error');
run('ROLLBACK');
set_state('gbr', 'catching up');
is(run(q{SELECT count(*) FROM app.details WHERE id < 10}), '9', 'one that catches up is read');
is($session->{stderr}, '', 'without a warning');

# --- two are away ------------------------------------------------------------------------
set_state($_, 'away') foreach 'gbr', 'aus';
is(run('SELECT id FROM app.details ORDER BY 1'), "3\n6\n9", 'with two away the rows stored here are left');
is(warnings('gbr') . warnings('aus'), '11', 'and a warning for each');
is($r->round_trips('usa', 'SELECT count(*) FROM app.details'), 0, 'without a round trip');

$session->quit;
done_testing();
