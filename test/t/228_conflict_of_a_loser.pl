# A region could not take a row, and then makes one of its own with the same key, which holds when the two
# meet: that the first one could not be taken is forgotten in both regions.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(regions => [qw(usa aus)], relay => 1);

sub state_of
{
	my ($state) = @_;
	$state eq 'away' ? $r->away('aus') : $r->back('aus');
	$r->psql('usa', "SELECT residency.set_region_state('aus', '$state')");
	$r->psql('aus', "SELECT residency.set_region_state('usa', '$state')");
	return;
}
sub conflicts { return join(' / ', map { $r->psql($_, q{SELECT coalesce(string_agg(concat_ws(' ', key, kind, home, region), ', ' ORDER BY kind), '') FROM residency.conflicts}) } $r->regions); }

$r->psql('usa', q{SELECT residency.run_everywhere($$ CREATE SCHEMA app; CREATE TABLE app.mail (id int PRIMARY KEY, region text NOT NULL, address text UNIQUE) $$);
	SELECT residency.make_global('app.mail', 'region')});
state_of('away');
$r->psql('usa', q{INSERT INTO app.mail VALUES (1, 'usa', 'x')});
$r->psql('aus', q{INSERT INTO app.mail VALUES (2, 'aus', 'x')});
state_of('catching up');
$r->psql('usa', q{SELECT residency.ship('aus', true)});
is(conflicts(), '{1} unique usa aus / {1} unique usa aus', 'aus cannot take a row of usa');

state_of('away');
$r->psql('aus', q{INSERT INTO app.mail VALUES (1, 'aus', 'z'); DELETE FROM app.mail WHERE id = 2});
state_of('catching up');
$r->psql('aus', q{SELECT residency.ship('usa', true)});
is(conflicts(), '{1} key aus usa / {1} key aus usa', 'what it has made itself holds, and only that is a conflict, in both');
is($r->all_equal('SELECT * FROM app.mail ORDER BY id'), '1|aus|z', 'copies are equal');

done_testing();
