# What is no absence, and what is one: hiccups shorter than the default residency.away_after change
# nothing, a long silence counts once, a crowded server is there, one that refuses us is not;
# what waits when a region goes away, and who keeps their sessions.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(regions => [qw(usa gbr)], relay => 1, delay => 5, conf => "residency.workers = on\n");
People::make($r);
$r->psql('usa', People::add(1, 'usa', 'Una') . ';' . People::add(2, 'gbr', 'Gil'));

my $before = -s $r->node('usa')->logfile;

sub state { my ($at, $region) = @_; return $r->psql($at, "SELECT state FROM residency.regions WHERE name = '$region'"); }
sub becomes
{
	my ($at, $region, $state) = @_;
	return $r->poll($at, "SELECT state FROM residency.regions WHERE name = '$region'", $state);
}

# how often usa's log says that gbr went away, or that it came back
sub how_often
{
	my ($what) = @_;
	return scalar(() = slurp_file($r->node('usa')->logfile, $before) =~ /LOG:  region "gbr" $what/g);
}

ok(becomes('usa', 'gbr', 'up') && becomes('gbr', 'usa', 'up'), 'both are up');

# --- hiccups, with the default of 5 s ---------------------------------------------------------
my $session = $r->session('usa', on_error_stop => 0);
my $all = 'SELECT count(*) FROM app.details';
for my $n (1 .. 3)
{
	$r->relay->hold('usa>gbr');
	sleep(3);
	$r->relay->resume('usa>gbr');
	is($session->query($all), '2', "hiccup $n: nobody noticed");
	sleep(0.2);
}
is(how_often('is away'), 0, 'a silence of 3 s is no absence, however often it comes');

# --- a long silence ---------------------------------------------------------------------------
# with the default of 5 s, and a ping each second; "away" of the relay cuts, "hold" keeps silent
my $start;
foreach my $case ([ 'away', 'back', 'is cut' ], [ 'hold', 'resume', 'is silent' ])
{
	my ($break, $mend, $what) = @$case;
	my $times = how_often('is away');

	$start = time;
	$r->relay->$break('usa>gbr');
	ok(becomes('usa', 'gbr', 'away'), "a line that $what makes the region away");
	cmp_ok(time - $start, '>', 3.5, 'not before its time');
	cmp_ok(time - $start, '<', 8, 'but in time');
	my ($silent) = reverse slurp_file($r->node('usa')->logfile, $before) =~ /region "gbr" is away: no answer for (\d+) ms/g;
	cmp_ok($silent, '>', 5000, 'after the time that is set');
	cmp_ok($silent, '<', 6500, 'and a ping');
	$r->relay->$mend('usa>gbr');
	ok(becomes('usa', 'gbr', 'up'), 'the line is mended');
	is(how_often('is away') - $times, 1, 'it went away once');
	is($session->query($all), '2', 'and is used again');
}

# --- from here on faster ------------------------------------------------------------------------
$r->conf($_, 'residency.away_after = 1s') foreach $r->regions;
sleep(1.2);

# nobody is let in: for the role of usa there is no connection left, but the server is there
my $role = $r->psql('gbr', q{SELECT role FROM residency.region WHERE name = 'usa'});
$r->psql('gbr', "ALTER ROLE $role CONNECTION LIMIT 0");
$r->psql('gbr', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '$role' AND application_name = 'residency health'");
sleep(2.5);
$session->{stderr} = '';
is(state('usa', 'gbr'), 'up', 'a server without a free connection is there');
is($session->query($all), '2', 'and who is connected can use it');
$r->psql('gbr', "ALTER ROLE $role CONNECTION LIMIT -1");

# refused for good: the statement of a session that is not connected fails, and so the region is away
$r->psql('gbr', "ALTER ROLE $role NOLOGIN");
$r->psql('gbr', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '$role'");
ok(becomes('usa', 'gbr', 'away'), 'a region that does not let us in is away');
like($r->psql('usa', q{SELECT problem FROM residency.regions WHERE name = 'gbr'}), qr/not permitted to log in/, 'and the view says why');
$r->psql('gbr', "ALTER ROLE $role LOGIN");
ok(becomes('usa', 'gbr', 'up'), 'until it does');

# another region answers at that address
my $port = $r->psql('usa', q{SELECT substr(o, 6) FROM pg_foreign_server, unnest(srvoptions) o WHERE srvname = 'gbr' AND o LIKE 'port=%'});
$r->psql('usa', "ALTER SERVER gbr OPTIONS (SET port '" . $r->port('usa') . "')");
ok(becomes('usa', 'gbr', 'away'), 'another region at its address is not the region');
$r->psql('usa', "ALTER SERVER gbr OPTIONS (SET port '$port')");
ok(becomes('usa', 'gbr', 'up'), 'a corrected address is taken over');

# --- what waits -----------------------------------------------------------------------------------
# a new session, whose connection is under way
$r->relay->hold('usa>gbr');
$start = time;
$r->fails('usa', "SELECT name FROM app.details WHERE region = 'gbr'", '08(001|006)', qr/region "gbr": it is away/, 'who is connecting does not wait any longer');
cmp_ok(time - $start, '<', 3, 'than the time to know');
$r->relay->resume('usa>gbr');
ok(becomes('usa', 'gbr', 'up'), 'back');

# COMMIT, of the one region and of two
foreach my $both (0, 1)
{
	$session->query_safe('SELECT count(*) FROM app.details');
	$session->query_safe(q{BEGIN; UPDATE app.details SET name = 'Gus' WHERE id = 2 AND region = 'gbr'});
	$session->query_safe(q{UPDATE app.details SET name = 'Ula' WHERE id = 1 AND region = 'usa'}) if $both;
	$r->relay->trap('usa>gbr', 'out', 'hold_back', $both ? 'COMMIT PREPARED' : 'COMMIT');
	$session->{stderr} = '';
	$start = time;
	$session->query('COMMIT');
	cmp_ok(time - $start, '<', 4, 'COMMIT does not wait longer');
	like($session->{stderr}, $both ? qr/WARNING:.*gbr/ : qr/ERROR:  region "gbr": the answer to COMMIT was lost/,
		$both ? 'a decision is a decision' : 'and tells the truth');
	$r->relay->resume('usa>gbr');
	ok(becomes('usa', 'gbr', 'up'), 'back');
	$session->{stderr} = '';
}
ok($r->poll('gbr', q{SELECT count(*) = 1 FROM gbr.details WHERE name = 'Gus'}), 'what was decided is done');
ok($r->poll('gbr', 'SELECT count(*) = 0 FROM pg_prepared_xacts'), 'and nothing is left of it');

# --- a gateway without a worker keeps its sessions ---------------------------------------------------
$session->{stderr} = '';
$session->query_safe(q{BEGIN; UPDATE app.details SET name = 'Guy' WHERE id = 2 AND region = 'gbr'});
$r->conf('usa', 'residency.workers = off');
sleep(3);
$session->query('COMMIT');
is($session->{stderr}, '', 'a gateway that no longer pings is not silent');
is($r->psql('gbr', 'SELECT name FROM gbr.details'), 'Guy', 'its transaction was not touched');

$session->quit;
done_testing();
