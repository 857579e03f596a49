# Brings misfortunes upon regions, as Plan.pm has them: kills, cuts, holds, freezes, arms
# fault points; and starts whatever is down for longer than planned.
#
#   my $n = Nemesis->new($regions);
#   $n->carry_out($end, @events);
#   $n->fired;      # { kill => 3, ... }: what really happened
#
# An event whose victim is not there is not counted, nor is a fault point that nobody comes by.
package Nemesis;

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep time);

use Regions;

# for a server that is down, and nobody has said for how long, in s
my $usual_rest = 0.4;

sub new
{
	my ($class, $regions) = @_;
	return bless {
		r => $regions,
		fired => {},      # name of a misfortune => times
		faults => {},     # point:action => [times armed, times fired]
		armed => {},      # region => { fault, last }
		due => {},        # region => when its server is to be started
		release => {},    # region => when who holds there goes on
		stopped => {},    # region => 1: an event will start it
		headless => {},   # region => processes whose postmaster was killed
		frozen => {},     # region => processes
		alone => {},      # region => since when it reaches no other one
		times_alone => [] # [region, from, to]
	}, $class;
}

sub r { my ($self) = @_; return $self->{r}; }
sub fired { my ($self) = @_; return $self->{fired}; }
sub faults { my ($self) = @_; return $self->{faults}; }
sub times_alone { my ($self) = @_; return @{ $self->{times_alone} }; }

# The events, each at its time; returns at the end.
sub carry_out
{
	my ($self, $end, @events) = @_;
	my $begin = time;

	foreach my $event (@events)
	{
		my ($ms, $what, @args) = @$event;
		my $name = "do_$what";

		$self->pass_time($begin + $ms / 1000);
		$self->{fired}{$what}++ if $self->$name(@args);
	}
	$self->pass_time($end);
	return;
}

# Nothing more befalls anybody.
sub rest
{
	my ($self) = @_;

	$self->do_together;
	$self->do_thaw($_) foreach keys %{ $self->{frozen} };
	foreach my $region ($self->r->regions)
	{
		my $end = time + 20;

		sleep(0.02) while $self->{headless}{$region} && !$self->buried($region) && time < $end;
		$self->look_at_fault($region);
		$self->r->relay->delay($_, 0) foreach $self->links_of($region);
	}
	return;
}

# Waits, and tends servers meanwhile.
sub pass_time
{
	my ($self, $until) = @_;

	do
	{
		$self->tend($_) foreach $self->r->regions;
		my $left = $until - time;
		sleep($left < 0.03 ? $left : 0.03) if $left > 0;
	} while (time < $until);
	return;
}

# What is due in a region: its fault has fired, somebody holds for long enough, it is down.
sub tend
{
	my ($self, $region) = @_;

	$self->look_at_fault($region);
	if ($self->{release}{$region} && time >= $self->{release}{$region})
	{
		$self->r->release($region);
		delete $self->{release}{$region};
	}
	return if $self->{stopped}{$region} || !$self->down($region);
	$self->{due}{$region} //= time + $usual_rest;
	$self->start($region) if time >= $self->{due}{$region};
	return;
}

# Notices that the point armed in a region was passed.
sub look_at_fault
{
	my ($self, $region) = @_;
	my $armed = $self->{armed}{$region};

	return unless $armed && $self->r->fired($region);
	delete $self->{armed}{$region};
	$self->{faults}{ $armed->{fault} }[1]++;
	$self->{fired}{"fault, $armed->{action}"}++;
	$self->{release}{$region} = time + $armed->{last} if $armed->{action} eq 'hold';
	$self->{due}{$region} = time + $armed->{last} if $armed->{action} eq 'crash_server';
	return;
}

# a server's main process, if it runs
sub postmaster
{
	my ($self, $region) = @_;
	my $file = $self->r->node($region)->data_dir . '/postmaster.pid';

	return unless -e $file;
	my ($pid) = eval { slurp_file($file) } =~ /^(\d+)/;
	return $pid;
}

# True if nothing of a server runs.
sub down
{
	my ($self, $region) = @_;

	return 0 if $self->{headless}{$region} && !$self->buried($region);
	return !-e $self->r->node($region)->data_dir . '/postmaster.pid';
}

# True if all processes of a server whose postmaster was killed have gone, too.
sub buried
{
	my ($self, $region) = @_;
	my $node = $self->r->node($region);

	return 0 if grep { Regions::alive($_) } @{ $self->{headless}{$region} };
	delete $self->{headless}{$region};

	# what nobody has reaped yet would be taken for a running postmaster
	unlink($node->data_dir . '/postmaster.pid', map { $node->host . '/.s.PGSQL.' . $node->port . $_ } '', '.lock');
	return 1;
}

# Starts a server and does not wait until it can be used.
sub start
{
	my ($self, $region) = @_;
	my $node = $self->r->node($region);
	local %ENV = $node->_get_env(PGAPPNAME => undef);

	delete $self->{due}{$region};
	system('pg_ctl', '-W', '-s', '-D', $node->data_dir, '-l', $node->logfile, '-o', '--cluster-name=' . $node->name, 'start');

	# so that it is stopped when the test ends
	$node->{_pid} = $self->postmaster($region) // $node->{_pid};
	return 1;
}

# processes of a region's server whose title is like that
sub processes
{
	my ($self, $region, $title) = @_;
	my $postmaster = $self->postmaster($region) // return;

	return grep { -r "/proc/$_/cmdline" && (eval { slurp_file("/proc/$_/cmdline") } // '') =~ $title }
	  sort { $a <=> $b } Regions::children($postmaster);
}

# A signal to a process of a client or gateway.
sub signal_backend
{
	my ($self, $signal, $region, $nth) = @_;
	my @pids = $self->processes($region, qr/^postgres: .* app (?:\[local\]|127\.)/);

	return @pids && kill($signal, $pids[ $nth % @pids ]);
}

sub do_kill { my ($self, @where) = @_; return $self->signal_backend('KILL', @where); }
sub do_terminate { my ($self, @where) = @_; return $self->signal_backend('TERM', @where); }
sub do_cancel { my ($self, @where) = @_; return $self->signal_backend('INT', @where); }

# A background worker of the extension is killed.
sub do_kill_worker
{
	my ($self, $region, $kind) = @_;
	my ($pid) = $self->processes($region, qr/^postgres: .*residency $kind /);

	return $pid && kill('KILL', $pid);
}

# The postmaster alone is killed; its children find out.
sub do_behead
{
	my ($self, $region, $last) = @_;
	my $postmaster = $self->postmaster($region) // return 0;

	$self->{headless}{$region} = [ $postmaster, Regions::children($postmaster) ];
	$self->{due}{$region} = time + $last / 1000;
	return kill('KILL', $postmaster);
}

# An immediate stop; and the start after it.
sub do_stop
{
	my ($self, $region) = @_;
	my $postmaster = $self->postmaster($region);
	my $end = time + 20;

	$self->{stopped}{$region} = 1;
	return 0 unless $postmaster;
	kill 'QUIT', $postmaster;
	sleep(0.02) while $self->postmaster($region) && time < $end;
	return 1;
}

sub do_start
{
	my ($self, $region) = @_;

	delete $self->{stopped}{$region};
	return $self->down($region) && $self->start($region);
}

# links of a region, there and back
sub links_of
{
	my ($self, $region) = @_;
	return map { ("$region>$_", "$_>$region") } grep { $_ ne $region } $self->r->regions;
}

sub do_cut { my ($self, $link) = @_; $self->r->relay->cut($link); return 1; }
sub do_away { my ($self, $link) = @_; $self->r->relay->away($link); return 1; }
sub do_hold { my ($self, $link, $way) = @_; $self->r->relay->hold($link, $way); return 1; }
sub do_back { my ($self, $link) = @_; $self->r->relay->back($link); return 1; }
sub do_slow { my ($self, $link, @ms) = @_; $self->r->relay->delay($link, @ms); return 1; }
sub do_isolate { my ($self, $region) = @_; $self->r->away($region); return 1; }
sub do_silence { my ($self, $region) = @_; $self->r->relay->hold($_, 'both') foreach $self->links_of($region); return 1; }
sub do_rejoin { my ($self, $region) = @_; $self->r->back($region); return 1; }

# From now on, until "together", these regions reach no other one.
sub do_alone
{
	my ($self, @regions) = @_;

	$self->{alone}{$_} = time foreach @regions;
	return 0;
}

sub do_together
{
	my ($self) = @_;

	push @{ $self->{times_alone} }, map { [ $_, $self->{alone}{$_}, time ] } keys %{ $self->{alone} };
	$self->{alone} = {};
	return 0;
}

# All processes of a region's server stop without a word, and go on.
sub do_freeze
{
	my ($self, $region) = @_;
	my $postmaster = $self->postmaster($region) // return 0;

	# the postmaster first, so that it has no further children
	kill 'STOP', $postmaster;
	$self->{frozen}{$region} = [ $postmaster, Regions::children($postmaster) ];
	return kill('STOP', @{ $self->{frozen}{$region} });
}
sub do_thaw { my ($self, $region) = @_; return kill('CONT', @{ delete $self->{frozen}{$region} // [] }); }

# Arms a fault point, without asking the server, which may be down.  "last" is how long who
# holds there holds, or the server is down.
sub do_fault
{
	my ($self, $region, $fault, $last) = @_;
	my $data = $self->r->node($region)->data_dir;
	my ($point, $action) = split /:/, $fault;
	my $postmaster = $self->postmaster($region);

	$self->look_at_fault($region);
	unlink("$data/residency_fault_fired", "$data/residency_fault_release");
	append_to_file("$data/postgresql.auto.conf", "residency.fault = '$fault'\n");
	kill 'HUP', $postmaster if $postmaster;
	$self->{armed}{$region} = { fault => "$point:$action", action => $action, last => $last / 1000 };
	$self->{faults}{"$point:$action"}[0]++;
	return 0;
}

1;
