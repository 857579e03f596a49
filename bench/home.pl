# What the extension costs where nothing is far: "uuid = ..." of a person whose home is
# here, against the same query on the plain local partition, in interleaved pairs.
#
#   bench/home.pl [--pairs 20] [--seconds 1] [--clients 8]
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__), dirname(__FILE__) . '/../test/lib';
use Bench qw(deployment median record);
use File::Temp qw(tempdir);
use Getopt::Long;
use Test::More ();

my %o = (pairs => 20, seconds => 1, clients => 8, rows => 10_000);
GetOptions(\%o, 'pairs=i', 'seconds=i', 'clients=i', 'rows=i') or die "unknown option\n";
Test::More->builder->output('/dev/null');

my $r = deployment();
my $dir = tempdir(CLEANUP => 1);

# Transactions a second of one query; the key is a parameter or a literal of the text.
sub tps
{
	my ($mode, $table, $uuid) = @_;
	my $file = "$dir/script.sql";
	my ($out, $err) = ('', '');

	open(my $script, '>', $file) or die "$file: $!\n";
	print {$script} "SELECT * FROM $table WHERE uuid = :key;\n";
	close($script);
	IPC::Run::run([ 'pgbench', '-n', '-M', $mode, '-c', $o{clients}, '-j', 2, '-T', $o{seconds}, '-f', $file,
			'-D', 'key=' . ($mode eq 'simple' ? "'$uuid'" : $uuid),
			'-h', $r->node('usa')->host, '-p', $r->port('usa'), $r->dbname ], '>', \$out, '2>', \$err) or die $err;
	$out =~ /tps = ([\d.]+)/ or die "pgbench said no rate: $out";
	return $1;
}

$r->warm('usa', "SELECT * FROM util.generate_identities(1, $o{rows}, false)");
my $uuid = $r->psql('usa', 'SELECT uuid FROM usa.identity_details LIMIT 1');
$r->psql($_, 'VACUUM ANALYZE') foreach $r->regions;
foreach my $mode ('prepared', 'simple')
{
	my (@ours, @plain, @ratio);

	foreach (1 .. $o{pairs})
	{
		push @ours, tps($mode, 'shared.identity_details', $uuid);
		push @plain, tps($mode, 'usa.identity_details', $uuid);
		push @ratio, $plain[-1] / $ours[-1];
	}
	record(part => 'home', statement => "uuid = ..., home here, -M $mode", contender => 'residency',
		rate => sprintf('%.0f', median(@ours)), plain => sprintf('%.0f', median(@plain)), ratio => sprintf('%.2f', median(@ratio)));
}
$r->teardown;
