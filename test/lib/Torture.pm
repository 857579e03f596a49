# Many clients at random gateways, and a nemesis that kills, cuts and holds; afterwards the
# regions must hold exactly what the clients were told.
#
#   my $t = Torture->new(seed => 7, seconds => 40, clients => 6);
#   $t->run;
#   print "$_\n" foreach $t->violations;
#
# What each client does and what befalls the regions is a function of the seed alone
# (Plan.pm); how it interleaves is not, so a violation may take a few runs to come again.
# Each transaction leaves a row in every region whose residents it writes, and one that is
# global, with the same home, for the global rows that it writes; and it counts in rows that
# are never deleted: the former tell which transactions there are, counters that none of
# their changes was lost or made twice (Aftermath.pm).
package Torture;

use strict;
use warnings;

use Carp;
use POSIX ();
use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep time);

use Aftermath;
use Crash;
use Nemesis;
use Plan;
use Wire;

# the longest that a client waits for an answer; more is a hang
my $patience = 60;

# the longest that regions may take to agree once they can talk
my $limit = 10;

# Starts the regions and fills them.  Times in the servers' logs are those of our clocks.
sub new
{
	my ($class, %o) = @_;
	my $self = $class->Crash::start(
		conf => "residency.away_after = 1500ms\nresidency.commit_timeout = 1s\nresidency.connect_timeout = 2s\nresidency.lock_timeout = 2s\n"
		  . "max_connections = 80\nlog_line_prefix = '%n [%p] %e %q%a '\n");

	$self->{$_} = $o{$_} foreach qw(seed seconds clients);
	$self->{violations} = [];
	$self->{plan} = Plan->new(seed => $o{seed}, regions => [ $self->r->regions ], clients => $o{clients});
	$self->{nemesis} = Nemesis->new($self->r);
	$self->r->psql('usa', $_) foreach $self->{plan}->schema;
	return $self;
}

sub r { my ($self) = @_; return $self->{r}; }
sub plan { my ($self) = @_; return $self->{plan}; }
sub nemesis { my ($self) = @_; return $self->{nemesis}; }
sub results { my ($self) = @_; return values %{ $self->{results} }; }
sub violations { my ($self) = @_; return @{ $self->{violations} }; }
sub violation { my ($self, $text) = @_; push @{ $self->{violations} }, $text; return; }

# Clients and nemesis side by side, then peace, then the checks.
sub run
{
	my ($self) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $end = time + $self->{seconds};

	$self->{begin} = time;
	my $watcher = $self->spawn('the watcher', "$dir/watch", sub { $self->watch("$dir/watch", "$dir/done") });

	foreach my $n (1 .. $self->{clients})
	{
		$self->spawn("client $n", "$dir/$n", sub { $self->client($n, "$dir/$n", $end) });
	}
	$self->nemesis->carry_out($end, $self->plan->misfortunes($self->{seconds}));
	$self->nemesis->rest;
	Crash::heal($self);
	$self->wait_for($patience + 30, grep { $_ != $watcher } keys %{ $self->{processes} });
	$self->settle('left');
	append_to_file("$dir/done", '');
	$self->wait_for(30, $watcher);
	$self->read_results("$dir/$_") foreach 1 .. $self->{clients};
	$self->read_notes("$dir/watch");
	Aftermath::check($self);
	$self->decide;
	return;
}

# Conflicts can be decided, and then nothing is left of them.
sub decide
{
	my ($self) = @_;

	return unless %{ $self->{conflicts} };
	my $open = Aftermath::decide($self, 30);
	$self->violation($open) if $open ne '';
	$self->settle('left after decisions');
	Aftermath::check_decided($self);
	return;
}

# Runs code in a process of its own; returns its id.
sub spawn
{
	my ($self, $name, $file, $code) = @_;
	my $pid = fork() // die "fork: $!";

	if ($pid == 0)
	{
		my $done = eval { $code->(); 1 };

		append_to_file("$file.error", $@) unless $done;
		POSIX::_exit($done ? 0 : 1);
	}
	$self->{processes}{$pid} = { name => $name, error => "$file.error" };
	return $pid;
}

# Waits for these processes to end; one that does not, or that died, is a violation.
sub wait_for
{
	my ($self, $seconds, @pids) = @_;
	my $late = time + $seconds;

	foreach my $pid (@pids)
	{
		my $process = delete $self->{processes}{$pid};
		my $ended;

		sleep(0.05) until ($ended = waitpid($pid, POSIX::WNOHANG())) || time > $late;
		if (!$ended)
		{
			$self->violation("$process->{name} does not end");
			kill 'KILL', $pid;
			waitpid($pid, 0);
		}
		elsif ($?) { $self->violation("$process->{name} died: " . (-e $process->{error} ? slurp_file($process->{error}) : "status $?")); }
	}
	return;
}

# a connection to a region's server, past the relay
sub connect
{
	my ($self, $region, $name, $seconds) = @_;
	my $node = $self->r->node($region);

	return Wire->new(path => $node->host . '/.s.PGSQL.' . $node->port, user => $self->r->{user}, dbname => 'app', name => $name, timeout => $seconds);
}

# One client: transactions until the time is up; a line each into its file.
sub client
{
	my ($self, $n, $file, $end) = @_;
	my ($wire, $at) = (undef, '');
	my $count = 0;

	open(my $out, '>', $file) or die "$file: $!";
	while (time < $end)
	{
		my $t = $self->plan->transaction($n, ++$count);
		my $begin = time;
		my ($gateway, $settings) = $self->plan->session($n, $count);

		if (!$wire || $wire->lost || $at ne "$gateway $settings")
		{
			$wire->close if $wire;
			$at = "$gateway $settings";
			$wire = $self->connect($gateway, "client $n", $patience);
			$wire->query($settings);
		}
		my ($told, $why) = $wire->lost ? ('not begun', $wire->lost) : perform($wire, $t);

		print $out result($t, $told, $why, $begin), "\n";
		$count = $self->plan->last_of_session($count) if $told eq 'not begun';
		sleep(0.1) if $told eq 'not begun' || $why =~ /^08/;    # a region is away: no use in asking all the time
	}
	close($out);
	return;
}

# A line about a transaction; see read_results.
sub result
{
	my ($t, $told, $why, $begin) = @_;
	my $changes = join(',', map { "$_=$t->{changes}{$_}" } sort keys %{ $t->{changes} });

	$why =~ s/\s+/ /g;
	return join('|', $t->{number}, $t->{kind}, $t->{gateway}, $told, $begin, time, join(',', @{ $t->{residents} }), join(',', @{ $t->{globals} }), $changes, $t->{made} // '', $why);
}

# Runs one transaction; returns what the client was told, and the SQLSTATE or reason if not "committed".
sub perform
{
	my ($wire, $t) = @_;

	foreach my $step (@{ $t->{steps} })
	{
		my $answer = $wire->query($step->{sql});
		my $code = $answer->{error} ? $answer->{error}{C} : '';
		my $last = $step->{commit};

		return ('silent', "$step->{sql}") if $wire->{silent};
		return ($last && $step->{sql} ne 'ROLLBACK' ? 'unknown' : 'aborted', "lost: $answer->{lost} [$code]") if $answer->{lost};
		if ($last)
		{
			return ('unknown', $code) if $code eq '08007';
			return ('aborted', "$code $answer->{error}{M}") if $code;
			return ('aborted', 'rolled back') if $answer->{tag} eq 'ROLLBACK';
			return ('committed', '');
		}
		if ($step->{refused} && $code ne '' && $code =~ /^(?:$step->{refused})$/) { next; }
		if ($code ne '' || $step->{refused})
		{
			$wire->query('ROLLBACK');
			return ('aborted', $code ? "$code $answer->{error}{M}" : "not refused: $step->{sql}");
		}
	}
	croak 'a transaction without an end';
}

# Counts what is noted and shipped, as far as it can be seen from time to time: a server that
# restarts has shipped nothing.
sub watch
{
	my ($self, $file, $done) = @_;
	my ($noted, $shipped) = (0, 0);
	my (%wire, %seq, %last);

	for (my $more = 1; $more; sleep(0.25))
	{
		$more = !-e $done;
		foreach my $region ($self->r->regions)
		{
			$wire{$region} = $self->connect($region, 'watcher', 5) if !$wire{$region} || $wire{$region}->lost;
			my $seq = $seq{$region} // 0;
			my $answer = $wire{$region}->query("SELECT count(*) FILTER (WHERE seq > $seq), coalesce(max(seq), 0), "
				  . "(SELECT string_agg(region || '=' || shipped, ' ') FROM residency.catch_up_progress()) FROM residency.backlog");
			my ($new, $highest, $progress) = @{ $answer->{rows}[0] // next };
			my %now = split /[= ]/, $progress // '';

			$noted += $new;
			$seq{$region} = $highest if $highest > $seq;
			foreach my $other (keys %now)
			{
				my $before = $last{$region}{$other} // 0;
				$shipped += $now{$other} - ($now{$other} < $before ? 0 : $before);
			}
			$last{$region} = \%now;
		}
	}
	append_to_file($file, "$noted $shipped\n");
	return;
}

# What of distributed transactions and catch-up is left in a region.  What broke a constraint is
# shipped again and again until somebody decides: then only what stays for longer counts.
my $left_sql = q{
	WITH busy (since) AS (SELECT now() - CASE WHEN EXISTS (SELECT FROM residency.conflict WHERE kind <> 'key') THEN interval '3s' ELSE interval '0s' END),
	held AS (SELECT l.*, coalesce(a.backend_type, 'nobody') AS who FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
			 WHERE l.pid IS DISTINCT FROM pg_backend_pid() AND coalesce(a.xact_start <= (SELECT since FROM busy), true))
	SELECT concat_ws(', ',
		(SELECT string_agg('prepared ' || gid, ' ') FROM pg_prepared_xacts, busy WHERE prepared <= since),
		(SELECT string_agg(origin || ' ' || xid || ' recorded', ' ') FROM residency.transaction, busy WHERE decided_at <= since),
		(SELECT count(*) || ' decisions by hand' FROM residency.decision HAVING count(*) > 0),
		(SELECT string_agg('lock of ' || who || ' on ' || relation::regclass, ' ') FROM held
		 WHERE locktype = 'relation' AND relation >= 16384 AND relation::regclass::text !~ '^residency'),
		(SELECT string_agg('advisory lock of ' || who, ' ') FROM held WHERE locktype = 'advisory'),
		(SELECT count(*) || ' rows to ship' FROM residency.backlog b
		 WHERE NOT EXISTS (SELECT FROM residency.conflict c WHERE (c.relation, c.key, c.region) = (b.relation, b.key, b.region) AND (c.kind <> 'key' OR c.constraint_name IS NOT NULL)) HAVING count(*) > 0),
		(SELECT count(*) || ' moves of no row to ship' FROM residency.backlog_move m
		 WHERE NOT EXISTS (SELECT FROM residency.backlog b WHERE b.region = m.region AND b.relation = m.relation AND b.key IN (m.was, m.key)) HAVING count(*) > 0),
		(SELECT string_agg(name || ' is ' || coalesce(state, 'unknown'), ' ') FROM residency.regions WHERE state IS DISTINCT FROM 'up'),
		(SELECT string_agg('in transaction: ' || application_name || ' ' || left(query, 60), ' ') FROM pg_stat_activity
		 WHERE backend_type = 'client backend' AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()))};

# The same of all regions.
sub left
{
	my ($self) = @_;
	my %left = map { $_ => $self->r->psql($_, $left_sql) } $self->r->regions;

	return join('; ', map { "$_: $left{$_}" } grep { $left{$_} ne '' } sort keys %left);
}

# Waits until nothing is.  What still is after the limit is a violation; whether it goes at all is told with it.
sub settle
{
	my ($self, $text) = @_;
	my $begin = time;
	my ($left, $late);

	while (($left = $self->left) ne '' && time < $begin + 6 * $limit)
	{
		$late //= $left if time > $begin + $limit;
		sleep(0.1);
	}
	my $seconds = time - $begin;
	$self->violation(sprintf('%s after %d s: %s; after %.1f s: %s', $text, $limit, $late, $seconds, $left eq '' ? 'nothing' : $left)) if defined $late;
	$self->{slowest} ||= $seconds;
	return;
}

# what a client wrote down
sub read_results
{
	my ($self, $file) = @_;

	foreach my $line (split /\n/, slurp_file($file))
	{
		my %t;

		@t{qw(number kind gateway told begin end residents globals changes made why)} = split /\|/, $line, 11;
		$t{$_} = [ split /,/, $t{$_} ] foreach qw(residents globals);
		$t{changes} = { map { split /=/ } split /,/, $t{changes} };
		$self->{told}{ $t{told} }++;
		$self->{by_kind}{ $t{kind} }{ $t{told} }++;
		$self->{reasons}{ substr($t{why}, 0, 90) }++ if $t{told} ne 'committed';
		$self->{results}{ $t{number} } = \%t;
	}
	return;
}

sub read_notes
{
	my ($self, $file) = @_;

	@{$self}{qw(noted shipped)} = -e $file ? split(/\s/, slurp_file($file)) : (0, 0);
	return;
}

# of the transactions that began, the share that committed, in per cent
sub share_committed
{
	my ($self) = @_;
	my $begun = 0;

	$begun += $self->{told}{$_} foreach grep { $_ ne 'not begun' } keys %{ $self->{told} };
	return $begun && int(100 * ($self->{told}{committed} // 0) / $begun);
}

# number of faults that fired
sub faults_fired
{
	my ($self) = @_;
	my $fired = 0;

	$fired += $_->[1] // 0 foreach values %{ $self->nemesis->faults };
	return $fired;
}

# "3 aborted, 5 committed"
sub counts { my ($of) = @_; return join(', ', map { "$of->{$_} $_" } sort keys %$of); }

# What happened, for the log.
sub summary
{
	my ($self) = @_;
	my $faults = $self->nemesis->faults;
	my $armed = 0;
	my @lines;

	$armed += $_->[0] foreach values %$faults;
	push @lines, "seed $self->{seed}, $self->{clients} clients, $self->{seconds} s";
	push @lines, 'transactions: ' . counts($self->{told}) . sprintf('; %d %% of those begun committed', $self->share_committed);
	push @lines, "  $_: " . counts($self->{by_kind}{$_}) foreach sort keys %{ $self->{by_kind} };
	push @lines, 'misfortunes: ' . counts($self->nemesis->fired);
	push @lines, sprintf('faults: %d of %d fired: ', $self->faults_fired, $armed) . join(' ', sort grep { $faults->{$_}[1] } keys %$faults);
	push @lines, "alone: $self->{alone}{committed} own transactions committed, $self->{alone}{excused} lost";
	push @lines, "catch-up: $self->{noted} rows seen noted, $self->{shipped} shipped";
	push @lines, 'conflicts: ' . counts($self->{conflicts});
	push @lines, sprintf('all agreed after %.1f s', $self->{slowest});
	push @lines, map { "$self->{reasons}{$_} x $_" } sort { $self->{reasons}{$b} <=> $self->{reasons}{$a} } keys %{ $self->{reasons} };
	return @lines;
}

1;
