# replace_region is a transaction over the regions that live and the new database of the one that is
# lost: whatever dies or is cut in the middle of it, the region is replaced everywhere or nowhere, and
# nothing is left, also in the new database, without any hand.
use strict;
use warnings;

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $workers = "residency.workers = on\nresidency.resolve_interval = 1s\nresidency.away_after = 2s\nmax_worker_processes = 100\nmax_connections = 150\n";
my $r = Regions->new(regions => [qw(usa gbr aus)], relay => 1, faults => 1, conf => $workers . "residency.connect_timeout = 2s\nresidency.commit_timeout = 1s\n");
my $there = Regions->new(regions => ['gbr'], faults => 1, join => 0, conf => $workers);
my $relay = $r->relay;
my $port = $relay->link('usa>new', port => $there->port('gbr'));
my @living = qw(usa aus);
my $schema = q{CREATE SCHEMA app;
	CREATE TABLE app.identity (id int PRIMARY KEY, region text NOT NULL, note text);
	CREATE TABLE app.details (id int PRIMARY KEY, region text NOT NULL, name text)};

People::make($r);
$r->psql('usa', join('; ', map { People::add($_, (qw(usa gbr aus))[$_ % 3], 'x') } 1 .. 9));
$r->kill9('gbr');
my $lost = $r->psql('usa', q{SELECT incarnation FROM residency.region WHERE name = 'gbr'});

# the new database, and the id of the next person
my ($database, $number, $id) = ('', 0, 100);
my $slowest = 0;

sub there { my ($sql) = @_; return $there->node('gbr')->safe_psql($database, $sql); }

sub fresh
{
	$database = 'n' . ++$number;
	$there->node('gbr')->safe_psql('postgres', "CREATE DATABASE $database TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'");
	there("CREATE EXTENSION residency; $schema");
	return;
}

sub replace { return "SELECT residency.replace_region('gbr', 'host=127.0.0.1 port=$port dbname=$database sslmode=disable user=$r->{user}')"; }

# where the region is replaced: "all", "none", or which
sub replaced
{
	my $sql = "SELECT (incarnation <> $lost)::int FROM residency.region WHERE name = 'gbr'";
	my $replaced = join('', map { $r->psql($_, $sql) } @living) . there('SELECT count(*) FROM residency.region WHERE name = \'gbr\'');

	return $replaced eq '111' ? 'all' : $replaced eq '000' ? 'none' : "in part: $replaced";
}

# What is left of the call anywhere; while the region is not replaced, decisions of before wait for it.
my $leftovers = q{SELECT concat_ws(' ', (SELECT string_agg(gid, ' ') FROM pg_prepared_xacts WHERE database = current_database()),
	(SELECT string_agg(origin || ' recorded', ' ') FROM residency.transaction WHERE decided_at > '%s'),
	(SELECT string_agg('joining ' || region, ' ') FROM residency.joining),
	(SELECT string_agg(name || ' ' || state, ' ') FROM residency.regions WHERE state <> 'up' AND name <> 'gbr'),
	(SELECT string_agg('lock of ' || coalesce(pid::text, 'a prepared transaction'), ' ') FROM pg_locks
	 WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())))};

# waits until nothing is left; what is, if that takes too long
sub settle
{
	my ($since) = @_;
	my $begin = time;
	my $left;

	do
	{
		my $sql = sprintf($leftovers, replaced() eq 'all' ? '-infinity' : $since);

		$left = join('', map { s/^\s+|\s+$//gr } (map { $r->psql($_, $sql) } @living), there($sql));
		sleep(0.1) if $left ne '';
	} while ($left ne '' && time < $begin + 15);
	$slowest = time - $begin if time - $begin > $slowest;
	return $left;
}

# the region is lost once more, with its new database
sub lose
{
	$there->node('gbr')->safe_psql('postgres', "DROP DATABASE $database WITH (FORCE)");
	$lost = $r->psql('usa', q{SELECT incarnation FROM residency.region WHERE name = 'gbr'});
	$database = '';
	return;
}

# Tests of one call and one misfortune.  "during" runs while the call goes on, "heal" afterwards.
sub case
{
	my ($name, $outcome, %o) = @_;
	my ($out, $err) = ('', '');

	fresh() if $database eq '';
	my $since = $r->psql('usa', 'SELECT clock_timestamp()');
	$r->arm('usa', $o{arm});
	my $client = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $r->node('usa')->connstr('app'), '-c', replace(), '-c', '\echo replaced' ],
		'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(60));
	$r->wait_fired('usa');
	$o{during}->() if $o{during};
	$r->release('usa');
	eval { IPC::Run::finish($client) };
	is($@ =~ /timeout/ ? $@ : '', '', "$name: the call ends");
	$r->disarm('usa');
	$o{heal}->() if $o{heal};
	$r->revive('usa');

	is(settle($since), '', "$name: nothing is left");
	my $replaced = replaced();
	like($replaced, $outcome eq 'either' ? qr/^(all|none)$/ : qr/^$outcome$/, "$name: replaced in $outcome");
	is($out =~ /replaced/ && $replaced ne 'all' ? 'replaced' : '', '', "$name: the caller was not told of more");
	return if $replaced ne 'all';

	# it is the region now: up, complete, and written by all
	foreach my $region (@living)
	{
		ok($r->poll($region, q{SELECT state = 'up' FROM residency.regions WHERE name = 'gbr'}), "$name: it is up for $region");
	}
	$r->psql($_, People::add(++$id, 'gbr', 'after')) foreach @living;
	my $rows = 'SELECT count(*), sum(hashtext(i::text)) FROM app.identity i';
	is(join(' ', map { $r->psql($_, $rows) } @living), join(' ', (there($rows)) x 2), "$name: copies are equal");
	is(there('SELECT count(*) FROM ONLY gbr.details'), 2, "$name: it is a home");
	lose();
	return;
}

foreach my $point (qw(join_begins join_recorded commit_begins recorded prepare_sent one_prepared prepared))
{
	case("gateway's server crashes at \"$point\"", 'none', arm => "$point:crash_server");
}
case("gateway's backend crashes at \"$_\"", 'none', arm => "$_:crash_backend") foreach qw(join_recorded prepared);
case("the call fails at \"$_\"", 'none', arm => "$_:error") foreach qw(join_recorded prepared);
case("gateway's server crashes at \"$_\"", 'all', arm => "$_:crash_server") foreach qw(decided one_told applied);

# the gateway dies, and the new server too
case('both gone, undecided', 'none', arm => 'prepared:crash_server', heal => sub {
	$there->stop('gbr', 'immediate');
	$r->revive('usa');
	is($r->psql('usa', q{SELECT state || ' ' || regions[1] FROM residency.transactions WHERE state = 'joining'}), 'joining gbr', 'the record is in residency.transactions');
	sleep(4);
	$there->start('gbr');
});
case('both gone, decided', 'all', arm => 'decided:crash_server', heal => sub {
	$there->stop('gbr', 'immediate');
	$r->revive('usa');
	ok($r->poll('usa', q{SELECT state = 'away' FROM residency.regions WHERE name = 'gbr'}), 'the gateway sees it gone');
	$there->start('gbr');
});

# the new server dies, or another region
my %other = (join_recorded => 'none', recorded => 'none', prepare_sent => 'either', prepared => 'all', decided => 'all');
foreach my $point (qw(join_recorded recorded prepare_sent prepared decided))
{
	case("the new server crashes at \"$point\"", $other{$point}, arm => "$point:hold",
		during => sub { $there->stop('gbr', 'immediate') }, heal => sub { $there->start('gbr') });
}
foreach my $point (qw(join_recorded prepare_sent prepared decided))
{
	case("another region's server crashes at \"$point\"", $other{$point}, arm => "$point:hold",
		during => sub { $r->stop('aus', 'immediate') }, heal => sub { $r->revive('aus') });
}

# the line to the new server is cut
foreach my $point (qw(join_recorded recorded prepare_sent prepared decided))
{
	case("line cut at \"$point\"", $other{$point}, arm => "$point:hold",
		during => sub { $relay->away('usa>new') }, heal => sub { $relay->back('usa>new') });
}

note(sprintf('nothing was left after %.1f s at the latest', $slowest));
$there->teardown;
$r->teardown;
done_testing();
