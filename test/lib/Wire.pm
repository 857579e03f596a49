# A client that speaks PostgreSQL's protocol itself, because a test of crashes must know
# exactly what it was told: an answer, an error, or nothing.
#
#   my $w = Wire->new(path => '/tmp/x/.s.PGSQL.5432', user => 'postgres', dbname => 'app');
#   my $a = $w->query('SELECT 1');      # { rows => [['1']], tag => 'SELECT 1' }
#   $a->{error}{C}                      # SQLSTATE, if there was an error
#   $a->{lost}                          # the connection was lost before the answer
#
# Trust authentication, simple queries, text.
package Wire;

use strict;
use warnings;

use IO::Select;
use IO::Socket::UNIX;
use Time::HiRes qw(time);

# Connects; an object whose "lost" says why not, if that fails.  "timeout" is the longest wait for
# any answer, in seconds.
sub new
{
	my ($class, %o) = @_;
	my $self = bless { buffer => '', timeout => $o{timeout} // 60 }, $class;
	my $body = pack('N', 196608) . join("\0", 'user', $o{user}, 'database', $o{dbname}, 'application_name', $o{name} // 'wire') . "\0\0";

	local $SIG{PIPE} = 'IGNORE';
	$self->{socket} = IO::Socket::UNIX->new(Peer => $o{path});
	if (!$self->{socket})
	{
		$self->{lost} = "cannot connect: $!";
		return $self;
	}
	syswrite($self->{socket}, pack('N', 4 + length $body) . $body);
	my $answer = $self->_answer;
	$self->{lost} = "not let in: " . ($answer->{error}{M} // $answer->{lost} // '') if $answer->{error} || $answer->{lost};
	return $self;
}

sub lost { my ($self) = @_; return $self->{lost}; }

# Runs one simple query, which may be several statements.
sub query
{
	my ($self, $sql) = @_;
	my $body = "$sql\0";

	local $SIG{PIPE} = 'IGNORE';
	return { lost => $self->{lost} } if $self->{lost};
	utf8::encode($body) if utf8::is_utf8($body);
	syswrite($self->{socket}, 'Q' . pack('N', 4 + length $body) . $body);
	return $self->_answer;
}

# Reads until the server is ready for the next query.
sub _answer
{
	my ($self) = @_;
	my $answer = { rows => [] };
	my $end = time + $self->{timeout};

	for (;;)
	{
		my ($type, $body) = $self->_message($end);

		if (!defined $type)
		{
			$answer->{lost} = $self->{lost};
			return $answer;
		}
		if ($type eq 'Z') { $answer->{status} = $body; return $answer; }
		elsif ($type eq 'C') { ($answer->{tag}) = $body =~ /^([^\0]*)/; }
		elsif ($type eq 'D') { push @{ $answer->{rows} }, _row($body); }
		elsif ($type eq 'E' || $type eq 'N')
		{
			my %field = map { (substr($_, 0, 1) => substr($_, 1)) } grep { $_ ne '' } split /\0/, $body;

			if ($type eq 'N') { push @{ $answer->{notices} }, \%field; }
			else
			{
				$answer->{error} = \%field;
				$self->{fatal} = $field{M} if $field{V} =~ /FATAL|PANIC/;
			}
		}
	}
}

# One message, or nothing if the connection is lost or the time is up.
sub _message
{
	my ($self, $end) = @_;

	for (;;)
	{
		if (length $self->{buffer} >= 5)
		{
			my ($type, $length) = unpack('aN', $self->{buffer});

			if (length $self->{buffer} > $length)
			{
				my $body = substr($self->{buffer}, 5, $length - 4);

				substr($self->{buffer}, 0, $length + 1) = '';
				return ($type, $body);
			}
		}
		my $left = $end - time;

		if ($left <= 0 || !IO::Select->new($self->{socket})->can_read($left))
		{
			$self->{lost} = $self->{silent} = 'no answer';
			return;
		}
		if (!sysread($self->{socket}, $self->{buffer}, 65536, length $self->{buffer}))
		{
			$self->{lost} = 'connection lost' . ($self->{fatal} ? ": $self->{fatal}" : '');
			return;
		}
	}
}

# the columns of a DataRow
sub _row
{
	my ($body) = @_;
	my $n = unpack('n', $body);
	my $at = 2;
	my @row;

	for (1 .. $n)
	{
		my $length = unpack('l>', substr($body, $at, 4));

		$at += 4;
		push @row, $length < 0 ? undef : substr($body, $at, $length);
		$at += $length if $length > 0;
	}
	return \@row;
}

sub close { my ($self) = @_; CORE::close($self->{socket}) if $self->{socket}; $self->{lost} //= 'closed'; return; }

1;
