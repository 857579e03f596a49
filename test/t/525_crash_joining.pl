# add_region is a transaction over all regions: when the gateway dies in the middle, the region
# has joined everywhere or nowhere.  Once decided, it joins without any hand.  Where it has not, no
# region knows of what the newcomer has prepared, but the next call rolls that back.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use Regions;

my $r = Regions->new(regions => [qw(usa gbr)], faults => 1, conf => "residency.workers = on\nresidency.resolve_interval = 1s\nresidency.connect_timeout = 2s\n");
my $newcomer = Regions->new(regions => [qw(aus)], faults => 1, join => 0, conf => "residency.workers = on\nresidency.resolve_interval = 1s\n");
my $add = sprintf("SELECT residency.add_region('aus', '%s user=%s')", $newcomer->connection('aus'), $r->{user});

# who knows aus, among the regions and itself
sub known
{
	return join('', map { $_->[0]->psql($_->[1], q{SELECT count(*) FROM residency.region WHERE name = 'aus'}) } [ $r, 'usa' ], [ $r, 'gbr' ], [ $newcomer, 'aus' ]);
}

# waits until nothing of the call is left in the regions; what is, if that takes too long
sub settled
{
	my ($with) = @_;
	my $end = time + 10;
	my $left;

	do
	{
		$left = join('', map { $_->[0]->psql($_->[1], q{SELECT (SELECT count(*) FROM pg_prepared_xacts) + (SELECT count(*) FROM residency.transaction)}) } [ $r, 'usa' ], [ $r, 'gbr' ], $with ? [ $newcomer, 'aus' ] : ());
		sleep(0.1) if $left =~ /[1-9]/;
	} while ($left =~ /[1-9]/ && time < $end);
	return $left;
}

# another deployment's attempt is not ours to finish
my $foreign = 'residency:00000000000000ff:1000:0:0000abcd';
$newcomer->psql('aus', "BEGIN; CREATE TABLE public.foreign_part (); PREPARE TRANSACTION '$foreign'");
$r->fails('usa', $add, '55000', qr/HINT:.*Let the region that began it finish it/, 'another origin\'s part stays in the way');
$newcomer->psql('aus', "ROLLBACK PREPARED '$foreign'");

# each call finds what the one before left in the newcomer, and rolls it back
my $left = '';
foreach my $point (qw(commit_begins recorded one_prepared prepared))
{
	$r->arm('usa', "$point:crash_server");
	my ($code, $out, $err) = $r->try('usa', $add);
	ok($code != 0 && $r->fired('usa'), "gateway crashed at \"$point\"");
	$r->disarm('usa');
	$r->revive('usa');
	is(settled(0), '00', "$point: nothing is left in the regions");
	is(known(), '000', "$point: nobody knows the newcomer");
	my $gid = $newcomer->psql('aus', 'SELECT gid FROM pg_prepared_xacts');

	is($gid eq '' || $gid ne $left, 1, "$point: nothing is left of the attempt before");
	$left = $gid;
}
isnt($left, '', 'the newcomer itself still has the last attempt');

# once it is decided all know each other without any hand: the newcomer's own part holds the very
# role by which the gateway logs in, so it is committed through the admin mapping
$r->arm('usa', 'decided:crash_server');
my ($code, $out, $err) = $r->try('usa', $add);
ok($code != 0 && $r->fired('usa'), 'gateway crashed at "decided"');
like($newcomer->psql('aus', 'SELECT gid FROM pg_prepared_xacts'), qr/^residency:/, 'decided: the newcomer is prepared');
isnt($newcomer->psql('aus', 'SELECT gid FROM pg_prepared_xacts'), $left, 'decided: nothing is left of the attempt before');
is($newcomer->psql('aus', 'SELECT owner IS NULL FROM pg_prepared_xacts'), 't', 'decided: in the name of a role that it does not have yet');
$r->disarm('usa');
$r->revive('usa');
is(settled(1), '000', 'decided: nothing is left after 10 s');
is(known(), '111', 'decided: all know each other');

# the same when the newcomer was gone too, for so long that the gateway calls it away
my $second = Regions->new(regions => [qw(nzl)], faults => 1, join => 0, conf => "residency.workers = on\nresidency.resolve_interval = 1s\n");
$r->arm('usa', 'decided:crash_server');
($code, $out, $err) = $r->try('usa', sprintf("SELECT residency.add_region('nzl', '%s user=%s')", $second->connection('nzl'), $r->{user}));
ok($code != 0 && $r->fired('usa'), 'gateway crashed at "decided" again');
$second->stop('nzl');
$r->disarm('usa');
$r->revive('usa');
ok($r->poll('usa', q{SELECT state = 'away' FROM residency.regions WHERE name = 'nzl'}), 'away: the gateway sees the newcomer gone');
$second->start('nzl');
my $since = time;
ok($second->poll('nzl', 'SELECT count(*) = 4 FROM residency.region'), 'away: the newcomer knows all');
cmp_ok(time - $since, '<', 10, 'away: within 10 s of its return');
ok($r->poll('usa', q{SELECT state = 'up' FROM residency.regions WHERE name = 'nzl'}), 'away: it is up');
ok($r->poll('usa', 'SELECT count(*) = 0 FROM residency.transaction'), 'away: nothing is left at the gateway');
is($second->psql('nzl', 'SELECT (SELECT count(*) FROM pg_prepared_xacts) + (SELECT count(*) FROM residency.transaction)'), 0, 'away: nothing is left in the newcomer');
$second->teardown;
$newcomer->teardown;
done_testing();
