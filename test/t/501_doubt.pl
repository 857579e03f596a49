# A part whose outcome only an unreachable region knows keeps its locks. Nobody waits for
# them without end: readers not at all, writers for residency.doubt_timeout.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 2, conf => "residency.doubt_timeout = '1500ms'\n");
People::make($r);
People::make_function($r);
$r->psql('usa', "SELECT app.add(20, 'gbr', 'one'), app.add(30, 'gbr', 'two'), app.add(40, 'aus', 'three')");

# --- usa dies when it has decided and before gbr knows -----------------------------------------
my $session = $r->session('usa', on_error_stop => 0);
$session->query_safe("SELECT name FROM app.details WHERE region = 'gbr'");
$r->relay->trap('usa>gbr', 'out', 'cut', 'COMMIT PREPARED');
$session->query_until(qr/started/,
	"\\echo started\nBEGIN; UPDATE app.identity SET note = 'in doubt' WHERE id = 20; UPDATE app.details SET name = 'in doubt' WHERE id = 20; COMMIT;\n");
$r->relay->wait_sprung('usa>gbr');
$r->kill9('usa');
eval { $session->quit };
is($r->prepared('gbr'), 1, 'gbr is in doubt');

# ms that something takes
sub ms { my ($what) = @_; my $begin = time; $what->(); return 1000 * (time - $begin); }

# --- at the home -----------------------------------------------------------------------------------
is($r->psql('gbr', "SELECT name FROM app.details WHERE id = 20 AND region = 'gbr'"), 'one', 'readers do not wait');
is($r->psql('gbr', "UPDATE gbr.details SET name = 'changed' WHERE id = 30 RETURNING name"), 'changed', 'other rows of the table are free');
my $took = ms(sub {
	$r->fails('gbr', q{SET residency.doubt_timeout = '700ms'; UPDATE gbr.details SET name = 'later' WHERE id = 20}, '55P03', qr/"usa"/,
		'a statement at the home that waits for the row names the region that knows');
});
ok($took > 690 && $took < 3000, "after residency.doubt_timeout ($took ms)");
$r->fails('gbr', q{SET residency.doubt_timeout = '300ms'; SELECT * FROM gbr.details WHERE id = 20 FOR UPDATE}, '55P03', qr/"usa"/, 'also one that locks the row');
$r->fails('gbr', q{SET residency.doubt_timeout = '300ms'; TRUNCATE gbr.details}, '55P03', qr/"usa"/, 'and one that locks the table');
$r->fails('gbr', q{SET residency.doubt_timeout = '300ms'; DO $$BEGIN UPDATE gbr.details SET name = 'later' WHERE id = 20; END$$}, '55P03', qr/"usa"/, 'and one in a function');
is($r->psql('gbr', q{SET residency.doubt_timeout = '300ms';
	DO $$BEGIN UPDATE gbr.details SET name = 'later' WHERE id = 20; EXCEPTION WHEN lock_not_available THEN PERFORM set_config('app.caught', 'yes', false); END$$;
	SELECT current_setting('app.caught')}), 'yes', 'a function can catch it');
$r->fails('gbr', q{SET residency.doubt_timeout = '300ms'; PREPARE p AS UPDATE gbr.details SET name = 'later' WHERE id = $1; EXECUTE p(20)}, '55P03', qr/"usa"/,
	'also a prepared statement');
$took = ms(sub {
	$r->fails('gbr', q{UPDATE app.identity SET note = 'later' WHERE id = 20}, '55P03', qr/"usa"/,
		'a global row as well, before residency.lock_timeout says less');
});
ok($took < 4000, "in time ($took ms)");
$r->fails('gbr', q{SET lock_timeout = '200ms'; UPDATE gbr.details SET name = 'later' WHERE id = 20}, '55P03', qr/lock timeout/, q{a shorter lock_timeout counts});
$r->fails('gbr', q{SET statement_timeout = '200ms'; UPDATE gbr.details SET name = 'later' WHERE id = 20}, '57014', qr/statement timeout/, q{so does statement_timeout});

# --- at another gateway ------------------------------------------------------------------------------
$took = ms(sub {
	$r->fails('aus', q{UPDATE app.details SET name = 'later' WHERE id = 20}, '55P03', qr/"gbr".*"usa"/s, 'at another gateway it names the home and the region that knows');
});
ok($took > 1400 && $took < 5000, "by the home's own setting ($took ms)");

# --- waits behind a waiter, and waits that are no doubts ------------------------------------------------
{
	my $first = $r->session('gbr', on_error_stop => 0);

	$first->query_until(qr/started/, "\\echo started\nSET residency.doubt_timeout = 0; UPDATE gbr.details SET name = 'first' WHERE id = 20;\n");
	ok($r->poll('gbr', q{SELECT count(*) = 1 FROM pg_locks WHERE NOT granted}), 'one waits without end');
	$r->fails('gbr', q{SET residency.doubt_timeout = '500ms'; UPDATE gbr.details SET name = 'later' WHERE id = 20}, '55P03', qr/"usa"/,
		'one that waits behind it ends');
	$r->psql('gbr', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'});
	$first->query('SELECT 1');
	like($first->{stderr}, qr/canceling statement due to user request/, 'a cancel by hand stays what it is');
	$first->quit;

	my $other = $r->session('gbr');
	$other->query_safe("BEGIN; UPDATE gbr.details SET name = 'other' WHERE id = 30");
	$r->fails('gbr', q{SET residency.doubt_timeout = '200ms'; SET lock_timeout = '1500ms'; UPDATE gbr.details SET name = 'later' WHERE id = 30},
		'55P03', qr/lock timeout/, 'a wait for a running transaction is not ended by it');
	$other->query_safe('ROLLBACK');
	$other->query_safe("BEGIN; UPDATE gbr.details SET name = 'other' WHERE id = 30; PREPARE TRANSACTION 'by hand'");
	$r->fails('gbr', q{SET residency.doubt_timeout = '200ms'; SET lock_timeout = '1500ms'; UPDATE gbr.details SET name = 'later' WHERE id = 30},
		'55P03', qr/lock timeout/, q{nor one for somebody else's prepared transaction});
	$other->query_safe("ROLLBACK PREPARED 'by hand'");
	$other->quit;
	is($r->psql('gbr', q{SET residency.doubt_timeout = '200ms'; SELECT pg_sleep(0.8); UPDATE gbr.details SET name = 'slow' WHERE id = 30 RETURNING (SELECT 'done' FROM pg_sleep(0.5))}), "\ndone",
		'a slow statement that waits for nobody goes on');
}

# --- usa is back ------------------------------------------------------------------------------------------
$r->relay->back('usa>gbr');
$r->start('usa');
$r->psql('usa', 'SELECT * FROM residency.resolve()');
is($r->psql('gbr', "UPDATE gbr.details SET name = name || '!' WHERE id = 20 RETURNING name"), 'in doubt!', 'when the region is back the row is free');

done_testing();
