# The relay tells the truth: what it delays, counts, holds and cuts is what plain
# PostgreSQL conversations, known beforehand, say that it must be.
use strict;
use warnings;

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use Relay;

$ENV{PGSSLMODE} = 'disable';
$ENV{PGGSSENCMODE} = 'disable';
$ENV{PGAPPNAME} = 'witness';
delete $ENV{PGCLIENTENCODING};

my $server = PostgreSQL::Test::Cluster->new('server');
$server->init;
$server->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'\nfsync = off\n");
$server->start;
$server->safe_psql('postgres', q{
	CREATE EXTENSION dblink;
	CREATE TABLE t (v text);
	CREATE ROLE scram LOGIN SUPERUSER PASSWORD 'secret';
});
open(my $hba, '<', $server->data_dir . '/pg_hba.conf') or die $!;
my $rules = do { local $/; <$hba> };
close($hba);
unlink($server->data_dir . '/pg_hba.conf');
$server->append_conf('pg_hba.conf', "host all scram 127.0.0.1/32 scram-sha-256\n$rules");
$server->reload;

my $relay = Relay->new;
my %port = map { $_ => $relay->link($_, port => $server->port) } qw(near far);
$port{client} = $relay->link('client', port => $server->port, client => 1);
my $user = $server->safe_psql('postgres', 'SELECT current_user');

# runs psql through a link; returns exit code, output, errors
sub through
{
	my ($link, @commands) = @_;
	my ($out, $err);

	IPC::Run::run(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', "host=127.0.0.1 port=$port{$link} dbname=postgres",
			map { ('-c', $_) } @commands ],
		'<', \undef, '>', \$out, '2>', \$err);
	chomp $out;
	return ($? >> 8, $out, $err);
}

# the same in the background
sub start_through
{
	my ($link, $sql) = @_;
	my $run = { out => '', err => '' };

	$run->{handle} = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', "host=127.0.0.1 port=$port{$link} dbname=postgres", '-c', $sql ],
		'<', \undef, '>', \$run->{out}, '2>', \$run->{err}, IPC::Run::timeout(120));
	return $run;
}

sub rows { return $server->safe_psql('postgres', 'SELECT count(*) FROM t'); }

# Delay: psql's own clock is the witness; the shortest of several times, since what a busy
# machine adds is none of the relay's.
{
	$relay->delay('near', 40);
	my (undef, $out) = through('near', '\timing on', ('SELECT 1') x 8);
	my @ms = sort { $a <=> $b } $out =~ /Time: ([\d.]+) ms/g;

	is(scalar @ms, 8, 'psql timed eight statements');
	cmp_ok($ms[0], '>=', 80, 'a round trip takes both ways of the delay');
	cmp_ok($ms[0], '<', 120, 'and not much longer');

	$relay->delay('near', 10, 50);
	(undef, $out) = through('near', '\timing on', ('SELECT 1') x 8);
	@ms = sort { $a <=> $b } $out =~ /Time: ([\d.]+) ms/g;
	cmp_ok($ms[0], '>=', 60, 'each way has its own delay');
	cmp_ok($ms[0], '<', 100, 'and not much longer');
	$relay->delay('near', 0);
}

# Counts of a conversation known byte for byte.
{
	$relay->reset;
	through('near', 'SELECT 1');
	my $c = $relay->counts('near');

	is($c->{opened}, 1, 'one connection');
	is($c->{flights}, 3, 'start-up, query, good-bye: three flights');
	is($c->{messages_out}, 3, 'and three messages');
	# Query: type, length, "SELECT 1" and a zero; Terminate: type and length
	my $startup = 4 + 4 + 1;
	$startup += length($_) + 1
	  foreach ('user', $user, 'database', 'postgres', 'application_name', 'witness');
	is($c->{bytes_out}, $startup + 14 + 5, 'and all their bytes') or diag("user $user");
	is($relay->counts('far')->{opened}, 0, 'the other link was not used');

	$relay->reset;
	local $ENV{PGSSLMODE} = 'prefer';
	through('near', 'SELECT 1');
	is($relay->counts('near')->{flights}, 4, 'an offer of encryption that is declined is one more');
	is($relay->counts('near')->{messages_out}, 4, 'and the conversation stays readable');
}

# Round trips waited: dblink does exactly what it is told, in the order told.
{
	my %remote = map { $_ => "host=127.0.0.1 port=$port{$_} dbname=postgres user=$user" } qw(near far);
	my $open = "SELECT dblink_connect('near', '$remote{near}'), dblink_connect('far', '$remote{far}')";
	my $both = "SELECT dblink_send_query('near', 'SELECT 1'), dblink_send_query('far', 'SELECT 2')";
	my $get = sub { return "SELECT * FROM dblink_get_result('$_[0]') AS (a int)"; };
	my @parts = (
		[ 'nothing remote', 0, 'SELECT 1' ],
		[ 'two connections, one after the other', 2, $open ],
		[ 'one query', 1, "SELECT dblink_exec('near', 'SET work_mem = 100')" ],
		[ 'one query in each region, one after the other', 2,
			"SELECT dblink_exec('near', 'SET work_mem = 100'), dblink_exec('far', 'SET work_mem = 100')" ],
		[ 'one query in each region, side by side', 1, "DO \$\$ BEGIN PERFORM dblink_send_query('near', 'SELECT 1'),
			dblink_send_query('far', 'SELECT 2'); PERFORM * FROM dblink_get_result('near') AS (a int);
			PERFORM * FROM dblink_get_result('far') AS (a int); END \$\$" ],
		[ 'empty results that end the above', 0, $get->('near'), $get->('far') ],
		[ 'side by side, then side by side again', 2, "DO \$\$ BEGIN FOR i IN 1..2 LOOP
			PERFORM dblink_send_query('near', 'SELECT 1'), dblink_send_query('far', 'SELECT 2');
			FOR j IN 1..2 LOOP
				PERFORM * FROM dblink_get_result('near') AS (a int);
				PERFORM * FROM dblink_get_result('far') AS (a int);
			END LOOP; END LOOP; END \$\$" ],
		[ 'sent, but not waited for', 0, $both ],
	);

	foreach my $delay ([ 20, 20 ], [ 15, 40 ])
	{
		$relay->delay('near', $delay->[0]);
		$relay->delay('far', $delay->[1]);
		my $windows = $relay->windows(sub {
			my ($code, undef, $err) = through('client', map { @$_[2 .. $#$_] } @parts);
			is($code, 0, 'the statements ran') or diag($err);
		});

		# the client's own start-up is the first window
		is(scalar @$windows, 1 + grep({ !ref } map { @$_[2 .. $#$_] } @parts), 'a window for each request');
		my $w = 1;
		foreach my $part (@parts)
		{
			my $trips = 0;
			$trips += $windows->[ $w++ ]{trips} foreach @$part[2 .. $#$part];
			is($trips, $part->[1], "$part->[0]: $part->[1], delays @$delay");
		}
	}

	# a stream of writes is one flight, though answers come while it goes on
	$relay->delay('near', 20);
	my ($trips, $ms) = $relay->waited(sub {
		through('client', "DO \$\$ BEGIN PERFORM dblink_connect('near', '$remote{near}');
			PERFORM dblink_exec('near', '/* ' || repeat('x', 40000000) || ' */ SET work_mem = 100'); END \$\$");
	});
	is($trips, 2, 'a long request is one flight');

	foreach my $auth ([ '', 1 ], [ 'user=scram password=secret', 3 ])
	{
		my $to = $remote{near};
		$to =~ s/user=\S+/$auth->[0]/ if $auth->[0];
		is(scalar $relay->waited(sub { through('client', "SELECT dblink_connect('$to')") }), $auth->[1],
			"opening a connection, @{[ $auth->[0] ? 'SCRAM' : 'trust' ]}: $auth->[1]");
	}

	# postgres_fdw asks one thing after the other: begin, declare, fetch, close, commit
	$server->safe_psql('postgres', qq{
		CREATE EXTENSION postgres_fdw;
		CREATE SERVER near FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port{near}', dbname 'postgres');
		CREATE USER MAPPING FOR CURRENT_USER SERVER near;
		CREATE FOREIGN TABLE far_t (v text) SERVER near OPTIONS (table_name 't');
	});
	my $windows = $relay->windows(sub { through('client', ('SELECT count(*) FROM far_t') x 6) });
	my ($shortest) = sort { $a->{ms} <=> $b->{ms} } @$windows[ -5 .. -1 ];
	cmp_ok($shortest->{trips}, '>=', 4, 'postgres_fdw waits for each of its steps');
	cmp_ok($shortest->{ms}, '>=', 40 * $shortest->{trips}, 'and its time bears the count out');
	cmp_ok($shortest->{ms}, '<', 40 * ($shortest->{trips} + 1), 'exactly');
	$relay->delay('all', 0);
}

# Bandwidth: a delay must not throttle, nor change a byte.
{
	$relay->delay('near', 50);
	my $begin = time;
	my (undef, $through) = through('near', q{SELECT md5(string_agg(md5(i::text), '')) FROM generate_series(1, 100) i},
		q{SELECT repeat(md5('x'), 1000000)});
	my $seconds = time - $begin;
	my (undef, $direct) = through('far', q{SELECT md5(string_agg(md5(i::text), '')) FROM generate_series(1, 100) i},
		q{SELECT repeat(md5('x'), 1000000)});
	ok($through eq $direct, '32 MB arrive unchanged');
	cmp_ok($seconds, '<', 10, 'in a time that no window of bytes per round trip would allow');
	$relay->delay('near', 0);
}

# Hold: accepted and silent, nothing lost afterwards.
foreach my $way (qw(out in both))
{
	$relay->hold('near', $way);
	my $run = start_through('near', "INSERT INTO t VALUES ('$way'); SELECT 'done'");
	sleep(0.6);
	$run->{handle}->pump_nb;
	is($run->{out}, '', "held $way: no answer");
	$relay->resume('near');
	$run->{handle}->finish;
	is($run->{out}, "done\n", "resumed: the answer comes");
}
is(rows(), 3, 'held statements were done once each');

# Cut, and refuse.
foreach my $how (qw(rst fin))
{
	my $run = start_through('near', 'SELECT pg_sleep(60)');
	sleep(0.02) until $relay->counts('near')->{open} > 0;
	sleep(0.3);
	$relay->cut('near', $how);
	$run->{handle}->finish;
	isnt($run->{handle}->result, 0, "cut by $how: the client fails");
	like($run->{err}, qr/connection|reset/i, 'and knows that the connection is lost');
}
{
	$relay->refuse('near');
	my ($code, undef, $err) = through('near', 'SELECT 1');
	is($code, 2, 'refused: no connection');
	like($err, qr/Connection refused/, 'really refused, not accepted and closed');
	$relay->accept('near');
	is((through('near', 'SELECT 1'))[1], '1', 'accepted again');
}

# Traps: the answer of a write is lost, or the write itself.
{
	$server->safe_psql('postgres', 'TRUNCATE t');
	$relay->trap('near', 'out', 'cut', 'VALUES (\'never\')');
	my ($code) = through('near', "INSERT INTO t VALUES ('never')");
	is($code, 2, 'trap, cut: the client fails');
	is($relay->sprung('near'), 1, 'the trap has sprung');
	is(rows(), 0, 'and the server never saw the statement');

	$relay->trap('near', 'out', 'hold_back', 'VALUES (\'done\')');
	my $run = start_through('near', "INSERT INTO t VALUES ('done')");
	$relay->wait_sprung('near', 2);
	ok($server->poll_query_until('postgres', 'SELECT count(*) = 1 FROM t'), 'trap, hold back: the server did it');
	$relay->cut('near');
	$run->{handle}->finish;
	isnt($run->{handle}->result, 0, 'and the client was never told');
	$relay->resume('near');
	is((through('near', 'SELECT count(*) FROM t'))[1], '1', 'a trap springs once');
}

# Records: the witness of what crossed.
{
	my $dir = PostgreSQL::Test::Utils::tempdir;
	$relay->record('near', $dir);
	through('near', q{SELECT 'out' || '-witness-' || 42});
	$relay->record('near', undef);
	my @out = map { slurp_file($_) } glob("$dir/near.*.out");
	my @in = map { slurp_file($_) } glob("$dir/near.*.in");
	is(scalar @out, 1, 'a file for the way out');
	like($out[0], qr/-witness-' \|\| 42/, 'with the query');
	unlike($out[0], qr/out-witness-42/, 'not the answer');
	like($in[0], qr/out-witness-42/, 'which is in the file for the way back');
}

eval { $relay->command('delay', 'nowhere', 10) };
like($@, qr/cannot do/, 'a command that does nothing is an error');

$server->stop;
done_testing();
