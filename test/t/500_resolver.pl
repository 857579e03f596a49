# What a crash left is finished without any hand: the resolver of the region where a
# transaction began finds it. Nobody calls residency.resolve() here.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 5, conf => "residency.workers = on\nresidency.resolve_interval = '2s'\n");
People::make($r);
People::make_function($r);
my $id = 0;

# a session at usa that starts adding two people, at gbr and aus, and does not wait for the end
sub start_adding
{
	my $session = $r->session('usa', on_error_stop => 0);

	$id += 10;
	$session->query_safe('SELECT count(*) FROM app.details');    # warm connections
	$session->query_until(qr/started/, "\\echo started\nSELECT app.add($id, 'gbr', 'one'), app.add($id + 1, 'aus', 'two');\n");
	return $session;
}

# where the two people of the last start_adding are: identities in each region, rows at home
sub outcome
{
	return join(' ', map { $r->psql($_, "SELECT count(*) FROM app.identity WHERE id IN ($id, $id + 1)") } $r->regions)
	  . ' ' . join(' ', map { $r->psql($_->[0], "SELECT count(*) FROM $_->[0].details WHERE id = $_->[1]") } [ 'gbr', $id ], [ 'aus', $id + 1 ]);
}

# Test: within ten seconds nothing is prepared and no record is left, anywhere.
sub soon_clean
{
	my ($name) = @_;
	my $end = time + 10;
	my $left;

	do
	{
		$left = join(' ', map { $r->psql($_, 'SELECT (SELECT count(*) FROM pg_prepared_xacts) + (SELECT count(*) FROM residency.transaction)') } $r->regions);
		sleep(0.1) if $left =~ /[^0 ]/;
	} while $left =~ /[^0 ]/ && time < $end;
	is($left, join(' ', map { 0 } $r->regions), "$name: nothing is left within 10 s");
	return;
}

# lines of a region's log that match, of this run
my %log_start = map { $_ => -s $r->node($_)->logfile } $r->regions;

sub logged
{
	my ($region, $pattern) = @_;
	my @lines = slurp_file($r->node($region)->logfile, $log_start{$region}) =~ /$pattern/g;

	return scalar @lines;
}

ok($r->poll($_, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'residency resolver'}), "$_ has a resolver") foreach $r->regions;
soon_clean('after set-up');

# --- the gateway dies between PREPARE and COMMIT, and after the decision -------------------
{
	$r->relay->trap('usa>gbr', 'out', 'hold_back', 'PREPARE TRANSACTION');
	my $session = start_adding();
	$r->relay->wait_sprung('usa>gbr');
	ok($r->poll('aus', 'SELECT count(*) = 1 FROM pg_prepared_xacts'), 'aus has prepared');
	sleep(2.5);
	is($r->prepared('aus'), 1, 'a transaction that still runs is left alone');
	$r->kill9('usa');
	$r->relay->cut('usa>gbr');
	$r->relay->back('usa>gbr');
	eval { $session->quit };
	$r->start('usa');
	soon_clean('gateway killed before the decision');
	is(outcome(), '0 0 0 0 0', 'rolled back everywhere');
	is(logged('usa', qr/resolver: rolled back "residency:[^"]*" in region "aus"/), 1, 'the log says so once');
	is($r->psql('usa', q{SELECT count(*) FROM residency.transactions WHERE state = 'finished' AND resolver = 'aus: rolled back'}), 1, 'and residency.transactions');

	$r->relay->trap('usa>gbr', 'out', 'cut', 'COMMIT PREPARED');
	$r->relay->trap('usa>aus', 'out', 'cut', 'COMMIT PREPARED');
	$session = start_adding();
	$r->relay->wait_sprung('usa>gbr', 2);
	$r->relay->wait_sprung('usa>aus', 1);
	$r->kill9('usa');
	eval { $session->quit };
	$r->start('usa');
	soon_clean('gateway killed after the decision');
	is(outcome(), '2 2 2 1 1', 'committed everywhere');
}

# --- a region is away when it should commit: finished once it is back ---------------------------
{
	$log_start{usa} = -s $r->node('usa')->logfile;
	$r->relay->trap('usa>gbr', 'out', 'cut', 'COMMIT PREPARED');
	my $session = start_adding();
	$r->relay->wait_sprung('usa>gbr', 3);
	$r->relay->away('usa>gbr');
	$session->query('SELECT 1');
	like($session->{stderr}, qr/WARNING:.*committed.*"gbr"/, 'COMMIT returns with a warning');
	$session->quit;
	is($r->psql('usa', q{SELECT state FROM residency.transactions WHERE state <> 'finished'}), 'decided', 'the transaction is shown where it began');
	is($r->psql('gbr', q{SELECT origin, state FROM residency.transactions WHERE state <> 'finished'}), 'usa|prepared here', 'and where it waits');
	sleep(6);
	is($r->prepared('aus'), 0, 'aus is finished meanwhile');
	$r->relay->back('usa>gbr');
	# gbr may have heard of it from aus
	soon_clean('a region was away');
	ok($r->poll('usa', q{SELECT count(*) = 0 FROM residency.regions WHERE state <> 'up'}), 'and up again');
	is(outcome(), '2 2 2 1 1', 'committed everywhere');
	is(logged('usa', qr/resolver: region "gbr" does not answer/), 1, 'a region that is away is logged once');
	is(logged('usa', qr/resolver: region "gbr" answers again/), 1, 'and once that it is back');
}

# --- a region that is silent does not keep the others waiting ----------------------------------------
{
	$r->relay->trap('usa>gbr', 'out', 'hold', 'COMMIT PREPARED');
	$r->relay->trap('usa>aus', 'out', 'cut', 'COMMIT PREPARED');
	my $session = start_adding();
	$r->relay->wait_sprung('usa>gbr', 4);
	$r->relay->wait_sprung('usa>aus', 2);
	ok($r->poll('aus', 'SELECT count(*) = 0 FROM pg_prepared_xacts'), 'aus is finished while gbr is silent');
	is($r->prepared('gbr'), 1, 'gbr is not');
	$r->relay->cut('usa>gbr');
	$r->relay->back('usa>gbr');
	$session->quit;
	soon_clean('a region was silent');
	is(outcome(), '2 2 2 1 1', 'committed everywhere');
}

# --- traces that a backend left because it ended ---------------------------------------------------------
{
	ok($r->poll('usa', q{SELECT count(*) = 0 FROM residency.regions WHERE state <> 'up'}), 'all are up again');
	my $session = $r->session('usa');

	$session->query_safe("SELECT app.add(900 + i, 'gbr', 'x') FROM generate_series(1, 20) i");
	$session->query_safe("SELECT app.add(950, 'aus', 'y')");
	$session->quit;
	cmp_ok($r->psql('gbr', 'SELECT count(*) FROM residency.transaction'), '<=', 1, 'one trace at most is left');
	soon_clean('a backend ended');
}

# --- the settings ----------------------------------------------------------------------------------------
{
	$r->conf('aus', "residency.workers = off\n");
	ok($r->poll('aus', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'residency resolver'}), 'residency.workers = off ends them');
	$r->conf('aus', "residency.workers = on\n");
	ok($r->poll('aus', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'residency resolver'}), 'and on starts them');
	is(logged($_, qr/PANIC|TRAP|background worker "residency.*exited with exit code [^0]/), 0, "no worker of $_ died") foreach $r->regions;
}

done_testing();
