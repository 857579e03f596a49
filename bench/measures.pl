# Measures statements over distance, side by side with postgres_fdw on the same servers.
#
#   test/run bench ARGS="[--rows 1000000] [--insert 100000] [--pairs 5] [--only PATTERN]"
#
# Three regions stand behind the test bed's relay: usa-gbr 80 ms, usa-aus 200 ms and
# gbr-aus 120 ms round trip.  postgres_fdw reaches the same servers through the same
# links and is set as well as it can be for these statements: fetch_size 10000,
# batch_size 1000, async_capable, parallel_commit.  What it keeps in all regions is
# written by a function, as there are no global tables in it, and it commits in one region
# after the other without a common decision.
#
# "trips" are round trips that the client waited for, counted by the relay and not derived
# from times; "ratio" is the median of interleaved pairs.
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__) . '/../test/lib';
use Getopt::Long;
use IO::Handle;
use PostgreSQL::Test::Utils;
use Regions;
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

my $top = dirname(__FILE__) . '/..';
my $r;    # the regions of the part that is running

sub heading
{
	print {$report} "\n| statement | must be | pg_residency | postgres_fdw |\n|---|---|---|---|\n";
	return;
}

sub row { printf {$report} "| %s |\n", join(' | ', @_); return; }
sub wanted { my ($name) = @_; return $name =~ /$o{only}/; }
sub median { my @v = sort { $a <=> $b } @_; return @v % 2 ? $v[@v / 2] : ($v[@v / 2 - 1] + $v[@v / 2]) / 2; }
sub seconds { my ($ms) = @_; return $ms < 1000 ? sprintf('%.0f ms', $ms) : sprintf('%.2f s', $ms / 1000); }
sub uuid { return join('-', map { join('', map { sprintf '%x', int rand 16 } 1 .. $_) } 8, 4, 4, 4, 12); }

# One statement's trips and time, as text; an error is an answer too.
sub counted
{
	my ($sql, $show) = @_;
	my ($trips, $ms) = eval { $r->round_trips('usa', $sql) };

	return 'fails: ' . ($@ =~ /(?:ERROR|FATAL):\s*(.*)/ ? $1 : $@) if $@;
	return ($show // 'both') eq 'ms' ? seconds($ms) : "$trips (" . seconds($ms) . ')';
}

# The same tables over postgres_fdw, in schema pf of every region.
sub add_postgres_fdw
{
	my ($password) = @_;

	foreach my $region ($r->regions)
	{
		$r->psql($region, <<"SQL");
			CREATE EXTENSION postgres_fdw;
			CREATE ROLE pf LOGIN SUPERUSER PASSWORD 'pf';
			CREATE SCHEMA pf;
			CREATE TABLE pf.identity_$region (uuid uuid PRIMARY KEY, region text NOT NULL, note text);
			CREATE TABLE pf.identity_details (uuid uuid, region text NOT NULL, name text) PARTITION BY LIST (region);
			CREATE TABLE pf.details_$region PARTITION OF pf.identity_details (PRIMARY KEY (uuid)) FOR VALUES IN ('$region');
SQL
	}
	foreach my $region (grep { $_ ne 'usa' } $r->regions)
	{
		my $port = $r->psql('usa', "SELECT option_value FROM pg_foreign_server, pg_options_to_table(srvoptions)
									 WHERE srvname = '$region' AND option_name = 'port'");
		my $ssl = $r->{ssl} ? ", sslmode 'require'" : '';
		my $db = $r->dbname;

		$r->psql('usa', <<"SQL");
			CREATE SERVER pf_$region FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port',
				dbname '$db', fetch_size '10000', batch_size '1000', async_capable 'true', parallel_commit 'true'$ssl);
			CREATE USER MAPPING FOR PUBLIC SERVER pf_$region OPTIONS (user 'pf', password 'pf');
			CREATE FOREIGN TABLE pf.identity_$region (uuid uuid, region text NOT NULL, note text)
				SERVER pf_$region OPTIONS (schema_name 'pf', table_name 'identity_$region');
			CREATE FOREIGN TABLE pf.details_$region PARTITION OF pf.identity_details FOR VALUES IN ('$region')
				SERVER pf_$region OPTIONS (schema_name 'pf', table_name 'details_$region');
SQL
	}
	$r->psql('usa', <<'SQL');
		CREATE FUNCTION pf.upsert(u uuid, n text, r text, t text) RETURNS boolean LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO pf.identity_usa VALUES (u, r, t) ON CONFLICT DO NOTHING;
			IF FOUND THEN
				INSERT INTO pf.identity_gbr VALUES (u, r, t);
				INSERT INTO pf.identity_aus VALUES (u, r, t);
				INSERT INTO pf.identity_details VALUES (u, r, n);
				RETURN true;
			END IF;
			UPDATE pf.identity_usa SET note = t WHERE uuid = u;
			UPDATE pf.identity_gbr SET note = t WHERE uuid = u;
			UPDATE pf.identity_aus SET note = t WHERE uuid = u;
			UPDATE pf.identity_details SET name = n WHERE uuid = u AND region = r;
			RETURN false;
		END $$;
		CREATE FUNCTION pf.generate(f integer, l integer) RETURNS void LANGUAGE plpgsql AS $$
		DECLARE u uuid[] := ARRAY(SELECT gen_random_uuid() FROM generate_series(f, l)); h text[] := '{aus,gbr,usa}';
		BEGIN
			INSERT INTO pf.identity_usa SELECT p.u, h[1 + n % 3], 'x' FROM unnest(u) WITH ORDINALITY AS p (u, n);
			INSERT INTO pf.identity_gbr SELECT p.u, h[1 + n % 3], 'x' FROM unnest(u) WITH ORDINALITY AS p (u, n);
			INSERT INTO pf.identity_aus SELECT p.u, h[1 + n % 3], 'x' FROM unnest(u) WITH ORDINALITY AS p (u, n);
			INSERT INTO pf.identity_details SELECT p.u, h[1 + n % 3], 'Person ' || n FROM unnest(u) WITH ORDINALITY AS p (u, n);
		END $$;
SQL
	return;
}

sub far { $r->delay(40, 'usa', 'gbr'); $r->delay(100, 'usa', 'aus'); $r->delay(60, 'gbr', 'aus'); return; }
sub near { $r->delay(0); return; }

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

	$r->warm('usa', sprintf($warm, 'shared'), sprintf($warm, 'pf'));
	near();
	my @generate = ('SELECT * FROM util.generate_identities(1, 10000, false)', 'SELECT pf.generate(1, 10000)');
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
		(SELECT uuid FROM $_.identity_details ORDER BY uuid OFFSET 3333);
		DELETE FROM pf.details_$_ WHERE uuid IN (SELECT uuid FROM pf.details_$_ ORDER BY uuid OFFSET 3333)")
	  foreach $r->regions;
	$r->psql('usa', 'ANALYZE');
	my ($our_row) = $r->psql('gbr', 'SELECT uuid FROM gbr.identity_details LIMIT 1');
	my ($their_row) = $r->psql('gbr', 'SELECT uuid FROM pf.details_gbr LIMIT 1');

	far();
	row('one gbr row by uuid and region', 1,
		map { counted("SELECT * FROM $_->[0].identity_details WHERE uuid = '$_->[1]' AND region = 'gbr'") }
		  [ 'shared', $our_row ], [ 'pf', $their_row ]) if wanted('one row');
	row('all rows of all three regions (10,000)', '<= 250 ms',
		map { counted("SELECT * FROM $_.identity_details") } 'shared', 'pf') if wanted('all rows');
	row('UPDATE of one gbr row, autocommit', '<= 2',
		map { counted("UPDATE $_->[0].identity_details SET name = 'X' WHERE uuid = '$_->[1]' AND region = 'gbr'") }
		  [ 'shared', $our_row ], [ 'pf', $their_row ]) if wanted('update');

	foreach my $wait (wanted('upsert') ? ('applied', 'decided') : ())
	{
		my ($new, $again) = $wait eq 'applied' ? (2, 3) : (1, 2);
		my @ids = ([ 'shared.upsert_identity', uuid(), uuid(), uuid() ], [ 'pf.upsert', uuid(), uuid(), uuid() ]);

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

		$r = Regions->new(relay => 1, dbname => 'identity', %how);
		$r->psql('usa', '', extra_params => [ '-f', "$top/examples/identity/schema.sql" ]);
		add_postgres_fdw();
		far();
		row("first statement of a new backend, both regions, $name", $must, map {
			my ($trips, $ms) = $r->first_round_trips('usa', "SELECT count(*) FROM $_.identity_details");
			"$trips (" . seconds($ms) . ')'
		} 'shared', 'pf');
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
	my ($columns, $pf) = ('(id integer, region text NOT NULL, payload text)', 'bulk');

	$r->psql('usa', "SELECT residency.run_everywhere('CREATE SCHEMA bench;
		CREATE TABLE bench.bulk (id integer PRIMARY KEY, region text NOT NULL, payload text);
		CREATE TABLE bench.sink (id integer PRIMARY KEY, region text NOT NULL, payload text)');
		SELECT residency.make_resident('bench.bulk', 'region', key => '{id}');
		SELECT residency.make_resident('bench.sink', 'region', key => '{id}')");
	$r->psql('usa', "CREATE TABLE pf.$_ $columns PARTITION BY LIST (region);
		CREATE FOREIGN TABLE pf.${_}_gbr PARTITION OF pf.$_ FOR VALUES IN ('gbr')
			SERVER pf_gbr OPTIONS (schema_name 'gbr', table_name '$_')") foreach 'bulk', 'sink';
	$r->psql('gbr', "INSERT INTO gbr.bulk SELECT i, 'gbr', md5(i::text) FROM generate_series(1, $o{rows}) i; VACUUM ANALYZE gbr.bulk");
	$r->psql('usa', 'ANALYZE');

	my @scan = map { "SELECT sum(length(payload)) FROM (SELECT * FROM $_.bulk OFFSET 0) s" } 'bench', 'pf';
	if (wanted('scan'))
	{
		near();
		my @pf = pairs($o{pairs}, sub { }, @scan);

		row("$o{rows} remote rows scanned, 0 ms", 'ratio <= 1.05', sprintf('%s, ratio %.2f', seconds($pf[0]), $pf[2]), seconds($pf[1]));
		row('the same: growth of the backend', '< 64 MB', map { sprintf '%.0f MB', peak_memory($_) / 1024 } @scan);
	}

	my @insert = map { "INSERT INTO $_.sink SELECT i, 'gbr', md5(i::text) FROM generate_series(1, $o{insert}) i" } 'bench', 'pf';
	my $empty = sub { $r->psql('gbr', 'TRUNCATE gbr.sink') };
	if (wanted('insert'))
	{
		my @pf = pairs($o{pairs}, $empty, @insert);

		row("$o{insert} rows INSERT ... SELECT into gbr, 0 ms", 'ratio <= 1.05', sprintf('%s, ratio %.2f', seconds($pf[0]), $pf[2]), seconds($pf[1]));
		far();
		@pf = pairs(3, $empty, @insert);
		row('the same, 80 ms', '>= 3 times faster', sprintf('%s, %.1f times faster', seconds($pf[0]), 1 / $pf[2]), seconds($pf[1]));
		near();
	}
	return;
}

print {$report} 'Machine: ', `nproc` =~ s/\n//r, " cores; ", `uname -sr`;
heading();
$r = Regions->new(relay => 1, dbname => 'identity');
$r->psql('usa', '', extra_params => [ '-f', "$top/examples/identity/schema.sql" ]);
add_postgres_fdw();
small_statements();
bulk() if grep { wanted($_) } 'scan', 'insert';
$r->teardown;
first_statements() if wanted('first');
