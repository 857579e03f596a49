# What users have: the misfortunes of the crash matrix under the default settings, with the
# same ten seconds for all regions to agree once they can talk.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Crash;

my $c = Crash->new(defaults => 1);
my $r = $c->r;
my @undecided = (outcome => 'none', told => 'aborted');
my @decided = (outcome => 'all', told => 'committed');
my @settings = qw(resolve_interval commit_timeout connect_timeout doubt_timeout away_after commit_wait);

is($r->psql('usa', 'SELECT count(*) FROM pg_settings WHERE name IN (' . join(', ', map { "'residency.$_'" } @settings) . ') AND setting = boot_val'),
	scalar @settings, 'the settings are the default ones');

$c->case("gateway, crash_server at \"$_\"", at => "$_:crash_server", outcome => $_ eq 'prepared' ? 'none' : 'all', told => 'lost') foreach qw(prepared decided all_told);
$c->case("participant, crash_server at \"$_\"", there => { gbr => "$_:crash_server" }, $_ eq 'part_prepared' ? @undecided : @decided) foreach qw(part_prepared part_applies part_applied);
$c->case("both participants killed while the gateway is at \"$_\"", at => "$_:hold", @decided, during => sub { $r->kill9($_) foreach qw(gbr aus) }) foreach qw(decided);
$c->case("link cut at \"$_\"", at => "$_:hold", $_ eq 'recorded' ? @undecided : @decided, during => sub { $c->cut('usa>gbr') }) foreach qw(recorded prepared all_told);

# the link stays silent: the client is told within a bounded time all the same
foreach my $case ([ 'recorded', 'in', @undecided ], [ 'decided', 'out', @decided ])
{
	my ($point, $way, @expected) = @$case;

	$c->case("link silent ($way) at \"$point\" until the client has its answer", at => "$point:hold", @expected,
		during => sub {
			$r->relay->hold('usa>gbr', $way);
			$r->release('usa');
			$c->until_told(20);
		});
}

# PREPARE arrives when the resolver of the server that is up again has looked already
$c->case('gateway, crash_server at "prepare_sent", PREPARE is late', at => 'prepare_sent:crash_server', there => { gbr => 'part_prepares:stall' }, outcome => 'none', told => 'lost',
	during => sub {
		$c->until_prepared('aus');
		$c->until_down('usa');
		$r->revive('usa');
		$c->until_gone('aus');
	});

# the resolver dies as well
$c->case('gateway crashed at "decided", then its resolver', at => 'decided:crash_server', outcome => 'all', told => 'lost',
	during => sub {
		$c->until_down('usa');
		$r->arm('usa', 'resolver_knows:crash_backend');
		$r->revive('usa');
		$r->wait_fired('usa');
	});

# the gateway is gone for good, a participant knows
$c->case('gateway crashed at "one_told", the other one hears of it', at => 'one_told:crash_server', outcome => 'all', told => 'lost',
	during => sub {
		$c->until_down('usa');
		$c->until_committed('aus');
		$c->until_committed('gbr', 10);
	});

$c->finish;
