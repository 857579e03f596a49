# Filling a region's copies anew, and putting a new database in the place of a lost region, take a number
# of round trips that does not depend on how many rows there are, and hardly on how many regions.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $tables = q{
	CREATE SCHEMA app;
	CREATE TABLE app.identity (id int PRIMARY KEY, region text NOT NULL, note text);
	CREATE TABLE app.details (id int PRIMARY KEY, region text NOT NULL, name text);
	CREATE TABLE app.tag (id int PRIMARY KEY, region text NOT NULL, note text);
};
my %trips;

# round trips of both, with so many rows in each global table
sub measure
{
	my ($regions, $rows) = @_;
	my $r = Regions->new(regions => $regions, relay => 1, delay => 5, conf => "residency.away_after = '1s'\n");
	my $there = Regions->new(regions => ['gbr'], join => 0);
	my $name = @$regions . " regions, $rows rows";

	$r->psql('usa', 'SELECT residency.run_everywhere(' . Regions::quote($tables) . ')');
	$r->psql('usa', q{SELECT residency.make_global('app.identity', 'region'), residency.make_global('app.tag', 'region')});
	$r->psql('usa', q{SELECT residency.make_resident('app.details', 'region', key => '{id}', directory => 'app.identity')});
	$r->psql('usa', "INSERT INTO app.$_ SELECT n, (ARRAY['usa', 'gbr'])[1 + n % 2], 'x' FROM generate_series(1, $rows) n") foreach qw(identity tag);

	# aus lacks what it once had
	$r->psql('aus', qq{ALTER TABLE app.$_ DISABLE TRIGGER residency_capture; DELETE FROM app.$_ WHERE id > 2; ALTER TABLE app.$_ ENABLE ALWAYS TRIGGER residency_capture}) foreach qw(tag);
	$r->warm('usa', 'SELECT count(*) FROM app.details');
	push @{ $trips{refill} }, scalar $r->round_trips('usa', q{SELECT residency.refill('aus')});
	is($r->all_equal('SELECT count(*) FROM app.tag', "$name: refilled"), $rows, 'and complete');

	$there->psql('gbr', $tables);
	$r->stop('gbr', 'immediate');
	$r->psql($_, q{SELECT residency.set_region_state('gbr', 'away')}) foreach grep { $_ ne 'gbr' } $r->regions;
	push @{ $trips{replace} }, scalar $r->round_trips('usa', "SELECT residency.replace_region('gbr', '" . $there->connection('gbr') . " user=$r->{user}')");
	is($there->psql('gbr', 'SELECT (SELECT count(*) FROM app.tag), (SELECT count(*) FROM app.identity)'), "$rows|$rows", "$name: replaced, and complete");
	is($r->prepared(grep { $_ ne 'gbr' } $r->regions), 0, 'nothing is left prepared');
	$r->teardown;
	$there->teardown;
	return;
}

measure([qw(usa gbr aus)], 20);
measure([qw(usa gbr aus)], 20_000);
measure([qw(usa gbr aus fra ita)], 20);
# what is under way at once counts as one or two, as it happens
my @case = ('few rows', 'a thousand times as many', 'two regions more');
foreach my $i (0 .. 2)
{
	note("$case[$i]: $trips{refill}[$i] to refill, $trips{replace}[$i] to replace");
	cmp_ok($trips{refill}[$i], '<=', 16, "refill, $case[$i]");
	# each further region is introduced to the new database by itself
	cmp_ok($trips{replace}[$i], '<=', $i == 2 ? 45 : 30, "replace, $case[$i]");
}
done_testing();
