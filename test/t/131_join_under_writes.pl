# A region joins while clients of a third one write, and changes of all regions follow one another
# at once: nobody leaves the newcomer out.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use Regions;

my $r = Regions->new(regions => [qw(usa gbr aus)], join => 0);
my $schema = q{CREATE SCHEMA app; CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text)};
my $usa = $r->connection('usa');
my %add = map { $_ => "SELECT residency.add_region('$_', '" . $r->connection($_) . " user=$r->{user}')" } qw(gbr aus);

$r->fails('usa', "BEGIN; SELECT residency.init('usa', '$usa'); $add{gbr}; COMMIT", '55000', qr/in the transaction that has made.*HINT:  COMMIT first/s,
	'a region cannot join while nobody else could see with whom');
$r->psql('usa', "SELECT residency.init('usa', '$usa')");
$r->fails('usa', "SET default_transaction_isolation = 'repeatable read'; $add{gbr}", '0A000', qr/READ COMMITTED/, 'nor under a snapshot that is older than the locks');
$r->psql('usa', $add{gbr});
$r->add_relay;
$r->psql('usa', 'SELECT residency.run_everywhere(' . Regions::quote($schema) . ')');
$r->psql('usa', q{SELECT residency.make_global('app.item', 'region'); INSERT INTO app.item VALUES (1, 'usa', 'old'), (2, 'gbr', 'old')});
$r->psql('aus', $schema);
$r->psql('gbr', "CREATE USER MAPPING FOR CURRENT_USER SERVER usa OPTIONS (user '$r->{user}')");

# the other region's client writes when the rows are copied, and nobody but this call knows of the newcomer
my $admin = $r->session('usa', on_error_stop => 0);
my $client = $r->session('gbr', on_error_stop => 0);
$admin->query("BEGIN; $add{aus}");
$client->query_until(qr/started/, "\\echo started\nINSERT INTO app.item VALUES (3, 'gbr', 'new');\n");
sleep(0.5);

# that the newcomer has joined arrives late in the other region, where the next change begins meanwhile
$r->relay->trap('usa>gbr', 'out', 'hold', 'COMMIT PREPARED');
$admin->query_until(qr/started/, "\\echo started\nCOMMIT;\n");
$r->relay->wait_sprung('usa>gbr', 1);
my $second = $r->session('gbr', on_error_stop => 0);
$second->query_until(qr/started/, "\\echo started\nSELECT residency.run_everywhere('CREATE TABLE app.later (id int PRIMARY KEY)');\n");
sleep(0.5);
$r->relay->back('usa>gbr');
$admin->query('SELECT 1');
ok($r->poll('gbr', q{SELECT count(*) = 3 FROM residency.region}), 'aus has joined');

# each may be told to try again, but not that it is done when it is not done everywhere
$client->query('SELECT 1');
$client->query(q{INSERT INTO app.item VALUES (3, 'gbr', 'new') ON CONFLICT DO NOTHING});
is($r->all_equal('SELECT * FROM app.item ORDER BY id', 'what was written meanwhile is in all regions'), "1|usa|old\n2|gbr|old\n3|gbr|new", 'and nothing else');
$second->query('SELECT 1');
is($r->disagreement(q{SELECT to_regclass('app.later')}), '', 'the change that followed was made in all regions, or in none');
is($r->prepared, 0, 'nothing is left prepared');

done_testing();
