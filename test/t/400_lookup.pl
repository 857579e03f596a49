# Region lookup: a statement about keys asks only their homes, in one round trip for a batch of
# keys, and its answer is the one of a full scan.
use strict;
use warnings;

use People;
use Regions;
use Test::More;

my $r = Regions->new(relay => 1);

People::make($r);
$r->psql('usa', q{
	INSERT INTO app.identity SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'n' || i FROM generate_series(1, 3000) i;
	INSERT INTO app.details SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'person ' || i FROM generate_series(1, 3000) i WHERE i <> 10;
	CREATE TABLE public.here (id int, n int);
	INSERT INTO here VALUES (1, 1), (2, 2), (3, 3), (4, 4), (4, 5), (NULL, 6), (99999, 7);
	CREATE TABLE public.gbr_only (id int);
	INSERT INTO gbr_only SELECT i FROM generate_series(1, 300, 3) i WHERE i <> 10;
	CREATE TABLE public.usa_only (id bigint);
	INSERT INTO usa_only SELECT i FROM generate_series(3, 300, 3) i;
	CREATE FUNCTION public.noisy(int) RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN PERFORM nextval('calls'); RETURN $1; END $$;
	CREATE SEQUENCE public.calls;
	ANALYZE;
});
$r->delay(5);
my $session = $r->warm('usa', 'SELECT count(*) FROM app.details',
	'PREPARE by_id(int) AS SELECT * FROM app.details WHERE id = $1',
	'PREPARE by_ids(int[]) AS SELECT * FROM app.details WHERE id = ANY ($1) ORDER BY id',
	'SET plan_cache_mode = force_generic_plan');

# name, round trips, regions asked, statement
my @cases = (
	[ 'a key of another region', 1, 'gbr', 'SELECT * FROM app.details WHERE id = 4' ],
	[ 'a key of this region', 0, 'local', 'SELECT * FROM app.details WHERE id = 3' ],
	[ 'an unknown key', 0, '', 'SELECT * FROM app.details WHERE id = 99999' ],
	[ 'a bigint', 1, 'gbr', 'SELECT * FROM app.details WHERE id = 4::bigint' ],
	[ 'NULL', 0, '', 'SELECT * FROM app.details WHERE id = (SELECT NULL::int)' ],
	[ 'an array', 1, 'gbr, local', 'SELECT * FROM app.details WHERE id = ANY (ARRAY[1, 3, 4, 4, NULL, 99999]) ORDER BY id' ],
	[ 'IN', 1, 'aus, gbr, local', 'SELECT * FROM app.details WHERE id IN (1, 2, 3) ORDER BY id' ],
	[ 'a generic plan', 1, 'aus', 'EXECUTE by_id(2)' ],
	[ 'a generic plan for a key of this region', 0, 'local', 'EXECUTE by_id(3)' ],
	[ 'a generic plan with an array', 1, 'gbr', "EXECUTE by_ids('{1,4}')" ],
	[ 'an aggregate', 1, 'gbr', 'SELECT count(*) FROM app.details WHERE id IN (1, 4)' ],
	[ 'a condition that goes along', 1, 'gbr', q{SELECT id FROM app.details WHERE id IN (1, 4, 7) AND name LIKE '%4'} ],
	[ 'a condition that no row passes', 1, 'gbr', q{SELECT id FROM app.details WHERE id IN (1, 4, 7) AND name = 'x'} ],
	[ 'a condition that is checked here', 1, 'gbr, local', q{SELECT id FROM app.details WHERE id IN (1, 3, 4) AND noisy(id) = 4} ],
	[ 'a region as well', 1, 'gbr, local', q{SELECT id FROM app.details WHERE id IN (1, 2, 3, 4) AND region IN ('gbr', 'usa') AND name <> 'person 3' ORDER BY id} ],
	[ 'an inner join', 1, 'aus, gbr, local', 'SELECT h.n, d.* FROM here h JOIN app.details d USING (id) ORDER BY n' ],
	[ 'a left join', 1, 'aus, gbr, local', 'SELECT h.n, d.* FROM here h LEFT JOIN app.details d USING (id) ORDER BY n' ],
	[ 'a left join with a condition', 1, 'aus, gbr, local', q{SELECT h.n, d.* FROM here h LEFT JOIN app.details d ON d.id = h.id AND d.name <> 'person 4' AND h.n <> 2 ORDER BY n} ],
	[ 'a left join with a filter', 1, 'aus, gbr, local', q{SELECT h.n, d.* FROM here h LEFT JOIN app.details d ON d.id = h.id WHERE d.name IS NULL OR d.name < 'person 3' ORDER BY n} ],
	[ 'an antijoin', 1, 'aus, gbr, local', 'SELECT h.n FROM here h WHERE NOT EXISTS (SELECT FROM app.details d WHERE d.id = h.id) ORDER BY n' ],
	[ 'a semijoin', 1, 'aus, gbr, local', 'SELECT h.n FROM here h WHERE EXISTS (SELECT FROM app.details d WHERE d.id = h.id) ORDER BY n' ],
	[ 'IN a subquery', 1, 'aus, gbr, local', 'SELECT d.* FROM app.details d WHERE id IN (SELECT id FROM here) ORDER BY id' ],
	[ 'IN a CTE', 1, 'aus, gbr, local', 'WITH c AS MATERIALIZED (SELECT id FROM here) SELECT d.* FROM app.details d WHERE id IN (SELECT id FROM c) ORDER BY id' ],
	[ 'IN unnest', 1, 'gbr', q{SELECT d.* FROM app.details d WHERE id IN (SELECT unnest('{1,4}'::int[])) ORDER BY id} ],
	[ 'VALUES', 1, 'gbr', 'SELECT v.x, d.* FROM (VALUES (1, 4), (2, 7)) v (x, y) JOIN app.details d ON d.id = v.y ORDER BY x' ],
	[ 'a global table', 1, 'gbr', q{SELECT i.note, d.name FROM app.identity i JOIN app.details d USING (id) WHERE i.note IN ('n1', 'n4') ORDER BY 1} ],
	[ 'a join that leaves keys of one region', 1, 'gbr', 'SELECT count(*) FROM gbr_only JOIN app.details USING (id)' ],
	[ 'a join with keys of this region', 0, 'local', 'SELECT count(*) FROM usa_only JOIN app.details USING (id)' ],
	[ 'a volatile outer side', 1, 'gbr', 'SELECT d.* FROM (SELECT noisy(id) AS id FROM (VALUES (1), (4)) v (id) OFFSET 0) o JOIN app.details d USING (id) ORDER BY 1' ],
	[ 'two lookups of the same keys', 2, undef, 'SELECT d.name, e.name FROM here h JOIN app.details d USING (id) JOIN app.details e ON e.id = h.n ORDER BY 1, 2' ],
);

# regions that EXPLAIN ANALYZE names, of the first lookup
sub regions_asked
{
	my ($plan) = @_;

	return 'no lookup' if $plan !~ /Region Lookup/;
	my ($regions) = $plan =~ /Regions: (.*)/;
	return join(', ', sort split(/, /, $regions // ''));
}

foreach my $case (@cases)
{
	my ($name, $trips, $regions, $sql) = @$case;
	my $got = $r->round_trips('usa', $sql);
	my $plan = $session->query("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) $sql");

	is($got, $trips, "$name: $trips") or diag($plan);
	is(regions_asked($plan), $regions, "$name: regions") or diag($plan) if defined $regions;

	my $with = $session->query($sql);
	$session->query('SET residency.enable_lookup = off');
	my $other = $session->query("EXPLAIN $sql");
	my $without = $session->query($sql);
	$session->query('RESET residency.enable_lookup');
	is($with, $without, "$name: same answer");
	unlike($other, qr/Region Lookup/, "$name: switched off") if $sql !~ /EXECUTE/;
}

done_testing();
