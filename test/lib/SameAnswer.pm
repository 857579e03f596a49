# Three regions and one plain PostgreSQL with the same rows, to compare what they answer.
#
#   my $same = SameAnswer->new($queries->tables);
#   my $outcome = $same->run(\@lines, \@more_lines);     # each list in sessions of its own, side by side
#   $outcome->{differences}, {refused}, {nodes}, {statements} ...
#
# The plain server knows nothing of the extension.  test/lib/same_answer.c says what lines are.
package SameAnswer;

use strict;
use warnings;

use File::Temp ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More ();

use Initdb;
use Regions;

sub new
{
	my ($class, $tables, %o) = @_;
	my $self = bless { regions => Regions->new(%{ $o{regions} // {} }) }, $class;
	my $plain = $self->{plain} = PostgreSQL::Test::Cluster->new('plain');

	Initdb::init($plain);
	$plain->append_conf('postgresql.conf', "fsync = off\nmax_prepared_transactions = 10\nshared_buffers = 32MB\nstatement_timeout = 120s\nlog_statement = none\n");
	$plain->start;
	$plain->safe_psql('postgres', "CREATE DATABASE app TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'");
	if ($tables)
	{
		$tables->make_regions($self->{regions});
		$tables->make_plain(sub { $plain->safe_psql('app', $_[0]) });
	}
	return $self;
}

sub regions { my ($self) = @_; return $self->{regions}; }
sub plain { my ($self, $sql) = @_; return $self->{plain}->safe_psql('app', $sql); }

# Settings of the extension that switch ways of planning
sub plan_settings
{
	my ($self) = @_;
	return split /\n/, $self->{regions}->psql('usa', q{SELECT name FROM pg_settings WHERE name LIKE 'residency.enable%' AND vartype = 'bool' ORDER BY name});
}

# Runs lists of lines, each in a process and sessions of its own; returns their outcomes together.
sub run
{
	my ($self, @lists) = @_;
	my @connections = ($self->{plain}->connstr('app'), map { $self->{regions}->node($_)->connstr($self->{regions}->dbname) } $self->{regions}->regions);
	my $directory = File::Temp->newdir;
	my %outcome = (text => '', map { $_ => 0 } qw(statements errors differences refused));
	my @pids;

	foreach my $n (0 .. $#lists)
	{
		open(my $script, '>', "$directory/$n") or die "$directory/$n: $!";
		print $script map { s/\n/ /gr . "\n" } @{ $lists[$n] };
		close($script);

		my $pid = fork() // die "fork: $!";
		if ($pid == 0)
		{
			open(STDIN, '<', "$directory/$n") or die "$directory/$n: $!";
			open(STDOUT, '>', "$directory/$n.out") or die "$directory/$n.out: $!";
			exec($ENV{RESIDENCY_SAME_ANSWER}, @connections) or exit(127);
		}
		push @pids, $pid;
	}
	foreach my $pid (@pids)
	{
		waitpid($pid, 0);
		$outcome{broken} = 1 if $?;
	}
	$self->_read("$directory/$_.out", \%outcome) foreach 0 .. $#lists;
	return \%outcome;
}

# Adds what one process wrote to the outcome.
sub _read
{
	my ($self, $file, $outcome) = @_;

	open(my $in, '<', $file) or die "$file: $!";
	while (my $line = readline($in))
	{
		if ($line =~ /^T (\d+) (\d+) (\d+) (\d+)/)
		{
			$outcome->{statements} += $1;
			$outcome->{errors} += $2;
			$outcome->{differences} += $3;
			$outcome->{refused} += $4;
		}
		elsif ($line =~ /^N (\d+) (.*)/) { $outcome->{nodes}{$2} += $1; }
		elsif ($line =~ /^Q (\w+) (\d+)/) { $outcome->{states}{$1} += $2; }
		elsif ($line =~ /^R (\S+) (.*)/) { push @{ $outcome->{reasons}{$2} }, $1; }
		elsif ($line =~ /^Z (\d+) (.*)/) { push @{ $outcome->{slow} }, "$2 ($1 ms)"; }
		else { $outcome->{text} .= $line; }
	}
	return;
}

# Tests what every outcome must be: no difference, and refused only what docs/limits.md refuses, with
# these reasons and no more often than "share" of the statements.
sub judge
{
	my ($self, $outcome, %o) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @unlisted = grep { my $message = $_; !grep { $message =~ $_ } @{ $o{refused} // [] } } sort keys %{ $outcome->{reasons} // {} };
	my $n = $outcome->{statements} || 1;

	Test::More::diag("$outcome->{statements} statements; equal errors: $outcome->{errors} ("
		  . join(', ', map { "$_ $outcome->{states}{$_}" } sort keys %{ $outcome->{states} // {} })
		  . "); refused: $outcome->{refused}" . ($outcome->{slow} ? '; slow: ' . join(', ', @{ $outcome->{slow} }) : ''));
	Test::More::ok(!$outcome->{broken}, "$o{name}: all statements ran");
	Test::More::is($outcome->{differences}, 0, "$o{name}: the regions answer as one server does");
	Test::More::diag($outcome->{text}) if $outcome->{text} ne '';
	Test::More::is(join('', map { "$_ (units @{ $outcome->{reasons}{$_} })\n" } @unlisted), '', "$o{name}: nothing is refused but what the limits say");
	Test::More::cmp_ok($outcome->{refused} / $n, '<', $o{share} // 0.05, "$o{name}: few are refused");
	Test::More::cmp_ok($outcome->{errors} / $n, '<', $o{errors} // 0.15, "$o{name}: most have answers");
	return;
}

1;
