# A batch is in doubt in the region that it was shipped to: the next one waits for it, since nobody
# can see yet what the first one leaves in residency.conflicts there.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(regions => [qw(usa aus)], relay => 1, conf => "residency.commit_timeout = 1s\n");
my $conflicts = 'SELECT count(*) FROM residency.conflicts';

$r->psql('usa', q{SELECT residency.run_everywhere($$ CREATE SCHEMA app; CREATE TABLE app.mail (id int PRIMARY KEY, region text NOT NULL, address text UNIQUE) $$);
	SELECT residency.make_global('app.mail', 'region')});

# each makes a row that the other one cannot take
$r->away('aus');
$r->psql('usa', q{SELECT residency.set_region_state('aus', 'away'); INSERT INTO app.mail VALUES (1, 'usa', 'x')});
$r->psql('aus', q{SELECT residency.set_region_state('usa', 'away'); INSERT INTO app.mail VALUES (2, 'aus', 'x')});
$r->back('aus');
$r->psql('usa', q{SELECT residency.set_region_state('aus', 'catching up')});

# a batch is decided in usa, and aus is not told
$r->relay->trap('usa>aus', 'out', 'hold', 'COMMIT PREPARED');
my $session = $r->session('usa', on_error_stop => 0);
$session->query_until(qr/started/, "\\echo started\nSELECT residency.ship('aus', true);\n");
$r->relay->wait_sprung('usa>aus', 1);
$r->relay->cut('usa>aus');
$r->relay->back('usa>aus');
$session->query('SELECT 1');
is($r->prepared('aus'), 1, 'the batch is in doubt in aus');
is($r->psql('usa', $conflicts), 1, 'usa knows what it has decided');
is($r->psql('aus', $conflicts), 0, 'aus does not yet');

# the cause is gone, and the row is to be shipped once more
$r->psql('aus', q{UPDATE app.mail SET address = 'y' WHERE id = 2});
$r->psql('usa', q{UPDATE app.mail SET address = 'x' WHERE id = 1});
is($r->psql('usa', q{SELECT residency.ship('aus', true)}), 0, 'the next batch does nothing');
is($r->psql('usa', 'SELECT count(*) FROM residency.backlog'), 1, 'its note stays');
$r->psql('usa', 'SELECT * FROM residency.resolve()');
is($r->prepared('aus'), 0, 'the doubt is over');
is($r->psql('aus', $conflicts), 1, 'and aus knows of the conflict');
is($r->psql('usa', q{SELECT residency.ship('aus', true)}), 1, 'now it is shipped');
is(join(' ', map { $r->psql($_, $conflicts) } $r->regions), '0 0', 'and no conflict in either region');
is($r->psql('aus', q{SELECT address FROM app.mail WHERE id = 1}), 'x', 'but the row');

done_testing();
