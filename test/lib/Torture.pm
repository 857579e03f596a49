# Many clients at random gateways, and a nemesis that kills, cuts and holds; afterwards the
# regions must hold exactly what the clients were told.
#
#   my $t = Torture->new(seed => 7, seconds => 40, clients => 6);
#   $t->run;
#   print "$_\n" foreach $t->violations;
#
# What each client does and what befalls the regions is a function of the seed alone
# (Plan.pm); how it interleaves is not, so a violation may take a few runs to come again.
# Each transaction leaves a marker in every region that it writes in, and counts in rows
# that are never deleted: markers tell which transactions there are, counters that none of
# their changes was lost or made twice.
package Torture;

use strict;
use warnings;

use Carp;
use POSIX ();
use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep time);

use Crash;
use Plan;
use Wire;

# the longest that a client waits for an answer; more is a hang
my $patience = 60;

# Starts the regions and fills them.
sub new
{
	my ($class, %o) = @_;
	my $self = $class->Crash::start(
		conf => "residency.away_after = 1500ms\nresidency.commit_timeout = 1s\nresidency.connect_timeout = 2s\nresidency.lock_timeout = 2s\nmax_connections = 60\n");

	$self->{$_} = $o{$_} foreach qw(seed seconds clients);
	$self->{violations} = [];
	$self->{plan} = Plan->new(seed => $o{seed}, regions => [ $self->r->regions ]);
	$self->r->psql('usa', $_) foreach $self->{plan}->schema;
	return $self;
}

sub r { my ($self) = @_; return $self->{r}; }
sub violations { my ($self) = @_; return @{ $self->{violations} }; }
sub violation { my ($self, $text) = @_; push @{ $self->{violations} }, $text; return; }

# Clients and nemesis side by side, then peace, then the checks.
sub run
{
	my ($self) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $end = time + $self->{seconds};
	my %pids;

	foreach my $n (1 .. $self->{clients})
	{
		my $pid = fork() // die "fork: $!";

		if ($pid == 0)
		{
			eval { $self->client($n, "$dir/$n", $end); 1 } or warn "client $n: $@";
			POSIX::_exit(0);
		}
		$pids{$pid} = $n;
	}
	$self->nemesis($end);
	Crash::heal($self);
	my $late = time + $patience + 30;
	while (%pids)
	{
		my $pid = waitpid(-1, POSIX::WNOHANG());

		delete $pids{$pid} if $pid > 0;
		sleep(0.05) if $pid <= 0;
		next if time < $late;
		$self->violation("client $_ does not end") foreach values %pids;
		kill 'KILL', keys %pids;
		last;
	}
	my $left = Crash::settle($self);
	$self->violation("left: $left") if $left ne '';
	$self->read_results("$dir/$_") foreach 1 .. $self->{clients};
	$self->check;
	return;
}

# One client: transactions until the time is up; a line each into its file: number, what it was
# told, regions, changes of counters, SQLSTATE.
sub client
{
	my ($self, $n, $file, $end) = @_;
	my ($wire, $at) = (undef, '');
	my $count = 0;

	open(my $out, '>', $file) or die "$file: $!";
	while (time < $end)
	{
		my $t = $self->{plan}->transaction($n, ++$count);

		if (!$wire || $wire->lost || $at ne $t->{gateway})
		{
			my $node = $self->r->node($t->{gateway});

			$wire->close if $wire;
			$at = $t->{gateway};
			$wire = Wire->new(path => $node->host . '/.s.PGSQL.' . $node->port, user => $self->r->{user}, dbname => 'app',
				name => "client $n", timeout => $patience);
			$wire->query(q{SET statement_timeout = '20s'; SET lock_timeout = '3s'});
		}
		my ($told, $why) = $wire->lost ? ('not begun', $wire->lost) : perform($wire, $t);
		$why =~ s/\s+/ /g;
		my $changes = join(',', map { "$_=$t->{changes}{$_}" } sort keys %{ $t->{changes} });

		print $out join('|', $t->{number}, $told, join(',', @{ $t->{regions} }), $changes, $at, $why), "\n";
		sleep(0.1) if $told eq 'not begun' || $why =~ /^08/;    # a region is away: no use in asking all the time
	}
	close($out);
	return;
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

# What befalls the regions, when the plan says so.
sub nemesis
{
	my ($self, $end) = @_;
	my $begin = time;

	foreach my $event ($self->{plan}->misfortunes($end - $begin))
	{
		my ($ms, $what, @args) = @$event;
		my $wait = $begin + $ms / 1000 - time;

		sleep($wait) if $wait > 0;
		my $name = "do_$what";
		$self->$name(@args);
		$self->{injected}{$what}++;
	}
	sleep(0.05) while time < $end;
	return;
}

# processes of clients and gateways at a region
sub backends
{
	my ($self, $region) = @_;
	my $file = $self->r->node($region)->data_dir . '/postmaster.pid';

	return () unless -e $file;
	my ($postmaster) = slurp_file($file) =~ /^(\d+)/;
	return () unless $postmaster;
	return grep {
		my $title = -r "/proc/$_/cmdline" ? eval { slurp_file("/proc/$_/cmdline") } // '' : '';
		$title =~ /^postgres: .* app (?:\[local\]|127\.)/
	} sort { $a <=> $b } Regions::children($postmaster);
}

# a signal to one of them
sub signal_backend
{
	my ($self, $signal, $region, $nth) = @_;
	my @pids = $self->backends($region);

	kill $signal, $pids[ $nth % @pids ] if @pids;
	return;
}

sub do_kill { my ($self, @where) = @_; $self->signal_backend('KILL', @where); return; }
sub do_terminate { my ($self, @where) = @_; $self->signal_backend('TERM', @where); return; }
sub do_cancel { my ($self, @where) = @_; $self->signal_backend('INT', @where); return; }

# An immediate stop; and the start after it.
sub do_stop
{
	my ($self, $region) = @_;
	my $file = $self->r->node($region)->data_dir . '/postmaster.pid';
	my $end = time + 20;

	return unless -e $file && slurp_file($file) =~ /^(\d+)/;
	kill 'QUIT', $1;
	sleep(0.02) while -e $file && time < $end;
	return;
}
sub do_start { my ($self, $region) = @_; $self->r->revive($region); return; }

# links
sub do_cut { my ($self, $link) = @_; $self->r->relay->cut($link); return; }
sub do_away { my ($self, $link) = @_; $self->r->relay->away($link); return; }
sub do_hold { my ($self, $link, $way) = @_; $self->r->relay->hold($link, $way); return; }
sub do_back { my ($self, $link) = @_; $self->r->relay->back($link); return; }
sub do_isolate { my ($self, $region) = @_; $self->r->away($region); return; }
sub do_rejoin { my ($self, $region) = @_; $self->r->back($region); return; }

# All processes of a region's server stop without a word, and go on.
sub do_freeze
{
	my ($self, $region) = @_;
	my $file = $self->r->node($region)->data_dir . '/postmaster.pid';

	return unless -e $file && slurp_file($file) =~ /^(\d+)/;
	$self->{frozen}{$region} = [ $1, Regions::children($1) ];
	kill 'STOP', @{ $self->{frozen}{$region} };
	return;
}
sub do_thaw { my ($self, $region) = @_; kill 'CONT', @{ delete $self->{frozen}{$region} // [] }; return; }

# Arms a fault point, without asking the server, which may be down.
sub do_fault
{
	my ($self, $region, $fault) = @_;
	my $data = $self->r->node($region)->data_dir;

	unlink("$data/residency_fault_fired", "$data/residency_fault_release");
	append_to_file("$data/postgresql.auto.conf", "residency.fault = '$fault'\n");
	kill 'HUP', $1 if -e "$data/postmaster.pid" && slurp_file("$data/postmaster.pid") =~ /^(\d+)/;
	$self->{armed}{$region} = $fault;
	return;
}

# what the clients wrote down
sub read_results
{
	my ($self, $file) = @_;

	foreach my $line (split /\n/, slurp_file($file))
	{
		my ($number, $told, $regions, $changes, $gateway, $why) = split /\|/, $line, 6;
		my %changes = map { split /=/ } split /,/, $changes;

		$self->{told}{$told}++;
		$self->{reasons}{ substr($why, 0, 90) }++ if $told ne 'committed';
		$self->{results}{$number} = { told => $told, regions => [ split /,/, $regions ], changes => \%changes, why => $why, gateway => $gateway };
	}
	return;
}

# The promises, each against what the regions hold.
sub check
{
	my ($self) = @_;
	my $r = $self->r;

	$self->check_markers;
	$self->check_counters;
	my $conflicts = join('; ', grep { $_ ne '' } map { $r->psql($_, q{SELECT string_agg(relation || ' ' || key::text || ' ' || kind || ' at ' || region, '; ') FROM residency.conflicts}) } $r->regions);

	$self->{conflicts} = $conflicts;
	foreach my $table (qw(app.identity app.parent app.child))
	{
		# a row that could not be shipped is in residency.conflicts, and nowhere else
		my $differ = $conflicts =~ /$table/ ? '' : $r->disagreement("SELECT coalesce(string_agg(t::text, ' ' ORDER BY id), '') FROM $table t");

		$self->violation("copies of $table differ: $differ") if $differ ne '';
	}
	# a parent whose deletion is a conflict is there in some regions and not in others, until somebody decides
	my $undecided = join(', ', -1, $conflicts =~ /app\.parent \{(\d+)\}/g);
	foreach my $region ($r->regions)
	{
		my $bad = $r->psql($region, qq{
			SELECT string_agg(x, '; ') FROM (
				SELECT 'no detail row here: ' || i::text FROM app.identity i
				WHERE i.region = '$region' AND (SELECT count(*) FROM $region.details d WHERE d.id = i.id) <> 1
				UNION ALL SELECT 'no identity at home here: ' || d.id FROM $region.details d
				WHERE NOT EXISTS (SELECT FROM app.identity i WHERE i.id = d.id AND i.region = '$region')
				UNION ALL SELECT 'no parent: ' || c::text FROM app.child c
				WHERE NOT EXISTS (SELECT FROM app.parent p WHERE p.id = c.parent) AND c.parent NOT IN ($undecided)) AS y (x)});

		$self->violation("$region: $bad") if $bad ne '';
		foreach my $line (split /\n/, slurp_file($r->node($region)->logfile))
		{
			$self->violation("$region log: $line")
			  if $line =~ /PANIC|TRAP:|terminated by signal (?!9)|invalid page|could not read block|LOG:  .*corrupt/;
		}
	}
	foreach my $why (keys %{ $self->{reasons} })
	{
		$self->violation("$self->{reasons}{$why} x $why") if $why =~ /^(?:XX|not refused)|\[XX/;
	}
	return;
}

# Told "committed": everywhere; told "aborted": nowhere; unknown: all or nothing.
sub check_markers
{
	my ($self) = @_;
	my %there;

	foreach my $region ($self->r->regions)
	{
		$there{$_}{$region} = 1 foreach split /\n/, $self->r->psql($region, "SELECT txn FROM $region.marker");
	}
	foreach my $number (sort { $a <=> $b } keys %{ $self->{results} })
	{
		my $t = $self->{results}{$number};
		my $n = grep { $there{$number}{$_} } @{ $t->{regions} };
		my $all = @{ $t->{regions} };
		my $wrong = $t->{told} eq 'committed' ? $n < $all : $t->{told} eq 'unknown' || $t->{told} eq 'silent' ? $n != 0 && $n < $all : $n > 0;

		$t->{there} = $n > 0;
		delete $there{$number};
		$self->violation("transaction $number at $t->{gateway}, told $t->{told} ($t->{why}): $n of $all regions (@{ $t->{regions} }) have it") if $wrong;
		$self->violation("transaction $number at $t->{gateway} hangs: $t->{why}") if $t->{told} eq 'silent';
	}
	$self->violation("nobody began transaction $_") foreach keys %there;
	return;
}

# Counters are the sum of the transactions that are there.
sub check_counters
{
	my ($self) = @_;
	my %expected;

	foreach my $t (grep { $_->{there} } values %{ $self->{results} })
	{
		$expected{$_} += $t->{changes}{$_} foreach keys %{ $t->{changes} };
	}
	foreach my $id ($self->{plan}->lasting)
	{
		my $home = $self->{plan}->home($id);
		my $resident = $self->r->psql($home, "SELECT n FROM $home.details WHERE id = $id");
		my $want = $expected{"r$id"} // 0;

		$self->violation("details $id counted $resident, not $want") if $resident ne $want;
		foreach my $region ($self->r->regions)
		{
			my $global = $self->r->psql($region, "SELECT n FROM app.identity WHERE id = $id");

			$want = $expected{"g$id"} // 0;
			$self->violation("$region: identity $id counted $global, not $want") if $global ne $want;
		}
	}
	return;
}

# What happened, for the log.
sub summary
{
	my ($self) = @_;
	my @lines;

	push @lines, "seed $self->{seed}, $self->{clients} clients, $self->{seconds} s";
	push @lines, 'transactions: ' . join(', ', map { "$self->{told}{$_} $_" } sort keys %{ $self->{told} });
	push @lines, 'misfortunes: ' . join(', ', map { "$self->{injected}{$_} $_" } sort keys %{ $self->{injected} // {} });
	push @lines, "conflicts: $self->{conflicts}" if $self->{conflicts};
	push @lines, sprintf('all agreed after %.1f s', $self->{slowest});
	push @lines, map { "$self->{reasons}{$_} x $_" } sort { $self->{reasons}{$b} <=> $self->{reasons}{$a} } keys %{ $self->{reasons} };
	return @lines;
}

1;
