# ANALYZE of a foreign partition brings numbers and no values; the planner uses them for
# the partition and for its parent.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(regions => [qw(usa gbr)]);

# about scans: lookups are another matter
$r->psql('usa', 'ALTER DATABASE app SET residency.enable_lookup = off');
my $canary = 'Zebedee' . '-Quill';

$r->psql('usa', q{
	SELECT residency.run_everywhere($ddl$
		CREATE SCHEMA shared;
		CREATE TABLE shared.p (id int NOT NULL, region text NOT NULL, gone text, name text, city text, grp int);
		ALTER TABLE shared.p DROP COLUMN gone;
	$ddl$);
	SELECT residency.make_resident('shared.p', 'region', key => '{id}');
	INSERT INTO shared.p SELECT i, CASE WHEN i % 4 = 0 THEN 'usa' ELSE 'gbr' END, 'n' || i, 'c' || i % 7, i / 10 FROM generate_series(1, 8000) i;
});
# written at the home: an INSERT from here would rightly pass through here
$r->psql('gbr', "UPDATE gbr.p SET name = '$canary', city = CASE WHEN id % 5 > 0 THEN '$canary' END WHERE id % 2 = 1");
$r->psql($_, "VACUUM ANALYZE $_.p") foreach $r->regions;

# estimated rows of the topmost node
sub estimate
{
	my ($query) = @_;

	return ($r->psql('usa', "EXPLAIN $query") =~ /rows=(\d+)/)[0];
}

my $before = estimate('SELECT FROM gbr.p');
$r->psql('usa', 'ANALYZE shared.p');
isnt($before, 6000, 'nothing is known at first');
is(estimate('SELECT FROM gbr.p'), 6000, 'rows of the partition');
is(estimate('SELECT FROM shared.p'), 8000, 'rows of the parent');
cmp_ok(estimate('SELECT FROM shared.p WHERE id = 77'), '<=', 2, 'a key is known to be one');
is(estimate('SELECT FROM gbr.p WHERE id = 77'), 1, 'in the partition');
cmp_ok(abs(estimate('SELECT FROM gbr.p WHERE grp = 7') - 7.5), '<=', 2, 'distinct values');
cmp_ok(abs(estimate('SELECT FROM gbr.p WHERE city IS NULL') - 600), '<=', 200, 'nulls');
cmp_ok(abs(estimate('SELECT DISTINCT grp FROM shared.p') - 801), '<=', 200, 'distinct values of the parent');
is(estimate('SELECT DISTINCT region FROM shared.p'), 2, 'regions');
cmp_ok(estimate(q{SELECT FROM shared.p JOIN (VALUES ('usa'), ('usa')) v(r) ON v.r = region}), '<', 16000, 'a join on the region');
is($r->psql('usa', q{SELECT width FROM residency.column_statistic WHERE relation = 'gbr.p'::regclass AND column_name = 'id'}), 4, 'width');
like($r->psql('usa', 'EXPLAIN SELECT id FROM gbr.p'), qr/width=4\)/, 'is used');
is($r->psql('usa', q{SELECT string_agg(column_name, ' ' ORDER BY column_name) FROM residency.column_statistic WHERE is_unique}), 'id', 'uniqueness');

# asking once for each row is for one row
$r->psql('usa', q{
	CREATE TABLE public.k (id int PRIMARY KEY, ref int, word text);
	INSERT INTO public.k SELECT i, i, 'w' || i FROM generate_series(1, 500) i;
	ANALYZE public.k;
});
like($r->psql('usa', 'EXPLAIN (VERBOSE) SELECT name FROM public.k JOIN shared.p ON p.id = k.ref WHERE k.id = 5'), qr/Nested Loop.*Remote SQL: [^\n]*\$1::integer/s,
	'a row found by its key asks for what belongs to it');
is($r->psql('usa', 'SELECT name FROM public.k JOIN shared.p ON p.id = k.ref WHERE k.id = 6'), 'n6', 'and gets it');
like($r->psql('usa', 'EXPLAIN (VERBOSE) SELECT name FROM public.k JOIN shared.p ON p.id = k.ref + 1 AND p.region < k.word WHERE k.id = 5'),
	qr/WHERE (?=.*\$\d::integer)(?=.*\$\d::pg_catalog\.text)/, 'by two values');
is($r->psql('usa', 'SELECT name FROM public.k LEFT JOIN shared.p ON p.id = k.ref + 1 AND p.region < k.word WHERE k.id = 5'), 'n6', 'both of which count');
is($r->psql('usa', 'SELECT k.id, name FROM public.k LEFT JOIN shared.p ON p.id = k.ref + 1 AND p.region > k.word WHERE k.id = 5'), '5|', 'in an outer join too');
unlike($r->psql('usa', "EXPLAIN (VERBOSE) SELECT name FROM public.k JOIN shared.p ON p.id = k.ref WHERE $_"), qr/Remote SQL: [^\n]*\$1/,
	"where there may be more rows than thought, the table is fetched once: $_") foreach "word = 'w5'", 'k.id = 5 OR random() < 0', 'k.id < 5';

# no value came along
is($r->psql('usa', q{SELECT count(*) FROM pg_statistic WHERE starelid = 'gbr.p'::regclass}), 0, 'nothing in pg_statistic');
$r->psql('usa', 'CHECKPOINT');
$r->only_in($canary, ['gbr'], 'no value in a file of usa');

# the numbers follow
$r->psql('gbr', 'DELETE FROM gbr.p WHERE id > 4000; VACUUM ANALYZE gbr.p');
$r->psql('usa', 'ANALYZE gbr.p');
is(estimate('SELECT FROM gbr.p'), 3000, 'the next ANALYZE brings new numbers');
is(estimate('SELECT FROM shared.p'), 5000, 'for the parent too');
is($r->psql('usa', q{SELECT count(*) FROM residency.table_statistic}), 1, 'which replace the old ones');
is($r->psql('usa', q{SELECT reltuples || ' ' || (relpages = s.page_count) FROM pg_class c JOIN residency.table_statistic s ON s.relation = c.oid}), '3000 true', 'and are in pg_class');

# who may ask
$r->psql('gbr', 'CREATE ROLE stranger LOGIN');
is($r->psql('gbr', q{SET SESSION AUTHORIZATION stranger; SELECT count(*) FROM residency.statistics('gbr', 'p')}), 0, 'a stranger is told nothing');
is($r->psql('gbr', q{SELECT count(*) FROM residency.statistics('gbr', 'p')}), 5, 'who may read the table is');
is($r->psql('gbr', q{SELECT count(*) FROM residency.statistics('usa', 'p')}), 0, 'a table that is elsewhere has none');

# of a parent each region is asked once, though ANALYZE comes to each partition twice
$r->psql('usa', 'SELECT residency.border_reset()');
$r->psql('usa', 'ANALYZE shared.p');
is($r->psql('usa', q{SELECT statements FROM residency.border WHERE region = 'gbr' AND relation = 'shared.p'::regclass}), 1, 'ANALYZE of a parent asks a region once');
$r->psql('usa', q{SELECT residency.border_reset()});
$r->psql('usa', 'ANALYZE shared.p; ANALYZE gbr.p');
is($r->psql('usa', q{SELECT statements FROM residency.border WHERE region = 'gbr' AND relation = 'shared.p'::regclass}), 2, '... and again for the next statement');

# an owner without superuser rights may ANALYZE
$r->psql($_, q{CREATE ROLE keeper; GRANT USAGE ON SCHEMA gbr TO keeper; ALTER TABLE gbr.p OWNER TO keeper}) foreach $r->regions;
is(($r->try('usa', 'SET ROLE keeper; ANALYZE gbr.p; SELECT 1'))[0], 0, 'by its owner');

# one region away
$r->stop('gbr');
{
	my ($code, $out, $err) = $r->try('usa', 'ANALYZE shared.p; SELECT 1');

	is("$code $out", '0 1', 'ANALYZE of the parent goes on without a region that is away');
	like($err, qr/WARNING:  08\w+: no new statistics of "p"/, 'and says so');
	is(estimate('SELECT FROM gbr.p'), 3000, 'its old numbers stay');
}

done_testing();
