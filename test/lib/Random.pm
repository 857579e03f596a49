# Random numbers that are the same everywhere for the same words, however near the words are.
#
#   my $random = Random->new($seed, 'query', 17);
#   $random->below(10);  $random->pick(@list);  $random->chance(0.2);
package Random;

use strict;
use warnings;

use Digest::MD5 qw(md5);

sub new
{
	my ($class, @words) = @_;
	return bless { key => join(' ', @words), n => 0, pool => [] }, $class;
}

# an integer from 0 to n - 1
sub below
{
	my ($self, $n) = @_;

	@{ $self->{pool} } = unpack('N4', md5($self->{key} . ' ' . $self->{n}++)) unless @{ $self->{pool} };
	return int(shift(@{ $self->{pool} }) / 4294967296 * $n);
}

sub pick { my ($self, @list) = @_; return $list[ $self->below(scalar @list) ]; }
sub chance { my ($self, $p) = @_; return $self->below(1000000) < $p * 1000000; }

# so many different ones of a list, in any order
sub some
{
	my ($self, $n, @list) = @_;
	my @chosen;

	push @chosen, splice(@list, $self->below(scalar @list), 1) while @list && $n-- > 0;
	return @chosen;
}

1;
