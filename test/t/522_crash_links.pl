# The link between gateway and participant is cut or falls silent, in either direction, at
# each arrow of the commit protocol; it comes back, or the connections are lost for good.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use Crash;

my $c = Crash->new;
my $r = $c->r;
my $relay = $r->relay;

# where PREPARE is on its way, the answer may have been there already
my %outcome = (
	commit_begins => 'none', recorded => 'none', prepare_sent => 'either', prepared => 'all', decided => 'all',
	one_told => 'all', all_told => 'all');

foreach my $point (qw(commit_begins recorded prepare_sent prepared decided one_told all_told))
{
	$c->case("link cut at \"$point\"",
		outcome => $outcome{$point},
		before => sub { $r->arm('usa', "$point:hold") },
		during => sub {
			$r->wait_fired('usa');
			$relay->away('usa>gbr');
			$r->release('usa');
		});
}

foreach my $point (qw(recorded prepare_sent prepared all_told))
{
	foreach my $way (qw(out in))
	{
		# what was held arrives late
		$c->case("link silent ($way) at \"$point\", then back",
			outcome => 'all',
			mend_first => 1,
			before => sub { $r->arm('usa', "$point:hold") },
			during => sub {
				$r->wait_fired('usa');
				$relay->hold('usa>gbr', $way);
				$r->release('usa');
				sleep(0.3);
			});

		# what was held never arrives
		$c->case("link silent ($way) at \"$point\", then cut",
			outcome => $outcome{$point},
			before => sub { $r->arm('usa', "$point:hold") },
			during => sub {
				$r->wait_fired('usa');
				$relay->hold('usa>gbr', $way);
				$r->release('usa');
				sleep(0.3);
				$relay->away('usa>gbr');
			});
	}
}

# both other regions cut off at once: nobody is there who could be asked
foreach my $point (qw(prepare_sent prepared decided))
{
	$c->case("gateway cut off at \"$point\"",
		outcome => $outcome{$point},
		before => sub { $r->arm('usa', "$point:hold") },
		during => sub {
			$r->wait_fired('usa');
			$r->away('usa');
			$r->release('usa');
		});
}

$c->finish;
