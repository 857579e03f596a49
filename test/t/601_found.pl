# Statements that once had another answer on three regions than on one server, as small as they
# could be made.  Random queries (600, 602) find them; here they stay found.
use strict;
use warnings;

use Queries;
use SameAnswer;
use Test::More;

# what was wrong => lines of a script for same_answer.c
my @cases = (
	'a lookup that asks again beside parallel workers' => [
		'G0 SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0',
		'S0 SELECT h.k, d.name, e.amount FROM g.detail d RIGHT JOIN g.here h ON d.id = h.person JOIN g.event e ON h.k = e.id' ],
);

my $same = SameAnswer->new(Queries->new(seed => 1)->tables);
my @names;

while (my ($name, $lines) = splice(@cases, 0, 2))
{
	push @names, $name;
	my $outcome = $same->run([ "U0 $name", 'S0 RESET ALL', @$lines ]);
	ok(!$outcome->{broken} && !$outcome->{differences} && !$outcome->{refused}, $name)
	  or diag($outcome->{text}, map { "refused: $_" } keys %{ $outcome->{reasons} // {} });
}

done_testing();
