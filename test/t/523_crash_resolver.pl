# Who finishes what a crash left dies as well: the resolver between any two of its steps, or
# the participant that it tells.  The next one finishes it all the same.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use Crash;

my $c = Crash->new;
my $r = $c->r;

# waits until a server that stops at once is down
sub wait_down
{
	my ($region) = @_;
	my $file = $r->node($region)->data_dir . '/postmaster.pid';

	foreach (1 .. 1000) { return unless -e $file; sleep(0.01); }
	die "server of $region does not stop";
}

foreach my $crash ([ 'prepared', 'none' ], [ 'decided', 'all' ])
{
	my ($point, $outcome) = @$crash;
	my $verdict = $outcome eq 'all' ? 'applies' : 'rolls_back';
	my $done = $outcome eq 'all' ? 'applied' : 'rolled_back';

	foreach my $second (map { ("$_:crash_backend", "$_:crash_server", $_ eq 'resolver_told' ? "$_:error" : ()) } qw(resolver_knows resolver_told resolver_forgets))
	{
		# a transaction that was rolled back has no rows to forget
		next if $outcome eq 'none' && $second =~ /forgets/;
		$c->case("gateway crashed at \"$point\", then its resolver, $second",
			outcome => $outcome,
			before => sub { $r->arm('usa', "$point:crash_server") },
			during => sub {
				$r->wait_fired('usa');
				wait_down('usa');
				$r->arm('usa', $second);
				$r->revive('usa');
				$r->wait_fired('usa');
			});
	}
	foreach my $second ("part_$verdict:crash_server", "part_$done:crash_backend")
	{
		$c->case("gateway crashed at \"$point\", then a participant, $second",
			outcome => $outcome,
			before => sub { $r->arm('usa', "$point:crash_server") },
			during => sub {
				$r->wait_fired('usa');
				wait_down('usa');
				$r->arm('gbr', $second);
				$r->revive('usa');
				$r->wait_fired('gbr');
			});
	}
}

$c->finish;
