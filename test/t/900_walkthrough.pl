# The walkthrough that this project began with runs in three regions, word for word.
#
# examples/identity/SEED.md is a copy of it.  Each of its code blocks goes to psql as it
# stands, in its order and in the region that its heading names, as the ordinary role
# that owns the example; then all of them in each other region.  The one word that
# is filled in is __ROOT_PERSON_UUID_HERE__, as the page asks.
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__) . '/../lib';
use PostgreSQL::Test::Utils;
use Regions;
use Test::More;

my $top = dirname(__FILE__) . '/../..';
my $seed = slurp_file("$top/examples/identity/SEED.md");
# RESIDENCY_SHARED is where test/run found the page, which the copy that runs here has no way to.
my $origin = ($ENV{RESIDENCY_SHARED} // "$top/../shared") . "/seed/README.md";
my $uuid = qr/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/;
my ($dave, $queen) = qw(7139f8aa-7f93-4657-83ad-b7d74a22159f d0c4d726-225c-426d-80d2-7406eb1c9739);

SKIP:
{
	skip 'the page itself is not here', 1 unless -r $origin;
	is($seed, slurp_file($origin), 'SEED.md is the page');
}

# The blocks of SQL, each with the region that it is for.
my @blocks;
{
	my $region = 'usa';
	my $block;

	foreach my $line (split /\n/, $seed)
	{
		if ($line =~ /^```/)
		{
			push @blocks, { region => $region, sql => $block } if defined $block && $block !~ m{^\./init\.sh};
			$block = defined $block ? undef : '';
		}
		elsif (defined $block) { $block .= "$line\n"; }
		elsif ($line =~ /^#+ (GBR|AUS)\s*$/) { $region = lc $1; }
		elsif ($line =~ /^#/) { $region = 'usa'; }
	}
}
my ($nothing_yet, $upsert, $look_usa, $look_gbr, $look_aus, $generate, $tree, $below, $resolve) = map { $_->{sql} } @blocks;
is(join(' ', map { $_->{region} } @blocks), 'usa usa usa gbr aus usa usa usa usa', 'nine blocks of SQL, each in its region');

my $r = Regions->new(regions => [qw(usa gbr aus)], dbname => 'identity');
$r->psql('usa', '', extra_params => [ '-f', "$top/examples/identity/schema.sql" ]);

# A block in a region, as the owner; lines of fields that are separated by "|".
sub run
{
	my ($region, $sql) = @_;
	return $r->psql($region, $sql, extra_params => [ '-U', 'identity' ]);
}

# Rows of each statement of a block that has several.
sub rows_of_each
{
	my ($region, $block) = @_;
	return join(' ', map { scalar(split /\n/, run($region, "$_;")) } grep { /\S/ } split /;/, $block);
}

# What must hold in every region whatever was done.
sub all_well
{
	my ($when) = @_;

	$r->all_equal(
		'SELECT (SELECT md5(string_agg(i::text, chr(10) ORDER BY uuid)) FROM shared.identity i),
				(SELECT md5(string_agg(h::text, chr(10) ORDER BY uuid)) FROM shared.hierarchy_path h)',
		"$when: the copies are equal");
	$r->all_equal('SELECT md5(string_agg(d::text, chr(10) ORDER BY uuid)) FROM shared.identity_details d',
		"$when: everybody sees the same details");
	foreach my $region ($r->regions)
	{
		is( $r->psql($region, "SELECT count(*) FILTER (WHERE d.region = '$region')
									= (SELECT count(*) FROM shared.identity i WHERE i.region = '$region'),
								   count(*) FILTER (WHERE d.region <> '$region')
							  FROM ONLY $region.identity_details d"),
			't|0', "$when: $region stores the details of its residents, all of them and no others");
	}
	is($r->prepared, 0, "$when: no transaction is left prepared");
	return;
}

# One region's turn to build a tree and ask for it.
sub tree_at
{
	my ($region) = @_;
	my $root = run($region, $tree);

	like($root, qr/^$uuid$/, "$region: create_manager_tree returns the root");
	my @people = split /\n/, run($region, $below =~ s/__ROOT_PERSON_UUID_HERE__/$root/r);
	is(scalar @people, 121, "$region: 15 levels below the root hold 120 people");

	# name uuid depth region manager manager_uuid manager_region upline
	my %name = map { my @f = split /\|/; $f[1] => $f[0] } @people;
	my (%level, @wrong);
	foreach (@people)
	{
		my ($name, $id, $depth, $home, $manager, $manager_uuid, $manager_region, $upline) = split(/\|/, $_, -1);

		$level{$depth}++;
		if ($id eq $root)
		{
			push @wrong, "root: $_" if $depth != 1 || $manager ne '' || $upline ne '';
			next;
		}
		my @upline = map { s/^"|"$//gr } split /,/, $upline =~ s/^\{|\}$//gr;
		push @wrong, $_
		  if $name{$manager_uuid} ne $manager || @upline != $depth || $upline[-1] ne $name
		  || $upline[-2] ne $manager || $upline[0] ne $name{$root};
	}
	is(join(' ', map { $level{$_} } sort { $a <=> $b } keys %level),
		join(' ', 1, 1 .. 15), "$region: level k has k employees");
	is("@wrong", '', "$region: names, managers and uplines fit together");
	return;
}

# As the page has it.
is(run('usa', $nothing_yet), '', 'at first there is nothing present');
like(run('usa', $upsert), qr/^\($dave,t,t\)\|\($queen,t,f\)\|\($uuid,t,f\)\|t$/,
	'three people are created, one of them local');
is(rows_of_each('usa', $look_usa), '3 3 1', 'data is where it should be: usa');
is(rows_of_each('gbr', $look_gbr), '3 3 1', 'data is where it should be: gbr');
is(rows_of_each('aus', $look_aus), '3 3 1', 'data is where it should be: aus');
like(run('usa', $upsert), qr/^\($dave,f,t\)\|\($queen,f,f\)\|\($uuid,t,f\)\|t$/,
	'run again, two are updated, and a new duplicate of the third is created');
is(rows_of_each('usa', $look_usa), '4 4 1', 'and so the tables say');
all_well('after the upserts');
$r->only_in('David Welch', ['usa'], 'the bytes of a resident of usa are in usa only');
$r->only_in('Da Queen', ['gbr'], 'the bytes of a resident of gbr are in gbr only');
$r->only_in('Someone Random', ['aus'], 'the bytes of residents of aus are in aus only');

my $generated = run('usa', $generate);
is($generated, "aus|3334\ngbr|3333\nusa|3333", '10,000 people are generated, spread over the regions');
tree_at('usa');
is(run('usa', $resolve), '', 'the last query names somebody who is not here');
all_well('after the page');

# The other regions' turns.
my $duplicates = 4;
foreach my $region ('gbr', 'aus')
{
	my ($local_queen, $local_rando) = ($region eq 'gbr' ? 't' : 'f', $region eq 'aus' ? 't' : 'f');

	like(run($region, $upsert), qr/^\($dave,f,f\)\|\($queen,f,$local_queen\)\|\($uuid,t,$local_rando\)\|t$/,
		"$region: the people known are updated from here, and one is created");
	$duplicates++;
	my $people = $duplicates + 10000 * ($region eq 'gbr' ? 1 : 2);
	is(rows_of_each($region, $look_usa), "$people $people " . (1 + 3333 * ($region eq 'gbr' ? 1 : 2)),
		"$region: usa's partition can be asked here");
	is(run($region, $generate), $generated, "$region: 10,000 people are generated");
	tree_at($region);
}

# With somebody behind that identity, the last query has an answer, the same everywhere.
run('aus', "SELECT shared.upsert_identity('09a06d2e-a2e3-49a1-b3b6-a8a520fafc6c', 'Top', 'usa', NULL);
	UPDATE shared.identity SET manager_uuid = '09a06d2e-a2e3-49a1-b3b6-a8a520fafc6c' WHERE uuid IN ('$dave', '$queen');
	UPDATE shared.identity SET manager_uuid = '$queen'
	 WHERE uuid IN (SELECT uuid FROM shared.identity WHERE note LIKE 'This will always%')");
foreach my $region ($r->regions)
{
	is( join(', ', sort map { (split /\|/)[0] } split /\n/, run($region, $resolve)),
		'Da Queen, David Welch, Top', "$region: the last query finds the tree, filtered to usa and gbr");
}
all_well('after all turns');

done_testing();
