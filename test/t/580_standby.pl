# A region whose server is a primary with a synchronous standby: the primary dies in the
# middle of commits, the standby is promoted, and nothing is lost.  First a participant, then
# the gateway.  Other regions know both servers (host=a,b target_session_attrs=read-write).
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(faults => 1, conf => "residency.resolve_interval = '200ms'\nwal_level = replica\nmax_wal_senders = 10\n");
my @all = $r->regions;
my $id = 0;
my %known;    # regions that the others know with a standby

People::make($r);
People::make_function($r);

# Gives a region a synchronous standby, and tells the others of both.
sub add_standby
{
	my ($region, $name) = @_;
	my $primary = $r->node($region);
	my $standby = PostgreSQL::Test::Cluster->new($name, install_path => $ENV{RESIDENCY_FAULTS});

	$primary->append_conf('pg_hba.conf', 'local replication all trust');
	$primary->reload;
	$primary->backup("for_$name");
	$standby->init_from_backup($primary, "for_$name", has_streaming => 1);
	$standby->append_conf('postgresql.conf', "residency.workers = on\n");
	$standby->start;
	$r->conf($region, "synchronous_standby_names = '*'\n");
	$r->poll($region, q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
	foreach my $other (grep { $_ ne $region } @all)
	{
		my $how = $known{$region} ? 'SET' : 'ADD';

		$r->psql($other, sprintf("ALTER SERVER %s OPTIONS (SET host '127.0.0.1,127.0.0.1', SET port '%d,%d', %s target_session_attrs 'read-write')",
			$region, $primary->port, $standby->port, $how));
	}
	$known{$region} = 1;
	return $standby;
}

# The primary is gone for good; its standby is the region now.
sub fail_over
{
	my ($region, $standby) = @_;

	undef $r->node($region)->{_pid} unless -e $r->node($region)->data_dir . '/postmaster.pid';
	$r->kill9($region) if defined $r->node($region)->{_pid};
	$r->{nodes}{$region} = $standby;
	$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
	$standby->reload;
	$standby->promote;
	return;
}

# A client at a gateway that writes a person in each region, in the background.
sub client
{
	my ($gateway) = @_;
	my $first = $id + 1;
	my ($out, $err) = ('', '');
	my $sql = 'BEGIN; ' . join('; ', map { 'SELECT app.add(' . ++$id . ", '$_', 'Ann')" } @all) . "; COMMIT;\n\\echo told committed\n";
	my $file = "$PostgreSQL::Test::Utils::tmp_check/client_$first.sql";
	append_to_file($file, $sql);    # nobody would pump a pipe while the test does something else
	my $handle = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $r->node($gateway)->connstr($r->dbname), '-f', $file ],
		'<', '/dev/null', '>', \$out, '2>', \$err, IPC::Run::timeout(60));

	return sub {
		eval { $handle->finish };
		my $told = $out =~ /told committed/ ? 'committed' : $err =~ /08007|terminat|server closed|connection to server was lost/ ? 'unknown' : 'aborted';
		return ($first, $told, $err);
	};
}

# What the regions know of a transaction whose first id is given: all, none, or what is wrong.
sub outcome
{
	my ($first) = @_;
	my $people = join(',', map { $first + $_ } 0 .. $#all);
	my @rows = map { $r->psql($_, "SELECT (SELECT count(*) FROM app.identity WHERE id IN ($people)) || '/' || (SELECT count(*) FROM $_.details WHERE id IN ($people))") } @all;

	return 'all' unless grep { $_ ne @all . '/1' } @rows;
	return 'none' unless grep { $_ ne '0/0' } @rows;
	return "@rows";
}

# Nothing of a distributed transaction is anywhere, within ten seconds.
sub settled
{
	my ($name) = @_;
	my $end = time + 10;
	my @left;

	do
	{
		@left = map {
			my $n = $r->psql($_, "SELECT (SELECT count(*) FROM pg_prepared_xacts)
				+ (SELECT count(*) FROM residency.transaction)");
			$n ? "$_: $n" : ()
		} @all;
		sleep(0.1) if @left;
	} while (@left && time < $end);
	return is("@left", '', $name);
}

$r->conf($_, "residency.workers = on\n") foreach @all;

# --- a participant ---------------------------------------------------------------------
my $gbr2 = add_standby('gbr', 'gbr_standby');

is($r->psql('usa', 'SELECT count(*) FROM app.details'), 0, 'of two hosts the one that writes is taken');
{
	my ($first, $told) = client('usa')->();

	is("$told " . outcome($first), 'committed all', 'a commit with a standby in the game');
}

# two transactions are caught: one prepared and undecided, one decided and not applied in gbr
$r->arm('usa', 'prepared:hold');
my $undecided = client('usa');
$r->wait_fired('usa');
$r->psql('usa', q{ALTER SYSTEM SET residency.fault = ''});    # later ones pass
$r->psql('usa', 'SELECT pg_reload_conf()');
$r->arm('gbr', 'part_applies:crash_server');
my $decided = client('aus');
$r->wait_fired('gbr');
fail_over('gbr', $gbr2);
$r->release('usa');
{
	my ($first, $told, $err) = $decided->();

	is($told, 'committed', 'decided before the participant died: the client is told so') or diag($err);
	settled('the promoted standby\'s prepared transactions are finished');
	is(outcome($first), 'all', '... and what was decided is there');
	($first, $told, $err) = $undecided->();
	settled('the same for the other one');
	is(outcome($first), $told eq 'committed' ? 'all' : 'none', "prepared before the participant died: as its client was told ($told)");
	($first, $told) = client('usa')->();
	is("$told " . outcome($first), 'committed all', 'the promoted standby takes part in what comes next');
}

# --- the gateway -----------------------------------------------------------------------
my $usa2 = add_standby('usa', 'usa_standby');

foreach my $case ([ 'prepared', 'none' ], [ 'decided', 'all' ])
{
	my ($point, $expected) = @$case;
	$r->arm('usa', "$point:crash_server");
	my $client = client('usa');
	$r->wait_fired('usa');
	isnt($r->prepared('gbr', 'aus'), 0, "the gateway died, $point: the others hold their parts");
	fail_over('usa', $usa2);
	my ($first, $told) = $client->();
	isnt($told, 'committed', '... and its client knows nothing');
	settled("the gateway's promoted standby finishes them ($point)");
	is(outcome($first), $expected, "... $expected of it is there");
	($first, $told) = client('usa')->();
	is("$told " . outcome($first), 'committed all', '... and goes on as the region');
	$usa2 = add_standby('usa', 'usa_second_standby') if $point eq 'prepared';
}

$_->stop('immediate') foreach grep { -e $_->data_dir . '/postmaster.pid' } values %{ $r->{nodes} };
done_testing();
