# What a region has missed is shipped to it: the state of each noted row, in one transaction
# with the notes; whoever writes such a row at either end goes first.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use Regions;

my $r = Regions->new(relay => 1, delay => 5);
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE SCHEMA app;
	CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text, at timestamptz, big bytea);
	CREATE TABLE app.node (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.node);
$$)});
$r->psql('usa', qq{SELECT residency.make_global('app.$_', 'region')}) foreach qw(item node);

sub state
{
	my ($here, $there, $state) = @_;
	$r->psql($here, "SELECT residency.set_region_state('$there', '$state')");
	return;
}

sub left { my ($region) = @_; return $r->psql($region, 'SELECT count(*) FROM residency.backlog'); }

# one batch from a region to aus, by hand
sub ship { my ($region, $final) = @_; return $r->psql($region, "SELECT residency.ship('aus', " . ($final ? 'true' : 'false') . ')'); }

sub same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $r->all_equal("SET TimeZone = 'UTC'; SELECT coalesce(md5(string_agg(t::text, ' ' ORDER BY id)), 'none') FROM app.item t", $name);
}

# --- every kind of change arrives --------------------------------------------------------------
$r->psql('usa', q{INSERT INTO app.item SELECT n, (ARRAY['usa', 'gbr'])[n % 2 + 1], 'old', now(), '\x00ff' FROM generate_series(1, 40) n});
state($_, 'aus', 'away') foreach qw(usa gbr);
$r->psql('usa', q{UPDATE app.item SET note = 'new ' || id, big = '\xdead' WHERE id BETWEEN 1 AND 10});
$r->psql('gbr', q{DELETE FROM app.item WHERE id BETWEEN 11 AND 20});
$r->psql('usa', q{INSERT INTO app.item SELECT n, 'usa', NULL, '2020-02-02 02:02:02.020202+02', NULL FROM generate_series(50, 60) n});
$r->psql('gbr', q{UPDATE app.item SET id = id + 100 WHERE id BETWEEN 21 AND 25});
$r->psql('gbr', q{INSERT INTO app.item VALUES (12, 'gbr', 'again')});
isnt($r->disagreement('SELECT count(*) FROM app.item'), '', 'a region is behind');
state($_, 'aus', 'catching up') foreach qw(usa gbr);
cmp_ok(ship($_), '>', 10, "$_ ships") foreach qw(usa gbr);
same('and the region has all');
is(left('usa') . left('gbr') . left('aus'), '000', 'no note is left');
is($r->psql('aus', 'SELECT count(*) FROM residency.backlog') . $r->prepared, '00', 'nor anything else');
state($_, 'aus', 'up') foreach qw(usa gbr);

# --- writers go first ------------------------------------------------------------------------------
state($_, 'aus', 'catching up') foreach qw(usa gbr);
$r->psql('usa', q{UPDATE app.item SET note = 'behind' WHERE id IN (2, 4, 6)});    # homed at usa
is(left('usa'), 3, 'three rows are noted');
my $writer = $r->session('usa');
$writer->query_safe(q{BEGIN; UPDATE app.item SET note = 'writing' WHERE id = 2});
my $there = $r->session('aus');
$there->query_safe(q{BEGIN; SELECT FROM app.item WHERE id = 4 FOR UPDATE});
my $start = time;
is(ship('usa'), 1, 'a row that is being written at either end is passed over');
cmp_ok(time - $start, '<', 2, 'without waiting for its writer');
is($r->psql('aus', q{SELECT string_agg(note, ' ' ORDER BY id) FROM app.item WHERE id IN (2, 4, 6)}), 'new 2 new 4 behind', 'the others arrive');
$writer->query_safe('COMMIT');
$there->query_safe('COMMIT');
is(ship('usa'), 2, 'and it comes when the writer has gone');
same('in its latest state');

# a row whose writer is in doubt
state('usa', 'aus', 'catching up');
$r->relay->trap('usa>gbr', 'out', 'hold_back', 'PREPARE TRANSACTION');
$writer->query_until(qr/writing/, "\\echo writing\nUPDATE app.item SET note = 'doubt' WHERE id IN (1, 3);\n");
$r->relay->wait_sprung('usa>gbr');
$r->poll('gbr', 'SELECT count(*) = 1 FROM pg_prepared_xacts');
is(ship('gbr'), 0, 'notes in doubt are not there yet');
$r->relay->resume('usa>gbr');
$writer->query_safe('SELECT 1');
is(ship('gbr'), 2, 'then they are');
same('the doubt has ended well');

# --- shipped again, shipped for nothing -----------------------------------------------------------------
$r->psql('gbr', q{INSERT INTO residency.backlog (region, relation, key) VALUES ('aus', 'app.item'::regclass, '1:1'), ('aus', 'app.item'::regclass, '4:4711'),
	('aus', 'app.item'::regclass, '1:2'), ('aus', 1, '1:1')});
is(ship('gbr'), 4, 'notes too many do no harm: equal, of no row, of another home, of no table');
same('nothing has changed');

# --- references ------------------------------------------------------------------------------------------
$r->psql('usa', q{INSERT INTO app.node VALUES (1, 'usa', NULL)});
$r->psql('gbr', q{INSERT INTO app.node VALUES (2, 'gbr', 1), (3, 'gbr', 2)});
is(ship('gbr'), 0, 'a row that refers to one still on its way waits');
is($r->psql('aus', 'SELECT count(*) FROM app.node'), 0, 'for that');
is(ship('usa') . ship('gbr'), '12', 'and follows it');
is($r->psql('aus', q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM app.node}), '1 2 3', 'all are there');
is($r->psql('gbr', 'SELECT count(*) FROM residency.conflict') . $r->psql('aus', 'SELECT count(*) FROM residency.conflict'), '00', 'no conflict');
$r->psql('gbr', q{DELETE FROM app.node WHERE id IN (2, 3)});
$r->psql('usa', q{DELETE FROM app.node WHERE id = 1});
is(ship('usa') . ship('gbr') . ship('usa'), '021', 'deletes wait for what refers to them');

# --- many: RESIDENCY_KEYS=100000 for as many as that, within 20 s -----------------------------------------------
my $keys = $ENV{RESIDENCY_KEYS} // 10_000;
my $allowed = $keys / 6250 + 4;
$r->psql('usa', "INSERT INTO app.item SELECT n, 'usa', 'n' || n, now(), NULL FROM generate_series(10001, 10000 + $keys) n");
is(left('usa'), $keys, 'rows are noted, each once');
$r->delay(40);
$start = time;
my $batches = 0;
$batches++ while ship('usa') > 0;
my $seconds = time - $start;
note(sprintf('%d keys in %d batches took %.1f s at 80 ms round trip', $keys, $batches, $seconds));
cmp_ok($batches, '<=', $keys / 5000, 'they take batches of 5,000');
cmp_ok($seconds, '<', $allowed, 'no more than a second each');
is($r->round_trips('usa', q{SELECT residency.ship('aus')}), 0, 'nothing to ship costs no round trip');
$r->psql('usa', q{UPDATE app.item SET note = 'x' WHERE id BETWEEN 10001 AND 13000});
$r->warm('usa', q{SELECT residency.ship('aus')});
$r->psql('usa', q{UPDATE app.item SET note = 'y' WHERE id BETWEEN 10001 AND 13000});
cmp_ok($r->round_trips('usa', q{SELECT residency.ship('aus')}), '<=', 3, 'a batch of 3,000 is one round trip and two for its commit');
same('and all arrive');
is(left('usa') . left('gbr') . $r->prepared, '000', 'nothing is left');
$r->fails('usa', q{SELECT * FROM residency.apply_shipped('{app.item}', 'gbr', '', false)}, '42501', qr/opened by their home/, 'rows are shipped by regions only');

$_->quit foreach $writer, $there;

# --- the same by the workers, from when they know that the region answers ---------------------------------------------
state($_, 'aus', 'away') foreach qw(usa gbr);
$r->psql('usa', q{UPDATE app.item SET note = 'by the worker' WHERE id > 10000});
is(left('usa'), $keys, 'as many rows are noted again');
$r->conf($_, "residency.workers = on\n") foreach $r->regions;
$r->poll('usa', q{SELECT state <> 'away' FROM residency.catch_up WHERE region = 'aus'});
$start = time;
sleep(0.2) until left('usa') == 0 || time - $start > 120;
$seconds = time - $start;
note(sprintf('%d keys by the worker took %.1f s at 80 ms round trip', $keys, $seconds));
cmp_ok($seconds, '<', $allowed, 'the worker ships them in the same time');
ok($r->poll('usa', q{SELECT bool_and(state = 'up') FROM residency.catch_up}), 'and the region is up');
same('with all rows');
like($r->psql('usa', q{SELECT shipped || ' ' || (rate > shipped / 60.0) || ' ' || (last_batch > since) || ' ' || coalesce(last_error, 'fine') FROM residency.catch_up WHERE region = 'aus'}),
	qr/^$keys true true fine$/, 'progress is told');
$r->teardown;
done_testing();
