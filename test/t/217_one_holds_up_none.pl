# One row, one table or one region that cannot be served holds up no other: rows that a region
# refuses for whatever reason end in residency.conflicts, tables that are locked wait, and a
# region with a large backlog, or one that hangs, only gets its turn.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use CatchUp;

# without senders of WAL nobody would wait for a synchronous standby
my $c = CatchUp->new(conf => "residency.conflict_retry = 8s\nresidency.ship_timeout = 4s\nwal_level = replica\nmax_wal_senders = 2\n", tables => join(' ', map { "CREATE TABLE app.$_ (id int PRIMARY KEY, region text NOT NULL, note text);" } qw(picky gone odd busy)));
my $r = $c->r;

sub conflicts
{
	my ($region) = @_;
	return $r->psql($region, q{SELECT coalesce(string_agg(concat_ws(' ', relation, key, kind, home, region, left(row::text, 60)), ', ' ORDER BY relation::text, key), '') FROM residency.conflicts});
}

# --- rows and tables --------------------------------------------------------------------------------
# in aus alone: values that are too long for an index, a trigger with a code of its own, a check that
# fails within, a table that is missing, another that has a column more
$c->cut('aus');
$r->psql('aus', q{CREATE INDEX ON app.item (note)});
$r->psql('aus', q{CREATE FUNCTION app.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	IF NEW.id = 1 THEN RAISE 'own' USING ERRCODE = 'ZZ123'; ELSIF NEW.id = 2 THEN RAISE 'not supported' USING ERRCODE = '0A000'; ELSIF NEW.id = 3 THEN RAISE 'bug' USING ERRCODE = 'XX000'; END IF;
	RETURN NEW; END $$});
$r->psql('aus', q{CREATE TRIGGER refuse BEFORE INSERT ON app.picky FOR EACH ROW EXECUTE FUNCTION app.refuse(); ALTER TABLE app.picky ENABLE ALWAYS TRIGGER refuse});
$r->psql('aus', q{ALTER TABLE app.gone RENAME TO gone_away});
$r->psql('aus', q{ALTER TABLE app.odd ADD more int});
$r->psql('usa', q{INSERT INTO app.gone VALUES (1, 'usa', 'no table')});
$r->psql('usa', q{INSERT INTO app.odd VALUES (1, 'usa', 'no column')});
$r->psql('usa', q{INSERT INTO app.item SELECT 1, 'usa', string_agg(md5(n::text), '') FROM generate_series(1, 400) n});
$r->psql('usa', q{INSERT INTO app.picky SELECT n, 'usa', 'n' || n FROM generate_series(1, 5) n});
$r->psql('usa', q{INSERT INTO app.item SELECT n, 'usa', 'ok' FROM generate_series(2, 50) n});
$r->psql('usa', q{INSERT INTO app.mail VALUES (1, 'usa', 'last', '')});
$c->mend('aus');
ok($c->until(40, sub { $c->is_now('usa', 'aus', 'up') }), 'aus is up again') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
is($r->psql('aus', q{SELECT (SELECT count(*) FROM app.item) || ' ' || (SELECT string_agg(id::text, '') FROM app.picky) || ' ' || (SELECT count(*) FROM app.mail)}), '49 45 1', 'with all that it can take');
my $long = '{"id": 1, "note": "' . substr($r->psql('usa', 'SELECT note FROM app.item WHERE id = 1'), 0, 60 - 19);
my $said = join(', ', 'app.gone {1} other usa aus {"id": 1, "note": "no table", "region": "usa"}', "app.item {1} other usa aus $long",
	'app.odd {1} other usa aus {"id": 1, "note": "no column", "region": "usa"}', map { qq(app.picky {$_} other usa aus {"id": $_, "note": "n$_", "region": "usa"}) } 1 .. 3);
is(conflicts('usa'), $said, 'the others are conflicts, whole');
is(conflicts('aus'), $said =~ s/app\.(gone|odd) .*?\}, //gr, 'in aus too, but for tables that it does not know so');
is($r->psql('usa', q{SELECT notes FROM residency.catch_up WHERE region = 'aus'}), 0, 'and no note is left');

$r->psql('aus', q{DROP INDEX app.item_note_idx; DROP TRIGGER refuse ON app.picky; ALTER TABLE app.gone_away RENAME TO gone; ALTER TABLE app.odd DROP more});
ok($c->until(60, sub { conflicts('usa') . conflicts('aus') eq '' }), 'when the causes are gone, so are the conflicts') or diag conflicts('usa') . ' / ' . conflicts('aus');
ok($c->until(10, sub { $c->all_up }), 'and nothing is left');
$c->same("app.$_", "all copies of $_ are equal") foreach qw(item picky gone odd mail);

# --- tables that are locked, at one end or the other ---------------------------------------------------------
foreach my $place (qw(aus usa))
{
	$c->cut('aus');
	$r->psql('usa', "UPDATE app.busy SET note = 'at $place'; INSERT INTO app.busy VALUES (length('$place') + ascii('$place'), 'usa', 'at $place')");
	$r->psql('usa', "UPDATE app.item SET note = 'at $place' WHERE id > 1");
	my $lock = $r->session($place);
	$lock->query_safe('BEGIN; LOCK TABLE app.busy');
	$c->mend('aus');
	ok($c->until(30, sub { $r->psql('aus', "SELECT count(*) FROM app.item WHERE note = 'at $place'") == 49 }), "a table is locked in $place: the others arrive");
	cmp_ok($r->psql('usa', q{SELECT count(*) FROM residency.backlog WHERE relation = 'app.busy'::regclass}), '>', 0, 'its own rows wait');
	is(conflicts('usa') . conflicts('aus'), '', 'and are no conflicts');
	$lock->query_safe('COMMIT');
	$lock->quit;
	ok($c->until(30, sub { $c->all_up }), 'until the lock is gone');
	$c->same("app.$_", "all copies of $_ are equal") foreach qw(item busy);
}

# --- a large backlog -----------------------------------------------------------------------------------------
$c->cut('aus');
$r->delay(100, 'usa', 'aus');
$r->psql('usa', q{INSERT INTO app.item SELECT n, 'usa', 'many' FROM generate_series(100001, 180000) n});
$c->cut('usa', 'gbr');
$r->psql('usa', q{INSERT INTO app.mail VALUES (2, 'usa', 'one', '')});
$c->mend('aus', 'usa');
ok($c->until(60, sub { $r->psql('usa', q{SELECT notes < 80000 FROM residency.catch_up WHERE region = 'aus'}) eq 't' }), 'a large backlog is being shipped to aus');
$c->mend('usa', 'gbr');
ok($c->until(60, sub { $r->psql('gbr', 'SELECT count(*) FROM app.mail WHERE id = 2') == 1 }), 'gbr comes back and gets its row');
cmp_ok($r->psql('usa', q{SELECT notes FROM residency.catch_up WHERE region = 'aus'}), '>', 5000, 'long before aus has all');
ok($c->until(30, sub { $c->is_now('usa', 'gbr', 'up') }), 'and is up');
$r->delay(2);
$c->mend('aus');
ok($c->until(120, sub { $c->all_up }), 'all are in the end');
$c->same('app.item', 'with all rows');

# --- a region that answers, but never prepares ----------------------------------------------------------------
$c->cut('gbr');
$r->psql('usa', q{INSERT INTO app.mail VALUES (3, 'usa', 'for gbr', '')});
$r->conf('gbr', "synchronous_standby_names = 'nobody'");
$r->poll('gbr', q{SELECT current_setting('synchronous_standby_names') = 'nobody'});
$c->mend('gbr');
ok($r->poll('gbr', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query ~ 'PREPARE TRANSACTION'}), 'gbr hangs while it prepares');
$c->cut('aus', 'usa');
$r->psql('usa', q{INSERT INTO app.mail VALUES (4, 'usa', 'for aus', '')});
$c->mend('aus', 'usa');
my $start = time;
ok($c->until(45, sub { $r->psql('aus', 'SELECT count(*) FROM app.mail WHERE id = 4') == 1 && $c->is_now('usa', 'aus', 'up') }), 'aus comes back and gets its row, and is up');
note(sprintf('after %.1f s', time - $start));
ok(!$c->is_now('usa', 'gbr', 'up'), 'while gbr is not');
ok($c->until(30, sub { $r->psql('usa', q{SELECT coalesce(last_error, '') FROM residency.catch_up WHERE region = 'gbr'}) =~ /given up after \d+ ms/ }), 'and residency.catch_up says why');
$r->conf('gbr', "synchronous_standby_names = ''");
ok($c->until(90, sub { $c->all_up && $r->prepared == 0 }), 'when it prepares again it gets all') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
is($r->psql('usa', q{SELECT count(last_error) FROM residency.catch_up}), 0, 'and no error is told');
$c->same('app.mail', 'all copies are equal');

$r->teardown;
done_testing();
