# Writes the results' page and its plots from what the parts of the benchmark recorded.
#
#   bench/report.pl TABLE MEASURES DIRECTORY DATE HEAD
#
# TABLE is Bench.pm's file of results, MEASURES the tables that measures.pl printed, HEAD a
# line on commit, settings and machine.  Makes DIRECTORY/DATE.md and DATE-*.svg.
use strict;
use warnings;

use File::Temp qw(tempdir);

my ($table, $measures, $dir, $date, $head) = @ARGV;
my $work = tempdir(CLEANUP => 1);
my @results;
my %title = (residency => 'pg_residency', fdw => 'postgres_fdw', tuned => 'postgres_fdw tuned', routing => 'plpgsql routing');
my @contenders = qw(residency fdw tuned routing);

sub slurp { my ($file) = @_; open(my $f, '<', $file) or return ''; local $/; return <$f>; }

foreach my $line (split /\n/, slurp($table))
{
	push @results, { map { /^(\w+)=(.*)$/ ? ($1, $2) : () } split /\t/, $line };
}

# results with these values
sub those
{
	my (%want) = @_;
	return grep { my $x = $_; !grep { ($x->{$_} // '') ne $want{$_} } keys %want } @results;
}

# different values of a column, in the order in which they came
sub distinct { my ($column, @rows) = @_; my %seen; return grep { !$seen{$_}++ } map { $_->{$column} // () } @rows; }

sub ms { my ($ms) = @_; return $ms < 10 ? sprintf('%.1f ms', $ms) : $ms < 1000 ? sprintf('%.0f ms', $ms) : sprintf('%.2f s', $ms / 1000); }
sub bytes { my ($n) = @_; return $n < 10_000 ? "$n B" : $n < 10_000_000 ? sprintf('%.0f kB', $n / 1000) : sprintf('%.0f MB', $n / 1e6); }

my $page = '';
sub out { $page .= join('', @_); return; }
sub line { out('| ', join(' | ', @_), " |\n"); return; }
sub heading { line(@_); out('|', '---|' x @_, "\n"); return; }

# Runs gnuplot on a script; what it writes belongs to the page.
sub plot
{
	my ($name, $alt, $script) = @_;
	my $file = "$date-$name.svg";

	open(my $gnuplot, '|-', 'gnuplot') or die "gnuplot: $!\n";
	print {$gnuplot} "set terminal svg size 900,420 font 'sans,12' background '#ffffff'\nset output '$dir/$file'\n"
	  . "set key top left\nset grid ytics\nset style line 1 lc rgb '#1b6ca8' lw 2 pt 7\nset style line 2 lc rgb '#999999' lw 2 pt 5\n"
	  . "set style line 3 lc rgb '#d1793a' lw 2 pt 9\nset style line 4 lc rgb '#7a4fa3' lw 2 pt 13\n" . $script;
	close($gnuplot) or die "gnuplot failed\n";
	out("\n![$alt]($file)\n\n");
	return;
}

sub data
{
	my ($name, @lines) = @_;

	open(my $f, '>', "$work/$name") or die "$work/$name: $!\n";
	print {$f} "$_\n" foreach @lines;
	close($f);
	return "$work/$name";
}

# One client, each distance.
sub contenders
{
	foreach my $distance (distinct('distance', those(part => 'contenders')))
	{
		my @names = distinct('statement', those(part => 'contenders', distance => $distance));

		out("\n## One client, $distance ms round trip\n\n",
			"A cell: round trips waited, median time; then names that crossed a border and bytes in and out.\n\n");
		heading('statement', map { $title{$_} } @contenders);
		foreach my $name (@names)
		{
			line($name, map {
				my ($x) = those(part => 'contenders', distance => $distance, statement => $name, contender => $_);
				!$x ? '' : $x->{says} // "$x->{trips}, " . ms($x->{ms}) . "; $x->{rows} names, " . bytes($x->{bytes_in}) . ' / ' . bytes($x->{bytes_out})
			} @contenders);
		}
		next if $distance eq '0';
		my $file = data('contenders', map {
			my $name = $_;
			join("\t", "\"$name\"", map {
				my ($x) = those(part => 'contenders', distance => $distance, statement => $name, contender => $_);
				$x->{ms} // 'NaN'
			} @contenders)
		} @names);
		plot('one-client-' . $distance =~ s{/}{-}r, "times of each statement at $distance ms",
			"set title 'one client, $distance ms round trip'\nset ylabel 'ms (log)'\nset logscale y\nset yrange [10:*]\n"
			  . "set style data histogram\nset style histogram clustered gap 1\nset style fill solid\nset xtics rotate by -30 noenhanced\n"
			  . "set bmargin 7\nset key outside top right noenhanced\nplot " . join(', ', map {
				my $i = $_; "'$file' using @{[ $i + 2 ]}:xtic(1) title '$title{$contenders[$i]}' ls @{[ $i + 1 ]}"
			} 0 .. $#contenders) . "\n");
	}
	return;
}

# Many clients.
sub clients
{
	foreach my $distance (distinct('distance', those(part => 'clients')))
	{
		my @counts = distinct('clients', those(part => 'clients', distance => $distance));

		out("\n## Many clients, $distance ms round trip\n\nA cell: p50 / p99 in ms (transactions).\n\n");
		my @plots;
		heading('statement', 'clients', map { $title{$_} } @contenders);
		foreach my $name (distinct('statement', those(part => 'clients', distance => $distance)))
		{
			foreach my $n (@counts)
			{
				line($name, $n, map {
					my ($x) = those(part => 'clients', distance => $distance, statement => $name, clients => $n, contender => $_);
					!$x ? '' : $x->{says} // "$x->{p50} / $x->{p99} ($x->{transactions})"
				} @contenders);
			}
			next unless $name =~ /no region/;
			my $file = data('clients', map {
				my $n = $_;
				join("\t", $n, map {
					my ($x) = those(part => 'clients', distance => $distance, statement => $name, clients => $n, contender => $_);
					($x->{p50} // 'NaN', $x->{p99} // 'NaN')
				} @contenders)
			} @counts);
			push @plots, sub { plot('clients-' . $distance =~ s{/}{-}r, "p50 and p99 by clients at $distance ms",
				"set title '$name, $distance ms: p50 (lines) and p99 (dots)' noenhanced\nset xlabel 'clients'\nset ylabel 'ms (log)'\nset logscale xy\nset key outside top right noenhanced\n"
				  . 'plot ' . join(', ', map {
					my $i = $_;
					("'$file' using 1:@{[ 2 * $i + 2 ]} with linespoints ls @{[ $i + 1 ]} title '$title{$contenders[$i]}'",
						"'$file' using 1:@{[ 2 * $i + 3 ]} with points ls @{[ $i + 1 ]} notitle")
				} 0 .. $#contenders) . "\n") };
		}
		$_->() foreach @plots;    # a plot between its rows would end the table
	}
	return;
}

# Growth with a number in the column "by".
sub growth
{
	my ($part, $by, $head) = @_;
	my @rows = those(part => $part) or return;
	my @numbers = distinct($by, @rows);
	my @who = distinct('contender', @rows);

	out("\n## $head\n\nA cell: round trips waited, median time.\n\n");
	heading('statement', 'contender', map { "$_ $by" } @numbers);
	foreach my $name (distinct('statement', @rows))
	{
		foreach my $who (@who)
		{
			next unless those(part => $part, statement => $name, contender => $who);
			line($name, $title{$who} // $who, map {
				my ($x) = those(part => $part, statement => $name, contender => $who, $by => $_);
				!$x ? '' : $x->{says} // "$x->{trips}, " . ms($x->{ms})
			} @numbers);
		}
	}
	my ($name) = distinct('statement', @rows);
	my $file = data($part, map {
		my $n = $_;
		join("\t", $n, map {
			my ($x) = those(part => $part, statement => $name, contender => $_, $by => $n);
			$x->{ms} // 'NaN'
		} 'residency', 'tuned')
	} @numbers);
	plot($part, "$name by $by", "set title '$name' noenhanced\nset xlabel '$by'\nset ylabel 'ms (log)'\nset logscale xy\nset key noenhanced\nset yrange [50:*]\n"
		  . "plot '$file' using 1:2 with linespoints ls 1 title '$title{residency}', '$file' using 1:3 with linespoints ls 3 title '$title{tuned}'\n");
	return;
}

out("# Measures of $date\n\n`test/run bench`; $head\n\n",
	"Contenders, distances and what is counted: the heads of `bench/Bench.pm` and of each part beside it. Ratios and trips carry over to other machines, times do not.\n");
out("\n## Statements with a figure to meet\n\nThe first number of a cell is round trips waited; postgres_fdw is the tuned one.\n", slurp($measures)) if -s $measures;
if (my @home = those(part => 'home'))
{
	out("\n## At home\n\nTransactions a second, and the median of the ratios of interleaved pairs.\n\n");
	heading('statement', 'plain local partition', 'pg_residency', 'times slower');
	line($_->{statement}, $_->{plain}, $_->{rate}, $_->{ratio}) foreach @home;
}
contenders();
clients();
growth('regions', 'regions', 'More regions');
growth('people', 'people', 'More people');
open(my $f, '>', "$dir/$date.md") or die "$dir/$date.md: $!\n";
print {$f} $page;
close($f) or die "$dir/$date.md: $!\n";
