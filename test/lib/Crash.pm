# Cases of the crash matrix: one distributed transaction, one misfortune, and then all
# regions must agree, without any hand, within ten seconds of being able to talk.
#
#   my $c = Crash->new;
#   $c->case('gateway dies', at => 'prepared:crash_server', outcome => 'none', told => 'lost');
#   $c->case('participant dies meanwhile', at => 'prepared:hold', there => { gbr => 'part_prepared:hold' },
#       during => sub { $c->r->kill9('gbr') }, outcome => 'all', told => 'committed');
#
# Options of a case; it fails unless everything that it arms has acted:
#   outcome     what the regions have afterwards: "all" of the transaction or "none"
#   told        what the client hears: "committed", "aborted" (any other error), "08007", or
#               "lost": its own connection ends
#   at          fault armed in the client's session only, at the gateway, usa
#   there       faults armed in the sessions that gateways open for their clients, by region
#   before      code that runs ahead of the client
#   then        code that runs when the faults of "there" have acted, and before that of "at" has
#   pause       code that runs when the transaction has written, and before its COMMIT
#   during      code that runs once the armed faults have acted; afterwards what still holds is
#               released, and everything is mended when the client has its answer
#   mend_first  everything is mended while the client still waits
#   work        what the transaction does, see %works [people]
#   settings    SQL of the client's session
package Crash;

use strict;
use warnings;

use Carp;
use IPC::Run ();
use Test::More ();
use Time::HiRes qw(sleep time);

use People;
use Regions;

# the longest that regions may take to agree once they can talk; and until one that came and
# went several times within a minute is trusted again, see remote_health_worker.c
my $limit = 10;
my $trust_limit = 60;

# settings that make cases short, and what users have
my %quick = (resolve_interval => '1s', commit_timeout => '1s', connect_timeout => '2s', doubt_timeout => '1s');
my %default = (resolve_interval => '10s', commit_timeout => '5s', connect_timeout => '10s', doubt_timeout => '5s');

# what a region still keeps of distributed transactions; empty if nothing
my $left = q{
	concat_ws(', ',
		(SELECT string_agg('prepared ' || gid, ' ') FROM pg_prepared_xacts),
		(SELECT string_agg(origin || ' ' || xid || ' recorded', ' ') FROM residency.transaction),
		(SELECT string_agg('lock on ' || relation::regclass, ' ') FROM pg_locks l
		 WHERE locktype = 'relation' AND pid IS DISTINCT FROM pg_backend_pid()
		   AND relation >= 16384 AND relation::regclass::text !~ '^residency'),
		(SELECT string_agg(concat_ws(' ', 'advisory lock', classid, objid, mode), ' ') FROM pg_locks WHERE locktype = 'advisory'),
		(SELECT string_agg('in transaction: ' || application_name || ' ' || left(query, 60), ' ') FROM pg_stat_activity
		 WHERE backend_type = 'client backend' AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()))};

# what a region still has to make up for, of those that it takes to be away
my $behind = q{
	concat_ws(', ',
		(SELECT count(*) || ' rows to ship' FROM residency.backlog b
		 WHERE NOT EXISTS (SELECT FROM residency.conflict c WHERE (c.relation, c.key, c.region) = (b.relation, b.key, b.region)) HAVING count(*) > 0),
		(SELECT string_agg(name || ' ' || state, ' ') FROM residency.regions WHERE state <> 'up'))};

# Transactions of the cases, which differ in who is written.  Of each: "given", SQL that
# runs before anything is armed; "ahead", SQL of an earlier transaction in the same session; its own
# SQL; SQL that counts what a region has of it; and how much that is if it has all.  What is
# written belongs to the case's id and the two that follow.
my %works = (
	# here, and in all regions: three people, homed at gbr, aus and here
	people => {
		sql => sub { return add_people($_[0]) },
		count => sub { my ($id, $region) = @_; return count_people($id, $region) },
		of => 4,
	},

	# elsewhere only, in two regions
	elsewhere => {
		given => sub { return add_people($_[0]) },
		sql => sub { my ($id) = @_; return "UPDATE app.details SET name = 'changed' WHERE id = $id AND region = 'gbr'; UPDATE app.details SET name = 'changed' WHERE id = $id + 1 AND region = 'aus'" },
		count => sub { my ($id, $region) = @_; return "(SELECT count(*) FROM $region.details WHERE id IN ($id, $id + 1) AND name = 'changed')" },
		of => 1, only => [qw(gbr aus)],
	},

	# in one other region, which commits alone
	alone => {
		given => sub { return add_people($_[0]) },
		sql => sub { my ($id) = @_; return "UPDATE app.details SET name = 'changed' WHERE id = $id AND region = 'gbr'" },
		count => sub { my ($id) = @_; return "(SELECT count(*) FROM gbr.details WHERE id = $id AND name = 'changed')" },
		of => 1, only => ['gbr'],
	},

	# the second commit of a session, which deletes the rows of the first, here and there; they
	# are locked, lest the resolver be faster, and whoever finds none prints no number
	second => {
		ahead => sub { return add_people($_[0] + 3) },
		sql => sub { my ($id) = @_; return "SELECT 'deletes ' || count(*) FROM (SELECT FROM residency.transaction WHERE origin = 'usa' FOR UPDATE) t; " . add_people($id) },
		proof => qr/^deletes [1-9]/m,
		count => sub { my ($id, $region) = @_; return count_people($id, $region) },
		of => 4,
	},

	# DDL in all regions
	table => {
		sql => sub { my ($id) = @_; return "SELECT residency.run_everywhere('CREATE TABLE app.t$id (i int)')" },
		count => sub { my ($id) = @_; return "(SELECT count(*) FROM pg_tables WHERE schemaname = 'app' AND tablename = 't$id')" },
		of => 1,
	});

sub add_people
{
	my ($id) = @_;
	return sprintf("SELECT app.add(%d, 'gbr', 'one'), app.add(%d, 'aus', 'two'), app.add(%d, 'usa', 'three')", $id, $id + 1, $id + 2);
}

# their identities, and those details that are at home in the region
sub count_people
{
	my ($id, $region) = @_;
	return "(SELECT count(*) FROM app.identity WHERE id BETWEEN $id AND $id + 2) + (SELECT count(*) FROM $region.details WHERE id BETWEEN $id AND $id + 2)";
}

# Starts three regions with fault points, workers on, each other's links in the relay.
sub start
{
	my ($class, %o) = @_;
	my $r = Regions->new(relay => 1, faults => 1,
		conf => "residency.workers = on\nresidency.resolve_interval = 1s\n$o{conf}");

	return bless { r => $r, id => 0, slowest => 0, cases => 0, traps => {} }, $class;
}

# The same with the tables of the cases; with defaults => 1 users' settings.
sub new
{
	my ($class, %o) = @_;
	my %settings = $o{defaults} ? %default : %quick;
	my $self = $class->start(conf => join('', map { "residency.$_ = $settings{$_}\n" } sort keys %settings));

	People::make($self->r);
	People::make_function($self->r);
	return $self;
}

sub r { my ($self) = @_; return $self->{r}; }

# Waits until a query in a region says "t".
sub until_true
{
	my ($self, $region, $sql, $seconds) = @_;
	my $end = time + ($seconds // 30);

	until (($self->r->ask($sql, $region))[0] eq 't')
	{
		croak "in $region this does not become true: $sql" if time > $end;
		sleep(0.05);
	}
	return;
}

# Waits until that many parts are prepared in a region.
sub until_prepared
{
	my ($self, $region, $n) = @_;

	$self->until_true($region, sprintf('SELECT count(*) = %d FROM pg_prepared_xacts', $n // 1));
	return;
}

# Waits until the region has all of the case's transaction.
sub until_committed
{
	my ($self, $region, $seconds) = @_;
	my $work = $self->{work};

	$self->until_true($region, "SELECT $work->{of} = " . $work->{count}->($self->{id}, $region), $seconds);
	return;
}

# Waits until the gateway's session in a region has answered all that was asked.  The state
# changes before the answer leaves, hence the pause.
sub until_answered
{
	my ($self, $region) = @_;

	$self->until_true($region, q{SELECT bool_and(state = 'idle') FROM pg_stat_activity WHERE application_name = 'residency' AND usename = 'residency_usa'});
	sleep(0.5);
	return;
}

# Waits until nothing is prepared in a region.
sub until_gone
{
	my ($self, $region, $seconds) = @_;

	$self->until_true($region, 'SELECT count(*) = 0 FROM pg_prepared_xacts', $seconds);
	return;
}

# gbr holds at part_prepares: it fails to prepare, when aus has
sub fail_to_prepare
{
	my ($self) = @_;

	$self->until_prepared('aus');
	$self->r->psql('gbr', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query ~ '^PREPARE TRANSACTION' AND state = 'active'});
	return;
}

# Waits until a server that stops at once is down.
sub until_down
{
	my ($self, $region) = @_;
	my $file = $self->r->node($region)->data_dir . '/postmaster.pid';

	foreach (1 .. 3000) { return unless -e $file; sleep(0.01); }
	croak "the server of $region does not stop";
}

# Waits until the gateway has answered the case's client.
sub until_told
{
	my ($self, $seconds) = @_;

	$self->until_true('usa', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'client backend'
		AND application_name = current_setting('application_name') AND pid <> pg_backend_pid() AND state = 'active'}, $seconds);
	return;
}

# Kills the gateway's process that serves the case's client; its server restarts.
sub kill_client_backend
{
	my ($self) = @_;
	my ($pid) = $self->r->ask(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name = current_setting('application_name') AND pid <> pg_backend_pid()}, 'usa');

	croak "there is not one client: $pid" unless $pid =~ /^\d+$/;
	kill 'KILL', $pid;
	return;
}

# Sets a trap on a link, see Relay.pm; and waits until it has sprung.
sub trap
{
	my ($self, $link, @how) = @_;

	$self->{traps}{$link} = 1 + $self->r->relay->sprung($link);
	$self->r->relay->trap($link, @how);
	return;
}

sub until_trapped
{
	my ($self, $link) = @_;

	$self->r->relay->wait_sprung($link, $self->{traps}{$link});
	return;
}

# Cuts a link for good: its connections end, by "rst" or "fin", and no new one is made.
sub cut
{
	my ($self, $link, $how) = @_;

	$self->r->relay->refuse($link);
	$self->r->relay->cut($link, $how // 'rst');
	return;
}

# A client's process in region usa that connects to the other regions and then does the work.
sub start_client
{
	my ($self, %o) = @_;
	my $client = { out => '', err => '' };
	my @command = ('psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose', '-d', $self->r->node('usa')->connstr('app'));
	my $work = $self->{work};
	my @sql = ('SELECT count(*) FROM app.details', $o{settings} // ());
	my $go = $self->r->node('usa')->data_dir . "/go_$self->{id}";

	# one message, so that nobody comes in between
	push @sql, join('; ', $work->{ahead} ? ('BEGIN', $work->{ahead}->($self->{id}), 'COMMIT') : (),
		$o{at} ? "SET residency.fault = '$o{at}'" : (), 'BEGIN', $work->{sql}->($self->{id}), $o{pause} ? () : 'COMMIT');
	push @sql, '\echo written', "\\! while [ ! -e $go ]; do sleep 0.02; done", 'COMMIT' if $o{pause};
	push @command, map { ('-c', $_) } @sql, '\echo committed';
	$client->{run} = IPC::Run::start(\@command, '<', \undef, '>', \$client->{out}, '2>', \$client->{err}, IPC::Run::timeout(60));
	if ($o{pause})
	{
		$client->{run}->pump until $client->{out} =~ /^written$/m || !$client->{run}->pumpable;
		$o{pause}->();
		open(my $file, '>', $go) or croak "$go: $!";
	}
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

# What the client was told, see above.
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
	return $1 eq '08007' ? '08007' : 'aborted' if $client->{err} =~ /^ERROR:  (\w{5}): /m;
	return 'lost' if $client->{err} =~ /^FATAL: |server closed the connection|connection to server was lost/m;
	return 'nothing';
}

# What the regions hold of the case's transaction: "all", "none", or every count.
sub found
{
	my ($self) = @_;
	my $work = $self->{work};
	my @regions = @{ $work->{only} // [ $self->r->regions ] };
	my @found = map { $self->r->ask('SELECT ' . $work->{count}->($self->{id}, $_), $_) } @regions;

	return 'all' unless grep { $_ != $work->{of} } @found;
	return 'none' unless grep { $_ != 0 } @found;
	return "in part: @found";
}

# The answers of all regions that are not empty, as one text.
sub answers
{
	my ($self, $sql) = @_;
	my @regions = $self->r->regions;
	my @answers = $self->r->ask("SELECT $sql", @regions);

	return join('; ', map { $answers[$_] eq '' ? () : "$regions[$_]: $answers[$_]" } 0 .. $#regions);
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

# Waits until nothing of distributed transactions is left anywhere, and all regions are up and
# complete; what is left or behind if that takes too long.
sub settle
{
	my ($self) = @_;
	my $begin = time;
	my $text;

	while (($text = answers($self, $left)) ne '' && time < $begin + $limit) { sleep(0.1); }
	$self->{slowest} = time - $begin if time - $begin > $self->{slowest};
	return $text if $text ne '';
	while (($text = answers($self, $behind)) ne '' && time < $begin + $trust_limit) { sleep(0.1); }
	return $text;
}

# Two tests, see the head of the file: what the regions have is the same everywhere and is what
# is expected, and so is what the client was told; and nothing else is left.
sub case
{
	my ($self, $name, %o) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $r = $self->r;
	my %there = %{ $o{there} // {} };
	my $client = { out => '', err => '' };
	my $told;

	croak "\"$name\" must say outcome and told" unless ($o{outcome} // '') =~ /^(all|none)$/ && ($o{told} // '') =~ /^(committed|aborted|08007|lost)$/;
	$self->{id} += 10;
	$self->{cases}++;
	$self->{work} = $works{ $o{work} // 'people' } // croak "no work $o{work}";
	$r->psql('usa', $self->{work}{given}->($self->{id})) if $self->{work}{given};
	my $done = eval {
		$r->arm($_, $there{$_}, 'residency') foreach keys %there;
		$r->expect_fault('usa') if $o{at};
		$o{before}->() if $o{before};
		$client = $self->start_client(%o);
		$r->wait_fired($_) foreach keys %there;
		$o{then}->() if $o{then};
		$r->wait_fired('usa') if $o{at};
		$o{during}->($client) if $o{during};
		1;
	};
	my $why = $@;
	$r->release($_) foreach $o{mend_first} ? () : $r->regions;
	$told = $self->finish_client($client) unless $o{mend_first} || !$client->{run};
	$self->heal;
	$told = $self->finish_client($client) if $o{mend_first} && $client->{run};

	my $left = $self->settle;
	my $found = $self->found;
	my $wrong = !$done ? "the misfortune did not happen: $why"
	  : $self->{work}{proof} && $client->{out} !~ $self->{work}{proof} ? 'what the transaction should have deleted was not there'
	  : "told $told, found $found";

	Test::More::is($wrong, "told $o{told}, found $o{outcome}", "$name: " . ($o{outcome} eq 'all' ? 'committed everywhere' : 'aborted everywhere'))
	  || Test::More::diag("client: $client->{out} $client->{err}");
	# once more: something may have arrived late
	$left = $self->settle if $left eq '';
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
