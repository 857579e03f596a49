# add_region is a transaction over all regions and the newcomer: whatever dies or is cut in the
# middle of it, the region has joined everywhere or nowhere, and nothing is left, also in the
# newcomer, without any hand.
use strict;
use warnings;

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use Regions;

my $workers = "residency.workers = on\nresidency.resolve_interval = 1s\nmax_worker_processes = 100\nmax_connections = 150\n";
my $r = Regions->new(regions => [qw(usa gbr)], relay => 1, faults => 1, conf => $workers . "residency.connect_timeout = 2s\nresidency.commit_timeout = 1s\n");
my $there = Regions->new(regions => [qw(newcomer)], faults => 1, join => 0, conf => $workers);
my $relay = $r->relay;
my $port = $relay->link('usa>newcomer', port => $there->port('newcomer'));

# the database that joins next
my ($newcomer, $number) = ('', 0);
my $slowest = 0;

sub fresh
{
	$newcomer = 'n' . ++$number;
	$there->node('newcomer')->safe_psql('postgres', "CREATE DATABASE $newcomer TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'");
	there('CREATE EXTENSION residency');
	return;
}

# A region cannot leave a deployment, so it is torn out: otherwise each would ping all those before it.
sub tear_out
{
	foreach my $region (qw(usa gbr))
	{
		my $role = $r->psql($region, "SELECT role FROM residency.region WHERE name = '$newcomer'");

		$r->psql($region, "DELETE FROM residency.region WHERE name = '$newcomer'; DROP SERVER $newcomer CASCADE; DROP OWNED BY $role; DROP ROLE $role");
	}
	$there->node('newcomer')->safe_psql('postgres', "DROP DATABASE $newcomer WITH (FORCE)");
	return;
}

sub there { my ($sql) = @_; return $there->node('newcomer')->safe_psql($newcomer, $sql); }

sub add { return "SELECT residency.add_region('$newcomer', 'host=127.0.0.1 port=$port dbname=$newcomer sslmode=disable user=$r->{user}')"; }

# who knows the newcomer: "all", "none", or which
sub known
{
	my $sql = "SELECT count(*) FROM residency.region WHERE name = '$newcomer'";
	my $known = $r->psql('usa', $sql) . $r->psql('gbr', $sql) . there($sql);

	return $known eq '111' ? 'all' : $known eq '000' ? 'none' : "in part: $known";
}

# what is left of the call anywhere
my $leftovers = q{SELECT concat_ws(' ', (SELECT string_agg(gid, ' ') FROM pg_prepared_xacts WHERE database = current_database()),
	(SELECT string_agg(origin || ' recorded', ' ') FROM residency.transaction),
	(SELECT string_agg('joining ' || region, ' ') FROM residency.joining),
	(SELECT string_agg(name || ' ' || state, ' ') FROM residency.regions WHERE state <> 'up'),
	(SELECT string_agg('lock of ' || coalesce(pid::text, 'a prepared transaction'), ' ') FROM pg_locks
	 WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())))};

# waits until nothing is left; what is, if that takes too long
sub settle
{
	my $begin = time;
	my $left;

	do
	{
		$left = join('', map { s/^\s+|\s+$//gr } $r->psql('usa', $leftovers), $r->psql('gbr', $leftovers), there($leftovers));
		sleep(0.1) if $left ne '';
	} while ($left ne '' && time < $begin + 10);
	$slowest = time - $begin if time - $begin > $slowest;
	return $left;
}

# Tests of one call and one misfortune.  "during" runs while the call goes on, "heal" afterwards.
sub case
{
	my ($name, $outcome, %o) = @_;
	my ($out, $err) = ('', '');

	fresh() if $newcomer eq '';
	$r->arm('usa', $o{arm});
	my $client = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $r->node('usa')->connstr('app'), '-c', add(), '-c', '\echo joined' ],
		'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(60));
	$r->wait_fired('usa');
	$o{during}->() if $o{during};
	$r->release('usa');
	eval { IPC::Run::finish($client) };
	is($@ =~ /timeout/ ? $@ : '', '', "$name: the call ends");
	$r->disarm('usa');
	$o{heal}->() if $o{heal};
	$r->revive('usa');

	is(settle(), '', "$name: nothing is left");
	my $known = known();
	like($known, $outcome eq 'either' ? qr/^(all|none)$/ : qr/^$outcome$/, "$name: the newcomer is known to $outcome");
	is($out =~ /joined/ && $known ne 'all' ? 'joined' : '', '', "$name: the caller was not told of more");
	return if $known eq 'none';
	ok($r->poll('usa', "SELECT state = 'up' FROM residency.regions WHERE name = '$newcomer'"), "$name: it is up");
	ok($there->node('newcomer')->poll_query_until($newcomer, "SELECT count(*) >= 3 AND bool_and(state = 'up') FROM residency.regions WHERE name IN ('usa', 'gbr', '$newcomer')"),
		"$name: and all are for it");
	tear_out();
	$newcomer = '';
	return;
}

# the gateway dies; what the newcomer has prepared nobody but the record at the gateway knows of
foreach my $point (qw(join_begins join_recorded commit_begins recorded prepare_sent one_prepared prepared))
{
	case("gateway's server crashes at \"$point\"", 'none', arm => "$point:crash_server");
}
case("gateway's backend crashes at \"$_\"", 'none', arm => "$_:crash_backend") foreach qw(join_recorded prepare_sent prepared);
case("gateway's backend ends at \"$_\"", 'none', arm => "$_:terminate") foreach qw(join_recorded prepared);
case("the call fails at \"$_\"", 'none', arm => "$_:error") foreach qw(join_recorded recorded prepared);
case("gateway's server crashes at \"$_\"", 'all', arm => "$_:crash_server") foreach qw(decided one_told applied);
case("gateway's backend crashes at \"decided\"", 'all', arm => 'decided:crash_backend');

# the gateway dies, and the newcomer too, for so long that the gateway calls it away
case('both gone, undecided', 'none', arm => 'prepared:crash_server', heal => sub {
	$there->stop('newcomer', 'immediate');
	$r->revive('usa');
	is($r->psql('usa', q{SELECT state || ' ' || regions[1] FROM residency.transactions WHERE state = 'joining'}), "joining $newcomer", 'the record is in residency.transactions');
	sleep(7);
	$there->start('newcomer');
});
case('both gone, decided', 'all', arm => 'decided:crash_server', heal => sub {
	$there->stop('newcomer', 'immediate');
	$r->revive('usa');
	ok($r->poll('usa', "SELECT state = 'away' FROM residency.regions WHERE name = '$newcomer'"), 'the gateway sees the newcomer gone');
	$there->start('newcomer');
});

# the newcomer dies, or another region
my %other = (join_recorded => 'none', recorded => 'none', prepare_sent => 'either', prepared => 'all', decided => 'all');
foreach my $point (qw(join_recorded recorded prepare_sent prepared))
{
	case("newcomer's server crashes at \"$point\"", $other{$point}, arm => "$point:hold",
		during => sub { $there->stop('newcomer', 'immediate') }, heal => sub { $there->start('newcomer') });
}
foreach my $point (qw(join_recorded prepare_sent decided))
{
	case("another region's server crashes at \"$point\"", $other{$point}, arm => "$point:hold",
		during => sub { $r->stop('gbr', 'immediate') }, heal => sub { $r->revive('gbr') });
}

# the line to the newcomer is cut, or falls silent
foreach my $point (qw(join_recorded recorded prepare_sent prepared decided))
{
	case("line cut at \"$point\"", $other{$point}, arm => "$point:hold",
		during => sub { $relay->away('usa>newcomer') }, heal => sub { $relay->back('usa>newcomer') });
}
foreach my $way (qw(out in))
{
	case("line silent ($way) at \"prepare_sent\", then cut", 'either', arm => 'prepare_sent:hold',
		during => sub { $relay->hold('usa>newcomer', $way); $r->release('usa'); sleep(0.5); $relay->away('usa>newcomer') }, heal => sub { $relay->back('usa>newcomer') });
}

# without a resolver an operator does its work; what another deployment has begun stays
$r->conf('usa', "residency.workers = off\n");
fresh() if $newcomer eq '';
$r->arm('usa', 'prepared:crash_server');
my ($code, $out, $err) = $r->try('usa', add());
$r->disarm('usa');
$r->revive('usa');
like(there('SELECT gid FROM pg_prepared_xacts'), qr/^residency:/, 'without a resolver the newcomer stays prepared');
$r->fails('usa', add(), '55000', qr/HINT:.*residency\.resolve/, 'the next call says what to do');
my $foreign = 'residency:00000000000000ff:1000:0:0000abcd';
there("BEGIN; CREATE TABLE public.foreign_part (); PREPARE TRANSACTION '$foreign'");
like($r->psql('usa', 'SELECT * FROM residency.resolve()'), qr/^$newcomer\|residency:\w+:\d+:\d+:\w+\|rolled back$/m, 'residency.resolve() rolls it back');
is(there('SELECT gid FROM pg_prepared_xacts'), $foreign, "another origin's part stays");
$r->fails('usa', add(), '55000', qr/HINT:.*Let the region that began it finish it/, 'and is in the way');
there("ROLLBACK PREPARED '$foreign'");
$r->psql('usa', add());
is(known(), 'all', 'then it joins');
isnt($r->psql('usa', 'SELECT count(*) FROM residency.joining'), 0, 'the record is still there');
$r->psql('usa', 'SELECT residency.resolve()');
is($r->psql('usa', 'SELECT count(*) FROM residency.joining'), 0, 'until the next round');

# a server without room for the process that puts a call on record
$r->node('usa')->append_conf('postgresql.conf', "max_worker_processes = 1\n");
$r->restart('usa');
tear_out();
fresh();
$r->fails('usa', add(), '53400', qr/HINT:.*max_worker_processes/, 'no background worker is left: nothing is done');
is(known(), 'none', 'nobody knows it');

note(sprintf('nothing was left after %.1f s at the latest', $slowest));
$there->teardown;
done_testing();
