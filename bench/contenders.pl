# One client's statements, each contender side by side, at each distance: round trips
# waited, bytes and personal rows that crossed (by the relay, not derived), and times.
#
#   bench/contenders.pl [--distance 0,20,80/200] [--only PATTERN] [--times 5] [--patience 20]
#
# A personal row that crossed is a name found in the bytes between two regions: every
# name begins with "Person ".
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__), dirname(__FILE__) . '/../test/lib';
use Bench qw(add_contenders contenders deployment distance fill keys_table median record uuid);
use File::Temp qw(tempdir);
use Getopt::Long;
use PostgreSQL::Test::Utils;
use Test::More ();
use Time::HiRes qw(time);

my %o = (distance => '0,20,80/200', only => '.', times => 5, patience => 20, rows => 10_000);
GetOptions(\%o, 'distance=s', 'only=s', 'times=i', 'patience=i', 'rows=i') or die "unknown option\n";
Test::More->builder->output('/dev/null');

my $r = deployment();
my @links = ('usa>gbr', 'usa>aus');

# The query of the walkthrough, over a contender's details.
sub hierarchy
{
	my ($details, $root) = @_;

	return <<"SQL";
WITH targets AS (
    SELECT i.* FROM shared.hierarchy t INNER JOIN shared.hierarchy i ON i.path[t.depth] = t.uuid WHERE t.uuid = '$root' :: UUID
), qualified AS (
    SELECT d.name, t.* FROM $details d LEFT JOIN targets t on t.uuid = d.uuid WHERE d.uuid in ((SELECT t2.uuid FROM targets t2))
), upline AS (
  select c.uuid, array_agg(q.name ORDER BY q.depth) as upline
  from qualified c LEFT JOIN qualified q ON c.path @> array[q.uuid]
  WHERE c.manager_uuid IS NOT NULL GROUP BY c.uuid
)
select q.name, q.uuid, q.depth, q.region, m.name as manager, m.uuid as manager_uuid, m.region as manager_region, u.upline
from qualified q LEFT JOIN qualified m on m.uuid = q.manager_uuid LEFT JOIN upline u on u.uuid = q.uuid
ORDER BY q.depth
SQL
}

# Statements by name: a function of the contender's schema and its details table.
sub statements
{
	my ($root) = @_;
	my $gbr = $r->psql('usa', "SELECT uuid FROM bench.key WHERE region = 'gbr' LIMIT 1");
	my $boss = $r->psql('usa', "SELECT manager_uuid FROM shared.identity WHERE manager_uuid IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC LIMIT 1");
	my $upsert = sub { $_[0] eq 'residency' ? 'shared.upsert_identity' : "$_[0].upsert" };

	return (
		[ 'point read, region given', sub { "SELECT * FROM $_[1] WHERE uuid = '$gbr' AND region = 'gbr'" } ],
		[ 'point read, no region', sub { "SELECT * FROM $_[1] WHERE uuid = '$gbr'" } ],
		[ 'five keys by subquery', sub { "SELECT * FROM $_[1] WHERE uuid IN (SELECT uuid FROM shared.identity ORDER BY random() LIMIT 5)" } ],
		[ 'hierarchy, 121 people', sub { hierarchy($_[1], $root) } ],
		[ 'scan of all', sub { "SELECT * FROM $_[1]" } ],
		[ 'count(*) by region', sub { "SELECT region, count(*) FROM $_[1] GROUP BY region" } ],
		[ 'join with a global table', sub { "SELECT i.note, d.name FROM shared.identity i JOIN $_[1] d USING (uuid) WHERE i.manager_uuid = '$boss'" } ],
		[ 'top 10', sub { "SELECT * FROM $_[1] ORDER BY name, uuid LIMIT 10" } ],
		[ 'upsert of three, new', sub {
			join(', ', 'SELECT 1', map { $upsert->($_[0]) . "('" . uuid() . "', 'Person New', '$_', 'note')" } qw(usa gbr aus)) }, 'writes' ],
		[ 'update of one', sub { "UPDATE $_[1] SET name = 'Person Renamed' WHERE uuid = '$gbr' AND region = 'gbr'" }, 'writes' ],
		[ 'update over all regions, 30 rows', sub {
			"UPDATE $_[1] SET name = 'Person Moved' WHERE uuid IN (SELECT uuid FROM bench.key WHERE n <= 30)" }, 'writes' ],
		[ 'insert of 10,000', sub { $_[0] eq 'residency' ? 'SELECT * FROM util.generate_identities(1, 10000, false)'
			: "SELECT $_[0].generate(1, 10000)" }, 'once' ],
	);
}

# Runs SQL through the client's link: trips, ms; undef and what went wrong.
sub measured
{
	my ($sql) = @_;
	my ($trips, $ms) = eval { $r->round_trips('usa', $sql) };

	return ($trips, $ms) unless $@;
	return (undef, $@ =~ /statement timeout/ ? "> $o{patience} s" : 'fails: ' . ($@ =~ /(?:ERROR|FATAL):\s*(.*)/ ? $1 : $@));
}

# Occurrences of a name's beginning in what crossed while the code ran.
sub names_crossed
{
	my ($code) = @_;
	my $dir = tempdir(CLEANUP => 1);
	my $n = 0;

	$r->relay->record($_, $dir) foreach @links;
	$code->();
	$r->relay->record($_) foreach @links;
	foreach my $file (glob("$dir/*"))
	{
		my $bytes = slurp_file($file);
		$n += () = $bytes =~ /Person /g;
		unlink $file;
	}
	return $n;
}

# One statement of one contender at one distance.
sub measure
{
	my ($distance, $name, $contender, $text, $kind) = @_;
	my $details = $contender eq 'residency' ? 'shared.identity_details' : "$contender.identity_details";
	my (@ms, $trips, $rows, $sum);
	my $begin = time;

	unless ($kind eq 'once')    # connections and caches
	{
		my ($first, $ms) = measured($text->($contender, $details));
		return record(part => 'contenders', distance => $distance, statement => $name, contender => $contender, says => $ms)
		  unless defined $first;
	}
	$r->relay->reset;
	$rows = names_crossed(sub {
		($trips, $ms[0]) = measured($text->($contender, $details));
	});
	return record(part => 'contenders', distance => $distance, statement => $name, contender => $contender, says => $ms[0])
	  unless defined $trips;
	foreach my $counts (map { $r->relay->counts($_) } @links) { $sum->{$_} += $counts->{$_} foreach keys %$counts; }
	while ($kind ne 'once' && @ms < $o{times} && time - $begin < 6)
	{
		my (undef, $ms) = measured($text->($contender, $details));
		push @ms, $ms;
	}
	record(part => 'contenders', distance => $distance, statement => $name, contender => $contender, trips => $trips,
		ms => sprintf('%.1f', median(@ms)), rows => $rows, bytes_in => $sum->{bytes_in}, bytes_out => $sum->{bytes_out});
	return;
}

add_contenders($r, 'usa');
$r->warm('usa', "SELECT * FROM util.generate_identities(1, $o{rows}, false)");
my $root = $r->psql('usa', 'SELECT util.create_manager_tree(15)');
fill($r, 'usa');
keys_table($r, 'usa');
$r->warm('usa', "SET statement_timeout = '$o{patience}s'");
foreach my $distance (split /,/, $o{distance})
{
	distance($r, $distance);
	foreach my $s (grep { $_->[0] =~ /$o{only}/ } statements($root))
	{
		measure($distance, $s->[0], $_, $s->[1], $s->[2] // 'reads') foreach contenders();
	}
	# what was inserted would make the next distance's scans longer
	distance($r, 0);
	$r->psql('usa', 'DELETE FROM shared.identity_details WHERE NOT EXISTS (SELECT FROM bench.key k WHERE k.uuid = identity_details.uuid)');
	$r->psql('usa', 'DELETE FROM shared.identity WHERE NOT EXISTS (SELECT FROM bench.key k WHERE k.uuid = identity.uuid)');
	fill($r, 'usa');
}
$r->teardown;
