# The gateway dies at each arrow of the commit protocol: only its backend, which makes the
# server restart, or the whole server.  What was decided is committed in all regions, all
# else is rolled back in all, without any hand.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Crash;

my $c = Crash->new;
my $r = $c->r;
my @crashes = qw(crash_backend crash_server);
my @undecided = (outcome => 'none', told => 'lost');
my @decided = (outcome => 'all', told => 'lost');

foreach my $action (@crashes)
{
	$c->case("gateway, $action at \"$_\"", at => "$_:$action", @undecided) foreach qw(commit_begins recorded prepare_sent one_prepared prepared);
	$c->case("gateway, $action at \"$_\"", at => "$_:$action", @decided) foreach qw(decided one_told all_told applied);

	# while it aborts, because a region could not prepare
	$c->case("gateway, $action at \"aborting\"", at => "aborting:$action", there => { gbr => 'part_prepares:hold' }, then => sub { $c->fail_to_prepare },
		outcome => 'none', told => 'aborted');

	# one region has answered, the other one prepares later
	$c->case("gateway, $action at \"one_prepared\", while the other one prepares", at => "one_prepared:$action", there => { gbr => 'part_prepares:hold' }, @undecided,
		during => sub {
			is(join(' ', map { $r->prepared($_) } qw(aus gbr)), '1 0', 'one is prepared, the other one is not');
		});
}

# PREPARE arrives when the resolver of the server that is up again has looked already: the
# session there did not notice that nobody wants it any more
$c->case('gateway, crash_server at "prepare_sent", PREPARE is late', at => 'prepare_sent:crash_server', there => { gbr => 'part_prepares:stall' }, @undecided,
	during => sub {
		$c->until_prepared('aus');
		$c->until_down('usa');
		$r->revive('usa');
		$c->until_gone('aus');
		$r->release('gbr');
		$c->until_true('gbr', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'residency' AND usename = 'residency_usa'});
	});

# no crash: an error or the end of the session between two steps
foreach my $point (qw(commit_begins recorded prepare_sent one_prepared prepared))
{
	$c->case("gateway, $_ at \"$point\"", at => "$point:$_", outcome => 'none', told => $_ eq 'error' ? 'aborted' : 'lost') foreach qw(error terminate);
}

# COMMIT does not wait for the regions to apply it
$c->case("commit_wait = decided: gateway, crash_server at \"$_\"", at => "$_:crash_server", settings => 'SET residency.commit_wait = decided',
	outcome => $_ eq 'prepared' ? 'none' : 'all', told => 'lost') foreach qw(prepared decided all_told applied);

# nothing is written here but the decision
$c->case("no row here: gateway, crash_server at \"$_\"", work => 'elsewhere', at => "$_:crash_server",
	outcome => $_ eq 'prepared' ? 'none' : 'all', told => 'lost') foreach qw(prepared decided);

# the second commit of a session deletes what the first one has left, here and there
$c->case("second commit: gateway, crash_server at \"$_\"", work => 'second', at => "$_:crash_server",
	outcome => $_ eq 'decided' ? 'all' : 'none', told => 'lost') foreach qw(recorded prepare_sent prepared decided);
$c->case("second commit: gateway, error at \"$_\"", work => 'second', at => "$_:error", outcome => 'none', told => 'aborted') foreach qw(recorded prepared);

# a table is made in all regions
$c->case("DDL: gateway, crash_server at \"$_\"", work => 'table', at => "$_:crash_server",
	outcome => $_ =~ /prepared/ ? 'none' : 'all', told => 'lost') foreach qw(one_prepared prepared decided one_told);
$c->case('DDL: gateway, error at "prepared"', work => 'table', at => 'prepared:error', outcome => 'none', told => 'aborted');

# the one region of a transaction that wrote nowhere else: its COMMIT has arrived, or never does
$c->case('one region alone: gateway, error at "alone_sent", COMMIT arrived', work => 'alone', at => 'alone_sent:error', outcome => 'all', told => '08007');
foreach my $action (@crashes)
{
	$c->case("one region alone: gateway, $action at \"alone_sent\", COMMIT arrived", work => 'alone', at => 'alone_sent:hold', outcome => 'all', told => 'lost',
		during => sub {
			$c->until_committed('gbr');
			$action eq 'crash_server' ? $r->kill9('usa') : $c->kill_client_backend;
		});
	$c->case("one region alone: gateway, $action at \"alone_sent\", COMMIT lost", work => 'alone', at => "alone_sent:$action", outcome => 'none', told => 'lost',
		pause => sub { $c->trap('usa>gbr', 'out', 'hold', 'COMMIT') },
		during => sub { $c->until_trapped('usa>gbr'); $c->cut('usa>gbr') });
}

$c->finish;
