# A region's address leads to a standby for a while: a standby shows nothing of what is prepared on its
# primary, so it is not taken for the region.  And what the synchronous standby must have is waited for in
# every session of a gateway, whatever it did before, and wherever the WAL ends.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new(faults => 1, conf => "wal_level = replica\nmax_wal_senders = 10\n");
People::make($r);
People::make_function($r);

my $primary = $r->node('gbr');
my $standby = PostgreSQL::Test::Cluster->new('gbr_standby', install_path => $ENV{RESIDENCY_FAULTS});
$primary->append_conf('pg_hba.conf', 'local replication all trust');
$primary->reload;
$primary->backup('base');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
my $of_primary = $primary->port;
my $of_standby = $standby->port;

# --- what a rollback must not take back -----------------------------------------------------------------
$r->conf('gbr', "synchronous_commit = off\n");
$r->psql('gbr', q{CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := current_setting('synchronous_commit'); RETURN NEW; END $$;
	CREATE TRIGGER note BEFORE INSERT ON gbr.details FOR EACH ROW EXECUTE FUNCTION app.note()});
my $session = $r->session('usa', on_error_stop => 0);
$session->query(q{BEGIN; SELECT count(*) FROM app.details WHERE region = 'gbr'; ROLLBACK});
$session->query(q{SELECT app.add(1, 'gbr', '')});
is($r->psql('gbr', 'SELECT name FROM gbr.details WHERE id = 1'), 'on', "a gateway's session waits for the disk, also if its first transaction was rolled back");
$r->conf('gbr', "synchronous_commit = local\n");
$session->query(q{SELECT app.add(2, 'gbr', '')});
is($r->psql('gbr', 'SELECT name FROM gbr.details WHERE id = 2'), 'on', '... and if the setting changes meanwhile');
$r->conf('gbr', "synchronous_commit = on\n");

# --- a standby is not the region ----------------------------------------------------------------------
$r->arm('usa', 'decided:crash_backend');
eval { $session->query(q{SELECT app.add(10, 'gbr', 'one'), app.add(11, 'aus', 'two')}) };
$r->revive('usa');
$r->disarm('usa');
is($r->prepared('gbr') + $r->prepared('aus'), 2, 'decided, and nobody is told');
my $gid = $r->psql('gbr', 'SELECT gid FROM pg_prepared_xacts');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
$r->psql('usa', "ALTER SERVER gbr OPTIONS (SET port '$of_standby')");
$r->fails('usa', q{SELECT count(*) FROM app.details WHERE region = 'gbr'}, '08\w{3}', qr/is a standby.*HINT:.*target_session_attrs/s, 'its standby is refused');
like($r->psql('usa', 'SELECT region, action FROM residency.resolve()'), qr/^gbr\|not reached/m, 'the resolver has not reached the region either');
is($r->prepared('aus'), 0, 'aus has its part');
is($r->psql('usa', q{SELECT count(*) FROM residency.transaction WHERE '} . $gid . q{' = ANY (gids)}), 1, 'the decision is kept for gbr');
$r->psql('usa', "ALTER SERVER gbr OPTIONS (SET port '$of_primary')");
$r->psql('usa', 'SELECT * FROM residency.resolve()');
is($r->prepared, 0, 'the primary is told');
is(join(' ', map { $r->psql($_, 'SELECT count(*) FROM app.identity WHERE id IN (10, 11)') } $r->regions), '2 2 2', 'committed everywhere');

# --- the WAL ends where a page does: what comes next is behind a header that nobody has written -----------
$r->conf('gbr', "synchronous_standby_names = '*'\n");
$r->poll('gbr', q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
is($r->psql('gbr', q{
	SET synchronous_commit = off;
	DO $$
	DECLARE room int;
	BEGIN
		FOR i IN 1 .. 2000 LOOP
			room := 8192 - (pg_current_wal_insert_lsn() - '0/0')::int8 % 8192;
			EXIT WHEN room = 8192 - 24;
			PERFORM pg_logical_emit_message(false, '', repeat('x', CASE WHEN room > 1000 THEN room - 600 WHEN room > 120 THEN room - 120 + i % 64 ELSE 8 * (i % 8) END));
		END LOOP;
	END $$;
	SELECT (pg_current_wal_insert_lsn() - '0/0')::int8 % 8192, residency.replicated_here()}), '24|t', 'all is on the standby, and that is known');

done_testing();
