# Notes at the front that a region refuses, so slowly that no batch of them is done in time, hold up no
# others: a pass that is cut short goes on where it was, and they end in residency.conflicts.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use CatchUp;

my $c = CatchUp->new(regions => [qw(usa aus)], conf => "residency.conflict_retry = '8s'\nresidency.ship_timeout = '2s'\n");
my $r = $c->r;

$c->cut('usa', 'aus');
$r->psql('aus', q{CREATE FUNCTION app.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RAISE 'no' USING ERRCODE = 'ZZ123'; END $$});
$r->psql('aus', q{CREATE TRIGGER refuse BEFORE INSERT ON app.item FOR EACH ROW EXECUTE FUNCTION app.refuse(); ALTER TABLE app.item ENABLE ALWAYS TRIGGER refuse});
$r->psql('usa', q{INSERT INTO app.item SELECT n, 'usa', 'refused' FROM generate_series(1, 60) n});
$r->psql('usa', q{INSERT INTO app.mail VALUES (1, 'usa', 'last', '')});
$c->mend('usa', 'aus');
my $start = time;
ok($c->until(80, sub { $r->psql('aus', 'SELECT count(*) FROM app.mail') == 1 }), 'what is noted behind them arrives') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
note(sprintf('after %.1f s', time - $start));
ok($c->until(120, sub { $r->psql('usa', 'SELECT count(*) FROM residency.conflicts') == 60 }), 'they are conflicts in the end') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
note(sprintf('after %.1f s', time - $start));
ok($c->until(20, sub { $c->is_now('usa', 'aus', 'up') }), 'and aus is up');

# a single row that is never done in time is passed over
$c->cut('usa', 'aus');
$r->psql('aus', q{CREATE OR REPLACE FUNCTION app.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = 101 THEN PERFORM pg_sleep(1000); END IF; RETURN NEW; END $$});
$r->psql('usa', q{INSERT INTO app.item VALUES (101, 'usa', 'hangs'), (102, 'usa', 'fine')});
$c->mend('usa', 'aus');
$start = time;
ok($c->until(80, sub { $r->psql('aus', 'SELECT count(*) FROM app.item WHERE id = 102') == 1 }), 'a row that hangs does not hold up the next one') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
note(sprintf('after %.1f s', time - $start));
$r->psql('aus', 'DROP TRIGGER refuse ON app.item');
ok($c->until(120, sub { $c->all_up && $r->psql('usa', 'SELECT count(*) FROM residency.conflicts') == 0 }), 'when the cause is gone, nothing is left') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
$c->same('app.item', 'and all copies are equal');

$r->teardown;
done_testing();
