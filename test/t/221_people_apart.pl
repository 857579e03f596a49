# A person with details is made apart, with the same key, in two regions.  The region second by
# name cannot give up its row, which its details refer to: it keeps both, everybody else has the
# other row, and both regions know of the conflict.  Nothing is stuck; whatever is decided, all
# copies are equal then, and each person has the details of its own region.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 2, conf => "residency.workers = on\nresidency.away_after = '3s'\n");
People::make($r);

sub all_up
{
	my ($name) = @_;
	return ok(3 == grep({ $r->poll($_, q{SELECT bool_and(state = 'up' AND notes = 0) FROM residency.catch_up}) } $r->regions), $name);
}
sub conflicts
{
	my ($region) = @_;
	return $r->psql($region, q{SELECT coalesce(string_agg(concat_ws(' ', relation, key, kind, home, region, constraint_name, row ->> 'region'), ', ' ORDER BY key, region), '') FROM residency.conflicts});
}
# the directory and all details, as each region sees them
sub people
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $directory = $r->all_equal(q{SELECT coalesce(string_agg(concat_ws(' ', id, region, note), ', ' ORDER BY id), '') FROM app.identity}, "$name: all copies are equal");
	my $details = $r->all_equal(q{SELECT coalesce(string_agg(concat_ws(' ', id, region, name), ', ' ORDER BY id, region), '') FROM app.details}, "$name: and so are the details, seen from anywhere");

	return "$directory; $details";
}

all_up('all are up');
foreach my $pair ([qw(usa gbr aus)], [qw(gbr aus usa)], [qw(aus usa gbr)])
{
	my ($alone, $other, $third) = @$pair;
	my ($first, $second) = sort($alone, $other);
	my $name = "$alone alone";

	# 1 to 4 apart in both; 5 is deleted again by the one, 6 by the other
	$r->away($alone);
	ok($r->poll($_, "SELECT state = 'away' FROM residency.catch_up WHERE region = '$alone'"), "$_: $alone is away") foreach $other, $third;
	ok($r->poll($alone, q{SELECT bool_and(state = 'away') FROM residency.catch_up}), "$name: all others are away");
	foreach my $region ($alone, $other)
	{
		$r->psql($region, join('; ', map { People::add($_, $region, "$_ of $region") } 1 .. 6));
	}
	$r->psql($first, "DELETE FROM app.details WHERE region = '$first' AND id = 5; DELETE FROM app.identity WHERE id = 5");
	$r->psql($second, "DELETE FROM app.details WHERE region = '$second' AND id = 6; DELETE FROM app.identity WHERE id = 6");
	$r->back($alone);
	all_up("$name: all are up again, no note is left");

	my $said = join(', ', map { "app.identity {$_} key $first $second residency_home $second" } 1 .. 4);
	is(conflicts($first), $said, "$name: $first knows of the conflicts");
	is(conflicts($second), $said, "$name: and so does $second");
	is(conflicts($third), '', 'nobody else does');
	foreach my $region ($first, $third)
	{
		is($r->psql($region, "SELECT string_agg(id || region, ' ' ORDER BY id) FROM app.identity"), "1$first 2$first 3$first 4$first 5$second 6$first", "$region has the row of $first");
	}
	is($r->psql($second, "SELECT string_agg(id || region, ' ' ORDER BY id) FROM app.identity"), "1$second 2$second 3$second 4$second 5$second 6$first", "$second has its own, where there are two");
	is($r->psql($_, "SELECT string_agg(name, ', ' ORDER BY id) FROM app.details WHERE region = '$_' AND id <= 4"), "1 of $_, 2 of $_, 3 of $_, 4 of $_", "the residents of $_ have their details") foreach $first, $second;
	foreach my $gateway ($r->regions)
	{
		$r->fails($gateway, q{UPDATE app.identity SET note = 'x' WHERE id = 1}, '40001', qr/identity/, "$gateway: the key cannot be written");
		$r->fails($gateway, q{UPDATE app.identity SET id = 99 WHERE id = 1}, '40001', qr/identity/, "$gateway: nor changed");
		$r->fails($gateway, q{DELETE FROM app.identity WHERE id = 2}, '(40001|23503)', qr/identity/, "$gateway: nor deleted");
	}
	$r->psql($second, "UPDATE app.details SET name = 'still of $second' WHERE id = 3 AND region = '$second'");

	# decided in either region, one way or the other
	$r->fails($second, q{SELECT residency.resolve_conflict('app.identity', '{1}', 'stored')}, '23503', qr/belong/, "$name: what belongs to the row must go somewhere");
	$r->psql($second, q{SELECT residency.resolve_conflict('app.identity', '{1}')});
	$r->psql($first, q{SELECT residency.resolve_conflict('app.identity', '{2}')});
	$r->psql($second, q{SELECT residency.resolve_conflict('app.identity', '{3}', 'stored', '{"id": 30, "note": "moved"}')});
	$r->psql($first, q{SELECT residency.resolve_conflict('app.identity', '{4}', 'stored', '{"id": 40}')});
	is(join('', map { conflicts($_) } $r->regions), '', "$name: nothing is left to be decided");
	all_up("$name: what was decided is shipped");
	is(people($name),
		"1 $first n1, 2 $first n2, 3 $first n3, 4 $first n4, 5 $second n5, 6 $first n6, 30 $second moved, 40 $second n4; "
		  . "1 $first 1 of $first, 2 $first 2 of $first, 3 $first 3 of $first, 4 $first 4 of $first, 5 $second 5 of $second, 6 $first 6 of $first, 30 $second still of $second, 40 $second 4 of $second",
		"$name: each has its key, and its own details");
	$r->psql($third, q{UPDATE app.identity SET note = 'free'});
	like(people($name), qr/^1 $first free, .*40 $second free;/, "$name: and all keys can be written");
	$r->psql($third, 'DELETE FROM app.details; DELETE FROM app.identity');
	is(people($name), '; ', "$name: all is gone");
	is($r->prepared, 0, 'nothing is left prepared');
}

$r->teardown;
done_testing();
