# Transactions at all gateways while servers crash and links are cut: the regions hold what
# the clients were told, and nothing is left.  "make torture" is the same for as long as one
# likes.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Torture;

my $seed = $ENV{TORTURE_SEED} // 1;
my $seconds = ($ENV{TORTURE_MINUTES} // 0.8) * 60;
my $clients = $ENV{TORTURE_CLIENTS} // 6;

my @places = grep { !/^join_/ } slurp_file("$ENV{TESTDIR}/src/fault.h") =~ /^\tPOINT\((\w+), \w+\)/mg;
is(join(' ', Plan->points), join(' ', sort @places), 'every fault point is among those that are drawn, but for those of add_region()');

my $t = Torture->new(seed => $seed, seconds => $seconds, clients => $clients);

$t->run;
note($_) foreach $t->summary;
is(join("\n", $t->violations), '', 'every promise is kept');
cmp_ok($t->share_committed, '>=', 40, 'a fair share of transactions, in per cent, committed meanwhile');
cmp_ok($t->faults_fired, '>', $seconds / 10, 'faults fired');
cmp_ok($t->{alone}{committed}, '>', 0, 'regions went on alone');
cmp_ok($t->{noted}, '>', 0, 'rows were noted for regions that were away');
cmp_ok($t->{shipped}, '>', 0, 'and shipped');
done_testing();
