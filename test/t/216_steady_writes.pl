# Writes that never pause keep nothing from happening: a region that comes back is up while they
# go on, and a row that breaks a constraint ends in residency.conflicts, also one that is itself
# written all the time.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use CatchUp;

my $c = CatchUp->new(regions => [qw(usa aus)], delay => 40, conf => "residency.conflict_retry = '8s'\n");
my $r = $c->r;

# --- a region comes back ------------------------------------------------------------------------
$c->cut('usa', 'aus');
$c->start_writers('usa', 1, 0.05);
$c->at_work('writes go on while aus is cut off');
$c->mend('usa', 'aus');
my $start = time;
ok($c->until(25, sub { $c->is_now('usa', 'aus', 'up') }), 'aus is up again') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
note(sprintf('up %.1f s after the line is mended', time - $start));
$c->at_work('while they go on');
$c->stop_writers;
ok($c->until(30, sub { $c->all_up }), 'nothing is left when they have stopped');
$c->same('app.item', 'all copies are equal');

# --- rows that break a constraint -------------------------------------------------------------------
$c->cut('usa', 'aus');
$r->psql('usa', q{INSERT INTO app.mail VALUES (1, 'usa', 'x', 'left alone'), (3, 'usa', 'y', '')});
$r->psql('aus', q{INSERT INTO app.mail VALUES (2, 'aus', 'x', ''), (4, 'aus', 'y', '')});
$c->start_writers('usa', 1, 0.05, q{UPDATE app.mail SET note = clock_timestamp()::text WHERE id = 3;});
$c->at_work('writes go on while aus is cut off');
$c->mend('usa', 'aus');
$start = time;
ok($c->until(25, sub { $r->psql('usa', q{SELECT string_agg(key::text, ' ' ORDER BY key) FROM residency.conflicts WHERE home = 'usa' AND kind = 'unique'}) eq '{1} {3}' }),
	'what aus cannot take is told') or diag $r->psql('usa', 'SELECT * FROM residency.backlog JOIN residency.catch_up USING (region)');
note(sprintf('conflicts %.1f s after the line is mended', time - $start));
ok($c->until(25, sub { $c->is_now('usa', 'aus', 'up') }), 'and aus is up') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
$c->at_work('while writes go on');
$c->stop_writers;
$r->psql('aus', q{DELETE FROM app.mail WHERE region = 'aus'});
ok($c->until(60, sub { $c->all_up && !grep { $r->psql($_, 'SELECT count(*) FROM residency.conflicts') } $r->regions }), 'when the cause is gone, so are the conflicts')
  or diag $r->psql('usa', 'SELECT * FROM residency.conflict');
$c->same('app.mail', 'all copies are equal');
$c->same('app.item', 'of all tables');

$r->teardown;
done_testing();
