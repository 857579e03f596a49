# Notes that never end, about a region that its home reaches and another gateway does not, keep
# the home from nothing else: a further region that comes back is noticed, and gets its rows.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use CatchUp;

my $c = CatchUp->new(regions => [qw(usa gbr aus fra)], delay => 30);
my $r = $c->r;

# rows written at gbr have their home at usa, which notes them for aus
$c->cut('gbr', 'aus');
$c->start_writers('gbr', 6, 0);
$c->at_work('gbr does not reach aus, and writes');
ok($c->until(20, sub { $r->psql('usa', q{SELECT shipped > 10 FROM residency.catch_up WHERE region = 'aus' AND state = 'up'}) eq 't' }), 'usa ships that, and has aus up');
$c->cut('usa', 'fra');
$r->psql('usa', q{INSERT INTO app.mail VALUES (1, 'usa', 'x', 'missed by fra')});
$c->mend('usa', 'fra');
my $start = time;
ok($c->until(20, sub { $r->psql('fra', 'SELECT count(*) FROM app.mail') == 1 }), 'fra comes back to usa, and gets its row');
ok($c->until(20, sub { $c->is_now('usa', 'fra', 'up') }), 'and is up') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
note(sprintf('after %.1f s', time - $start));
$c->at_work('while gbr writes');
cmp_ok($r->psql('usa', q{SELECT extract(epoch FROM clock_timestamp() - last_batch) FROM residency.catch_up WHERE region = 'aus'}), '<', 5, 'and usa ships');
$c->stop_writers;
$c->mend('gbr', 'aus');
ok($c->until(60, sub { $c->all_up }), 'all are up in the end');
$c->same('app.item', 'and all copies are equal');

$r->teardown;
done_testing();
