# A transaction commits in every region that it wrote in, or in none; and each way to
# commit waits for no more round trips than the protocol says.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 20);
People::make($r);
People::make_function($r);
my $id = 100;
my $leftovers = q{SELECT count(*) FROM pg_prepared_xacts};

# --- who wrote where decides how it is committed -----------------------------------
$r->warm('usa', 'SELECT count(*) FROM app.details', q{SET residency.commit_wait = applied});
is($r->round_trips('usa', 'SELECT count(*) FROM app.details'), 1, 'a read of all regions: one round trip');
is($r->round_trips('usa', q{INSERT INTO app.identity VALUES (1, 'usa', 'x')}), 2,
	'a global row: prepared in one round trip, applied in one');
is($r->round_trips('usa', q{SELECT app.add(2, 'gbr', 'Ann')}), 2, 'identity and details at another home: two as well');
is($r->round_trips('usa', q{SELECT app.add(3, 'usa', 'Bob'), app.add(4, 'gbr', 'Cy'), app.add(5, 'aus', 'Di')}), 2,
	'three people in three regions: two');
is($r->round_trips('usa', q{UPDATE app.details SET name = 'Anna' WHERE id = 2 AND region = 'gbr'}), 2,
	'one row of one other region: its count, and the commit of that region alone');
$r->warm('usa', q{SET residency.commit_wait = decided});
is($r->round_trips('usa', q{SELECT app.add(6, 'gbr', 'Ed'), app.add(7, 'aus', 'Flo')}), 1,
	'decided: the second round trip is not waited for');
is($r->round_trips('usa', q{SELECT name FROM app.details WHERE id = 6 AND region = 'gbr'}), 1,
	'and the same session sees it at once');
$r->warm('usa', 'RESET residency.commit_wait');

# in a block the statement's own end asks, the commit does the rest
$r->warm('usa', 'BEGIN');
is($r->round_trips('usa', q{SELECT app.add(8, 'gbr', 'Gil')}), 1, 'in a block a write is awaited when its statement ends');
is($r->round_trips('usa', q{SELECT name FROM app.details WHERE id = 8 AND region = 'gbr'}), 1, 'a read in it');
is($r->round_trips('usa', 'COMMIT'), 2, 'COMMIT: prepare and apply');

is($r->psql('gbr', 'SELECT string_agg(name, \',\' ORDER BY id) FROM gbr.details'), 'Anna,Cy,Ed,Gil', 'details are at their home');
$r->all_equal('SELECT string_agg(id || region, \',\' ORDER BY id) FROM app.identity', 'identities are everywhere');

# --- all or nothing ----------------------------------------------------------------
foreach my $gateway ($r->regions)
{
	$id++;
	$r->fails($gateway, "SELECT app.add($id, 'gbr', 'one'), app.add($id + 100, 'aus', 'two'), app.add($id, 'aus', 'again')",
		'23505', qr/identity/, "at $gateway: a duplicate undoes all");
	is($r->disagreement("SELECT count(*) FROM app.identity WHERE id IN ($id, $id + 100)"), '', 'in every region');
	is($r->psql('usa', "SELECT count(*) FROM app.details WHERE id IN ($id, $id + 100)"), '0', 'details too');
}
# details without an identity: the home's constraint, in the statement that did it
$r->fails('usa', q{INSERT INTO app.details VALUES (999, 'gbr', 'nobody')}, '23503', qr/gbr.*residency_home/s,
	'details need an identity, at the latest when they are prepared');
$r->fails('usa', q{BEGIN; INSERT INTO app.details VALUES (999, 'gbr', 'nobody'); SELECT 1; COMMIT}, '23503', qr/gbr.*residency_home/s,
	'in a block too');
{
	my ($code, $out, $err) = $r->try('usa', q{BEGIN; INSERT INTO app.details VALUES (999, 'gbr', 'nobody')}, on_error_stop => 1);
	isnt($code, 0, 'namely in that statement');
	unlike($err, qr/nobody|999/, 'without its values');
}

foreach my $home (qw(usa gbr))
{
	my ($code, $out, $err) = $r->try('usa', "BEGIN; INSERT INTO app.details VALUES (999, '$home', 'nobody'); SELECT 'came here'");
	ok($code != 0 && $out !~ /came here/, "the error comes with the statement, also at home ($home)");
	is($r->psql('usa', "BEGIN; WITH d AS (INSERT INTO app.details VALUES (998, '$home', 'x')) INSERT INTO app.identity VALUES (998, '$home'); ROLLBACK; SELECT 'fine'"),
		'fine', "but the order within a statement is free ($home)");
}

# --- a participant that cannot prepare ----------------------------------------------
$r->psql('aus', 'ALTER SYSTEM SET max_prepared_transactions = 1');
$r->restart('aus');
{
	my $blocker = $r->session('aus');
	$blocker->query_safe(q{BEGIN});
	$blocker->query_safe(q{CREATE TABLE public.other (i int)});
	$blocker->query_safe(q{PREPARE TRANSACTION 'somebody else'});
	$blocker->quit;
}
$id = 500;
$r->fails('usa', "SELECT app.add($id, 'gbr', 'Hal'), app.add($id + 1, 'aus', 'Ida')", '53200', qr/region "aus".*prepared/s,
	'a region without room for a prepared transaction: clear error');
is($r->psql($_, "SELECT count(*) FROM app.identity WHERE id >= $id"), '0', "nothing is left in $_") foreach $r->regions;
is($r->psql('gbr', $leftovers), '0', 'and what gbr had prepared is rolled back');
$r->psql('aus', q{ROLLBACK PREPARED 'somebody else'});
$r->psql('aus', 'ALTER SYSTEM RESET max_prepared_transactions');
$r->restart('aus');

# --- what cannot be committed over regions is refused ---------------------------------
$r->fails('usa', "BEGIN; SELECT app.add($id, 'gbr', 'Jo'); PREPARE TRANSACTION 'mine'", '0A000', qr/cannot PREPARE.*gbr/s,
	'PREPARE TRANSACTION by a client');
$r->fails('usa', 'BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM app.details', '0A000', qr/SERIALIZABLE/,
	'SERIALIZABLE over a border');
is($r->psql('usa', q{BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT name FROM app.details WHERE region = 'usa' AND id = 3; COMMIT}), 'Bob',
	'SERIALIZABLE within one region');

# --- a lost answer to a lone COMMIT ---------------------------------------------------
{
	my $session = $r->warm('usa', q{SELECT count(*) FROM app.details WHERE region = 'gbr'});
	$r->relay->waited(sub { });    # the answer to that read's own COMMIT is not meant
	$r->relay->trap('usa>gbr', 'in', 'cut', "COMMIT\0");
	$session->{stderr} = '';
	$session->query(q{\set VERBOSITY verbose});
	$session->query(q{UPDATE app.details SET name = 'Annie' WHERE id = 2 AND region = 'gbr'});
	like($session->{stderr}, qr/ERROR:  08007: .*gbr/, 'outcome unknown: 08007, and the region');
	is($r->psql('gbr', 'SELECT name FROM gbr.details WHERE id = 2'), 'Annie', 'it had committed there');
}

# --- an idle connection that was closed is replaced silently ---------------------------
{
	my $session = $r->session('usa', on_error_stop => 0);
	is($session->query_safe(q{SELECT name FROM app.details WHERE id = 2 AND region = 'gbr'}), 'Annie', 'connected');
	$r->restart('gbr');
	is($session->query_safe(q{SELECT name FROM app.details WHERE id = 2 AND region = 'gbr'}), 'Annie', 'the server was restarted: asked again');
	$r->relay->cut('usa>gbr');
	is($session->query_safe(q{SELECT name FROM app.details WHERE id = 2 AND region = 'gbr'}), 'Annie', 'the link was cut while idle: asked again');
	$session->query_safe('BEGIN');
	$session->query_safe(q{SELECT name FROM app.details WHERE id = 2 AND region = 'gbr'});
	$r->relay->cut('usa>gbr');
	my $out = $session->query(q{SELECT name FROM app.details WHERE id = 2 AND region = 'gbr'});
	like($session->{stderr}, qr/ERROR.*gbr/, 'in the middle of a transaction it is an error');
	$session->quit;
}

# --- one region fails while another is blocked: caught, cancelled there, and gone on with ---
{
	my $blocker = $r->session('aus');
	$blocker->query_safe(q{BEGIN});
	$blocker->query_safe(q{SET LOCAL session_replication_role = replica});    # it has no identity
	$blocker->query_safe(q{INSERT INTO aus.details VALUES (900, 'aus', 'blocks')});
	my $out = $r->psql('usa', q{
		SET statement_timeout = '20s';
		SELECT count(*) FROM app.details WHERE id = 7;
		DO $$ BEGIN
			FOR i IN 1..5 LOOP
				BEGIN
					INSERT INTO app.details VALUES (2, 'gbr', 'again'), (900, 'aus', 'blocked');
				EXCEPTION WHEN unique_violation THEN NULL;
				END;
				UPDATE app.details SET name = 'round ' || i WHERE id = 7;
			END LOOP;
		END $$;
		SELECT name FROM app.details WHERE id = 7});
	is($out, "1\nround 5", 'the blocked statement is cancelled, and nothing after it');
	$blocker->query_safe('ROLLBACK');
	$blocker->quit;
	is($r->psql('aus', 'SELECT name FROM aus.details WHERE id = 7'), 'round 5', 'and the rest is committed');
}

# --- nothing is left behind ------------------------------------------------------------
is($r->prepared, 0, 'no prepared transaction');
$r->psql($_, 'SELECT * FROM residency.resolve()') foreach $r->regions;
is($r->psql($_, 'SELECT count(*) FROM residency.transaction'), '0', "no decision row or trace in $_ after resolve()")
	foreach $r->regions;

done_testing();
