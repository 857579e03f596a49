# A region is restored from a backup while another one lacked changes that it had noted: refill()
# says which regions differ.  What was undecided in the backup and is decided now blocks nobody.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new;
my $conflict = q{INSERT INTO residency.conflict (relation, key, region, kind, home, content) VALUES ('app.item'::regclass, residency.key_text(ARRAY['%s']), '%s', '%s', '%s', '{}')};

$r->psql('usa', q{SELECT residency.run_everywhere($$ CREATE SCHEMA app; CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text) $$);
	SELECT residency.make_global('app.item', 'region'); INSERT INTO app.item SELECT n, 'gbr', 'old' FROM generate_series(1, 9) n});
$r->psql('usa', "CREATE USER MAPPING IF NOT EXISTS FOR CURRENT_USER SERVER $_ OPTIONS (user '$r->{user}')") foreach qw(gbr aus);

# yesterday
$r->psql('gbr', sprintf($conflict, 1, 'aus', 'key', 'gbr'));
$r->fails('gbr', q{UPDATE app.item SET note = 'x' WHERE id = 1}, '40001', qr/same key/, 'a key that is undecided cannot be written');
my $gbr = $r->node('gbr');
$gbr->stop;
PostgreSQL::Test::RecursiveCopy::copypath($gbr->data_dir, $gbr->data_dir . '_yesterday');
$gbr->start;

# today: that is decided, another one is not; aus is away and misses a change and a deletion, which gbr notes
$r->psql('gbr', 'DELETE FROM residency.conflict');
$r->psql('aus', sprintf($conflict, 5, 'aus', 'key', 'gbr'));
$r->psql($_, q{SELECT residency.set_region_state('aus', 'away')}) foreach qw(usa gbr);
$r->psql('gbr', q{UPDATE app.item SET note = 'new' WHERE id = 2; DELETE FROM app.item WHERE id = 3});
is($r->psql('gbr', 'SELECT count(*) FROM residency.backlog'), 2, 'gbr has noted what aus lacks');

# the disk is lost, and its notes with it
$gbr->stop('immediate');
rename($gbr->data_dir, $gbr->data_dir . '_lost') or die $!;
rename($gbr->data_dir . '_yesterday', $gbr->data_dir) or die $!;
chmod 0700, $gbr->data_dir;
$gbr->start;
$r->psql('usa', q{SELECT residency.set_region_state('aus', 'up')});
$r->psql('gbr', "CREATE USER MAPPING FOR CURRENT_USER SERVER $_ OPTIONS (user '$r->{user}')") foreach 'usa', 'aus';
$r->psql('gbr', 'SELECT residency.renew()');

$r->psql('usa', sprintf($conflict, 7, 'usa', 'unique', 'aus'));
$r->fails('usa', q{SELECT residency.refill('gbr')}, '55000', qr/"usa" lacks rows of global tables that it could not take.*HINT/s, 'a region that lacks rows itself is no source');
$r->psql('usa', 'DELETE FROM residency.conflict');
$r->fails('usa', q{SET default_transaction_isolation = 'repeatable read'; SELECT residency.refill('gbr')}, '0A000', qr/READ COMMITTED/, 'nor one that does not see what it has locked');

my (undef, undef, $err) = $r->try('usa', q{SELECT residency.refill('gbr')});
like($err, qr/WARNING.*region "aus" has other rows of app\.item at home in region "gbr".*HINT:.*SELECT residency\.refill\('aus'\)/s, 'it is told that aus differs');
is($r->psql('gbr', 'SELECT string_agg(i::text, chr(10) ORDER BY id) FROM app.item i'), $r->psql('usa', 'SELECT string_agg(i::text, chr(10) ORDER BY id) FROM app.item i'), 'gbr is complete');
is($r->psql('gbr', q{UPDATE app.item SET note = 'y' WHERE id = 1 RETURNING id}), 1, 'what was decided since the backup is decided in gbr');
$r->fails('gbr', q{UPDATE app.item SET note = 'x' WHERE id = 5}, '40001', qr/same key/, 'and what is undecided elsewhere is undecided in gbr');

(undef, undef, $err) = $r->try('usa', q{SELECT residency.refill('aus')});
unlike($err, qr/WARNING/, 'aus is filled as well, and then nothing differs');
$r->all_equal('SELECT * FROM app.item ORDER BY id', 'all copies are equal');

done_testing();
