# Runs TAP tests side by side and adds their numbers to the file of results.
#
#   run_tap.pl RESULTS JOBS FILE ...
#
# prove would do but for three things: it does not say how many tests passed when some
# did not, a "Bail out!" of one file ends all others, and the log of a failed test is
# what one wants to see next.  A file that ends early, prints no test or takes
# longer than RESIDENCY_TEST_SECONDS (default 1200) counts as one failed test more.
#
# A file that failed runs once more when all others are through, alone, and that run counts: time-outs
# are part of what is tested, and a machine that is busy with several clusters of servers may break them.
# The first failure is printed all the same.
use strict;
use warnings;

use File::Basename qw(basename);
use File::Path qw(make_path remove_tree);
use TAP::Parser;
use Time::HiRes qw(sleep time);

my ($results, $jobs, @files) = @ARGV;
my $limit = $ENV{RESIDENCY_TEST_SECONDS} || 1200;
my $logs = "$ENV{TESTDIR}/tmp_check/log";
my ($passed, $failed) = (0, 0);
my %running;
my @again;
my $alone = 0;

# the bed's own tests first: if they fail, nothing else means much; then the last ones,
# which are the longest
@files = ((grep { /\/00/ } @files), reverse grep { !/\/00/ } @files);
make_path($logs);
$| = 1;

# Starts a file in a process group of its own, its output in a file.
sub start
{
	my ($file) = @_;
	my $output = "$logs/" . basename($file) . '.tap';

	# servers append to their logs, and some tests look for words in them
	unlink(glob("$logs/" . (basename($file) =~ s/\.pl$//r) . '_*.log'));
	my $pid = fork() // die "fork: $!";

	if ($pid == 0)
	{
		setpgrp(0, 0);
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>', $output) or die "$output: $!";
		open(STDERR, '>&', \*STDOUT);
		exec($^X, $file) or exit(127);
	}
	$running{$pid} = { file => $file, output => $output, begin => time };
	return;
}

# Prints the end of a file, marked as such.
sub tail
{
	my ($path, $n) = @_;

	open(my $file, '<', $path) or return;
	my @lines = readline($file);
	@lines = @lines[ -$n .. -1 ] if @lines > $n;
	print "  ---- end of ", basename($path), "\n", map { "  | $_" } @lines;
	return;
}

# Prints the failed tests of a file with what they said.
sub failures
{
	my ($tap) = @_;
	my $left = 0;

	foreach my $line (split /\n/, $tap)
	{
		$left = 20 if $line =~ /^not ok/;
		$left = 0 if $line =~ /^ok/;
		print '  | ', substr($line, 0, 300), "\n" if $left-- > 0;
	}
	return;
}

# Counts what a finished file has said.
sub finish
{
	my ($test, $status) = @_;
	my $name = basename($test->{file});
	my $seconds = sprintf('%.0f s', time - $test->{begin});

	open(my $output, '<', $test->{output}) or die "$test->{output}: $!";
	my $tap = (do { local $/; readline($output) } // '') . "\n";
	my $bailed = $tap =~ s/^Bail out!.*$//mg;
	my $parser = TAP::Parser->new({ tap => $tap });
	$parser->run;

	my $good = $parser->passed;
	my $bad = $parser->failed;
	$bad++ if $parser->parse_errors || $bailed || $test->{late} || ($status && !$bad);
	push @again, $test->{file} if $bad && !$alone;
	$passed += $good unless $bad && !$alone;
	$failed += $bad if $alone;
	if ($parser->skip_all)
	{
		print "skipped  $name  ", $parser->skip_all, "\n";
		return;
	}
	print $bad ? "FAILED   " : "ok       ", "$name  $good passed, $bad failed  ($seconds", $alone ? ', alone' : '', ")\n";
	return unless $bad;
	print "  took longer than $limit s\n" if $test->{late};
	failures($tap);
	foreach my $log (glob("$logs/" . ($name =~ s/\.pl$//r) . '_*.log'))
	{
		open(my $file, '<', $log) or next;
		print map { "  ! " . basename($log) . ": $_" } grep { /terminated by signal|Failed process was|PANIC|TRAP/ } readline($file);
	}
	return unless $parser->parse_errors || $bailed || $test->{late} || !$parser->failed;
	tail($test->{output}, 15);
	tail("$logs/regress_log_" . ($name =~ s/\.pl$//r), 30);
	return;
}

# Once: what has failed runs again, in directories of its own making.
sub begin_again
{
	$alone = $jobs = 1;
	@files = splice(@again);
	remove_tree(map { glob("$ENV{TESTDIR}/tmp_check/t_" . (basename($_) =~ s/\.pl$//r) . '_*') } @files);
	return;
}

while (@files || %running || (@again && !$alone))
{
	begin_again() if !@files && !%running;
	start(shift @files) while @files && keys %running < $jobs;
	my $pid = waitpid(-1, 1);    # WNOHANG

	if ($pid > 0 && $running{$pid})
	{
		finish(delete $running{$pid}, $?);
		next;
	}
	foreach my $p (keys %running)
	{
		my $age = time - $running{$p}{begin};

		next if $age < $limit;
		kill($running{$p}{late} && $age > $limit + 30 ? 'KILL' : 'TERM', -$p)
		  if !$running{$p}{late} || $age > $limit + 30;
		$running{$p}{late} = 1;
	}
	sleep(0.05);
}

open(my $out, '>>', $results) or die "$results: $!";
print $out "tap $passed $failed\n";
close($out);
exit($failed ? 1 : 0);
