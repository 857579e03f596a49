# Random queries have the same answer on three regions as on one plain server.
#
#   RESIDENCY_SEED=7                 other queries (default: a fixed seed, printed first)
#   RESIDENCY_QUERIES=100000         more of them
#   RESIDENCY_QUERY=1234             only this number, or several "12 34"; with its plan and answer
#
# A difference prints the number and both answers; the number and the seed make the same query again.
use strict;
use warnings;

use Queries;
use SameAnswer;
use Test::More;

my $seed = $ENV{RESIDENCY_SEED} // 1;
my @numbers = $ENV{RESIDENCY_QUERY} ? split(' ', $ENV{RESIDENCY_QUERY}) : (1 .. ($ENV{RESIDENCY_QUERIES} // 5000));
diag("RESIDENCY_SEED=$seed");

my $tables = Queries->new(seed => $seed)->tables;
my $same = SameAnswer->new($tables);
my $queries = Queries->new(seed => $seed, settings => [ $same->plan_settings ]);

# two processes, so that both cores have work
my @lists = ([], []);
push @{ $lists[ $_ % 2 ] }, $queries->unit($_) foreach @numbers;
diag(join("\n", map { @$_ } @lists)) if $ENV{RESIDENCY_QUERY};

my $outcome = $same->run(@lists);
$same->judge($outcome, name => 'queries', refused => [], share => 0.01);

# that the plans are what this is about
my %nodes = %{ $outcome->{nodes} // {} };
diag(join(', ', map { "$_ $nodes{$_}" } sort { $nodes{$b} <=> $nodes{$a} || $a cmp $b } keys %nodes));
if (@numbers >= 5000)
{
	my %times = ('Foreign Scan' => 2000, 'Custom Scan (Region Lookup)' => 200, 'Custom Scan (Region Aggregate)' => 50, Append => 1000, 'Merge Append' => 100, 'Hash Join' => 200, 'Nested Loop' => 100, 'Merge Join' => 20,
		'Nested Loop Left Join' => 50, 'Hash Left Join' => 50, 'Hash Right Join' => 50, 'Hash Full Join' => 30, 'Hash Semi Join' => 8, 'Hash Anti Join' => 8, 'Nested Loop Semi Join' => 10, 'Nested Loop Anti Join' => 5,
		Aggregate => 100, GroupAggregate => 100, HashAggregate => 50, Unique => 50, WindowAgg => 50, Limit => 200, 'Recursive Union' => 30, 'CTE Scan' => 50, Gather => 20, Memoize => 10);

	cmp_ok($nodes{$_} // 0, '>=', $times{$_}, "plans have this node often enough: $_") foreach sort keys %times;
}

done_testing();
