# What runs out, is missing or is forbidden in one region of several: a clear error that
# names the region, and nothing half done anywhere.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new(scram => 1, faults => 1, relay => 1);
my $id = 0;

People::make($r);
People::make_function($r);
$r->psql('usa', q{SELECT residency.run_everywhere($$ CREATE ROLE clerk LOGIN;
	GRANT USAGE ON SCHEMA app TO clerk;
	GRANT SELECT, INSERT, UPDATE, DELETE ON app.identity, app.details TO clerk $$)});

# One transaction that writes one person in each region, run by a new backend, fails with that
# SQLSTATE and message; nothing of it is anywhere; and the next one is fine.
sub fails_whole
{
	my ($name, $sqlstate, $like, $mend, $before) = @_;
	my $people = sub { join('; ', ($before // ()), map { "SELECT app.add(" . ++$id . ", '$_', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300) i))" } $r->regions) };
	my $first = $id + 1;

	$r->fails('usa', 'BEGIN; ' . $people->() . '; COMMIT', $sqlstate, $like, $name);
	$mend->() if $mend;
	foreach my $region ($r->regions)
	{
		is($r->psql($region, "SELECT (SELECT count(*) FROM app.identity WHERE id >= $first) + (SELECT count(*) FROM $region.details WHERE id >= $first)"),
			0, "... nothing is left in $region");
	}
	is($r->prepared, 0, '... no prepared transaction');
	undef $before;
	my ($code, undef, $err) = $r->try('usa', 'BEGIN; ' . $people->() . '; COMMIT');
	ok($code == 0, '... and once it is mended the same succeeds') or diag($err);
	return;
}

# --- connections ----------------------------------------------------------------------
$r->psql('gbr', 'ALTER ROLE residency_usa CONNECTION LIMIT 0');
fails_whole('no connection left for the gateway\'s role', '08001', qr/region "gbr".*too many connections/s,
	sub { $r->psql('gbr', 'ALTER ROLE residency_usa CONNECTION LIMIT -1') });
{
	my @sessions;

	$r->conf('aus', 'max_connections = 12');
	$r->restart('aus');
	push @sessions, $r->session('aus') foreach 1 .. 11;    # a superuser's, three are reserved
	fails_whole('no connection left in the server', '08001', qr/region "aus".*connection slots/s, sub { $_->quit foreach @sessions });
	$r->conf('aus', 'max_connections = 100');
	$r->restart('aus');
}

# --- prepared transactions ------------------------------------------------------------
{
	my $blocker;

	$r->conf('aus', 'max_prepared_transactions = 1');
	$r->restart('aus');
	$r->psql('aus', q{BEGIN; CREATE TABLE public.other (i int); PREPARE TRANSACTION 'of somebody else'});
	fails_whole('no room for a prepared transaction', '53200', qr/region "aus".*prepared/s,
		sub { $r->psql('aus', q{ROLLBACK PREPARED 'of somebody else'}) });
	$r->conf('aus', 'max_prepared_transactions = 200');
	$r->restart('aus');
}

# --- a gid that is taken ---------------------------------------------------------------
{
	my $first = $id + 1;
	my $session;

	$r->arm('gbr', 'part_prepares:hold');
	$session = $r->session('usa', on_error_stop => 0);
	$session->query_until(qr/started/, "\\echo started\n\\set VERBOSITY verbose\nBEGIN; "
		  . join('; ', map { "SELECT app.add(" . ++$id . ", '$_', 'Ann')" } $r->regions) . "; COMMIT;\n");
	$r->wait_fired('gbr');
	my $gid = $r->psql('gbr', q{SELECT substring(query FROM '(residency:[^'']+)') FROM pg_stat_activity WHERE query LIKE 'PREPARE TRANSACTION%'});
	like($gid, qr/^residency:/, 'a gid can be seen while its PREPARE runs');
	$r->psql('gbr', "BEGIN; CREATE TABLE public.clash (i int); PREPARE TRANSACTION '$gid'");
	$r->release('gbr');
	$session->query('SELECT 1');
	like($session->{stderr}, qr/ERROR:  42710: .*gbr/, 'a gid that is taken: clear error');
	$session->quit;
	is($r->prepared('usa', 'aus'), 0, '... nothing stays prepared');
	is($r->psql($_, "SELECT count(*) FROM app.identity WHERE id >= $first"), 0, "... nothing is left in $_") foreach $r->regions;
	is($r->psql('gbr', 'SELECT count(*) FROM pg_prepared_xacts WHERE owner = current_user'), 1, '... and the other owner\'s transaction is not touched');
	$r->psql('gbr', "ROLLBACK PREPARED '$gid'");
	$r->disarm('gbr');
}

# --- rights and secrets ---------------------------------------------------------------
$r->psql('aus', 'REVOKE INSERT ON app.details, aus.details FROM clerk');
fails_whole('no right in one region', '42501', qr/region "aus".*permission denied/s,
	sub { $r->psql('aus', 'GRANT INSERT ON app.details, aus.details TO clerk') }, 'SET ROLE clerk');
$r->psql('gbr', 'ALTER ROLE clerk RENAME TO gone');
fails_whole('no such role in one region', '42704', qr/region "gbr".*clerk/s,
	sub { $r->psql('gbr', 'ALTER ROLE gone RENAME TO clerk') }, 'SET ROLE clerk');
{
	my $secret = $r->psql('gbr', q{SELECT rolpassword FROM pg_authid WHERE rolname = 'residency_usa'});

	$r->psql('gbr', q{ALTER ROLE residency_usa PASSWORD 'another'});
	fails_whole('the gateway\'s password changed', '(?:08\w\w\w|28P01)', qr/region "gbr"/,
		sub { $r->psql('gbr', "ALTER ROLE residency_usa PASSWORD '$secret'") });
}

# --- versions -------------------------------------------------------------------------
{
	my ($deployment) = $r->psql('gbr', 'SELECT deployment FROM residency.self');

	$r->fails('gbr', "BEGIN; SET SESSION AUTHORIZATION residency_usa; SELECT residency.hello($deployment, 'gbr', '0.0.0', 'usa', false)",
		'08004', qr/version 0\.0\.0 at gateway "usa".*HINT: .*same version/s, 'another version of the extension is refused, by its first word');
}

# --- disks ----------------------------------------------------------------------------
foreach my $case ([ '/base/', '53100', qr/region "aus".*(?:space|extend)/s ], [ '/pg_wal/', '(?:53100|08\w\w\w)', qr/region "aus"/ ])
{
	my ($part, $sqlstate, $like) = @$case;
	my $flag = $r->node('aus')->basedir . '/full';

	$r->stop('aus');
	{
		local $ENV{LD_PRELOAD} = $ENV{TESTDIR} . '/test/lib/full.so';
		local $ENV{FULL_DISK} = $flag;
		local $ENV{FULL_DISK_FOR} = $part;
		$r->start('aus');
	}
	if ($part eq '/pg_wal/')
	{
		# the segment is full, and no later one is kept ready
		my $last = $r->psql('aus', 'SELECT pg_walfile_name(pg_switch_wal())');

		unlink grep { m{/[0-9A-F]{24}$} && $_ gt $r->node('aus')->data_dir . "/pg_wal/$last" } glob($r->node('aus')->data_dir . '/pg_wal/*');
	}
	append_to_file($flag, '');
	fails_whole("disk full in $part", $sqlstate, $like, sub {
		unlink($flag);
		$r->revive('aus');
		$r->psql('usa', 'SELECT residency.resolve()');
	});
}

$r->teardown;
done_testing();
