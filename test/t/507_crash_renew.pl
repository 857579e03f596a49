# A crash in the middle of renew(): parts that carry an incarnation which this region does not have, or
# does not have yet, are finished all the same.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use Regions;

my $r = Regions->new(faults => 1, conf => "residency.workers = on\nresidency.resolve_interval = 1s\n");

# what is left anywhere, after 10 s at most
sub left
{
	my $end = time + 10;
	my $left;

	do
	{
		$left = join('', map { $r->psql($_, q{SELECT string_agg(x, ' ') FROM (SELECT gid FROM pg_prepared_xacts UNION ALL SELECT 'recorded' FROM residency.transaction) l (x)}) } $r->regions);
		sleep(0.1) if $left ne '';
	} while ($left ne '' && time < $end);
	return $left;
}

foreach my $point (qw(recorded one_prepared prepared decided one_told applied))
{
	my $before = $r->psql('usa', 'SELECT incarnation FROM residency.self');
	my $committed = $point =~ /decided|told|applied/;

	ok($r->poll($_, q{SELECT count(*) = 0 FROM residency.regions WHERE state <> 'up'}), "$point: $_ sees all up") foreach $r->regions;
	$r->arm('usa', "$point:crash_server");
	$r->try('usa', 'SELECT residency.renew()');
	ok($r->fired('usa'), "$point: the server crashed");
	if ($point eq 'prepared')
	{
		is($r->psql('gbr', q{SELECT origin FROM residency.transactions WHERE state = 'prepared here'}), 'usa', 'the participant names the origin');
	}
	$r->disarm('usa');
	$r->revive('usa');
	is(left(), '', "$point: nothing is left");
	my $after = $r->psql('usa', 'SELECT incarnation FROM residency.self');
	is($after ne $before, !!$committed, "$point: the incarnation is " . ($committed ? 'the new one' : 'the old one'));
	is(join(' ', map { $r->psql($_, q{SELECT incarnation FROM residency.region WHERE name = 'usa'}) } $r->regions), "$after $after $after", "$point: all know it");
	$r->psql('usa', "SELECT residency.run_everywhere('CREATE TABLE public.$point ()')");
	is(left(), '', "$point: transactions go on");
}

done_testing();
