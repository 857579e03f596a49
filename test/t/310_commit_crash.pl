# Whatever crashes and whenever: after restart and residency.resolve() all regions agree.
# The relay holds or cuts a link at a message of the commit protocol, so that the kill
# comes exactly there.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 5);
People::make($r);
People::make_function($r);
my $id = 0;

# a session that starts adding two people, at gbr and aus, and does not wait for the end
sub start_adding
{
	my ($settings) = @_;
	my $session = $r->session('usa', on_error_stop => 0);

	$id += 10;
	$session->query_safe('SELECT count(*) FROM app.details');    # warm connections
	$session->query_safe($_) foreach @{ $settings // [] };
	$session->query_until(qr/started/, "\\echo started\nSELECT app.add($id, 'gbr', 'one'), app.add($id + 1, 'aus', 'two');\n");
	return $session;
}

# what resolve() in usa did: "region action", sorted, without what it left alone
sub resolve
{
	return $r->psql('usa', q{SELECT string_agg(region || ' ' || action, ', ' ORDER BY region, action) FROM residency.resolve()});
}

# the two people of the last start_adding exist in all regions ("t"), in none ("f"), or "?"
sub outcome
{
	my @found = map { $r->psql($_, "SELECT count(*) FROM app.identity WHERE id IN ($id, $id + 1)") } $r->regions;

	push @found, map { 2 * $r->psql($_->[0], "SELECT count(*) FROM $_->[0].details WHERE id = $_->[1]") } ([ 'gbr', $id ], [ 'aus', $id + 1 ]);
	return 't' unless grep { $_ != 2 } @found;
	return 'f' unless grep { $_ != 0 } @found;
	return "? @found";
}

sub nothing_left
{
	my ($name) = @_;

	is($r->prepared, 0, "$name: no prepared transaction is left");
	resolve();
	is(join(' ', map { $r->psql($_, 'SELECT count(*) FROM residency.transaction') } $r->regions), '0 0 0', "$name: no record is left");
}

# --- the gateway dies between PREPARE and COMMIT -----------------------------------------
{
	$r->relay->trap('usa>gbr', 'out', 'hold_back', 'PREPARE TRANSACTION');
	my $session = start_adding();
	$r->relay->wait_sprung('usa>gbr');
	ok($r->poll('gbr', 'SELECT count(*) = 1 FROM pg_prepared_xacts'), 'gbr has prepared');
	ok($r->poll('aus', 'SELECT count(*) = 1 FROM pg_prepared_xacts'), 'aus has prepared');
	is($r->psql('usa', q{SET residency.connect_timeout = '1s'; SELECT action FROM residency.resolve() WHERE region = 'aus'}), 'running',
		'a transaction that is still running is left alone');
	is($r->prepared, 2, 'both are still prepared');
	$r->kill9('usa');
	$r->relay->resume('usa>gbr');
	eval { $session->quit };
	$r->start('usa');
	is($r->prepared, 2, 'the gateway is back; both are still prepared');
	is(resolve(), 'aus rolled back, gbr rolled back', 'no decision was made: rolled back');
	is(outcome(), 'f', 'nobody was added, in any region');
	nothing_left('killed before the decision');
}

# --- the gateway dies after the decision ---------------------------------------------------
{
	$r->relay->trap('usa>gbr', 'out', 'cut', 'COMMIT PREPARED');
	$r->relay->trap('usa>aus', 'out', 'cut', 'COMMIT PREPARED');
	my $session = start_adding();
	$r->relay->wait_sprung($_, $_ eq 'usa>gbr' ? 2 : 1) foreach 'usa>gbr', 'usa>aus';
	$r->kill9('usa');
	eval { $session->quit };
	$r->start('usa');
	is($r->prepared, 2, 'both participants wait for the decision');
	is($r->psql('gbr', "SELECT count(*) FROM gbr.details WHERE id = $id"), '0', 'and do not show it yet');
	is($r->psql('usa', "SELECT count(*) FROM app.identity WHERE id = $id"), '1', 'the gateway does');
	is(resolve(), 'aus committed, gbr committed', 'the decision was to commit');
	is(outcome(), 't', 'both were added, in all regions');
	nothing_left('killed after the decision');
}

# --- a participant dies after it has prepared -------------------------------------------------
{
	$r->relay->trap('usa>gbr', 'out', 'hold', 'COMMIT PREPARED');
	my $session = start_adding([ 'SET residency.commit_timeout = 500' ]);
	$r->relay->wait_sprung('usa>gbr', 3);
	$r->kill9('gbr');
	$session->query('SELECT 1');
	like($session->{stderr}, qr/WARNING:.*committed.*"gbr"/, 'COMMIT returns with a warning that names the region');
	$session->quit;
	$r->relay->cut('usa>gbr');
	$r->relay->back('usa>gbr');
	is($r->psql('usa', q{SELECT bool_or(action LIKE 'not reached%') FROM residency.resolve() WHERE region = 'gbr'}), 't',
		'resolve() says what it could not reach');
	$r->start('gbr');
	is($r->prepared('gbr'), 1, 'what gbr had prepared survived');
	is(resolve(), 'gbr committed', 'resolve() finishes it');
	is(outcome(), 't', 'both were added, in all regions');
	nothing_left('participant killed after PREPARE');
}

# --- a participant dies before it has prepared -------------------------------------------------
{
	$r->relay->trap('usa>gbr', 'out', 'hold', 'PREPARE TRANSACTION');
	my $session = start_adding();
	$r->relay->wait_sprung('usa>gbr', 4);
	ok($r->poll('aus', 'SELECT count(*) = 1 FROM pg_prepared_xacts'), 'aus has prepared');
	$r->kill9('gbr');
	$r->relay->cut('usa>gbr');
	$session->query('SELECT 1');
	like($session->{stderr}, qr/ERROR:.*"gbr"/, 'the statement fails and names the region');
	$session->quit;
	$r->relay->back('usa>gbr');
	$r->start('gbr');
	ok($r->poll('aus', 'SELECT count(*) = 0 FROM pg_prepared_xacts'), 'aus rolls back without any hand');
	is(outcome(), 'f', 'nobody was added, in any region');
	nothing_left('participant killed before PREPARE');
}

# --- what is not ours is never touched -----------------------------------------------------------
{
	my $inc = $r->psql('usa', 'SELECT incarnation FROM residency.self');
	my $own = sprintf('residency:%016x', $inc);
	my $user = $r->node('gbr')->connstr('app');

	# another incarnation's, prepared by the same gateway role (a clone of the gateway)
	$r->node('gbr')->safe_psql('app', "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'residency:00000000000000aa:1:0:00000001'",
		connstr => "$user user=residency_usa");
	# our prefix, prepared by somebody else
	$r->psql('gbr', "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '$own:1:0:00000002'");
	is(resolve(), '', 'nothing to resolve');
	is($r->prepared('gbr'), 2, 'a clone\'s and a stranger\'s prepared transactions are left alone');
	$r->psql('gbr', $_) foreach "ROLLBACK PREPARED 'residency:00000000000000aa:1:0:00000001'", "ROLLBACK PREPARED '$own:1:0:00000002'";
}

# --- the decision outlives synchronous_commit = off -----------------------------------------------
{
	$r->relay->trap('usa>gbr', 'out', 'cut', 'COMMIT PREPARED');
	$r->relay->trap('usa>aus', 'out', 'cut', 'COMMIT PREPARED');
	my $session = start_adding([ 'SET synchronous_commit = off' ]);
	$r->relay->wait_sprung('usa>gbr', 5);
	$r->kill9('usa');
	eval { $session->quit };
	$r->start('usa');
	is(resolve(), 'aus committed, gbr committed', 'synchronous_commit = off does not lose a decision');
	is(outcome(), 't', 'both were added, in all regions');
}

done_testing();
