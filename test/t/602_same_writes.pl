# Random writes, in and out of transactions, leave the same rows on three regions as on one plain server.
#
#   RESIDENCY_SEED=7                 other writes (default: a fixed seed, printed first)
#   RESIDENCY_UNITS=10000            more of them; a unit is a transaction or a few statements
#   RESIDENCY_UNIT=1234              only this number, or several "12 34"
use strict;
use warnings;

use QueryWrites;
use SameAnswer;
use Test::More;

my $seed = $ENV{RESIDENCY_SEED} // 1;
my @numbers = $ENV{RESIDENCY_UNIT} ? split(' ', $ENV{RESIDENCY_UNIT}) : (1 .. ($ENV{RESIDENCY_UNITS} // 300));
diag("RESIDENCY_SEED=$seed");

my $same = SameAnswer->new(Queries->new(seed => $seed)->tables);
my $writes = QueryWrites->new(seed => $seed, settings => [ $same->plan_settings ]);
my @lines = map { $writes->unit($_) } @numbers;
diag(join("\n", @lines)) if $ENV{RESIDENCY_UNIT};

# what docs/limits.md says is not supported
my @refused = (qr/^cannot change the region of a row/, qr/^ON CONFLICT on table "\w+" cannot name a constraint or update rows/, qr/^cannot execute MERGE on relation "detail"/);
my $outcome = $same->run(\@lines);

$same->judge($outcome, name => 'writes', refused => \@refused, errors => 0.3);
done_testing();
