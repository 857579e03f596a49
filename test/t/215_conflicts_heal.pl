# With the workers alone: a row in residency.conflicts holds up nothing that is noted later, and
# when what it broke is no longer so it is shipped after all, without a hand.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use Regions;

my $r = Regions->new(relay => 1, delay => 2, conf => "residency.workers = on\nresidency.away_after = '1s'\nresidency.conflict_retry = '8s'\n");
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE SCHEMA app;
	CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text);
	CREATE TABLE app.mail (id int PRIMARY KEY, region text NOT NULL, address text UNIQUE);
$$)});
$r->psql('usa', qq{SELECT residency.make_global('app.$_', 'region')}) foreach qw(item mail);

# waits until all count each other so, at most that many seconds
sub all_are
{
	my ($state, $seconds) = @_;
	return until_true($seconds, sub {
		return !grep { $r->psql($_, "SELECT bool_and(state = '$state') FROM residency.catch_up") ne 't' } $r->regions;
	});
}
sub until_true
{
	my ($seconds, $test) = @_;
	my $end = time + $seconds;

	until ($test->()) { return 0 if time > $end; sleep(0.2); }
	return 1;
}
# aus and the others lose each other
sub part
{
	$r->away('aus');
	return $r->poll('aus', q{SELECT bool_and(state = 'away') FROM residency.catch_up})
	  && 2 == grep { $r->poll($_, q{SELECT state = 'away' FROM residency.catch_up WHERE region = 'aus'}) } qw(usa gbr);
}
sub conflicts { return join(', ', map { $r->psql($_, q{SELECT count(*) FROM residency.conflicts WHERE kind = 'unique'}) } $r->regions); }

ok(all_are('up', 60), 'all are up');
ok(part(), 'aus is cut off');
$r->psql('usa', q{INSERT INTO app.mail VALUES (1, 'usa', 'x')});
$r->psql('aus', q{INSERT INTO app.mail VALUES (2, 'aus', 'x')});
$r->back('aus');
ok(until_true(30, sub { conflicts() eq '2, 1, 3' }), 'each has a row that the other cannot take') or diag conflicts();
ok(all_are('up', 30), 'all are up again');
my $since = $r->psql('usa', q{SELECT min(since) FROM residency.conflicts});

# --- what is noted later -----------------------------------------------------------------------
ok(part(), 'aus is cut off again');
$r->psql('usa', q{INSERT INTO app.item SELECT n, 'usa', 'missed' FROM generate_series(1, 10) n});
$r->psql('aus', q{INSERT INTO app.item SELECT n, 'aus', 'missed' FROM generate_series(11, 20) n});
$r->back('aus');
ok(until_true(20, sub { !grep { $r->psql($_, 'SELECT count(*) FROM app.item') != 20 } $r->regions }), 'with conflicts there, what was missed is shipped');
ok(all_are('up', 20), 'and all are up again');
is(conflicts(), '2, 1, 3', 'the conflicts are still there');

# --- tried again, in vain ------------------------------------------------------------------------
sleep(13);
is(conflicts(), '2, 1, 3', 'and they stay while nothing changes');
is($r->psql('usa', q{SELECT min(since) FROM residency.conflicts}), $since, 'with the time when they came up');
cmp_ok($r->psql('usa', q{SELECT extract(epoch FROM min(tried_at) - min(noticed_at)) FROM residency.conflict}), '>', 6, 'though they were tried again');
ok(until_true(15, sub { !grep { $r->psql($_, 'SELECT count(*) FROM residency.backlog') } $r->regions }), 'with no note left');
ok(all_are('up', 5), 'and all up');
unlike(slurp_file($r->node($_)->logfile), qr/operator does not exist/, "$_: the worker knows how to try again") foreach $r->regions;

# --- what was in the way is gone ---------------------------------------------------------------------
$r->psql('aus', q{UPDATE app.mail SET address = 'y' WHERE id = 2});
my $start = time;
ok(until_true(13, sub { conflicts() eq '0, 0, 0' }), 'when the cause is gone, the conflicts are within 13 s');
note(sprintf('after %.1f s', time - $start));
ok(until_true(5, sub { $r->disagreement(q{SELECT string_agg(id || address, ' ' ORDER BY id) FROM app.mail}) eq '' }), 'all copies are equal');
is($r->psql('gbr', q{SELECT string_agg(id || address, ' ' ORDER BY id) FROM app.mail}), '1x 2y', 'with all rows');
is(join(' ', map { $r->psql($_, q{SELECT coalesce(string_agg(last_error, ' '), 'fine') FROM residency.catch_up}) } $r->regions), 'fine fine fine', 'no error is told');

# --- the row gets another home -------------------------------------------------------------------------
ok(part(), 'aus is cut off once more');
$r->psql('usa', q{INSERT INTO app.mail VALUES (5, 'usa', 'z')});
$r->psql('aus', q{INSERT INTO app.mail VALUES (6, 'aus', 'z')});
$r->back('aus');
ok(until_true(30, sub { conflicts() eq '2, 1, 3' }) && all_are('up', 30), 'two rows are in each other\'s way, and all are up');
$r->psql('aus', q{DELETE FROM app.mail WHERE id = 6});
$r->psql('usa', q{UPDATE app.mail SET region = 'gbr' WHERE id = 5});
is($r->psql('aus', q{SELECT region FROM app.mail WHERE id = 5}), 'gbr', 'one is no more, the other one is there by way of a move');
isnt($r->psql('aus', q{SELECT count(*) FROM residency.conflicts WHERE key = '{5}' AND home = 'usa'}), 0, 'while it is still told to be missing');
ok(until_true(28, sub { conflicts() eq '0, 0, 0' }), 'until its old home would try again') or diag conflicts();

# --- when the worker cannot look ------------------------------------------------------------------------
$r->psql('usa', 'ALTER TABLE residency.backlog RENAME TO backlog_elsewhere');
ok($r->poll('usa', q{SELECT count(*) = 2 FROM residency.catch_up_progress() WHERE last_error LIKE '%residency.backlog%does not exist%'}), 'that it cannot look for notes can be seen');
$r->psql('usa', 'ALTER TABLE residency.backlog_elsewhere RENAME TO backlog');
ok($r->poll('usa', q{SELECT count(*) = 0 FROM residency.catch_up WHERE last_error IS NOT NULL}), 'until it can');

$r->teardown;
done_testing();
