# However many rows a region refuses, each is tried a few times before it is given up, and from then on
# only some of them at a time.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use CatchUp;

my $c = CatchUp->new(regions => [qw(usa aus)], conf => "residency.conflict_retry = '12s'\n");
my $r = $c->r;
my $many = 12_000;

sub conflicts { return $r->psql('usa', q{SELECT count(*) FROM residency.conflict WHERE region = 'aus'}); }

# aus refuses all rows, and counts how often
$c->cut('usa', 'aus');
$r->psql('aus', q{CREATE SEQUENCE public.tries; CREATE FUNCTION app.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN PERFORM nextval('public.tries'); RAISE 'no' USING ERRCODE = 'ZZ123'; END $$});
$r->psql('aus', q{CREATE TRIGGER refuse BEFORE INSERT ON app.item FOR EACH ROW EXECUTE FUNCTION app.refuse(); ALTER TABLE app.item ENABLE ALWAYS TRIGGER refuse});
$r->psql('usa', "INSERT INTO app.item SELECT n, 'usa', 'refused' FROM generate_series(1, $many) n");
$c->mend('usa', 'aus');
my $start = time;
ok($c->until(180, sub { conflicts() == $many }), 'very many rows are conflicts') or diag conflicts();
my $tries = $r->psql('aus', 'SELECT last_value FROM public.tries') / $many;
note(sprintf('each was tried %.2f times, in %.1f s', $tries, time - $start));
# at once, four times in its three seconds of patience, 750 ms apart, and once for good
cmp_ok($tries, '<', 6.1, 'after a few attempts, which do not get more with their number');
ok($c->until(20, sub { $c->is_now('usa', 'aus', 'up') }), 'and aus is up');

# --- tried again -----------------------------------------------------------------------------------
my $most = 0;
$c->until(20, sub {
	my $noted = $r->psql('usa', 'SELECT count(*) FROM residency.backlog');
	$most = $noted if $noted > $most;
	return 0;
});
cmp_ok($most, '>', 0, 'they are tried again');
cmp_ok($most, '<=', 1000, 'so many at a time');
is(conflicts(), $many, 'and stay what they are');
$r->psql('aus', 'DROP TRIGGER refuse ON app.item');
# most are forgotten, so that the rest is done with soon
$r->psql('usa', q{DELETE FROM residency.conflict WHERE key COLLATE "C" > '4:'});
my $left = conflicts();
note("$left are left");
ok($c->until(90, sub { conflicts() == 0 }), 'when the cause is gone they are shipped') or diag conflicts();
cmp_ok($r->psql('aus', 'SELECT count(*) FROM app.item'), '>=', $left, 'and are there');
ok($c->until(20, sub { $c->all_up }), 'and nothing is left');

$r->teardown;
done_testing();
