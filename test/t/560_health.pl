# The health worker: what each region knows of the others, how soon a silent one is noticed, what
# that costs statements, and that a hiccup changes nothing.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 20, conf => "residency.workers = on\nresidency.away_after = 1s\n");
People::make($r);
$r->psql('usa', People::add(1, 'usa', 'Una') . ';' . People::add(2, 'gbr', 'Gil') . ';' . People::add(3, 'aus', 'Ada'));

# state of a region as another one sees it
sub state
{
	my ($at, $region) = @_;
	return $r->psql($at, "SELECT state FROM residency.regions WHERE name = '$region'");
}

sub becomes
{
	my ($at, $region, $state, $name) = @_;
	return ok($r->poll($at, "SELECT state FROM residency.regions WHERE name = '$region'", $state), $name);
}

# seconds that the code takes
sub seconds { my ($code) = @_; my $start = time; $code->(); return time - $start; }

# lines of a region's log that match, since the last call for that region
my %read;
sub logged
{
	my ($region, $like) = @_;
	my $log = slurp_file($r->node($region)->logfile, $read{$region} // 0);

	$read{$region} += length($log);
	return scalar(() = $log =~ /$like/g);
}

# --- what is known ------------------------------------------------------------------------
foreach my $at ($r->regions)
{
	foreach my $region (grep { $_ ne $at } $r->regions)
	{
		ok($r->poll($at, "SELECT round_trip_time BETWEEN 38 AND 80 AND version IS NOT NULL AND problem IS NULL FROM residency.regions WHERE name = '$region'"),
			"$at has measured how far away $region is");
	}
}
is($r->psql('usa', 'SELECT name, state FROM residency.regions ORDER BY 1'), "aus|up\ngbr|up\nusa|up", 'all are up');
is($r->psql('usa', q{SELECT count(*) FROM residency.regions WHERE home AND round_trip_time IS NULL AND since IS NULL}), '1',
	'a region does not watch itself');
$r->delay(50, 'usa', 'gbr');
ok($r->poll('usa', q{SELECT round_trip_time > 90 FROM residency.regions WHERE name = 'gbr'}), 'a longer way is noticed');
$r->delay(5);

# --- a region falls silent -------------------------------------------------------------------
my $all = 'SELECT count(*) FROM app.details';
my $session = $r->session('usa', on_error_stop => 0);
is($session->query($all), '3', 'a session has connections to all regions');
logged($_, 'x') foreach $r->regions;

$r->relay->hold('usa>gbr');
my $took = seconds(sub { $session->query($all) });
like($session->{stderr}, qr/ERROR:  region "gbr": it is away/, 'a statement that waits for it ends');
$session->{stderr} = '';
cmp_ok($took, '<', 2, 'and soon');
is(state('usa', 'gbr'), 'away', 'the region is away');
isnt($r->psql('usa', q{SELECT problem FROM residency.regions WHERE name = 'gbr'}), '', 'and the view says why');
is(state('aus', 'gbr'), 'up', 'but not for who can still reach it');
is(state('gbr', 'aus'), 'up', 'nor are others for that region');
$took = seconds(sub { $session->query('SELECT * FROM app.details WHERE region = \'gbr\'') for 1 .. 20 });
like($session->{stderr}, qr/ERROR:  region "gbr": it is away.*HINT:/s, 'what needs it now fails');
cmp_ok($took, '<', 1, 'at once, twenty times');
$session->{stderr} = '';
is($session->query("SELECT name FROM app.details WHERE region = 'aus'"), 'Ada', 'other regions can be used');
$r->fails('usa', 'SELECT count(*) FROM app.details', '08001', qr/region "gbr"/, 'so it is for a new session');
is($r->relay->counts('usa>gbr')->{opened} < 50, 1, 'nothing tries to connect all the time');

$r->relay->resume('usa>gbr');
becomes('usa', 'gbr', 'up', 'the region is back');
is($session->query($all), '3', 'and the same session can use it again');
is($session->{stderr}, '', 'without an error');
is(logged('usa', 'region "gbr" is away'), 1, 'it went away once');
is(logged('aus', 'region "\w+" is away'), 0, 'for usa only');

# --- a transaction that had used it ------------------------------------------------------------
$session->query_safe(q{BEGIN; UPDATE app.details SET name = 'Gus' WHERE id = 2 AND region = 'gbr'});
$r->relay->hold('usa>gbr');
becomes('usa', 'gbr', 'away', 'a region goes away in the middle of a transaction');
$session->query('COMMIT');
like($session->{stderr}, qr/ERROR:  region "gbr": it is away/, 'COMMIT fails');
$session->{stderr} = '';
$took = seconds(sub { $r->psql('gbr', q{SET lock_timeout = '8s'; UPDATE gbr.details SET name = 'Gil' WHERE id = 2}) });
cmp_ok($took, '<', 4, 'and at its home the row is not locked for long: the session of the silent gateway was ended');
$r->relay->resume('usa>gbr');
becomes('usa', 'gbr', 'up', 'the region is back');
is($session->query('ROLLBACK; SELECT name FROM app.details WHERE id = 2 AND region = \'gbr\''), 'Gil', 'nothing of it was done');

# --- refused -----------------------------------------------------------------------------------
$r->relay->away('usa>gbr');
$r->fails('usa', $all, '08(001|006)', qr/region "gbr"/, 'a region that refuses fails at once anyway');
becomes('usa', 'gbr', 'away', 'and is away after the same time');
$r->relay->back('usa>gbr');
becomes('usa', 'gbr', 'up', 'until it accepts again');

# --- the server stops ----------------------------------------------------------------------------
$r->stop('gbr');
becomes($_, 'gbr', 'away', "a region that stopped is away for $_") foreach 'usa', 'aus';
$r->start('gbr');
becomes($_, 'gbr', 'up', "and back for $_") foreach 'usa', 'aus';
becomes('gbr', $_, 'up', "it sees $_ itself") foreach 'usa', 'aus';

# --- the worker goes, and comes ------------------------------------------------------------------
my $of_worker = q{FROM pg_stat_activity WHERE backend_type = 'residency health'};
my $writer = $r->session('usa', on_error_stop => 0);
my $n = 1000;

# ends usa's health worker, and writes until another one has taken over; returns the states seen
sub end_worker
{
	my $old = $r->psql('usa', "SELECT pid $of_worker");
	my $end = time + 30;
	my $last = $n + 10;
	my (%states, $new);

	$r->psql('usa', "SELECT pg_terminate_backend($old)");
	do
	{
		$n++;
		$writer->query("INSERT INTO app.identity VALUES ($n, 'usa')");
		$states{ $r->psql('usa', q{SELECT coalesce(string_agg(state, ' '), 'none') FROM residency.region_states() WHERE region = 'gbr'}) } = 1;
		$new = $r->psql('usa', "SELECT min(pid) $of_worker AND pid <> $old AND backend_start < now() - interval '1 second'");
	} until ($new ne '' && $n >= $last || time > $end);
	return ($new ne '' ? 'another worker' : 'no worker') . ': ' . join(', ', sort keys %states);
}

$r->relay->hold($_) foreach 'usa>gbr', 'gbr>usa';
becomes('usa', 'gbr', 'away', 'a region is away');
is(end_worker(), 'another worker: away', 'the end of a health worker does not undo what it found out');
is($writer->{stderr}, '', 'and writes here go on all the time');
logged('usa', 'x');
is(state('usa', 'gbr'), 'away', 'the next worker goes on with that');
isnt($r->psql('usa', q{SELECT problem FROM residency.regions WHERE name = 'gbr'}), '', 'and with the reason');
$r->relay->resume($_) foreach 'usa>gbr', 'gbr>usa';
becomes('usa', 'gbr', 'up', 'and sees that the region is back');
is(logged('usa', 'region "gbr" is away'), 0, 'it did not go away anew');
is(end_worker(), 'another worker: up', 'nor does a worker\'s end make a region away');
$writer->quit;

$r->relay->hold('usa>gbr');
becomes('usa', 'gbr', 'away', 'a region is away');

# one that is ended at that moment does not know why, and nobody follows
$r->node('usa')->append_conf('postgresql.conf', 'residency.workers = off');
$r->psql('usa', "SELECT pg_terminate_backend(pid), pg_reload_conf() $of_worker");
ok($r->poll('usa', 'SELECT count(*) = 0 FROM residency.region_states()'), 'without a worker nobody knows');
$r->relay->resume('usa>gbr');
is($session->query($all), '3', 'and statements find out by themselves');
$r->conf('usa', 'residency.workers = on');
becomes('usa', 'gbr', 'up', 'a worker watches again');
is($r->psql('usa', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'residency health'}), '1', 'one of them');
$r->fails('usa', 'SELECT residency.ping(1)', '42501', qr/other regions/, 'only regions ping');

$session->quit;
done_testing();
