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
my %decided = map { $_ => 1 } qw(decided one_told all_told applied);

foreach my $point (qw(commit_begins recorded prepare_sent one_prepared prepared decided one_told all_told applied))
{
	foreach my $action (qw(crash_backend crash_server))
	{
		$c->case("gateway, $action at \"$point\"",
			outcome => $decided{$point} ? 'all' : 'none',
			before => sub { $r->arm('usa', "$point:$action") },
			during => sub { $r->wait_fired('usa') });
	}
}

# the same while it aborts, because a region could not prepare
foreach my $action (qw(crash_backend crash_server))
{
	$c->case("gateway, $action at \"aborting\"",
		outcome => 'none',
		before => sub { $r->arm('gbr', 'part_prepares:error'); $r->arm('usa', "aborting:$action") },
		during => sub { $r->wait_fired('usa') });
}

# no crash: an error or the end of the session between two steps
foreach my $point (qw(commit_begins recorded prepare_sent one_prepared prepared))
{
	foreach my $action (qw(error terminate))
	{
		$c->case("gateway, $action at \"$point\"",
			outcome => 'none',
			before => sub { $r->arm('usa', "$point:$action") },
			during => sub { $r->wait_fired('usa') });
	}
}

$c->finish;
