# Three regions that see nobody make a row with the same key.  Whoever meets whom first afterwards, and whether
# their own residents belong to their rows or not: the row of the region first by name holds in the end, each of
# the other two is one conflict, which the same two regions know, and it can be decided.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Plan;
use Regions;

my $r = Regions->new(relay => 1);
my @regions = $r->regions;
People::make($r);

# what each region thinks of all others
sub all_are
{
	my ($state) = @_;

	foreach my $region (@regions)
	{
		$r->psql($region, join(';', map { "SELECT residency.set_region_state('$_', '$state')" } grep { $_ ne $region } @regions));
	}
	return;
}

# each conflict with who knows it
sub conflicts
{
	my %known;

	foreach my $region (@regions)
	{
		push @{ $known{$_} }, $region foreach split /\n/, $r->psql($region, q{SELECT concat_ws(' ', kind, home, region, constraint_name, row ->> 'region') FROM residency.conflicts});
	}
	return join('; ', map { "$_ (@{ $known{$_} })" } sort keys %known);
}

my @pairs = map { my $from = $_; map { [ $from, $_ ] } grep { $_ ne $from } @regions } @regions;
my $dice = Plan->new(seed => 3)->dice('orders');
foreach my $id (1 .. 24)
{
	my @order = Plan::shuffle($dice, @pairs);
	my @with_details = grep { $id % 3 == 0 || $dice->(2) } @regions;
	my $name = 'order ' . join(' ', map { "$_->[0]>$_->[1]" } @order) . ", details in @with_details";

	$r->away($_) foreach @regions;
	all_are('away');
	$r->psql($_, "INSERT INTO app.identity VALUES ($id, '$_', 'of $_')") foreach @regions;
	$r->psql($_, "INSERT INTO app.details VALUES ($id, '$_', 'of $_')") foreach @with_details;
	$r->back($_) foreach @regions;
	all_are('catching up');
	foreach my $round (1 .. 5)
	{
		$r->psql($_->[0], "SELECT residency.ship('$_->[1]', true)") foreach @order;
		# as the worker does after a while
		$r->psql($_, q{INSERT INTO residency.backlog (region, relation, key) SELECT region, relation, key FROM residency.conflict
			WHERE home = residency.own_region() AND (kind <> 'key' OR constraint_name IS NOT NULL) ON CONFLICT DO NOTHING}) foreach $round < 5 ? @regions : ();
	}
	my %details = map { $_ => 1 } @with_details;
	my %stands = map { $_ => $details{$_} ? 'residency_home ' : '' } @regions;
	my @losers = grep { /^key \w+ gbr/ } split /; /, conflicts();

	is(join(' ', map { $r->psql($_, "SELECT region FROM app.identity WHERE id = $id") } @regions),
		($details{usa} ? 'usa' : 'aus') . ' ' . ($details{gbr} ? 'gbr' : 'aus') . ' aus', "$name: the row of aus holds, but where details belong to another one");
	my $said = conflicts();
	is(scalar(@losers), 1, 'one conflict about the row of gbr') or diag $said;
	is(join('; ', grep { !/^key (\w+) (\w+) .*\((?:\1 \2|\2 \1)\)$/ } split /; /, $said), '', 'each conflict is known in the two regions it names') or diag $said;
	like($said, qr/^key aus gbr $stands{gbr}gbr \(gbr aus\); key (?:aus|gbr) usa $stands{usa}usa \([a-z ]+\)$/, 'and there are these two');

	# decided: details go with the row that loses
	$r->psql($_, "DELETE FROM app.details WHERE id = $id AND region = '$_'") foreach grep { $_ ne 'aus' } @with_details;
	foreach my $turn (1 .. 2)
	{
		$r->psql($_, qq{SELECT residency.resolve_conflict('app.identity', '{$id}') FROM (SELECT FROM residency.conflicts WHERE home = residency.own_region() LIMIT 1) c}) foreach @regions;
	}
	foreach (1 .. 2) { $r->psql($_->[0], "SELECT residency.ship('$_->[1]', true)") foreach @order; }
	is(conflicts(), '', 'all is decided');
	is($r->all_equal("SELECT region FROM app.identity WHERE id = $id", 'and copies are equal'), 'aus', 'the row of aus is everywhere');
}
is($r->prepared, 0, 'nothing is left prepared');

$r->teardown;
done_testing();
