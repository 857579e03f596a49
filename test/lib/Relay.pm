# The Perl face of the relay (relay.c): distance, trouble and counting between
# servers.
#
#   my $relay = Relay->new;
#   my $port = $relay->link('usa>gbr', port => $gbr->port, delay => 20);
#   my $trips = $relay->waited(sub { ... });      # round trips that a client waited for
#
# The process ends with the test that started it.  Every command that the relay
# does not accept is an error here: a test must not go on in the belief that
# there is a delay when there is none.
package Relay;

use strict;
use warnings;

use Carp;
use File::Basename qw(dirname);
use File::Temp;
use POSIX ();
use IO::Socket::UNIX;
use Time::HiRes qw(sleep time);

# Starts a relay without links.
sub new
{
	my ($class) = @_;
	my $binary = $ENV{RESIDENCY_RELAY} || dirname(__FILE__) . '/relay';
	my $self = bless { owner => $$, dir => File::Temp->newdir('relayXXXXXX', TMPDIR => 1) }, $class;
	my $path = "$self->{dir}/control";

	-x $binary or croak "there is no relay at $binary: run \"make relay\"";
	$self->{pid} = fork() // croak "fork: $!";
	if ($self->{pid} == 0)
	{
		exec($binary, '--control', $path, '--die-with-parent') or POSIX::_exit(127);
	}
	for (1 .. 200)
	{
		$self->{socket} = IO::Socket::UNIX->new(Peer => $path) and last;
		sleep(0.02);
	}
	$self->{socket} or croak "the relay did not start";
	return $self;
}

# Gives a command and returns its answer: the lines before "ok" in list context
# (what follows "ok" if there are none), the word after "ok" in scalar context.
sub command
{
	my ($self, @words) = @_;
	my @lines;

	print { $self->{socket} } join(' ', @words) . "\n";
	while (my $line = readline($self->{socket}))
	{
		chomp $line;
		croak "relay, \"@words\": $1" if $line =~ /^error (.*)/;
		if ($line =~ /^ok ?(.*)/)
		{
			my $rest = $1;
			return wantarray ? @lines : $rest;
		}
		push @lines, $line;
	}
	croak "the relay is gone";
}

# Adds a link and returns the port it listens on.  Options: host and port of the
# target, delay in ms each way, client (true: its connections are the clients
# of the gateway whose round trips are counted).
sub link
{
	my ($self, $name, %o) = @_;

	return scalar $self->command('link', $name, $o{client} ? 'client' : 'region',
		$o{listen} // 0, $o{host} // '127.0.0.1', $o{port}, $o{delay} // 0);
}

# ms each way; with a second number that is the way back.
sub delay { my ($self, @words) = @_; $self->command('delay', @words); return; }

# Accepts bytes and keeps silent: "out", "in" or "both" (default).
sub hold { my ($self, $name, $way) = @_; $self->command('hold', $name, $way // 'both'); return; }

# Delivers what was held.
sub resume { my ($self, $name) = @_; $self->command('resume', $name); return; }

# Ends the connections there are: "rst" (default) or "fin".
sub cut { my ($self, $name, $how) = @_; $self->command('cut', $name, $how // 'rst'); return; }

# New connections are refused, or accepted again.
sub refuse { my ($self, $name) = @_; $self->command('refuse', $name); return; }
sub accept { my ($self, $name) = @_; $self->command('accept', $name); return; }

# No traffic at all, as if the line were cut through; and the line mended.
sub away
{
	my ($self, $name) = @_;
	$self->refuse($name);
	$self->cut($name);
	return;
}
sub back { my ($self, $name) = @_; $self->resume($name); $self->accept($name); return; }

# Points new connections elsewhere.
sub target { my ($self, $name, $port, $host) = @_; $self->command('target', $name, $host // '127.0.0.1', $port); return; }

# Acts once when $bytes pass "out" or "in": "cut" (they are not delivered), "hold"
# (from them on), "hold_back" (they are delivered, but no answer is).
sub trap
{
	my ($self, $name, $way, $action, $bytes) = @_;
	$self->command('trap', $name, $way, $action, unpack('H*', $bytes));
	return;
}

# How often a trap of the link did.
sub sprung
{
	my ($self, $name) = @_;
	my ($line) = $self->command('sprung', $name);
	return (split / /, $line)[1];
}

# Waits until a trap of the link has sprung.
sub wait_sprung
{
	my ($self, $name, $times, $seconds) = @_;
	my $end = time + ($seconds // 30);

	until ($self->sprung($name) >= ($times // 1))
	{
		croak "nothing sprang the trap on $name" if time > $end;
		sleep(0.01);
	}
	return;
}

# Files of every connection's bytes are written into the directory; undef stops it.
sub record { my ($self, $name, $dir) = @_; $self->command('record', $name, $dir // 'off'); return; }

# Counts of a link since start or reset, as a hash: opened, open, flights, bytes_out,
# bytes_in, messages_out, messages_in.  With "all": the sum over all links.
sub counts
{
	my ($self, $name) = @_;
	my %sum;

	foreach my $line ($self->command('counts', $name // 'all'))
	{
		$sum{$1} = ($sum{$1} // 0) + $2 while $line =~ /(\w+)=(\d+)/g;
	}
	return \%sum;
}

sub reset { my ($self) = @_; $self->command('reset'); return; }

# Round trips that the client waited for while the code ran, which must speak to the gateway
# through a client link.  Begins when all earlier answers must be in.  In list context also the ms from the first request's first byte to its answer's last.
sub waited
{
	my ($self, $code) = @_;
	my $windows = $self->windows($code);
	my ($trips, $ms) = (0, 0);

	foreach my $w (@$windows)
	{
		$trips += $w->{trips};
		$ms += $w->{ms};
	}
	return wantarray ? ($trips, $ms) : $trips;
}

# The same for each request that the client made: [{ trips, ms }, ...].
sub windows
{
	my ($self, $code) = @_;

	until ($self->command('rest')) { sleep(0.01); }
	$self->command('mark');
	$code->();
	return [ map { /trips=(\d+) ms=([\d.]+)/ ? { trips => $1, ms => $2 } : () } $self->command('waited') ];
}

# Ends the relay and everything that goes through it.
sub stop
{
	my ($self) = @_;
	return unless $self->{pid};
	kill 'TERM', $self->{pid};
	waitpid($self->{pid}, 0);
	delete $self->{pid};
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local $?;
	$self->stop if ($self->{owner} // $$) == $$;
	return;
}

1;
