# Who finishes what a crash left dies as well: the resolver between any two of its steps, the
# participant that it tells, or the participants that finish their parts themselves because
# the gateway is gone.  The next one finishes it all the same.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Crash;

my $c = Crash->new;
my $r = $c->r;

foreach my $crash ([ 'prepared', 'none' ], [ 'decided', 'all' ])
{
	my ($point, $outcome) = @$crash;
	my $verdict = $outcome eq 'all' ? 'applies' : 'rolls_back';
	my $done = $outcome eq 'all' ? 'applied' : 'rolled_back';
	my %o = (at => "$point:crash_server", outcome => $outcome, told => 'lost');

	# a transaction that was rolled back has no rows to forget
	foreach my $second (qw(resolver_knows resolver_told), $outcome eq 'all' ? 'resolver_forgets' : ())
	{
		$c->case("gateway crashed at \"$point\", then its resolver, $_ at \"$second\"", %o,
			during => sub {
				$c->until_down('usa');
				$r->arm('usa', "$second:$_");
				$r->revive('usa');
				$r->wait_fired('usa');
			}) foreach qw(error crash_backend crash_server);
	}
	foreach my $second ("part_$verdict:error", "part_$verdict:crash_server", "part_$done:crash_backend")
	{
		$c->case("gateway crashed at \"$point\", then a participant, $second", %o,
			during => sub {
				$c->until_down('usa');
				$r->arm('gbr', $second, 'residency worker');
				$r->revive('usa');
				$r->wait_fired('gbr');
			});
	}
}

# The gateway is gone for good: it is down until the participants are of one mind.
foreach my $second (map { ("$_:error", "$_:crash_backend", "$_:crash_server") } qw(peer_knows peer_finished))
{
	# aus was told and gbr was not: gbr hears it from aus
	$c->case("gateway crashed at \"one_told\", a participant knows, then the other one, $second", at => 'one_told:crash_server', outcome => 'all', told => 'lost',
		before => sub { $r->arm('gbr', $second) },
		during => sub {
			$c->until_down('usa');
			$r->wait_fired('gbr');
			$r->revive('gbr');
			$c->until_committed('gbr', 10);
		});

	# nobody knows, the operator decides at gbr: aus hears it from there
	foreach my $word ($second =~ /error/ ? () : $second =~ /backend/ ? ([ 'prepared', 'false', 'none' ]) : ([ 'decided', 'true', 'all' ]))
	{
		my ($point, $commit, $outcome) = @$word;

		$c->case("gateway crashed at \"$point\", decide(gid, $commit), then that participant, $second", at => "$point:crash_server", outcome => $outcome, told => 'lost',
			before => sub { $r->arm('gbr', $second) },
			during => sub {
				$c->until_down('usa');
				$c->until_prepared('gbr');
				$r->psql('gbr', "SELECT residency.decide(gid, $commit) FROM pg_prepared_xacts");
				$r->wait_fired('gbr');
				$r->revive('gbr');
				$c->until_gone($_, 10) foreach qw(gbr aus);
			});
	}
}

# A region that comes and goes is not trusted at once, but what is in doubt there is finished
# as soon as it answers.  It cannot hear the outcome from the other participant.
sub state_of_gbr { return $r->psql('usa', q{SELECT state FROM residency.regions WHERE name = 'gbr'}); }
sub until_gbr { my ($state) = @_; return $c->until_true('usa', "SELECT state = '$state' FROM residency.regions WHERE name = 'gbr'"); }

$r->conf('usa', "residency.away_after = 2s\n");
foreach (1 .. 3)
{
	$c->cut('usa>gbr');
	until_gbr('away');
	$r->relay->back('usa>gbr');
	until_gbr('up');
}
$c->case('link cut at "decided" to a region that came and went', at => 'decided:hold', outcome => 'all', told => 'committed',
	during => sub {
		$c->cut($_) foreach qw(usa>gbr gbr>aus);
		$r->release('usa');
		until_gbr('away');
		$r->relay->back('usa>gbr');
		$c->until_committed('gbr', 10);
		is(state_of_gbr(), 'away', 'it is not trusted yet');
	});

$c->finish;
