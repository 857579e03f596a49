# A participant dies at each arrow of the commit protocol, its own and the gateway's; and
# the one region of a transaction that wrote nowhere else.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Crash;

my $c = Crash->new;
my $r = $c->r;

# at the participant's own points
my %outcome = (part_traced => 'none', part_prepares => 'none', part_prepared => 'none', part_applies => 'all', part_applied => 'all');

foreach my $point (qw(part_traced part_prepares part_prepared part_applies part_applied))
{
	foreach my $action (qw(crash_backend crash_server))
	{
		$c->case("participant, $action at \"$point\"",
			outcome => $outcome{$point},
			before => sub { $r->arm('gbr', "$point:$action") },
			during => sub { $r->wait_fired('gbr') });
	}
}
foreach my $point (qw(part_traced part_prepares part_applies))
{
	$c->case("participant, error at \"$point\"",
		outcome => $outcome{$point},
		before => sub { $r->arm('gbr', "$point:error") },
		during => sub { $r->wait_fired('gbr') });
}

# while the transaction aborts, though all regions have prepared
foreach my $point (qw(part_rolls_back part_rolled_back))
{
	foreach my $action (qw(crash_backend crash_server))
	{
		$c->case("participant, $action at \"$point\"",
			outcome => 'none',
			before => sub { $r->arm('usa', 'prepared:error'); $r->arm('gbr', "$point:$action") },
			during => sub { $r->wait_fired('gbr') });
	}
}

# while the gateway is at one of its points, and goes on afterwards
%outcome = (
	commit_begins => 'none', recorded => 'none', prepare_sent => 'either', one_prepared => 'either', prepared => 'all', decided => 'all',
	one_told => 'all', all_told => 'all', applied => 'all');

foreach my $point (qw(commit_begins recorded prepare_sent one_prepared prepared decided one_told all_told applied))
{
	$c->case("participant killed while the gateway is at \"$point\"",
		outcome => $outcome{$point},
		before => sub { $r->arm('usa', "$point:hold") },
		during => sub {
			$r->wait_fired('usa');
			$r->kill9('gbr');
			$r->release('usa');
		});
}

# one region alone: either way it is as a whole, and nobody is told what is not so
foreach my $where ([ 'usa', 'alone_sent' ], [ 'gbr', 'part_commits_alone' ])
{
	foreach my $action (qw(crash_backend crash_server))
	{
		my ($region, $point) = @$where;

		$c->alone("one region alone, $region, $action at \"$point\"",
			before => sub { $r->arm($region, "$point:$action") },
			during => sub { $r->wait_fired($region) });
	}
}

$c->finish;
