# Workers are in nobody's way, and two regions, deployments or copies on one server never
# touch each other's transactions.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(regions => [qw(usa gbr)], conf => "residency.workers = on\nresidency.resolve_interval = '300ms'\nmax_worker_processes = 20\n");
People::make($r);
People::make_function($r);
my $usa = $r->node('usa');
my $gbr = $r->node('gbr');
my $log_start = -s $usa->logfile;

sub resolvers { my ($database) = @_; return "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'residency resolver' AND datname = '$database'"; }

# Test: the database of a node has, or has no, resolver; soon.
sub has_resolver
{
	my ($node, $database, $n, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok($node->poll_query_until('postgres', resolvers($database), $n), $name);
}

# Test: SQL succeeds within a few seconds.
sub soon
{
	my ($node, $database, $sql, $name) = @_;
	my $begin = time;
	my ($out, $err) = ('', '');
	my $code = $node->psql($database, $sql, stdout => \$out, stderr => \$err);
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is("$code" . ($code ? " $err" : '') . (time - $begin > 4 ? ' too late' : ''), '0', $name);
}

has_resolver($usa, 'app', 1, 'a region has a resolver');
has_resolver($usa, 'postgres', 0, 'a database without the extension has none');

# --- a second deployment, on the same two servers -----------------------------------------------
foreach my $node ($usa, $gbr)
{
	$node->safe_psql('postgres', q{CREATE DATABASE other TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'});
	$node->safe_psql('other', 'CREATE EXTENSION residency');
}
has_resolver($usa, 'other', 0, 'nor has one with the extension that is no region');
my %port = (usa => $usa->port, gbr => $gbr->port);
$usa->safe_psql('other', "SELECT residency.init('usa', 'host=127.0.0.1 port=$port{usa} dbname=other sslmode=disable')");
has_resolver($usa, 'other', 1, 'until it is one');
$usa->safe_psql('other', "SELECT residency.add_region('gbr', 'host=127.0.0.1 port=$port{gbr} dbname=other sslmode=disable user=$r->{user}')");
has_resolver($gbr, 'other', 1, 'a region that another one has added gets a resolver, too');
has_resolver($_, 'app', 1, 'the first region keeps its own') foreach $usa, $gbr;

# a part of the first deployment that its resolver leaves alone, because it is still running
my $session = $usa->background_psql('app');
my $inc = sprintf('%016x', $r->psql('usa', 'SELECT incarnation FROM residency.self'));
my $xid = (split /\n/, $session->query_safe('BEGIN; SELECT pg_current_xact_id()'))[-1];
my $own = "residency:$inc:$xid:0:00000001";
$gbr->safe_psql('app', "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '$own'", connstr => $gbr->connstr('app') . ' user=residency_usa');
my $role = $gbr->safe_psql('other', q{SELECT role FROM residency.region WHERE name = 'usa'});
isnt($role, 'residency_usa', 'each deployment has roles of its own');
my $inc_other = sprintf('%016x', $usa->safe_psql('other', 'SELECT incarnation FROM residency.self'));
$gbr->safe_psql('other', "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'residency:$inc:1:0:00000002'", connstr => $gbr->connstr('other') . " user=$role");
$gbr->safe_psql('app', "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'residency:$inc_other:1:0:00000003'", connstr => $gbr->connstr('app') . ' user=residency_usa');
$gbr->safe_psql('other', "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'residency:$inc_other:1:0:00000004'", connstr => $gbr->connstr('other') . " user=$role");
ok($gbr->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_prepared_xacts WHERE gid LIKE '%:00000004'}), 'each resolver rolls back its own');
sleep(1);
is($gbr->safe_psql('postgres', q{SELECT string_agg(right(gid, 1), ' ' ORDER BY right(gid, 1)) FROM pg_prepared_xacts}), '1 2 3',
	'and leaves those of the other deployment, and in the other database');

# --- a copy of a gateway ---------------------------------------------------------------------------
$session->query_safe('ROLLBACK');
$session->quit;
soon($usa, 'postgres', 'CREATE DATABASE twin TEMPLATE app', 'CREATE DATABASE with a region as its template does not fail because of a worker');
ok($gbr->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_prepared_xacts WHERE gid = '$own'"), 'the original is back at work');
$usa->restart;
has_resolver($usa, 'app', 1, 'the original has a resolver');
my $patience = time + 20;
sleep(0.1) while time < $patience && slurp_file($usa->logfile, $log_start) !~ /database "twin" is a copy/;
like(slurp_file($usa->logfile, $log_start), qr/database "twin" is a copy of region "usa"/, 'the log says that it is one');
has_resolver($usa, 'twin', 0, 'so it has none');
foreach my $sql (q{INSERT INTO app.identity VALUES (1, 'gbr', 'x')}, q{SELECT * FROM app.details})
{
	my ($out, $err);
	$usa->psql('twin', $sql, stdout => \$out, stderr => \$err, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like($err, qr/ERROR:  55000: .*copy of region "usa".*renew/s, 'a copy does not act as the region');
}
$usa->safe_psql('twin', 'SELECT residency.renew()');
has_resolver($usa, 'twin', 1, 'after renew() it does');
is($usa->safe_psql('twin', q{INSERT INTO app.identity VALUES (1, 'gbr', 'x') RETURNING id}), '1', 'and is the region');
$usa->safe_psql('app', 'SELECT residency.renew()');    # the original takes its place again

# --- DROP EXTENSION, DROP DATABASE and their kin ------------------------------------------------------
my $end = time + 5;
while (time < $end)
{
	# in the middle of rounds: each of these has to wait for none
	last unless soon($usa, 'other', 'BEGIN; DROP EXTENSION residency CASCADE; ROLLBACK', 'DROP EXTENSION does not wait for a worker');
	sleep(0.5);
}
soon($usa, 'other', 'DROP EXTENSION residency CASCADE', 'nor does it fail');
has_resolver($usa, 'other', 0, 'its worker leaves');
$usa->safe_psql('other', q{CREATE EXTENSION residency; SELECT residency.init('solo')});
has_resolver($usa, 'other', 1, 'CREATE EXTENSION and init() bring one back');
soon($usa, 'postgres', 'ALTER DATABASE other RENAME TO another', 'ALTER DATABASE … RENAME');
has_resolver($usa, 'another', 1, 'the renamed database has its worker again');
soon($usa, 'postgres', 'DROP DATABASE another', 'DROP DATABASE');
soon($usa, 'postgres', 'DROP DATABASE twin', 'DROP DATABASE of a former copy');
has_resolver($usa, 'app', 1, 'other databases keep theirs');
sleep(5.5);
unlike(slurp_file($usa->logfile, $log_start), qr{database \d+ does not exist|PANIC}, 'nobody looks for the dropped ones');

done_testing();
