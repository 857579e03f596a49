# The health worker and the network: host names whose resolver is dead, one region's name that
# must not hide another region, and the options of sockets by which vanished peers are found out.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 5, conf => "residency.workers = on\nresidency.away_after = 1s\n");
my ($worker, $before);
my $names = $r->node('usa')->basedir . '/names';

People::make($r);
$r->psql('usa', join(';', map { People::add($_->[0], $_->[1], $_->[1]) } [ 1, 'usa' ], [ 2, 'gbr' ], [ 3, 'aus' ]));

# what becomes of look-ups from now on
sub rule
{
	my ($text) = @_;
	open(my $file, '>', "$names.new") or die "$names.new: $!";
	print $file "$text\n";
	close($file);
	return rename("$names.new", $names);
}

# lines of a region's log of the network that match
sub network_log
{
	my ($region, $like) = @_;
	my $path = $r->node($region)->basedir . '/network';
	return -e $path ? grep { /$like/ } split(/\n/, slurp_file($path)) : ();
}

# look-ups of a health worker
sub lookups { my ($pid) = @_; return scalar(network_log('usa', qr/lookup aus\.test $pid$/)); }

# waits until it has made so many more
sub wait_for_lookups
{
	my ($more) = @_;
	my $end = time + 60;
	sleep(0.02) while lookups($worker) < $before + $more && time < $end;
	return lookups($worker) >= $before + $more;
}

# how often usa's log says that a region went away
sub times_away
{
	my ($region) = @_;
	return scalar(() = slurp_file($r->node('usa')->logfile) =~ /LOG:  region "$region" is away/g);
}

# how long a region was silent when it was found to be away last, by that log
sub silent_for
{
	my ($region) = @_;
	my ($ms) = reverse slurp_file($r->node('usa')->logfile) =~ /LOG:  region "$region" is away: no answer for (\d+) ms/g;
	return $ms;
}

# how often gbr has ended sessions of usa
sub ended { return scalar(() = slurp_file($r->node('gbr')->logfile) =~ /LOG:  gateway "usa" is silent/g); }
sub becomes
{
	my ($region, $state) = @_;
	return $r->poll('usa', "SELECT state FROM residency.regions WHERE name = '$region'", $state);
}
sub answers { my ($region) = @_; return $r->poll('usa', "SELECT state <> 'away' FROM residency.regions WHERE name = '$region'"); }
sub worker { return $r->psql('usa', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'residency health'}); }

# --- the network of usa and gbr is ours -----------------------------------------------------
rule('127.0.0.9');
foreach my $region ('usa', 'gbr')
{
	$r->stop($region);
	local $ENV{LD_PRELOAD} = $ENV{TESTDIR} . '/test/lib/network.so';
	local $ENV{NETWORK_NAMES} = $names;
	local $ENV{NETWORK_LOG} = $r->node($region)->basedir . '/network';
	$r->start($region);
}
$r->psql('usa', q{ALTER SERVER aus OPTIONS (SET host 'aus.test')});
ok(becomes('aus', 'away'), 'a name that leads nowhere');
like($r->psql('usa', q{SELECT problem FROM residency.regions WHERE name = 'aus'}), qr/127\.0\.0\.9.*refused/, 'is told by its address');
rule('127.0.0.1');
ok(becomes('aus', 'up'), 'is looked up anew, and the region is found at its new address');
ok(becomes('gbr', 'up'), 'the other one is up');

# --- options of sockets ------------------------------------------------------------------------
# [ level, name, value ] of a client's socket; a server has set keepalive before it reads options
my @timers = ([ 6, 4, 10 ], [ 6, 5, 5 ], [ 6, 6, 3 ], [ 6, 18, 20000 ]);
my $keepalive = [ 1, 9, 1 ];

# Test: a process has set these options
sub has_set
{
	my ($region, $pid, $name, @options) = @_;
	my %set = map { $_ => 1 } network_log($region, qr/^$pid option/);
	my @missing = grep { !$set{"$pid option $_"} } map { join(' ', @$_) } @options;

	return is("@missing", '', $name);
}

my $session = $r->session('usa', on_error_stop => 0);
is($session->query('SELECT count(*) FROM app.details'), '3', 'a session is connected to all regions');
has_set('usa', worker(), 'the health worker asks for keepalives and a TCP user time-out', $keepalive, @timers);
has_set('usa', scalar($session->query('SELECT pg_backend_pid()')), 'so does a session', $keepalive, @timers);
my $role = $r->psql('gbr', q{SELECT role FROM residency.region WHERE name = 'usa'});
foreach my $case ([ 'residency', 'of a session' ], [ 'residency health', 'of the health worker' ])
{
	my ($application, $whose) = @$case;
	my $pid = $r->psql('gbr', "SELECT min(pid) FROM pg_stat_activity WHERE usename = '$role' AND application_name = '$application'");

	has_set('gbr', $pid, "the home does the same for the other end $whose", @timers);
}

# --- the resolver dies -------------------------------------------------------------------------
$worker = worker();
$before = lookups($worker);
my $away = times_away('gbr');
my $ended = ended();
rule('dead 4000');
$r->relay->away('usa>aus');
ok(becomes('aus', 'away'), 'the line to the region with a name is cut');
ok(wait_for_lookups(2), 'its name is looked up again and again, in vain');
$r->relay->back('usa>aus');
ok(answers('aus'), 'with the line mended the region is back, at the address that is known');
is(times_away('gbr') - $away, 0, 'the other region was never found silent meanwhile');
is(ended() - $ended, 0, 'nor did it find us silent');

# --- a dead resolver does not hide silence ---------------------------------------------------------
$before = lookups($worker);
$r->relay->away('usa>aus');
ok(wait_for_lookups(1), 'while a name is looked up');
my $start = time;
$r->relay->hold('usa>gbr');
ok(becomes('gbr', 'away'), 'another region falls silent');
cmp_ok(time - $start, '<', 3.5, 'it is noticed in time');
cmp_ok(silent_for('gbr'), '<', 2000, 'by what the log says, too');
$r->relay->resume('usa>gbr');
ok(becomes('gbr', 'up'), 'it comes back');

# a worker that knows no address yet
$r->psql('usa', "SELECT pg_terminate_backend($worker)");
ok($r->poll('usa', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'residency health' AND pid <> $worker"), 'another worker');
$worker = worker();
$before = 0;
$away = times_away('gbr');
ok(wait_for_lookups(2), 'looks the name up');
ok($r->poll('usa', q{SELECT problem ~ 'aus.test' FROM residency.regions WHERE name = 'aus'}), 'and says that it found nothing');
rule('127.0.0.1');
$r->relay->back('usa>aus');
ok(becomes('aus', 'up'), 'until the resolver is back');
is(times_away('gbr') - $away, 0, 'the other one was up all the time');
is($session->query('SELECT count(*) FROM app.details'), '3', 'all can be used');
is(scalar(Regions::children($worker)), 0, 'nothing is left of the processes that asked');

$session->quit;
$r->teardown;
done_testing();
