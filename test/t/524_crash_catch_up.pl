# A region comes back, and whoever ships what it has missed dies, or it dies again itself:
# between any two steps of catch-up.  It has all in the end, and is up everywhere.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Crash;
use People;

my $c = Crash->start(conf => "residency.commit_timeout = 1s\nresidency.connect_timeout = 2s\nresidency.away_after = 500ms\n");
my $r = $c->r;
People::make($r);

foreach my $case (
	[ 'usa', 'ship_begins', 'crash_backend' ], [ 'gbr', 'ship_answered', 'error' ],
	[ 'usa', 'prepared', 'crash_backend' ], [ 'gbr', 'decided', 'crash_server' ],
	[ 'usa', 'shipped', 'crash_backend' ],
	[ 'usa', 'flip_locked', 'crash_server' ], [ 'gbr', 'flipped', 'crash_backend' ],
	[ 'aus', 'part_ships', 'crash_backend' ], [ 'aus', 'part_shipped', 'crash_server' ],
	[ 'aus', 'part_prepared', 'crash_backend' ])
{
	my ($region, $point, $action) = @$case;
	my $name = "$region, $action at \"$point\"";

	$c->miss_something;
	$r->arm($region, "$point:$action");
	$r->back('aus');
	eval { $r->wait_fired($region); 1 } or fail("$name: $@");
	$c->heal;
	is($c->settle, '', "$name: all are up again, and nothing is left");
	$r->all_equal(q{SELECT string_agg(i::text, ' ' ORDER BY id) FROM app.identity i}, "$name: aus has all");
}

$c->finish;
