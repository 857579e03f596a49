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
my $seconds = ($ENV{TORTURE_MINUTES} // 0.6) * 60;
my $clients = $ENV{TORTURE_CLIENTS} // 6;

my $t = Torture->new(seed => $seed, seconds => $seconds, clients => $clients);

$t->run;
note($_) foreach $t->summary;
is(join("\n", $t->violations), '', 'every promise is kept');
cmp_ok($t->{told}{committed} // 0, '>', 20, 'transactions were committed meanwhile');
cmp_ok($t->{injected}{fault} // 0, '>', 0, 'and faults injected');
done_testing();
