# A region is only replaced when it is lost, whatever the server at its address says; and no session of
# the lost database goes on in the others afterwards, those for administration included.
use strict;
use warnings;

use IO::Socket::INET;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

# away_after is long: what ends sessions here is replace_region
my $conf = "residency.workers = on\nresidency.resolve_interval = 1s\nresidency.away_after = 60s\nresidency.connect_timeout = 2s\n"
  . "residency.lock_timeout = 3s\nmax_worker_processes = 30\nwal_level = replica\n";
my $r = Regions->new(faults => 1, conf => $conf);
my $there = Regions->new(regions => ['gbr'], faults => 1, join => 0, conf => $conf . "residency.workers = off\n");
my $new = $there->connection('gbr') =~ s/ sslmode=\w+//r;
my $replace = "SELECT residency.replace_region('gbr', '$new user=$r->{user}')";
my $gbr = $r->node('gbr');
my $incarnation = q{SELECT incarnation FROM residency.region WHERE name = 'gbr'};
my $options = q{SELECT array_to_string(residency.way_to('gbr'), ' ')};
my @living = qw(usa aus);
my @processes;    # that are stopped

# whatever fails, they can be ended
END { kill 'CONT', grep { Regions::alive($_) } @processes; }

sub processes
{
	my ($node) = @_;
	my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	return ($postmaster, Regions::children($postmaster));
}

# Test: nobody who still finds gbr takes it for lost.
sub refused
{
	my ($like, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $r->fails('usa', $replace, '55000', $like, $name);
}

# SQL: sessions for administration that the region has here
sub admins { my ($of) = @_; return "SELECT count(*) FROM pg_stat_activity WHERE usename <> 'residency_$of' AND pid = ANY (residency.sessions_of('$of'))"; }

sub all_up
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($r->poll($_, q{SELECT bool_and(state = 'up') FROM residency.regions}), "$name: all are up for $_") foreach $r->regions;
	return;
}

# A session in that region that the lost database opens late: it says hello as it does.
sub ghost
{
	my ($region, $admin) = @_;
	my $session = $r->session($region, on_error_stop => 0, $admin ? () : (extra_params => [ '-U', 'residency_gbr' ]));
	my ($deployment, $old) = split /\|/, $r->psql('usa', qq{SELECT s.deployment, ($incarnation) FROM residency.self s});
	my $version = $r->psql('usa', q{SELECT extversion FROM pg_extension WHERE extname = 'residency'});

	$session->query_safe("SELECT residency.hello($deployment, '$region', '$version', 'gbr', " . ($admin ? 'true' : 'false') . ", '1', $old)");
	return $session;
}

# Test: that session is ended when it says something.
sub ended
{
	my ($session, $sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$session->{stderr} = '';
	eval { $session->query($sql) };
	return like($session->{stderr}, qr/FATAL:.*database of region "gbr" that asks was replaced/, $name);
}

People::make($r);
$r->psql('usa', join('; ', map { People::add($_, (qw(usa gbr aus))[$_ % 3], 'x') } 1 .. 9));
$there->psql('gbr', q{CREATE SCHEMA app; CREATE TABLE app.identity (id int PRIMARY KEY, region text NOT NULL, note text);
	CREATE TABLE app.details (id int PRIMARY KEY, region text NOT NULL, name text)});

# it lets nobody log in
my $hba = $gbr->data_dir . '/pg_hba.conf';
my $lines = slurp_file($hba);
unlink($hba);
$gbr->append_conf('pg_hba.conf', "local all residency_usa,residency_aus reject\nhost all residency_usa,residency_aus all reject\n$lines");
$gbr->reload;
refused(qr/region "\w+" cannot tell whether region "gbr" is lost.*DETAIL.*its login is refused.*HINT.*pg_hba.*ALTER SERVER gbr/s, 'a region that lets nobody in');
unlink($hba);
$gbr->append_conf('pg_hba.conf', $lines);
$gbr->reload;

# it is a copy that nobody has renewed yet
my $place = $r->psql('gbr', 'SELECT place FROM residency.self');
$r->psql('gbr', q{UPDATE residency.self SET place = 'elsewhere'});
refused(qr/region "gbr" still answers region "\w+"/, 'a copy that may be renewed');
$r->psql('gbr', "UPDATE residency.self SET place = '$place'");

# it is a standby, also where those are passed over
$gbr->stop;
append_to_file($gbr->data_dir . '/standby.signal', '');
$gbr->start;
$r->psql($_, q{ALTER SERVER gbr OPTIONS (ADD target_session_attrs 'read-write')}) foreach @living;
refused(qr/region "gbr" still answers region "\w+"/, 'a standby that may be promoted');
$gbr->promote;
$r->psql($_, q{ALTER SERVER gbr OPTIONS (DROP target_session_attrs)}) foreach @living;

# it is behind another host that is silent
my $silent = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die "socket: $!";
my %before = map { $_ => { split / /, $r->psql($_, $options) } } @living;
$r->psql($_, "ALTER SERVER gbr OPTIONS (SET host '127.0.0.1,$before{$_}{host}', SET port '" . $silent->sockport . ",$before{$_}{port}')") foreach @living;
refused(qr/region "gbr" still answers region "\w+"/, 'a second host, behind a silent one');
$r->psql($_, "ALTER SERVER gbr OPTIONS (SET host '$before{$_}{host}', SET port '$before{$_}{port}')") foreach @living;
close($silent);
all_up('gbr is there after all');

# its sessions are looked for anew each time, also in one transaction
my $ender = $r->session('usa');
$ender->query_safe(q{BEGIN; SELECT residency.end_sessions('gbr')});
my $late = $r->session('gbr', on_error_stop => 0);
$r->psql('gbr', "CREATE USER MAPPING FOR CURRENT_USER SERVER $_ OPTIONS (user '$r->{user}')") foreach @living;
$late->query_safe(q{BEGIN; SELECT FROM residency.ask('{usa}', 'SELECT 1')});
is($r->psql('usa', admins('gbr')), 1, 'gbr has a session for administration in usa');
$ender->query_safe(q{SELECT residency.end_sessions('gbr'); COMMIT});
is($r->psql('usa', admins('gbr')), 0, '... which is ended, though it came between two calls');
$_->quit foreach $ender, $late;

# it hangs in the middle of a change, with the lock of all changes in its hand
my $change = $r->session('gbr');
$change->query_safe(q{SELECT residency.run_everywhere('CREATE TABLE app.other ()')});
$change->query_safe(q{BEGIN; SELECT residency.run_everywhere('DROP TABLE app.other')});
isnt($r->psql($_, q{SELECT residency.sessions_of('gbr')}), '{}', "gbr has sessions in $_") foreach @living;
is($r->psql('usa', q{SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND a.usename <> 'residency_gbr' AND l.pid = ANY (residency.sessions_of('gbr'))}),
	1, '... one of an administrator, with the lock');
@processes = processes($gbr);
kill 'STOP', @processes;

# what the others know of it
$r->psql('aus', q{ALTER SERVER gbr OPTIONS (SET sslmode 'allow', ADD keepalives_idle '77')});
$r->psql('usa', q{ALTER SERVER gbr OPTIONS (ADD keepalives_idle '78')});
$r->psql('usa', q{INSERT INTO residency.conflict (relation, key, region, kind, home) VALUES ('app.identity'::regclass, residency.key_text('{1}'), 'usa', 'key', 'gbr')});
my $old = $r->psql('usa', $incarnation);

# while the call commits the lost database comes in once more
my ($out, $err) = ('', '');
$r->arm('usa', 'prepared:hold');
my $client = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $r->node('usa')->connstr('app'), '-c', $replace, '-c', '\echo replaced' ],
	'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(90));
$r->wait_fired('usa');
my ($writer, $reader, $admin, $idle) = (ghost('usa'), ghost('usa'), ghost('usa', 1), ghost('aus', 1));
$writer->query_safe('BEGIN; SELECT count(*) FROM pg_catalog.pg_class');
$r->disarm('usa');
IPC::Run::finish($client);
like("$out$err", qr/^\n?replaced\nNOTICE:  rows of table app.identity are copied to region "gbr"\n$/, 'replaced, though it hung in the middle of a change');
# (the new one is not at work yet, and has met nobody)
ended($writer, 'COMMIT', 'a late session of the lost database cannot commit');
ended($reader, 'SELECT 1', '... nor read');
ended($admin, 'SELECT 1', '... nor administrate');
$r->{nodes}{gbr} = $there->node('gbr');
$r->conf('gbr', "residency.workers = on\n");
all_up('replaced');
eval { $idle->query('SELECT 1') };
like($idle->{stderr}, qr/terminating connection|server closed/, 'an idle session was ended when the new database came');
isnt($r->psql('usa', $incarnation), $old, 'it is another one');
my $n = 100;
$r->psql($_, People::add(++$n, 'gbr', $_)) foreach $r->regions;
is($r->all_equal(q{SELECT count(*) FROM app.details WHERE region = 'gbr'}), 3, 'it is a home for all');

# options that nobody has named stay
my %usa = split / /, $r->psql('usa', $options);
my %aus = split / /, $r->psql('aus', $options);
is($_->{port}, $there->port('gbr'), 'it is found at its new address') foreach \%usa, \%aus;
is("$aus{sslmode} $aus{keepalives_idle}", 'allow 77', 'the other options are as they were');
is($usa{keepalives_idle}, 78, '... also where it was called');

# what the region that called has made itself, and the lost one had made too
is($r->psql('gbr', q{SELECT count(*) FROM residency.conflict WHERE region = 'usa' AND kind = 'key' AND home = 'gbr'}), 1, 'the new home knows the conflict of the region that called');
$r->psql($_, 'DELETE FROM residency.conflict') foreach qw(usa gbr);

# who joins later is told, by whichever region
foreach my $caller (qw(usa gbr))
{
	my $name = "of$caller";

	$there->node('gbr')->safe_psql('postgres', "CREATE DATABASE $name TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'");
	$there->node('gbr')->safe_psql($name, q{CREATE EXTENSION residency; CREATE SCHEMA app; CREATE TABLE app.identity (id int PRIMARY KEY, region text NOT NULL, note text);
		CREATE TABLE app.details (id int PRIMARY KEY, region text NOT NULL, name text)});
	if ($caller eq 'gbr')
	{
		$r->psql('gbr', "CREATE USER MAPPING FOR CURRENT_USER SERVER $_ OPTIONS (user '$r->{user}')") foreach qw(usa aus ofusa);
	}
	$r->psql($caller, "SELECT residency.add_region('$name', '" . ($there->connection('gbr') =~ s/dbname=\S+/dbname=$name/r) . " user=$r->{user}')");
	is($there->node('gbr')->safe_psql($name, q{SELECT replaced FROM residency.region WHERE name = 'gbr'}), "{$old}", "a region that $caller lets join knows what was replaced");
}

kill 'CONT', @processes;
ok($gbr->poll_query_until('app', q{SELECT bool_or(problem ~ 'was replaced by another one') FROM residency.regions}), 'the lost one is told so');
eval { $change->quit };
$gbr->stop('immediate');

# a silent gateway's sessions for administration are ended by whom it leaves alone
$r->conf('usa', "residency.away_after = 2s\n");
$change = $r->session('aus');
$r->psql('aus', "CREATE USER MAPPING FOR CURRENT_USER SERVER usa OPTIONS (user '$r->{user}')");
$change->query_safe(q{BEGIN; SELECT 1 FROM residency.ask('{usa}', 'SELECT 1')});
is($r->psql('usa', admins('aus')), 1, 'aus has a session for administration in usa');
@processes = processes($r->node('aus'));
kill 'STOP', @processes;
ok($r->poll('usa', 'SELECT (' . admins('aus') . ') = 0'), '... which is ended when aus falls silent');
kill 'CONT', @processes;
eval { $change->quit };

$_->teardown foreach $there, $r;
done_testing();
