# Two gateways write one row of a global table at the same time: exactly one of them
# commits, whoever is the row's home; all copies are equal, and nobody waits for ever.
use strict;
use warnings;

use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use Regions;

my $trials = 334;    # for each of three pairs of gateways
my $period = 0.13;   # s from the start of one trial to the next

my $r = Regions->new(relay => 1, delay => 5);
my @regions = $r->regions;
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE SCHEMA app;
	CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text);
$$)});
$r->psql('usa', q{SELECT residency.make_global('app.item', 'region')});

# --- 1,000 trials -------------------------------------------------------------------
# What a gateway does in a trial.  Whoever comes second may see what the first did: then
# it changes nothing.
sub statement
{
	my ($trial, $who, $home) = @_;
	my $kind = $trial % 4;

	return "INSERT INTO app.item VALUES ($trial, '$home', '$who')" if $kind == 1;
	return "DELETE FROM app.item WHERE id = $trial AND note = 'start'" if $kind == 2 && $who eq 'one';
	return "UPDATE app.item SET note = '$who' WHERE id = $trial AND note = 'start'";
}

# The script of one gateway for all its trials of a pair; trials start by the clock.
sub script
{
	my ($pair, $who, $begin) = @_;
	my $sql = '';

	foreach my $i (0 .. $trials - 1)
	{
		my $trial = $pair * 1000 + $i;
		my $at = sprintf('%.3f', $begin + $i * $period);

		$sql .= "SELECT pg_sleep(greatest(0, $at - extract(epoch FROM clock_timestamp())));\n\\echo trial $trial\n\\timing on\n"
		  . statement($trial, $who, $regions[$i % 3]) . ";\n\\timing off\n";
	}
	return $sql;
}

# What each trial said, by its number.
sub outcomes
{
	my ($output) = @_;
	my ($before, %outcome) = split(/^trial (\d+)\n/m, $output);

	return \%outcome;
}

foreach my $pair (0 .. 2)
{
	my $rows = join(', ', map { "(" . ($pair * 1000 + $_) . ", '$regions[$_ % 3]', 'start')" } grep { $_ % 4 != 1 } 0 .. $trials - 1);
	$r->psql('usa', "INSERT INTO app.item VALUES $rows");
}

# Starts psql with a script, not waited for; its output, errors included, goes to a file.
my $files = 0;
sub start
{
	my ($gateway, $sql) = @_;
	my $base = PostgreSQL::Test::Utils::tempdir() . '/run' . $files++;
	my $pid;

	append_to_file("$base.sql", $sql);
	$pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		open(STDOUT, '>', "$base.out") or POSIX::_exit(1);
		open(STDERR, '>&', \*STDOUT);
		exec('psql', '-XAt', '-v', 'VERBOSITY=sqlstate', '-h', $r->node($gateway)->host, '-p', $r->port($gateway),
			'-d', $r->dbname, '-f', "$base.sql") or POSIX::_exit(1);
	}
	return { pid => $pid, out => "$base.out" };
}

# Waits for it, and returns the output.
sub output
{
	my ($run) = @_;

	waitpid($run->{pid}, 0);
	return slurp_file($run->{out});
}

my $begin = time + 2;
my @runs;
foreach my $pair (0 .. 2)
{
	foreach my $who ('one', 'two')
	{
		my $gateway = $regions[($pair + ($who eq 'two')) % 3];
		push @runs, { pair => $pair, who => $who, %{ start($gateway, script($pair, $who, $begin)) } };
	}
}

my (%commits, @errors, @slow);
my $collisions = 0;
foreach my $run (@runs)
{
	my $outcome = outcomes(output($run));

	is(scalar(keys %$outcome), $trials, "pair $run->{pair}, gateway $run->{who}: every trial ended");
	foreach my $trial (keys %$outcome)
	{
		my $said = $outcome->{$trial};

		$commits{$trial} += $said =~ /^(?:UPDATE|DELETE|INSERT 0) 1$/m ? 1 : 0;
		$collisions++ if $said =~ /40001/;
		push @errors, "$trial: $1" if $said =~ /ERROR:\s++(?!40001|23505)(.*)/;
		push @slow, "$trial: $1" if $said =~ /Time: (\d+)/ && $1 > 4000;
	}
}
is(scalar(keys %commits), 3 * $trials, '1,002 trials');
is(join(' ', grep { $commits{$_} != 1 } sort { $a <=> $b } keys %commits), '', 'exactly one gateway commits in each');
is(join(' ', @errors), '', 'the other one gets 40001, or sees the row of the first');
is(join(' ', @slow), '', 'nobody waits for a time-out of seconds');
cmp_ok($collisions, '>', 2 * $trials, 'and most trials were collisions');
note("$collisions of " . 3 * $trials . ' trials ended in 40001');
$r->all_equal(q{SELECT string_agg(id || note, ' ' ORDER BY id) FROM app.item}, 'copies are equal');
is($r->prepared, 0, 'nothing is left prepared');

# --- several rows: a cycle ends ---------------------------------------------------------
foreach my $round (1 .. 3)
{
	my @in = (q{BEGIN; UPDATE app.item SET note = 'a' WHERE id = 3; SELECT pg_sleep(0.1); UPDATE app.item SET note = 'a' WHERE id = 4; COMMIT;},
		q{BEGIN; UPDATE app.item SET note = 'b' WHERE id = 4; SELECT pg_sleep(0.1); UPDATE app.item SET note = 'b' WHERE id = 3; COMMIT;});
	my $start = time;
	my @both = map { start($regions[$_], $in[$_]) } 0, 1;
	my $said = join('', map { output($_) } @both);

	like($said, qr/ERROR:\s+40(001|P01)/, 'a cycle over two rows ends in an error');
	cmp_ok(time - $start, '<', 12, 'in bounded time');
	$r->all_equal(q{SELECT string_agg(id || note, ' ' ORDER BY id) FROM app.item WHERE id IN (3, 4)}, 'copies are equal');
}

# --- waits at a copy, at the home, and of the client itself ----------------------------------
$r->psql('usa', q{INSERT INTO app.item VALUES (9001, 'usa', 'x'), (9002, 'aus', 'x')});
foreach my $region (@regions)
{
	$r->psql($region, q{ALTER SYSTEM SET residency.lock_timeout = '700ms'});
	$r->psql($region, q{SELECT pg_reload_conf()});
}
my $holder = $r->session('usa');
$holder->query_safe('BEGIN');
$holder->query_safe('SELECT FROM app.item WHERE id IN (9001, 9002) FOR UPDATE');
my $start = time;
$r->fails('gbr', q{UPDATE app.item SET note = 'y' WHERE id = 9001}, '40001', qr/usa/, 'the home makes a writer wait no longer than home_wait');
cmp_ok(time - $start, '<', 0.65, 'far less than lock_timeout');
$r->fails('gbr', q{UPDATE app.item SET note = 'y' WHERE id = 9002}, '40P01', qr/usa/, 'a copy makes it wait no longer than lock_timeout');
$r->fails('usa', q{UPDATE app.item SET note = 'y' WHERE id = 9002}, '40P01', qr/global table/, 'nor does a client\'s own statement');
$r->fails('usa', q{COPY app.item FROM PROGRAM 'echo 9002,aus,z' WITH (FORMAT csv)}, '23505', qr/item_pkey/, 'a duplicate is a duplicate');
$r->fails('usa', q{TRUNCATE app.item}, '40P01', qr/global table/, 'nor TRUNCATE');
$r->fails('gbr', q{TRUNCATE app.item}, '40P01', qr/usa/, 'nor TRUNCATE at another gateway');
$r->fails('usa', q{SET lock_timeout = '50ms'; UPDATE app.item SET note = 'y' WHERE id = 9002}, '55P03', qr/lock timeout/, 'a shorter limit of the session stays what it is');
is($r->psql('usa', q{SET lock_timeout = '10min'; UPDATE app.item SET note = 'z' WHERE id = 3; SHOW lock_timeout}), '10min', 'and settings are as before');
$holder->query_safe('COMMIT');
$r->psql('gbr', q{UPDATE app.item SET note = 'y' WHERE id IN (9001, 9002)});
$holder->quit;

# a key locked for a reference does not hold up changes of the row
my $reader = $r->session('usa');
$reader->query_safe('BEGIN');
$reader->query_safe('SELECT FROM app.item WHERE id = 9001 FOR KEY SHARE');
$r->psql('gbr', q{UPDATE app.item SET note = 'beside' WHERE id = 9001});
is($r->psql('aus', q{SELECT note FROM app.item WHERE id = 9001}), 'beside', 'a key locked by a reference holds up no change of other columns');
$reader->query_safe('COMMIT');
$reader->quit;

# --- a copy behind its home ------------------------------------------------------------------
# A stale copy is made by hand: no trigger fires.
$r->psql('gbr', q{SET session_replication_role = replica; ALTER TABLE app.item DISABLE TRIGGER residency_capture;
	UPDATE app.item SET note = 'stale' WHERE id IN (9001, 9002); DELETE FROM app.item WHERE id = 3; ALTER TABLE app.item ENABLE ALWAYS TRIGGER residency_capture});
$r->fails('gbr', q{UPDATE app.item SET note = note || '!' WHERE id = 9001}, '40001', qr/usa/, 'a writer that saw another version than the home is refused');
$r->fails('gbr', q{DELETE FROM app.item WHERE id = 9002}, '40001', qr/aus/, 'a delete too');
$r->fails('gbr', q{INSERT INTO app.item VALUES (3, 'usa', 'dup')}, '40001', qr/usa/, 'and an insert of a row that is there');
$r->psql('usa', q{UPDATE app.item SET note = 'cured' WHERE id IN (9001, 9002, 3)});
is($r->all_equal(q{SELECT string_agg(note, ' ') FROM app.item WHERE id IN (9001, 9002, 3)}, 'a copy takes what comes'), 'cured cured cured', 'whatever it had');
is($r->prepared, 0, 'nothing is left prepared');

$r->teardown;
done_testing();
