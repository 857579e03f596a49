# Notes about one region that never end keep its home from nothing else: a further region that
# comes back is noticed, gets its rows, and is up.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use CatchUp;

my $c = CatchUp->new(regions => [qw(usa aus fra)], delay => 20);
my $r = $c->r;

# a transaction that has left aus out, and does not end, keeps aus from being up
my $open = $r->session('usa', on_error_stop => 0);
$c->cut('usa', 'aus');
$open->query_safe(q{BEGIN; INSERT INTO app.item VALUES (1, 'usa', 'not over')});
$c->cut('usa', 'fra');
$c->start_writers('usa', 3, 0.005);
$c->at_work('usa is alone, and writes');
$c->mend('usa', 'aus');
ok($c->until(30, sub { $r->psql('usa', q{SELECT shipped > 100 FROM residency.catch_up WHERE region = 'aus' AND state = 'catching up'}) eq 't' }), 'aus comes back, and is shipped to');
$r->psql('usa', q{INSERT INTO app.mail VALUES (1, 'usa', 'x', 'missed by fra')});
$c->mend('usa', 'fra');
my $start = time;
ok($c->until(25, sub { $r->psql('fra', 'SELECT count(*) FROM app.mail') == 1 }), 'fra comes back, and gets its row');
ok($c->until(25, sub { $c->is_now('usa', 'fra', 'up') }), 'and is up') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
note(sprintf('after %.1f s', time - $start));
$c->at_work('while usa writes');
ok($c->is_now('usa', 'aus', 'catching up'), 'and aus is still being shipped to');
cmp_ok($r->psql('usa', q{SELECT extract(epoch FROM clock_timestamp() - last_batch) FROM residency.catch_up WHERE region = 'aus'}), '<', 5, 'as ever');
$open->query('ROLLBACK');
ok($c->until(30, sub { $c->is_now('usa', 'aus', 'up') }), 'until nothing is open any more');
$c->at_work('which needs no pause of the writers');
$c->stop_writers;
$open->quit;
ok($c->until(60, sub { $c->all_up }), 'all are up in the end');
$c->same('app.item', 'and all copies are equal');

$r->teardown;
done_testing();
