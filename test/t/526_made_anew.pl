# A row of a directory that was deleted and made anew with another home while a region was
# away is one change for that region: it arrives, and shipping is not stuck.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new;

People::make($r);
$r->psql('usa', q{INSERT INTO app.identity VALUES (1, 'usa', 'first'), (2, 'usa', 'first')});
$r->psql($_, q{SELECT residency.set_region_state('aus', 'away')}) foreach qw(usa gbr);
$r->psql('usa', q{DELETE FROM app.identity WHERE id = 1});
$r->psql('usa', q{INSERT INTO app.identity VALUES (1, 'gbr', 'second')});
$r->psql($_, q{SELECT residency.set_region_state('aus', 'catching up')}) foreach qw(usa gbr);
$r->psql($_, q{SELECT residency.ship('aus')}) foreach qw(gbr usa);
is($r->all_equal(q{SELECT i::text FROM app.identity i WHERE id = 1}, 'shipped'), '(1,gbr,second)', 'with its new home');
$r->psql($_, q{SELECT residency.set_region_state('aus', 'up')}) foreach qw(usa gbr);
$r->fails('aus', q{UPDATE app.identity SET region = 'aus' WHERE id = 2}, '0A000', qr/region/, 'an UPDATE of the region is still refused');
done_testing();
