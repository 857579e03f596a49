# Cases of the crash matrix: one distributed transaction, one misfortune, and then all
# regions must agree, without any hand, within ten seconds of being able to talk.
#
#   my $c = Crash->new;
#   $c->case('gateway dies', outcome => 'none',
#       before => sub { $c->r->arm('usa', 'prepared:crash_server') },
#       during => sub { $c->r->wait_fired('usa') });
#
# "before" runs ahead of the client's COMMIT, "during" while it goes on; afterwards
# everything is mended: links, servers, armed points.  With "mend_first" that happens while
# the client still waits.
package Crash;

use strict;
use warnings;

use Carp;
use IPC::Run ();
use Test::More ();
use Time::HiRes qw(sleep time);

use People;
use Regions;

# the longest that regions may take to agree once they can talk
my $limit = 10;

# Starts three regions with fault points, workers on, each other's links in the relay.
sub start
{
	my ($class, %o) = @_;
	my $r = Regions->new(relay => 1, faults => 1,
		conf => "residency.workers = on\nresidency.resolve_interval = 1s\n$o{conf}");

	return bless { r => $r, id => 0, slowest => 0, cases => 0 }, $class;
}

# The same with the tables of the cases.
sub new
{
	my ($class) = @_;
	my $self = $class->start(conf => "residency.commit_timeout = 1s\nresidency.connect_timeout = 2s\n");

	People::make($self->r);
	People::make_function($self->r);
	return $self;
}

sub r { my ($self) = @_; return $self->{r}; }

# The transaction of a case: three people, homed at gbr, aus and here.
sub add_people
{
	my ($self) = @_;
	my $id = $self->{id};

	return sprintf("SELECT app.add(%d, 'gbr', 'one'), app.add(%d, 'aus', 'two'), app.add(%d, 'usa', 'three')", $id, $id + 1, $id + 2);
}

# A client's process in region usa that connects to the other regions and then runs the SQL.
sub start_client
{
	my ($self, $sql) = @_;
	my $client = { out => '', err => '' };
	my @command = ('psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose', '-d', $self->r->node('usa')->connstr('app'));

	push @command, map { ('-c', $_) } 'SELECT count(*) FROM app.details', $sql, '\echo committed';
	$client->{run} = IPC::Run::start(\@command, '<', \undef, '>', \$client->{out}, '2>', \$client->{err}, IPC::Run::timeout(60));
	return $client;
}

# usa and gbr write global rows while aus is away, and note them at both homes.  A test of that.
sub miss_something
{
	my ($self) = @_;
	my $r = $self->r;
	my ($first, $last) = (++$self->{missed} * 100, $self->{missed} * 100 + 9);
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$r->away('aus');
	$r->poll($_, q{SELECT state = 'away' FROM residency.regions WHERE name = 'aus'}) or croak "aus is not away for $_" foreach qw(usa gbr);
	$r->psql('usa', "INSERT INTO app.identity SELECT n, (ARRAY['usa', 'gbr'])[n % 2 + 1], 'missed' FROM generate_series($first, $last) n");
	$r->psql('gbr', "DELETE FROM app.identity WHERE id = $first; UPDATE app.identity SET note = 'changed' WHERE id = $last");
	Test::More::is($r->psql('aus', "SELECT count(*) FROM app.identity WHERE id BETWEEN $first AND $last"), 0, 'aus has missed something');
	return;
}

# What the client was told: "committed", "aborted" or "unknown".
sub finish_client
{
	my ($self, $client) = @_;

	eval { IPC::Run::finish($client->{run}) };
	if ($@ && $@ !~ /exited|signal/i)
	{
		$client->{run}->kill_kill;
		return "no answer: $@";
	}
	return 'committed' if $client->{out} =~ /^committed$/m;
	return 'unknown' if $client->{err} =~ /server closed the connection|FATAL|connection to server .* lost|ERROR:  08007/;
	return $client->{err} =~ /ERROR/ ? 'aborted' : 'unknown';
}

# What the regions hold of the case's transaction: "all", "none", or every count.
sub found
{
	my ($self) = @_;
	my $ids = join(', ', map { $self->{id} + $_ } 0 .. 2);
	my @found = map { $self->r->psql($_, "SELECT count(*) FROM app.identity WHERE id IN ($ids)") } $self->r->regions;

	push @found, map { 3 * $self->r->psql($_, "SELECT count(*) FROM $_.details WHERE id IN ($ids)") } $self->r->regions;
	return 'all' unless grep { $_ != 3 } @found;
	return 'none' unless grep { $_ != 0 } @found;
	return "in part: @found";
}

# What a region still keeps of distributed transactions; empty if nothing.
sub left
{
	my ($self, $region) = @_;

	return $self->r->psql($region, q{
		SELECT concat_ws(', ',
			(SELECT string_agg('prepared ' || gid, ' ') FROM pg_prepared_xacts),
			(SELECT string_agg(origin || ' ' || xid || ' recorded', ' ') FROM residency.transaction),
			(SELECT string_agg('lock on ' || relation::regclass, ' ') FROM pg_locks l
			 WHERE locktype = 'relation' AND pid IS DISTINCT FROM pg_backend_pid()
			   AND relation >= 16384 AND relation::regclass::text !~ '^residency'),
			(SELECT count(*) || ' rows to ship' FROM residency.backlog b
			 WHERE NOT EXISTS (SELECT FROM residency.conflict c WHERE (c.relation, c.key, c.region) = (b.relation, b.key, b.region)) HAVING count(*) > 0),
			(SELECT string_agg(name || ' ' || state, ' ') FROM residency.regions WHERE state <> 'up'),
			(SELECT string_agg('in transaction: ' || application_name || ' ' || left(query, 60), ' ') FROM pg_stat_activity
			 WHERE backend_type = 'client backend' AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()))});
}

# Mends links, servers and armed points: from now on all regions can talk.
sub heal
{
	my ($self) = @_;
	my $r = $self->r;

	$r->disarm($_) foreach $r->regions;
	foreach my $from ($r->regions)
	{
		$r->relay->back("$from>$_") foreach grep { $_ ne $from } $r->regions;
	}
	$r->revive($_) foreach $r->regions;
	return;
}

# Waits until nothing of distributed transactions is left anywhere; what is, if that takes too long.
sub settle
{
	my ($self) = @_;
	my $begin = time;
	my @left;

	do
	{
		@left = grep { $_ !~ /: $/ } map { "$_: " . left($self, $_) } $self->r->regions;
		sleep(0.1) if @left;
	} while (@left && time < $begin + $limit);
	$self->{slowest} = time - $begin if time - $begin > $self->{slowest};
	return join('; ', @left);
}

# Two tests of a transaction that writes in region gbr only: what the client was told is so,
# and nothing is left.
sub alone
{
	my ($self, $name, %o) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$self->{id} += 10;
	$self->{cases}++;
	$self->r->psql('usa', $self->add_people);
	$o{before}->();
	my $client = $self->start_client("UPDATE app.details SET name = 'changed' WHERE id = $self->{id} AND region = 'gbr'");
	my $done = eval { $o{during}->($client); 1 };
	my $told = $self->finish_client($client);
	$self->heal;

	my $left = $self->settle;
	my $found = $self->r->psql('gbr', "SELECT name FROM gbr.details WHERE id = $self->{id}");
	my $right = $done && ($told eq 'unknown' || $told eq ($found eq 'changed' ? 'committed' : 'aborted'));

	Test::More::ok($right, "$name: the client is told what is so, or nothing")
	  || Test::More::diag("told $told, found $found; client: $client->{out} $client->{err}");
	Test::More::is($left, '', "$name: nothing is left");
	$self->mop if $left ne '';
	return;
}

# Two tests: what the regions hold is the same everywhere, what is expected ("all", "none" or
# "either"), and what the client was told; and nothing else is left.
sub case
{
	my ($self, $name, %o) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$self->{id} += 10;
	$self->{cases}++;
	$o{before}->() if $o{before};
	my $client = $self->start_client($self->add_people);
	my $done = eval { $o{during}->($client) if $o{during}; 1 };
	my $why = $@;
	$client->{told} = $self->finish_client($client) unless $o{mend_first};
	$self->heal;
	$client->{told} = $self->finish_client($client) if $o{mend_first};

	my $left = $self->settle;
	my $found = $self->found;
	my $told = $client->{told};
	my $wrong = !$done ? "the misfortune did not happen: $why"
	  : $told eq 'committed' && $found ne 'all' || $told eq 'aborted' && $found ne 'none' || $told =~ /^no answer/ ? "told $told, found $found"
	  : $found =~ /part/ || $o{outcome} ne 'either' && $found ne $o{outcome} ? "found $found (told $told)" : '';

	Test::More::is($wrong, '', "$name: " . ($o{outcome} eq 'all' ? 'committed everywhere' : $o{outcome} eq 'none' ? 'aborted everywhere' : 'the same everywhere'))
	  || Test::More::diag("client: $client->{out} $client->{err}");
	Test::More::is($left, '', "$name: nothing is left");
	$self->mop if $left ne '';
	return;
}

# so that one failure does not make all later cases fail
sub mop
{
	my ($self) = @_;

	foreach my $region ($self->r->regions)
	{
		$self->r->psql($region, "ROLLBACK PREPARED '$_'") foreach split /\n/, $self->r->psql($region, 'SELECT gid FROM pg_prepared_xacts');
		$self->r->psql($region, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'});
		$self->r->psql($region, 'DELETE FROM residency.transaction');
	}
	return;
}

sub finish
{
	my ($self) = @_;

	Test::More::note(sprintf('%d cases; regions agreed after %.1f s at the latest', $self->{cases}, $self->{slowest}));
	Test::More::done_testing();
	return;
}

1;
