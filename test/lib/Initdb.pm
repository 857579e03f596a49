# Data directories for tests: initdb takes a second of a core, three servers for each of eighty
# files would take minutes.  So what it makes is kept, and copied for whoever comes next; from
# PostgreSQL 16 on PostgreSQL::Test::Cluster does the like by itself.
#
#   Initdb::init($node);                   instead of $node->init
#
# Servers of one deployment are told apart by their system identifiers, which initdb draws.  So the
# first server of each file gets a copy of the first directory, the second one of the second.
package Initdb;

use strict;
use warnings;

use Fcntl qw(:flock);
use File::Path qw(remove_tree);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

my $served = 0;

# The directory for the n-th server of any file; "run" makes it now if nobody has yet.
sub kept_directory
{
	my ($run, $n, @initdb) = @_;
	my $kept = "$ENV{TESTDIR}/tmp_check/initdb";
	my $dir = "$kept/$n";

	mkdir($kept);
	open(my $lock, '>', "$dir.lock") or die "$dir.lock: $!";
	flock($lock, LOCK_EX) or die "$dir.lock: $!";
	return $dir if -d $dir;
	remove_tree("$dir.new");    # of a run that was interrupted
	$run->('initdb', '-D', "$dir.new", @initdb);
	rename("$dir.new", $dir) or die "$dir: $!";
	return $dir;
}

# Does what $node->init does.
sub init
{
	my ($node) = @_;
	my $run = \&PostgreSQL::Test::Utils::system_or_bail;
	my $n = ++$served;

	no warnings 'redefine';
	local *PostgreSQL::Test::Utils::system_or_bail = sub {
		my ($program, $d, $pgdata, @rest) = @_;

		return $run->(@_) if $program ne 'initdb';
		return $run->('cp', '-R', kept_directory($run, $n, @rest), $pgdata);
	};
	return $node->init;
}

1;
