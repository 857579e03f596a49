# A participant waits for its synchronous standby when it prepares and when it applies.  Such a wait
# can be cancelled; what was not replicated then is not taken for done, because a failover would undo it.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(faults => 1, conf => "residency.resolve_interval = '500ms'\nwal_level = replica\nmax_wal_senders = 10\n");
People::make($r);
People::make_function($r);

my $primary = $r->node('gbr');
my $standby = PostgreSQL::Test::Cluster->new('gbr_standby', install_path => $ENV{RESIDENCY_FAULTS});
$primary->append_conf('pg_hba.conf', 'local replication all trust');
$primary->reload;
$primary->backup('base');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', "residency.workers = on\n");
$standby->start;
$r->conf('gbr', "synchronous_standby_names = '*'\n");
$r->poll('gbr', q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
$r->psql($_, sprintf("ALTER SERVER gbr OPTIONS (SET host '127.0.0.1,127.0.0.1', SET port '%d,%d', ADD target_session_attrs 'read-write')", $primary->port, $standby->port))
  foreach qw(usa aus);
$r->conf($_, "residency.workers = on\n") foreach $r->regions;

my $session = $r->session('usa', on_error_stop => 0);
$session->query_safe("SELECT app.add(1, 'gbr', 'warm'), app.add(2, 'aus', 'warm')");
ok($r->poll($_, q{SELECT count(*) = 0 FROM residency.regions WHERE state <> 'up'}), "$_ sees all up") foreach $r->regions;
ok($r->poll('usa', 'SELECT count(*) = 0 FROM residency.transaction'), 'nothing is under way');

# ends the wait of such a statement for the standby
sub cancel_wait
{
	my ($statement) = @_;
	my $waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '$statement%'";

	$r->poll('gbr', "SELECT count(*) > 0 $waiting") or die "no $statement waits for the standby";
	$r->psql('gbr', "SELECT pg_cancel_backend(pid) $waiting");
	return;
}

# --- PREPARE that is not replicated: the gateway does not decide to commit --------------------------------
$standby->stop('immediate');
$session->{stderr} = '';
$session->query_until(qr/started/, "\\echo started\nSELECT app.add(10, 'gbr', 'one'), app.add(11, 'aus', 'two');\n");
cancel_wait('PREPARE TRANSACTION');
$session->query('SELECT 1');
like($session->{stderr}, qr/ERROR:  region "gbr" has prepared the transaction, but not replicated it/, 'a part that is not on the standby is not taken for prepared');
$standby->start;
ok($r->poll('gbr', 'SELECT count(*) = 0 FROM pg_prepared_xacts'), 'it is rolled back');
is($r->psql($_, 'SELECT count(*) FROM app.identity WHERE id IN (10, 11)'), 0, "nothing of it is in $_") foreach $r->regions;

# --- COMMIT PREPARED that is not replicated: the decision is kept ------------------------------------------
$r->poll('gbr', q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
$r->arm('usa', 'prepared:hold');
$session->{stderr} = '';
$session->query_until(qr/started/, "\\echo started\nSELECT app.add(20, 'gbr', 'one'), app.add(21, 'aus', 'two');\n");
$r->wait_fired('usa');
is($r->prepared('gbr'), 1, 'gbr is prepared, and its standby has it');
$standby->stop('immediate');
$r->disarm('usa');
cancel_wait('COMMIT PREPARED');
$session->query('SELECT 1');
like($session->{stderr}, qr/WARNING:  .*region "gbr" has not applied it yet/, 'the client is told that it is not sure there');
is($r->psql('gbr', 'SELECT count(*) FROM gbr.details WHERE id = 20'), 1, 'though gbr has committed');
sleep(4);
is($r->psql('usa', 'SELECT count(*) FROM residency.transaction'), 1, 'the decision is kept as long as the standby lacks it');

# the primary is lost, and the standby knows the part as prepared
$r->kill9('gbr');
$r->{nodes}{gbr} = $standby;
$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
$standby->start;
$standby->promote;
ok($r->poll('gbr', 'SELECT count(*) = 0 FROM pg_prepared_xacts'), 'the promoted standby is told');
is($r->psql($_, 'SELECT count(*) FROM app.identity WHERE id IN (20, 21)'), 2, "$_ has the transaction") foreach $r->regions;
is($r->psql('gbr', 'SELECT count(*) FROM gbr.details WHERE id = 20'), 1, 'gbr has its resident row');
ok($r->poll('usa', 'SELECT count(*) = 0 FROM residency.transaction'), 'the decision is deleted when that is for good');

$session->quit;
$_->stop('immediate') foreach values %{ $r->{nodes} };
done_testing();
