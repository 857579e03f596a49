# A decision that synchronous_standby_names demands to be replicated, and that is not, is held
# back: by the session that decided, whose wait was cancelled, and by the resolver.  And what
# a gateway may write into the records of another region.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(conf => "residency.resolve_interval = '300ms'\nwal_level = replica\nmax_wal_senders = 4\n");
People::make($r);
People::make_function($r);
my $usa = $r->node('usa');

# --- the standby of usa is not there -----------------------------------------------------------
my $session = $r->session('usa', on_error_stop => 0);
$session->query_safe('SELECT count(*) FROM app.details');
$r->conf('usa', "synchronous_standby_names = '*'\n");
ok($r->poll('usa', q{SELECT current_setting('synchronous_standby_names') = '*'}), 'usa demands a standby');
$r->psql('usa', 'CHECKPOINT');    # it is the checkpointer who tells everybody
$session->query_until(qr/started/, "\\echo started\nSELECT app.add(10, 'gbr', 'one'), app.add(11, 'aus', 'two');\n");
ok($r->poll('usa', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'}), 'the decision waits for it');
is($r->prepared('gbr') . $r->prepared('aus'), '11', 'both regions are prepared');
$r->conf('usa', "residency.workers = on\n");
ok($r->poll('usa', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'residency resolver'}), 'the resolver runs');
sleep(1);
is($r->prepared('gbr') . $r->prepared('aus'), '11', 'it leaves them alone: the transaction still runs');

$r->psql('usa', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
$session->query('SELECT 1');
like($session->{stderr}, qr/canceling wait for synchronous replication/, 'the wait is cancelled');
like($session->{stderr}, qr/committed, but region "\w+" has not applied it yet/, 'the session does not send its decision');
$session->quit;
is($r->psql('usa', 'SELECT count(*) FROM app.identity WHERE id IN (10, 11)'), 2, 'the transaction is committed and visible here');
ok($r->poll('usa', q{SELECT count(*) = 1 FROM residency.transactions WHERE state = 'decided' AND resolver LIKE '%: not replicated'}),
	'the resolver sees it, and says why it does nothing');
sleep(1.5);
is($r->prepared('gbr') . $r->prepared('aus'), '11', 'it holds back as long as no standby has it');
is($r->psql('gbr', 'SELECT count(*) FROM gbr.details WHERE id = 10'), 0, 'so nobody else sees it');

$usa->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
$usa->reload;
ok($r->poll($_, 'SELECT count(*) = 0 FROM pg_prepared_xacts'), "when none is demanded any more $_ is told") foreach 'gbr', 'aus';
is($r->psql('gbr', 'SELECT count(*) FROM gbr.details WHERE id = 10') . $r->psql('aus', 'SELECT count(*) FROM aus.details WHERE id = 11'), '11', 'and has committed');
ok($r->poll($_, 'SELECT count(*) = 0 FROM residency.transaction'), "no record is left in $_") foreach $r->regions;
$r->conf('usa', "residency.workers = off\n");

# --- who may write what into a region's records ---------------------------------------------------
# says hello as usa does, and then something that only gateways may say
sub as_usa
{
	my ($sql) = @_;
	my ($deployment, $version) = split /\|/, $r->psql('gbr', q{SELECT s.deployment, x.extversion FROM residency.self s, pg_extension x WHERE x.extname = 'residency'});
	my ($out, $err) = ('', '');

	$r->node('gbr')->psql('app', "SELECT residency.hello($deployment, 'gbr', '$version', 'usa', false); $sql",
		stdout => \$out, stderr => \$err, connstr => $r->node('gbr')->connstr('app') . ' user=residency_usa', extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $err ne '' ? $err : $out;
}

like(as_usa(q{SELECT residency.participate('aus', 1, '5', '{residency:0000000000000001:5:0:00000001}', '{gbr}', '{}')}), qr/42501: .*own transactions only/,
	'a gateway cannot leave a trace in the name of another one');
unlike(as_usa(q{SELECT residency.participate('usa', 1, '5', '{residency:0000000000000001:5:0:00000001}', '{gbr}', '{}')}), qr/ERROR/, 'it can in its own');
$r->psql('gbr', q{INSERT INTO residency.transaction (origin, incarnation, xid, gids, regions) VALUES ('aus', 2, '6', '{x}', '{gbr}')});
unlike(as_usa(q{SELECT residency.forget(1, '{5}'), residency.forget(2, '{6}')}), qr/ERROR/, 'it may forget');
is($r->psql('gbr', 'SELECT origin FROM residency.transaction'), 'aus', 'but its own transactions only');
$r->psql('gbr', 'DELETE FROM residency.transaction');
$r->fails('gbr', q{SET ROLE residency_operator; SELECT residency.forget(1, '{5}')}, '42501', qr/forget|gateway/, 'nobody else may');
$r->fails('gbr', q{SET ROLE residency_operator; SELECT * FROM residency.outcomes_here('{}')}, '42501', qr/outcomes_here/, 'nor ask for outcomes');

# --- resolve() at the same moment as the transaction that it looks at --------------------------------
# It lists what is prepared, then the decision row appears, then it would forget it.
{
	my ($out, $err) = ('', '');
	my $script = "$PostgreSQL::Test::Utils::tmp_check/race.sql";

	unlink($script);
	append_to_file($script, "SELECT nextval('app.race') AS i \\gset\n"
		  . "SELECT app.add((100 + 2 * :i)::int, 'gbr', 'x'), app.add((101 + 2 * :i)::int, 'aus', 'y');\n");
	$r->psql('usa', 'CREATE SEQUENCE app.race');
	my $busy = IPC::Run::start([ 'pgbench', '-n', '-c', '4', '-T', '4', '-f', $script, '-h', $usa->host, '-p', $usa->port, 'app' ],
		'<', '/dev/null', '>', \$out, '2>', \$err);
	my $end = time + 4;
	my $calls = 0;

	while (time < $end) { $r->psql('usa', 'SELECT count(*) FROM residency.resolve()'); $calls++; }
	$busy->finish;
	cmp_ok($calls, '>', 3, "resolve() ran $calls times meanwhile");
	unlike($err, qr/ERROR/, 'no transaction failed');    # a warning may come: resolve() was faster with a part
	is($r->prepared, 0, 'nothing is left prepared');
	my $n = $r->psql('usa', 'SELECT count(*) FROM app.identity WHERE id >= 100');
	cmp_ok($n, '>', 0, "$n people were added");
	$r->all_equal('SELECT count(*) FROM app.identity', 'all regions have them');
	is($r->psql('usa', 'SELECT count(*) FROM app.details WHERE id >= 100'), $n, 'and their details');
}

done_testing();
