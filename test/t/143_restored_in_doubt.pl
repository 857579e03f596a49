# A backup holds parts that were prepared when it was taken.  After the restore, renew() and refill() their
# origins finish them: committed where the decision is still known, rolled back where it was carried out
# and forgotten since; that belongs to what came after the backup.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new(faults => 1);

People::make($r);
People::make_function($r);
$r->psql('aus', "CREATE USER MAPPING FOR CURRENT_USER SERVER $_ OPTIONS (user '$r->{user}')") foreach qw(usa gbr);

# usa and aus each decide, and tell nobody
my $id = 0;
foreach my $gateway (qw(usa aus))
{
	my $session = $r->session($gateway, on_error_stop => 0);

	$id += 10;
	$r->arm($gateway, 'decided:crash_backend');
	eval { $session->query("SELECT app.add($id, 'gbr', 'one'), app.add($id + 1, '$gateway', 'two')") };
	$r->revive($gateway);
	$r->disarm($gateway);
}
is($r->prepared('gbr'), 2, 'two parts are prepared in gbr');

# the backup; then usa tells, and forgets
my $gbr = $r->node('gbr');
$gbr->stop;
PostgreSQL::Test::RecursiveCopy::copypath($gbr->data_dir, $gbr->data_dir . '_yesterday');
$gbr->start;
$r->psql('usa', 'SELECT * FROM residency.resolve()') foreach 1, 2;
is($r->psql('usa', 'SELECT count(*) FROM residency.transaction'), 0, 'usa has forgotten its one');
is($r->psql('gbr', 'SELECT count(*) FROM gbr.details WHERE id = 10'), 1, 'which is committed');
is($r->prepared('gbr'), 1, 'that of aus is still in doubt');

# the disk is lost
$gbr->stop('immediate');
rename($gbr->data_dir, $gbr->data_dir . '_lost') or die $!;
rename($gbr->data_dir . '_yesterday', $gbr->data_dir) or die $!;
chmod 0700, $gbr->data_dir;
$gbr->start;
is($r->prepared('gbr'), 2, 'after the restore both are in doubt');
$r->psql('gbr', "CREATE USER MAPPING FOR CURRENT_USER SERVER $_ OPTIONS (user '$r->{user}')") foreach qw(usa aus);
$r->psql('gbr', 'SELECT residency.renew()');
$r->conf($_, "residency.workers = on\n") foreach qw(usa aus);
ok($r->poll('gbr', 'SELECT count(*) = 0 FROM pg_prepared_xacts'), 'their origins finish them');
is($r->psql('gbr', 'SELECT string_agg(id::text, chr(32)) FROM gbr.details'), '20', 'the one that is still known is committed');
$r->psql('usa', q{SELECT residency.refill('gbr')});
is($r->all_equal('SELECT string_agg(id::text, chr(32) ORDER BY id) FROM app.identity'), '10 11 20 21', 'copies are equal');
$r->conf("gbr", "residency.workers = on\n");
ok($r->poll($_, 'SELECT count(*) = 0 FROM residency.transaction'), "nothing is left in $_") foreach $r->regions;

done_testing();
