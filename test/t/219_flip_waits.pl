# A transaction that left a region out and does not end keeps the region from being up, and nobody
# from writing: the worker does not ask for the lock again and again while others queue behind it.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use CatchUp;

my $c = CatchUp->new(regions => [qw(usa aus)]);
my $r = $c->r;
my $open = $r->session('usa');
my $writer = $r->session('usa');

$c->cut('usa', 'aus');
$open->query_safe(q{BEGIN; INSERT INTO app.item VALUES (1, 'usa', 'not over')});
$c->mend('usa', 'aus');
ok($c->until(30, sub { $c->is_now('usa', 'aus', 'catching up') }), 'aus is back');

my ($writes, $slow, $id) = (0, 0, 1000);
my $end = time + 12;
while (time < $end)
{
	my $start = time;

	$id++;
	$writer->query_safe("INSERT INTO app.item VALUES ($id, 'usa', 'w')");
	$writes++;
	$slow++ if time - $start > 0.15;
	sleep(0.01);
}
note("$slow of $writes writes have waited");
cmp_ok($writes, '>', 100, 'writes go on');
cmp_ok($slow, '<=', 4, 'and have waited for the worker no more than once or twice');
ok($c->is_now('usa', 'aus', 'catching up'), 'aus is not up, as one transaction that has left it out is open');
is($r->psql('aus', 'SELECT count(*) FROM app.item WHERE id = 1'), 0, 'and has not got its row');
$open->query_safe('COMMIT');
ok($c->until(5, sub { $c->is_now('usa', 'aus', 'up') }), 'when it is over, aus is up within seconds');
ok($c->until(10, sub { $c->all_up }), 'all are');
$c->same('app.item', 'with all rows');
$_->quit foreach $open, $writer;

$r->teardown;
done_testing();
