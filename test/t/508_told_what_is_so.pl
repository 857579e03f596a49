# What a session is told, and sees, of its own transactions is so, also where a commit fails late, a
# connection is lost behind the decision, or a resolver is at work on the same rows.
use strict;
use warnings;

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(relay => 1, faults => 1, conf => "residency.workers = on\nwal_level = replica\nmax_wal_senders = 4\nresidency.commit_timeout = 1s\n");
People::make($r);
People::make_function($r);
$r->psql('usa', 'CREATE TABLE public.here (i int); CREATE SEQUENCE app.n START 1000');
$r->psql('usa', "SELECT app.add(1, 'gbr', 'old'), app.add(2, 'aus', 'old')");

# --- a commit that fails behind the callbacks, at the queue of notifications ----------------------------
foreach my $notify ('NOTIFY y', q{SELECT pg_notify('y', '')}, q{DO $$ BEGIN PERFORM pg_notify('y', ''); END $$})
{
	$r->conf('usa', "synchronous_standby_names = 'nobody'\n");
	$r->poll('usa', q{SELECT current_setting('synchronous_standby_names') = 'nobody'});
	$r->psql('usa', 'SET synchronous_commit = local; CHECKPOINT');
	my $first = $r->session('usa', on_error_stop => 0);
	$first->query_until(qr/started/, "\\echo started\nBEGIN; NOTIFY x; INSERT INTO public.here VALUES (2); COMMIT;\n");
	ok($r->poll('usa', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'}), "$notify: a session holds the queue");
	my $second = $r->session('usa', on_error_stop => 0);
	$second->query_until(qr/started/, "SELECT count(*) FROM app.details;\n\\echo started\nBEGIN; $notify; UPDATE app.details SET name = 'alone' WHERE id = 2 AND region = 'aus'; COMMIT;\n");
	ok($r->poll('usa', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'COMMIT;' AND wait_event_type = 'Lock'}), "$notify: another one waits for it while it commits");
	$r->psql('usa', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query = 'COMMIT;' AND wait_event_type = 'Lock'});
	$second->query('SELECT 1');
	like($second->{stderr}, qr/ERROR/, "$notify: its commit fails");
	is($r->psql('aus', 'SELECT name FROM aus.details WHERE id = 2'), 'old', "$notify: and nothing is committed elsewhere");
	$r->conf('usa', "synchronous_standby_names = ''\n");
	$first->query('SELECT 1');
	$_->quit foreach $first, $second;
}
$r->psql('usa', q{BEGIN; NOTIFY y; UPDATE app.details SET name = 'told' WHERE id = 2 AND region = 'aus'; COMMIT});
is($r->psql('aus', 'SELECT name FROM aus.details WHERE id = 2'), 'told', 'one that succeeds commits');

# --- its own write, after a connection that was lost behind the decision ----------------------------------
{
	my $session = $r->session('usa', on_error_stop => 0);

	$session->query_safe("SET residency.commit_wait = decided; SELECT count(*) FROM app.details");
	$r->conf('usa', "residency.workers = off\n");
	$r->poll('usa', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'residency%' AND backend_type NOT LIKE '%launcher'});
	$r->relay->trap('usa>gbr', 'out', 'cut', 'COMMIT PREPARED');
	$session->query_safe("BEGIN; INSERT INTO public.here VALUES (3); UPDATE app.details SET name = 'mine' WHERE id = 1 AND region = 'gbr'; COMMIT");
	$r->relay->wait_sprung('usa>gbr');
	is($r->prepared('gbr'), 1, 'gbr has not heard of the decision');
	is($session->query("SELECT name FROM app.details WHERE id = 1 AND region = 'gbr'"), 'mine', 'the session sees its own write all the same');
	is($r->prepared('gbr'), 0, 'because it has told gbr again');
	$session->quit;
	$r->conf('usa', "residency.workers = on\n");
}

# --- the resolver is woken when such an answer is missing, whatever its interval ---------------------------
{
	$r->conf('usa', "residency.resolve_interval = 1h\n");
	$r->poll('usa', q{SELECT current_setting('residency.resolve_interval') = '1h'});
	$r->poll('usa', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'residency resolver'});
	sleep(2);
	foreach my $wait (qw(decided applied))
	{
		my $session = $r->session('usa', on_error_stop => 0);

		$session->query_safe("SET residency.commit_wait = $wait; SELECT count(*) FROM app.details");
		$r->relay->trap('usa>gbr', 'out', 'cut', 'COMMIT PREPARED');
		$session->query("BEGIN; INSERT INTO public.here VALUES (4); UPDATE app.details SET name = '$wait' WHERE id = 1 AND region = 'gbr'; COMMIT; SELECT count(*) FROM app.details WHERE region = 'gbr'");
		$r->relay->wait_sprung('usa>gbr');
		ok($r->poll('gbr', 'SELECT count(*) = 0 FROM pg_prepared_xacts'), "$wait: the part is applied without waiting for the interval");
		is($r->psql('gbr', 'SELECT name FROM gbr.details WHERE id = 1'), $wait, "$wait: and committed");
		ok($r->poll('usa', 'SELECT count(*) = 0 FROM residency.transaction'), "$wait: the resolver was there");
		$session->quit;
	}
	$r->conf('usa', "residency.resolve_interval = 1s\n");
}

# --- no commit waits for a resolver's transaction that somebody left open ------------------------------------
{
	my $writer = $r->session('usa', on_error_stop => 0);
	my $resolver = $r->session('usa', on_error_stop => 0);

	$r->conf($_, "residency.workers = off\n") foreach $r->regions;
	$r->poll($_, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'residency%' AND backend_type NOT LIKE '%launcher'}) foreach $r->regions;
	$writer->query_safe("SELECT app.add(50, 'gbr', 'one')");
	$resolver->query_safe('BEGIN; SELECT * FROM residency.resolve()');
	$writer->query_safe("SET statement_timeout = '20s'");
	is($writer->query_safe("SELECT app.add(51, 'gbr', 'two')"), '', 'a commit passes over rows that a resolver holds');
	$resolver->query_safe('ROLLBACK');
	$_->quit foreach $writer, $resolver;
	$r->conf($_, "residency.workers = on\n") foreach $r->regions;
}

# --- nothing piles up where nobody waits for COMMIT PREPARED ---------------------------------------------------
{
	my $script = "$PostgreSQL::Test::Utils::tmp_check/add.sql";
	my ($out, $err);

	append_to_file($script, "SELECT nextval('app.n') AS i \\gset\nSELECT app.add(:i::int, 'gbr', 'x');\n");
	local $ENV{PGOPTIONS} = '-c residency.commit_wait=decided';
	IPC::Run::run([ 'pgbench', '-n', '-c', '8', '-t', '100', '-f', $script, '-h', $r->node('usa')->host, '-p', $r->port('usa'), 'app' ], '<', \undef, '>', \$out, '2>', \$err)
	  or die $err;
	local $ENV{PGOPTIONS} = '';
	like($out, qr{actually processed: 800/800}, '800 transactions');
	my @left = map { $r->psql($_, 'SELECT count(*) FROM residency.transaction') } $r->regions;
	cmp_ok($_, '<', 300, "few rows are kept of them (@left)") foreach @left;
}

# --- a backend ends while the lock of all states is held ---------------------------------------------------------
{
	my $session = $r->session('usa', on_error_stop => 0);
	my $from = -s $r->node('usa')->logfile;

	$session->query_safe("SELECT count(*) FROM app.details WHERE region = 'gbr'");
	$r->delay(1000, 'usa', 'gbr');
	$r->arm('usa', 'health_changes:hold');
	$r->relay->away('usa>aus');
	$r->wait_fired('usa', 60);
	$session->quit;
	sleep(1);
	$r->disarm('usa');
	$r->relay->back('usa>aus');
	$r->delay(0);
	ok($r->poll('usa', 'SELECT true'), 'the server lives');
	unlike(slurp_file($r->node('usa')->logfile, $from), qr/PANIC/, 'no process waits for a lock when it ends');
}

# --- decisions are not dropped with the extension ------------------------------------------------------------------
{
	my $session;

	ok($r->poll('usa', q{SELECT count(*) = 0 FROM residency.regions WHERE state <> 'up'}), 'all are up');
	$r->conf('usa', "residency.workers = off\n");
	$session = $r->session('usa', on_error_stop => 0);
	$session->query_safe("SELECT count(*) FROM app.details");
	$r->relay->trap('usa>gbr', 'out', 'cut', 'COMMIT PREPARED');
	$session->query("BEGIN; INSERT INTO public.here VALUES (3); UPDATE app.details SET name = 'kept' WHERE id = 1 AND region = 'gbr'; COMMIT");
	$session->quit;
	$r->relay->away('usa>gbr');
	is($r->prepared('gbr'), 1, 'gbr waits for a decision');
	$r->fails('usa', 'DROP EXTENSION residency CASCADE', '55000', qr/HINT:.*residency\.transactions/, 'the extension is not dropped while it does');
	$r->relay->back('usa>gbr');
	$r->psql('usa', 'DROP EXTENSION residency CASCADE');
	is($r->prepared('gbr'), 0, 'when gbr can be reached, DROP EXTENSION finishes it');
	is($r->psql('gbr', 'SELECT name FROM gbr.details WHERE id = 1'), 'kept', 'as it was decided');
}

done_testing();
