# Many clients: pgbench at the gateway with 1, 8 and 32 of them, each contender side by side.
#
#   bench/clients.pl [--distance 0,80/200] [--clients 1,8,32] [--seconds 4]
#
# Latencies are those of whole transactions, from pgbench's log; p99 of a short run over a
# long way rests on few of them, so their number is recorded too.
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__), dirname(__FILE__) . '/../test/lib';
use Bench qw(add_contenders contenders deployment distance fill keys_table quantile record);
use File::Temp qw(tempdir);
use Getopt::Long;
use PostgreSQL::Test::Utils;
use Test::More ();

my %o = (distance => '0,80/200', clients => '1,8,32', seconds => 4, rows => 10_000);
GetOptions(\%o, 'distance=s', 'clients=s', 'seconds=i', 'rows=i') or die "unknown option\n";
Test::More->builder->output('/dev/null');

my $r = deployment();
my $dir = tempdir(CLEANUP => 1);
my %script = (
	'point read, no region' => <<'SQL',
\set n random(1, :rows)
SELECT uuid FROM bench.key WHERE n = :n \gset
SELECT * FROM :details WHERE uuid = :uuid;
SQL
	'five keys by subquery' => <<'SQL',
\set n random(1, :rows - 5)
SELECT * FROM :details WHERE uuid IN (SELECT uuid FROM bench.key WHERE n BETWEEN :n AND :n + 4);
SQL
	'update of one' => <<'SQL',
\set n random(1, :rows)
SELECT uuid, region FROM bench.key WHERE n = :n \gset
UPDATE :details SET name = 'Person ' || :n WHERE uuid = :uuid AND region = :region;
SQL
);

# ms of every transaction in pgbench's logs; the logs are removed
sub latencies
{
	my ($prefix) = @_;
	my @ms;

	foreach my $file (glob("$prefix.*"))
	{
		push @ms, map { (split / /)[2] / 1000 } grep { /^\d+ \d+ \d+ \d/ } split /\n/, slurp_file($file);
		unlink $file;
	}
	return @ms;
}

sub run
{
	my ($distance, $name, $contender, $clients) = @_;
	my $details = $contender eq 'residency' ? 'shared.identity_details' : "$contender.identity_details";
	my $file = "$dir/script.sql";
	my ($out, $err) = ('', '');

	open(my $script, '>', $file) or die "$file: $!\n";
	print {$script} $script{$name} =~ s/:details/$details/gr =~ s/:rows/$o{rows}/gr;
	close($script);
	IPC::Run::run([ 'pgbench', '-n', '-M', 'prepared', '-c', $clients, '-j', 2, '-T', $o{seconds}, '-f', $file,
			'--max-tries', 10, '-l', '--log-prefix', "$dir/log", '-h', $r->node('usa')->host, '-p', $r->port('usa'), $r->dbname ],
		'>', \$out, '2>', \$err);
	my @ms = latencies("$dir/log");
	return record(part => 'clients', distance => $distance, statement => $name, contender => $contender, clients => $clients,
		says => 'fails: ' . ($err =~ /(?:ERROR|FATAL|error):\s*(.*)/ ? $1 : 'no transaction ended')) unless @ms;
	record(part => 'clients', distance => $distance, statement => $name, contender => $contender, clients => $clients,
		p50 => sprintf('%.2f', quantile(0.5, @ms)), p99 => sprintf('%.2f', quantile(0.99, @ms)), transactions => scalar @ms);
	return;
}

add_contenders($r, 'usa');
$r->warm('usa', "SELECT * FROM util.generate_identities(1, $o{rows}, false)");
fill($r, 'usa');
keys_table($r, 'usa');
foreach my $distance (split /,/, $o{distance})
{
	distance($r, $distance);
	foreach my $name (sort keys %script)
	{
		foreach my $clients (split /,/, $o{clients}) { run($distance, $name, $_, $clients) foreach contenders(); }
	}
}
$r->teardown;
