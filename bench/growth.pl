# What grows with the number of regions, and with the number of people; postgres_fdw
# tuned beside it.
#
#   bench/growth.pl [--regions 2,3,6,12] [--people 10000,100000,3000000] [--times 5]
#
# Regions: all stand 80 ms from the gateway, the last one 200 ms; ten people each.  "farthest"
# is the time over the farthest round trip.  People: three regions, 80/200 ms; the five
# keys are given by the client.
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__), dirname(__FILE__) . '/../test/lib';
use Bench qw(add_contenders deployment distance fill keys_table median record say_progress);
use Getopt::Long;
use Regions;
use Test::More ();
use Time::HiRes qw(time);

my %o = (regions => '2,3,6,12', people => '10000,100000,3000000', times => 5);
GetOptions(\%o, 'regions=s', 'people=s', 'times=i') or die "unknown option\n";
Test::More->builder->output('/dev/null');

my @names = qw(usa gbr aus fra deu jpn bra ind can esp ita zaf);
my $r;

# The most trips and the median time of several runs, or the reason why there are none.
sub measured
{
	my ($sql) = @_;
	my (@ms, $trips);
	my $begin = time;

	eval {
		$r->round_trips('usa', $sql);
		while (@ms < $o{times} && (@ms < 1 || time - $begin < 20))
		{
			my ($n, $ms) = $r->round_trips('usa', $sql);

			push @ms, $ms;
			$trips = $n if $n > ($trips // 0);
		}
	};
	return (says => 'fails: ' . ($@ =~ /(?:ERROR|FATAL):\s*(.*)/ ? $1 : $@)) unless @ms;
	return (trips => $trips // 0, ms => sprintf('%.1f', median(@ms)));
}

sub compare
{
	my ($part, $what, $name, $sql) = @_;

	foreach my $c (['residency', 'shared'], ['tuned', 'tuned'])
	{
		record(part => $part, %$what, statement => $name, contender => $c->[0], measured($sql =~ s/\bS\./$c->[1]./gr));
	}
	return;
}

foreach my $n (grep { length } split /,/, $o{regions})
{
	my @regions = @names[ 0 .. $n - 1 ];

	say_progress("$n regions");
	$r = deployment(regions => \@regions);
	add_contenders($r, 'usa', 'tuned');
	$r->warm('usa', sprintf('SELECT * FROM util.generate_identities(1, %d, false)', 10 * $n));
	fill($r, 'usa', 'tuned');
	keys_table($r, 'usa');
	$r->delay(40);
	$r->delay(100, 'usa', $regions[-1]);
	compare('regions', { regions => $n }, 'scan of all', 'SELECT * FROM S.identity_details');
	compare('regions', { regions => $n }, 'lookup of all', 'SELECT * FROM S.identity_details WHERE uuid IN (SELECT uuid FROM bench.key)');
	compare('regions', { regions => $n }, 'count(*) by region', 'SELECT region, count(*) FROM S.identity_details GROUP BY region');
	$r->teardown;
}

my $have = 0;
foreach my $people (grep { length } split /,/, $o{people})
{
	unless ($have)
	{
		$r = deployment();
		add_contenders($r, 'usa', 'tuned');
	}
	$r->delay(0);
	say_progress("$people people");
	for (my $step; $have < $people; $have += $step)
	{
		$step = $people - $have < 100_000 ? $people - $have : 100_000;
		$r->psql('usa', sprintf('SELECT * FROM util.generate_identities(%d, %d, false)', $have + 1, $have + $step));
	}
	fill($r, 'usa', 'tuned');
	my $keys = $r->psql('usa', 'SELECT array_agg(uuid) FROM (SELECT uuid FROM shared.identity OFFSET 1000 LIMIT 5) s');
	distance($r, '80/200');
	my $what = { people => $people };
	compare('people', $what, 'five given keys', "SELECT * FROM S.identity_details WHERE uuid IN (SELECT unnest('$keys'::uuid[]))");
	compare('people', $what, 'five random keys by subquery', 'SELECT * FROM S.identity_details WHERE uuid IN (SELECT uuid FROM shared.identity ORDER BY random() LIMIT 5)');
	record(part => 'people', %$what, statement => 'five random keys by subquery', contender => 'the subquery alone',
		measured('SELECT uuid FROM shared.identity ORDER BY random() LIMIT 5'));
	compare('people', $what, 'point read, no region', "SELECT * FROM S.identity_details WHERE uuid = ('$keys'::uuid[])[1]");
	compare('people', $what, 'count(*) by region', 'SELECT region, count(*) FROM S.identity_details GROUP BY region');
}
$r->teardown if $have;
