# Changes of global tables go on while a region is away: they leave it out, and each row's
# home, nobody else, notes what it has not got.  Writers pay no round trip for that.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use Regions;

my $r = Regions->new(relay => 1, delay => 5);
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE SCHEMA app;
	CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text);
	CREATE TABLE app.pair (a text, b numeric, region text NOT NULL, note text, PRIMARY KEY (b, a));
$$)});
$r->psql('usa', qq{SELECT residency.make_global('app.$_', 'region')}) foreach qw(item pair);

# what a region has noted: "region table key", in the order of the changes
sub noted
{
	my ($region) = @_;
	return $r->psql($region, q{SELECT coalesce(string_agg(region || ' ' || relation::regclass || ' ' || key, ', ' ORDER BY seq), '') FROM residency.backlog});
}

# how another region looks from one
sub state
{
	my ($here, $there, $state) = @_;
	$r->psql($here, "SELECT residency.set_region_state('$there', '$state')");
	return;
}

sub forget { $r->psql($_, 'DELETE FROM residency.backlog') foreach $r->regions; return; }

# --- what a writer pays -----------------------------------------------------------------
my %with;
$r->psql('usa', q{INSERT INTO app.item VALUES (1, 'usa', 'x'), (2, 'gbr', 'x'), (3, 'aus', 'x')});
$r->warm('usa', q{UPDATE app.item SET note = 'warm'}) foreach 1 .. 2;
foreach my $id (1, 2)
{
	$with{$id} = $r->round_trips('usa', "UPDATE app.item SET note = 'all' WHERE id = $id");
	$with{"block $id"} = $r->round_trips('usa', "BEGIN; UPDATE app.item SET note = 'all' WHERE id = $id; COMMIT");
}
is(noted('usa') . noted('gbr') . noted('aus'), '', 'nothing is noted while all are up');

$r->away('aus');
state($_, 'aus', 'away') foreach qw(usa gbr);
foreach my $id (1, 2)
{
	is($r->round_trips('usa', "UPDATE app.item SET note = 'two' WHERE id = $id"), $with{$id}, "row $id: as many round trips as with all regions");
	is($r->round_trips('usa', "BEGIN; UPDATE app.item SET note = 'one' WHERE id = $id; COMMIT"), $with{"block $id"}, "row $id: in a block too");
}
is(noted('usa'), 'aus app.item 1:1', 'the gateway has noted the row that has its home here, once');
is(noted('gbr'), 'aus app.item 1:2', 'the other home has noted its row');
is($r->psql('gbr', 'SELECT string_agg(note, $$ $$) FROM app.item WHERE id < 3'), 'one one', 'the region that is up has them');

# --- what cannot be written ----------------------------------------------------------------
my $start = time;
$r->fails('usa', q{UPDATE app.item SET note = 'y' WHERE id = 3}, '08001', qr/region "aus" is away/, 'a row whose home is away cannot be written');
$r->fails('usa', q{INSERT INTO app.item VALUES (4, 'aus', 'y')}, '08001', qr/"aus".*app\.item|"aus".*item/s, 'nor made');
$r->fails('gbr', q{DELETE FROM app.item WHERE id = 3}, '08001', qr/"aus"/, 'nor deleted');
$r->fails('usa', q{TRUNCATE app.item}, '08001', qr/"aus"/, 'TRUNCATE needs every region');
$r->fails('usa', q{UPDATE app.item SET region = 'gbr' WHERE id = 1}, '08001', qr/home of a row.*"aus"/, 'a row keeps its home meanwhile');
$r->fails('usa', q{SELECT residency.run_everywhere('CREATE TABLE app.t ()')}, '08...', qr/"aus"/, 'DDL needs every region');
cmp_ok(time - $start, '<', 4, 'and all that at once');
is($r->psql('usa', q{SELECT count(*) FROM app.item}) . noted('usa') . noted('gbr'), '3aus app.item 1:1aus app.item 1:2', 'what failed has left nothing');

# --- notes belong to the transaction -----------------------------------------------------------
forget();
$r->psql('usa', q{BEGIN; INSERT INTO app.item VALUES (10, 'usa', 'x'), (11, 'gbr', 'x'); ROLLBACK});
is(noted('usa') . noted('gbr'), '', 'rolled back: nothing is noted');
$r->psql('usa', q{BEGIN; INSERT INTO app.item VALUES (10, 'usa', 'x'); SAVEPOINT a; INSERT INTO app.item VALUES (11, 'gbr', 'x'), (12, 'usa', 'x'); ROLLBACK TO a;
	INSERT INTO app.item VALUES (13, 'gbr', 'x'); COMMIT});
is(noted('usa') . '; ' . noted('gbr'), 'aus app.item 2:10; aus app.item 2:13', 'a subtransaction takes its notes with it');

# --- each kind of change, at either gateway ---------------------------------------------------
foreach my $gateway (qw(usa gbr))
{
	my $id = $gateway eq 'usa' ? 20 : 30;

	forget();
	$r->psql($gateway, "INSERT INTO app.item VALUES ($id, 'usa', 'x'), ($id + 1, 'gbr', 'x')");
	is(noted('usa') . '; ' . noted('gbr'), "aus app.item 2:$id; aus app.item 2:" . ($id + 1), "$gateway: INSERT");
	forget();
	$r->psql($gateway, "UPDATE app.item SET id = id + 5 WHERE id IN ($id, $id + 1)");
	is(join(' ', sort(split(/, /, noted('usa')))) . '; ' . join(' ', sort(split(/, /, noted('gbr')))),
		"aus app.item 2:$id aus app.item 2:" . ($id + 5) . '; aus app.item 2:' . ($id + 1) . ' aus app.item 2:' . ($id + 6), "$gateway: a changed key is two keys");
	forget();
	$r->psql($gateway, "DELETE FROM app.item WHERE id IN ($id + 5, $id + 6)");
	is(noted('usa') . '; ' . noted('gbr'), 'aus app.item 2:' . ($id + 5) . '; aus app.item 2:' . ($id + 6), "$gateway: DELETE");
	forget();
	$r->psql($gateway, "COPY app.pair FROM STDIN;\nx$gateway\t1.50\tusa\tz\ny:$gateway\t2\tgbr\tz\n\\.\n");
	is(noted('usa') . '; ' . noted('gbr'), "aus app.pair 4:1.504:x$gateway; aus app.pair 1:25:y:$gateway", "$gateway: keys of two columns");
}
forget();
$r->psql('usa', q{INSERT INTO app.item SELECT n, 'gbr', repeat('x', 400) FROM generate_series(1000, 26000) n});
is($r->psql('gbr', q{SELECT count(*) || ' ' || count(DISTINCT key) FROM residency.backlog}), '25001 25001', 'a statement of several pieces');
is($r->psql('usa', q{SELECT count(*) FROM residency.backlog}), '0', 'only at the home');

# --- all alone ------------------------------------------------------------------------------------
$r->away('usa');
state('usa', 'gbr', 'away');
forget();
is($r->round_trips('usa', q{INSERT INTO app.item VALUES (50, 'usa', 'alone')}), 0, 'with all others away, rows homed here cost no round trip');
is(join(' ', sort(split(/, /, noted('usa')))), 'aus app.item 2:50 gbr app.item 2:50', 'and are noted for both');
$r->fails('usa', q{UPDATE app.item SET note = 'z' WHERE id = 2}, '08001', qr/"gbr" is away/, 'others are refused');

# --- a region that is catching up ------------------------------------------------------------------
$r->back($_) foreach qw(usa aus);
state($_->[0], $_->[1], 'catching up') foreach [qw(usa aus)], [qw(usa gbr)];
state('gbr', 'aus', 'up');
forget();
$r->psql('usa', q{UPDATE app.item SET note = 'home decides' WHERE id = 3});
is($r->psql('aus', 'SELECT note FROM app.item WHERE id = 3'), 'home decides', 'a region that is catching up decides about its own rows');
is(noted('usa') . '; ' . noted('gbr') . '; ' . noted('aus'), '; ; gbr app.item 1:3', 'and notes them for another one');
$r->psql('usa', q{UPDATE app.item SET note = 'later' WHERE id = 1});
is($r->psql('aus', 'SELECT note FROM app.item WHERE id = 1'), 'all', 'but gets no rows of others');
$r->fails('usa', q{TRUNCATE app.item}, '08001', qr/"(aus|gbr)"/, 'nor is it complete enough for TRUNCATE');
state('usa', $_, 'up') foreach qw(aus gbr);
$r->psql('usa', q{TRUNCATE app.item});
$r->all_equal('SELECT count(*) FROM app.item', 'TRUNCATE works when all are up');

# --- in doubt ------------------------------------------------------------------------------------------
state('usa', 'aus', 'away');
forget();
my $writer = $r->session('usa');
$writer->query_safe(q{BEGIN; INSERT INTO app.item VALUES (60, 'gbr', 'x'), (61, 'usa', 'x')});
is($r->psql($_, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'}), 1, "$_: a writer that leaves a region out holds a lock")
  foreach qw(usa gbr);
$r->relay->trap('usa>gbr', 'out', 'hold_back', 'PREPARE TRANSACTION');
$writer->query_until(qr/committing/, "\\echo committing\nCOMMIT;\n");
$r->relay->wait_sprung('usa>gbr');
$r->poll('gbr', 'SELECT count(*) = 1 FROM pg_prepared_xacts');
is($r->psql('gbr', q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'}), 1, 'which PREPARE keeps');
is(noted('gbr'), '', 'while its note is not seen yet');
$r->relay->resume('usa>gbr');
$writer->query_safe('SELECT 1');
is(noted('gbr'), 'aus app.item 2:60', 'and is seen when it has committed');
is($r->psql('gbr', q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'}), 0, 'with the lock gone');
$writer->quit;
$r->fails('usa', q{SET ROLE pg_monitor; SELECT residency.set_region_state('gbr', 'up')}, '42501', qr/denied/, 'states are for superusers');

$r->teardown;
done_testing();
