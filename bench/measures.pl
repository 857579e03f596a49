# Measures statements over distance, side by side with postgres_fdw on the same servers.
#
#   test/run bench ARGS="[--rows 1000000] [--insert 100000] [--pairs 5] [--only PATTERN]"
#
# Three regions stand behind the test bed's relay: usa-gbr 80 ms, usa-aus 200 ms and
# gbr-aus 120 ms round trip.  postgres_fdw is the contender "tuned" of Bench.pm.
#
# "trips" are round trips that the client waited for, counted by the relay and not derived
# from times; "ratio" is the median of interleaved pairs.
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__), dirname(__FILE__) . '/../test/lib';
use Bench qw(add_contenders deployment distance fill median uuid);
use Getopt::Long;
use IO::Handle;
use PostgreSQL::Test::Utils;
use Test::More ();
use Time::HiRes qw(time sleep);

my %o = (rows => 1_000_000, insert => 100_000, pairs => 5, only => '.');
GetOptions(\%o, 'rows=i', 'insert=i', 'pairs=i', 'only=s') or die "unknown option\n";

# The test library sends our output to a log; the table goes where we were started.
my ($report, $trouble);
BEGIN
{
	open($report, '>&', \*STDOUT) or die "$!\n";
	open($trouble, '>&', \*STDERR) or die "$!\n";
	$report->autoflush(1);
	$ENV{PG_TEST_TIMEOUT_DEFAULT} = 3600;	# of a session, not of a statement
}
Test::More->builder->output('/dev/null');	# notes of the test bed
$SIG{__DIE__} = sub { print {$trouble} @_ unless $^S };

my $r;    # the regions of the part that is running

sub heading
{
	print {$report} "\n| statement | must be | pg_residency | postgres_fdw |\n|---|---|---|---|\n";
	return;
}

sub row { printf {$report} "| %s |\n", join(' | ', @_); return; }
sub wanted { my ($name) = @_; return $name =~ /$o{only}/; }
sub seconds { my ($ms) = @_; return $ms < 1000 ? sprintf('%.0f ms', $ms) : sprintf('%.2f s', $ms / 1000); }

# One statement's trips and time, as text; an error is an answer too.
sub counted
{
	my ($sql, $show) = @_;
	my ($trips, $ms) = eval { $r->round_trips('usa', $sql) };

	return 'fails: ' . ($@ =~ /(?:ERROR|FATAL):\s*(.*)/ ? $1 : $@) if $@;
	return ($show // 'both') eq 'ms' ? seconds($ms) : "$trips (" . seconds($ms) . ')';
}

sub far { distance($r, '80/200'); return; }
sub near { distance($r, 0); return; }

# The walkthrough's three-person statement, over ours and over postgres_fdw.
sub three_people
{
	my ($function, @uuids) = @_;

	return "SELECT $function('$uuids[0]', 'David Welch', 'usa', 'nice'),"
	  . " $function('$uuids[1]', 'Da Queen', 'gbr', 'a powerhouse'), $function('$uuids[2]', 'Someone', 'aus', 'new')";
}

# Rows that were there before, and statements of few rows.
sub small_statements
{
	my ($ours, $theirs);
	my $warm = 'SELECT count(*) FROM %s.identity_details';

	$r->warm('usa', sprintf($warm, 'shared'), sprintf($warm, 'tuned'));
	near();
	my @generate = ('SELECT * FROM util.generate_identities(1, 10000, false)', 'SELECT tuned.generate(1, 10000)');
	if (wanted('generate'))
	{
		row('`util.generate_identities(1, 10000, false)`, 0 ms', '<= 2 s', map { counted($_, 'ms') } @generate);
		far();
		row('the same, 80 and 200 ms', '<= 5 s', map { counted($_, 'ms') } @generate);
		near();
	}
	else { $r->warm('usa', @generate); }

	# ten thousand rows in all, as the walkthrough has them
	$r->psql($_, "DELETE FROM $_.identity_details WHERE uuid IN
		(SELECT uuid FROM $_.identity_details ORDER BY uuid OFFSET 3333)")
	  foreach $r->regions;
	fill($r, 'usa', 'tuned');
	my $row = $r->psql('gbr', 'SELECT uuid FROM gbr.identity_details LIMIT 1');

	far();
	row('one gbr row by uuid and region', 1,
		map { counted("SELECT * FROM $_.identity_details WHERE uuid = '$row' AND region = 'gbr'") }
		  'shared', 'tuned') if wanted('one row');
	row('all rows of all three regions (10,000)', '<= 250 ms',
		map { counted("SELECT * FROM $_.identity_details") } 'shared', 'tuned') if wanted('all rows');
	row('UPDATE of one gbr row, autocommit', '<= 2',
		map { counted("UPDATE $_.identity_details SET name = 'X' WHERE uuid = '$row' AND region = 'gbr'") }
		  'shared', 'tuned') if wanted('update');

	foreach my $wait (wanted('upsert') ? ('applied', 'decided') : ())
	{
		my ($new, $again) = $wait eq 'applied' ? (2, 3) : (1, 2);
		my @ids = ([ 'shared.upsert_identity', uuid(), uuid(), uuid() ], [ 'tuned.upsert', uuid(), uuid(), uuid() ]);

		$r->warm('usa', "SET residency.commit_wait = $wait", three_people('shared.upsert_identity', uuid(), uuid(), uuid()));
		row("three-person upsert, all new, `$wait`", $new, map { counted(three_people(@$_)) } @ids);
		$_->[3] = uuid() foreach @ids;
		row("three-person upsert again, `$wait`", $again, map { counted(three_people(@$_)) } @ids);
	}
	$r->warm('usa', 'RESET residency.commit_wait');
	near();
	return;
}

# First statement of a new backend, both other regions.
sub first_statements
{
	foreach my $case ([ 'trust', 2 ], [ 'SCRAM', 4, scram => 1 ], [ 'TLS 1.3 and SCRAM', 6, scram => 1, ssl => 1 ])
	{
		my ($name, $must, %how) = @$case;

		$r = deployment(%how);
		add_contenders($r, 'usa', 'tuned');
		far();
		row("first statement of a new backend, both regions, $name", $must, map {
			my ($trips, $ms) = $r->first_round_trips('usa', "SELECT count(*) FROM $_.identity_details");
			"$trips (" . seconds($ms) . ')'
		} 'shared', 'tuned');
		$r->teardown;
	}
	return;
}

# kB of private memory by which a new backend grows while the SQL runs.
sub peak_memory
{
	my ($sql) = @_;
	my $session = $r->session('usa', client => 1);
	my ($pid) = $session->query('SELECT pg_backend_pid()') =~ /(\d+)/;
	my $memory = sub { slurp_file("/proc/$pid/status") =~ /RssAnon:\s+(\d+)/ ? $1 : 0 };
	my $before = $memory->();

	pipe(my $read, my $write) or die $!;
	my $sampler = fork() // die $!;
	if ($sampler == 0)
	{
		my ($peak, $stop) = (0, 0);

		local $SIG{TERM} = sub { $stop = 1 };
		until ($stop) { my $m = $memory->(); $peak = $m if $m > $peak; sleep(0.005); }
		syswrite($write, "$peak\n");
		POSIX::_exit(0);
	}
	$session->query($sql);
	kill 'TERM', $sampler;
	my $peak = readline($read);
	waitpid($sampler, 0);
	$session->quit;
	return $peak - $before;
}

# Interleaved pairs of two statements: ms of each, and the ratios.
sub pairs
{
	my ($n, $between, @sql) = @_;
	my (@ours, @theirs, @ratio);

	foreach (0 .. $n)
	{
		my @ms = map {
			$between->();
			my $begin = time;
			my $out = $r->warm('usa')->query($_);
			1000 * (time - $begin)
		} @sql;

		next if $_ == 0;    # connections and caches
		push @ours, $ms[0];
		push @theirs, $ms[1];
		push @ratio, $ms[0] / $ms[1];
	}
	return (median(@ours), median(@theirs), median(@ratio));
}

# A million rows one way, a hundred thousand the other.
sub bulk
{
	my $columns = '(id integer, region text NOT NULL, payload text)';

	$r->psql('usa', "SELECT residency.run_everywhere('CREATE SCHEMA bench;
		CREATE TABLE bench.bulk (id integer PRIMARY KEY, region text NOT NULL, payload text);
		CREATE TABLE bench.sink (id integer PRIMARY KEY, region text NOT NULL, payload text)');
		SELECT residency.make_resident('bench.bulk', 'region', key => '{id}');
		SELECT residency.make_resident('bench.sink', 'region', key => '{id}')");
	$r->psql('usa', "CREATE TABLE tuned.$_ $columns PARTITION BY LIST (region);
		CREATE FOREIGN TABLE tuned.${_}_gbr PARTITION OF tuned.$_ FOR VALUES IN ('gbr')
			SERVER tuned_gbr OPTIONS (schema_name 'gbr', table_name '$_')") foreach 'bulk', 'sink';
	$r->psql('gbr', "INSERT INTO gbr.bulk SELECT i, 'gbr', md5(i::text) FROM generate_series(1, $o{rows}) i; VACUUM ANALYZE gbr.bulk");
	$r->psql('usa', 'ANALYZE');

	my @scan = map { "SELECT sum(length(payload)) FROM (SELECT * FROM $_.bulk OFFSET 0) s" } 'bench', 'tuned';
	if (wanted('scan'))
	{
		near();
		my @of = pairs($o{pairs}, sub { }, @scan);

		row("$o{rows} remote rows scanned, 0 ms", 'ratio <= 1.05', sprintf('%s, ratio %.2f', seconds($of[0]), $of[2]), seconds($of[1]));
		row('the same: growth of the backend', '< 64 MB', map { sprintf '%.0f MB', peak_memory($_) / 1024 } @scan);
	}

	my @insert = map { "INSERT INTO $_.sink SELECT i, 'gbr', md5(i::text) FROM generate_series(1, $o{insert}) i" } 'bench', 'tuned';
	my $empty = sub { $r->psql('gbr', 'TRUNCATE gbr.sink') };
	if (wanted('insert'))
	{
		my @of = pairs($o{pairs}, $empty, @insert);

		row("$o{insert} rows INSERT ... SELECT into gbr, 0 ms", 'ratio <= 1.05', sprintf('%s, ratio %.2f', seconds($of[0]), $of[2]), seconds($of[1]));
		far();
		@of = pairs(3, $empty, @insert);
		row('the same, 80 ms', '>= 3 times faster', sprintf('%s, %.1f times faster', seconds($of[0]), 1 / $of[2]), seconds($of[1]));
		near();
	}
	return;
}

print {$report} 'Machine: ', `nproc` =~ s/\n//r, " cores; ", `uname -sr`;
heading();
$r = deployment();
add_contenders($r, 'usa', 'tuned');
small_statements();
bulk() if grep { wanted($_) } 'scan', 'insert';
$r->teardown;
first_statements() if wanted('first');
