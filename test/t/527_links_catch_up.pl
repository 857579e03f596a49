# A region comes back, and the line to it is cut, or falls silent, between any two steps of catch-up:
# of whoever ships, or of the region itself.  Own residents are served meanwhile; when the line is
# mended the region has all in the end, and is up everywhere.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use Crash;
use People;

my $c = Crash->start(conf => "residency.commit_timeout = 1s\nresidency.connect_timeout = 2s\nresidency.away_after = 500ms\n");
my $r = $c->r;
my $id = 100000;

People::make($r);

foreach my $case (
	[ 'usa', 'usa', 'ship_begins' ], [ 'gbr', 'gbr', 'ship_answered' ], [ 'usa', 'usa', 'prepared' ], [ 'gbr', 'gbr', 'decided' ],
	[ 'usa', 'usa', 'shipped' ], [ 'gbr', 'gbr', 'flip_locked' ], [ 'usa', 'usa', 'flipped' ],
	[ 'aus', 'usa', 'part_ships' ], [ 'aus', 'usa', 'part_shipped' ], [ 'aus', 'usa', 'part_prepared' ])
{
	my ($region, $home, $point) = @$case;

	foreach my $how ('away', 'hold')
	{
		my $name = "\"$point\" in $region, the line " . ($how eq 'away' ? 'is cut' : 'falls silent');

		$c->miss_something;
		# at a participant, the batch of the home whose line it is
		if ($region eq 'aus') { $r->relay->back($_) foreach "$home>aus", "aus>$home"; }
		$r->arm($region, "$point:hold");
		$r->back('aus') if $region ne 'aus';
		eval { $r->wait_fired($region); 1 } or fail("$name: $@");
		$r->relay->$how($_) foreach "$home>aus", "aus>$home";
		$r->release($region);
		ok($r->poll($home, q{SELECT state = 'away' FROM residency.regions WHERE name = 'aus'}), "$name: the home finds out");

		# the worker may still hold the flip's lock, or rows of its batch, but not for long
		my $start = time;
		$id++;
		$r->psql($home, "SET lock_timeout = '5s'; INSERT INTO app.identity VALUES ($id, '$home', 'own'); UPDATE app.identity SET note = 'late' WHERE note = 'changed' AND region = '$home'");
		cmp_ok(time - $start, '<', 5, "$name: own rows can be written");
		$c->heal;
		is($c->settle, '', "$name: all are up again, and nothing is left");
		$r->all_equal(q{SELECT string_agg(i::text, ' ' ORDER BY id) FROM app.identity i}, "$name: aus has all");
	}
}

$c->finish;
