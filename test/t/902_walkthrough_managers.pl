# shared.hierarchy follows every change of a manager, in all regions alike, and no circle of
# managers comes to be, also when two gateways change different managers at once.
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__) . '/../lib';
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Regions;
use Test::More;

my $top = dirname(__FILE__) . '/../..';
my $r = Regions->new(regions => [qw(usa gbr aus)], dbname => 'identity');

$r->psql('usa', '', extra_params => [ '-f', "$top/examples/identity/schema.sql" ]);

sub run { my ($region, $sql) = @_; return $r->psql($region, $sql, extra_params => [ '-U', 'identity' ]); }

# Identity number n, with so many zeroes that the name is a UUID.
sub id { return sprintf("'00000000-0000-0000-0000-%012d'", $_[0]); }

# "who < manager < ... < root" of everybody with a manager, one a line
my $paths = q{
	SELECT string_agg((SELECT string_agg(right(p::text, 2)::int::text, ' < ' ORDER BY n DESC)
						 FROM unnest(h.path) WITH ORDINALITY AS u (p, n)), E'\n' ORDER BY h.uuid)
	  FROM shared.hierarchy h WHERE h.depth > 1};

# Paths as they would be if computed from the managers alone
my $wrong = q{
	WITH RECURSIVE tree AS (
		SELECT uuid, ARRAY[uuid] AS path FROM shared.identity WHERE manager_uuid IS NULL
		UNION ALL
		SELECT i.uuid, t.path || i.uuid FROM tree t JOIN shared.identity i ON i.manager_uuid = t.uuid)
	SELECT count(*) FROM tree t FULL JOIN shared.hierarchy h ON h.uuid = t.uuid
	 WHERE h.path IS DISTINCT FROM t.path OR h.depth IS DISTINCT FROM cardinality(t.path) OR h.path[h.depth] <> h.uuid};

sub consistent
{
	my ($when) = @_;
	is($r->all_equal($paths, "$when: all regions agree on the paths") =~ s/\n/, /gr,
		run('gbr', $paths) =~ s/\n/, /gr, "$when: and so does the owner's view");
	is(run($_, $wrong), '0', "$when: $_: paths are what the managers say") foreach $r->regions;
	return;
}

run('usa', 'SELECT ' . join(', ', map { "shared.upsert_identity(" . id($_) . ", 'P$_', '" . (qw(usa gbr aus))[$_ % 3] . "', NULL)" } 1 .. 8));
is(run('gbr', $paths), '', 'nobody has a manager: everybody is a root');

# a chain 1 <- 2 <- 3 <- 4 in one statement, from another gateway than the one that made them
run('gbr', 'UPDATE shared.identity SET manager_uuid = v.m FROM (VALUES '
	. join(', ', map { '(' . id($_) . '::uuid, ' . id($_ - 1) . '::uuid)' } 2 .. 4) . ') v (u, m) WHERE uuid = v.u');
is(run('usa', $paths), "2 < 1\n3 < 2 < 1\n4 < 3 < 2 < 1", 'one statement that builds a chain');
run('aus', 'UPDATE shared.identity SET manager_uuid = ' . id(5) . ' WHERE uuid = ' . id(2));
is(run('usa', $paths), "2 < 5\n3 < 2 < 5\n4 < 3 < 2 < 5", 'a change in the middle takes everybody below along');
run('usa', "INSERT INTO shared.identity (uuid, region, manager_uuid) VALUES (" . id(9) . ", 'gbr', " . id(4) . ")");
run('usa', 'UPDATE shared.identity SET manager_uuid = NULL WHERE uuid = ' . id(3));
is(run('gbr', $paths), "2 < 5\n4 < 3\n9 < 4 < 3", 'without a manager one is a root again');
run('gbr', 'DELETE FROM shared.identity WHERE uuid = ' . id(9));
is(run('aus', $paths), "2 < 5\n4 < 3", 'a deleted identity has no path');
consistent('after changes');

$r->fails('usa', 'UPDATE shared.identity SET manager_uuid = uuid WHERE uuid = ' . id(1), '23514', qr/managed by itself/,
	'nobody is their own manager');
$r->fails('gbr', 'UPDATE shared.identity SET manager_uuid = ' . id(4) . ' WHERE uuid = ' . id(3), '23514', qr/managed by itself/,
	'nobody is managed by somebody below');
$r->fails('aus', 'UPDATE shared.identity SET manager_uuid = CASE uuid WHEN ' . id(1) . ' THEN ' . id(6) . '::uuid ELSE ' . id(1)
	  . '::uuid END WHERE uuid IN (' . id(1) . ', ' . id(6) . ')', '23514', qr/managed by itself/, 'also not by one statement that changes two');
$r->fails('usa', "SELECT shared.upsert_identity(" . id(1) . ", 'P1', 'aus', NULL)", '0A000', qr/region/,
	'an upsert does not change the region');
consistent('after refusals');

# Two gateways at once: 7 under 8 here, 8 under 7 there.  At most one of each round commits.
my %ends;
foreach my $round (1 .. 40)
{
	run('usa', 'UPDATE shared.identity SET manager_uuid = NULL WHERE uuid IN (' . id(7) . ', ' . id(8) . ') AND manager_uuid IS NOT NULL');
	my @tries = map {
		my ($region, $who, $manager) = @$_;
		my $try = { out => '' };

		$try->{run} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'VERBOSITY=sqlstate', '-h', $r->node($region)->host,
				'-p', $r->port($region), '-d', 'identity', '-c',
				'UPDATE shared.identity SET manager_uuid = ' . id($manager) . ' WHERE uuid = ' . id($who) . ' RETURNING 1' ],
			'>&', \$try->{out});
		$try
	} [ 'usa', 7, 8 ], [ 'gbr', 8, 7 ];

	$_->{run}->finish foreach @tries;
	$ends{ join(' and ', sort map { $_->{out} =~ /(\d[0-9A-Z]{4})$/m ? $1 : $_->{out} =~ /^1$/m ? 'done' : $_->{out} } @tries) }++;
}
note(join(', ', map { "$_: $ends{$_}" } sort keys %ends));
is(join(', ', grep { !/^(?:23514|40001|40P01) and done$/ && !/^40(?:001|P01) and 40(?:001|P01)$/ } keys %ends), '',
	'of two changes that would close a circle one commits, or none');
cmp_ok((grep { /done/ } keys %ends) ? 1 : 0, '==', 1, 'and one often does');
consistent('after changes at two gateways at once');
is($r->prepared, 0, 'nothing is left prepared');

done_testing();
