# UPDATE, DELETE and SELECT FOR UPDATE by key: only the homes are asked, once, whatever gives the
# keys; the rows are those that one table with all rows would have.
use strict;
use warnings;

use People;
use Regions;
use Test::More;

my $r = Regions->new(relay => 1);

People::make($r);
$r->psql('usa', q{
	SELECT residency.run_everywhere('ALTER TABLE app.details ADD n int, ADD k text, ADD gone int');
	SELECT residency.run_everywhere('ALTER TABLE app.details DROP gone');
	INSERT INTO app.identity SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'n' || i FROM generate_series(1, 600) i;
	INSERT INTO app.details SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'person ' || i, i % 5, 'k' FROM generate_series(1, 600) i WHERE i <> 10;
	CREATE TABLE public.plain AS SELECT * FROM app.details;
	CREATE TABLE public.here (id int, name text, n int);
	INSERT INTO here VALUES (1, 'a', 1), (3, 'c"\\{}', 3), (4, NULL, 4), (4, 'e', 5), (10, 'f', 2), (NULL, 'g', 6), (99999, 'h', 7);
	CREATE TABLE public.gbr_only (id int PRIMARY KEY, name text);
	INSERT INTO gbr_only SELECT i, 'g' || i FROM generate_series(1, 30, 3) i;
	CREATE FUNCTION public.local_only(int) RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN $1 + 1; END $$;
	ANALYZE;
});
$r->delay(5);
my $session = $r->warm('usa', 'SELECT count(*) FROM app.details');

# name, round trips in a transaction block, regions asked, statement; "T" is the table
my @cases = (
	[ 'update, a key of another region', 1, 'gbr', 'UPDATE T SET n = n + 1 WHERE id = 4' ],
	[ 'update, a key of this region', 0, 'local', 'UPDATE T SET n = n + 1 WHERE id = 3' ],
	[ 'update, an unknown key', 0, '', 'UPDATE T SET n = n + 1 WHERE id = 99999' ],
	[ 'update, a key without a row', 1, 'gbr', 'UPDATE T SET n = n + 1 WHERE id = 10' ],
	[ 'update, an array', 1, 'gbr, local', 'UPDATE T SET n = n + 1 WHERE id = ANY (ARRAY[1, 3, 4, 4, NULL])' ],
	[ 'update, a condition', 1, 'gbr', q{UPDATE T SET n = n + 1 WHERE id IN (1, 4) AND name = 'person 4'} ],
	[ 'update returning', 1, 'aus, gbr, local', 'UPDATE T SET n = 100 / n, name = lower(name) WHERE id IN (1, 2, 3) RETURNING id, n, name, region' ],
	[ 'update returning all', 1, 'aus, gbr, local', 'UPDATE T SET n = NULL WHERE id IN (1, 2, 3) RETURNING *' ],
	[ 'delete', 1, 'gbr, local', 'DELETE FROM T WHERE id IN (1, 3)' ],
	[ 'delete returning', 1, 'gbr, local', 'DELETE FROM T WHERE id IN (1, 3) RETURNING name, n + 1' ],
	[ 'delete in a subquery', 1, 'gbr, local', 'DELETE FROM T WHERE id IN (SELECT id FROM here)' ],
	[ 'update in a subquery', 1, 'gbr', q{UPDATE T SET k = 'x' WHERE id IN (SELECT id FROM gbr_only) AND n > 1} ],
	[ 'update from', 1, 'gbr', 'UPDATE T SET name = g.name, n = g.id + T.n FROM gbr_only g WHERE g.id = T.id AND g.id <> T.n' ],
	[ 'update from, an expression over both', 1, 'gbr, local', q{UPDATE T SET name = h.name || T.region, k = h.n::text FROM here h WHERE h.id = T.id AND h.n <= 4 AND h.id <> 4} ],
	[ 'update from, a filter over both', 1, 'gbr, local', 'UPDATE T SET n = h.n FROM here h WHERE h.id = T.id AND h.n > T.n' ],
	[ 'update from, returning both', 1, 'gbr, local', 'UPDATE T SET name = h.name FROM here h WHERE h.id = T.id AND h.id IN (1, 3) RETURNING T.*, h.n, h.name' ],
	[ 'delete using', 1, 'gbr', 'DELETE FROM T USING gbr_only g WHERE g.id = T.id AND g.name <> T.name RETURNING T.id, g.name' ],
	[ 'update exists', 1, 'gbr, local', 'UPDATE T SET n = 7 WHERE EXISTS (SELECT FROM here h WHERE h.id = T.id)' ],
	[ 'a value that is computed here', 2, 'gbr, local', 'UPDATE T SET n = local_only(n) WHERE id IN (1, 3, 4)' ],
	[ 'a value that is computed here, returning', 2, 'gbr, local', 'UPDATE T SET n = local_only(n) WHERE id IN (1, 3, 4) RETURNING *' ],
	[ 'a condition that is checked here', 2, 'gbr, local', 'DELETE FROM T WHERE id IN (1, 3, 4) AND local_only(id) <> 4' ],
	[ 'from, a value that is computed here', 2, 'gbr, local', 'UPDATE T SET n = local_only(h.n + T.n) FROM here h WHERE h.id = T.id AND h.id <> 4' ],
	[ 'three tables', 1, 'gbr', 'UPDATE T SET n = h.n FROM gbr_only g JOIN here h USING (id) WHERE T.id = g.id AND h.id <> 4' ],
	[ 'a CTE', 1, 'gbr, local', 'WITH c AS MATERIALIZED (SELECT DISTINCT id FROM here) UPDATE T SET n = 9 FROM c WHERE c.id = T.id' ],
	[ 'in a CTE', 1, 'gbr', 'WITH u AS (UPDATE T SET n = 9 WHERE id IN (1, 4) RETURNING id, n) SELECT * FROM u' ],
	[ 'for update', 1, 'gbr, local', q{SELECT * FROM T WHERE id IN (1, 3) AND name <> 'x' FOR UPDATE} ],
	[ 'for share of a join', 1, 'gbr, local', 'SELECT h.n, T.name FROM here h JOIN T USING (id) FOR SHARE OF T' ],
	[ 'for update of the other table', 1, 'gbr, local', 'SELECT h.n, T.name FROM here h LEFT JOIN T USING (id) FOR UPDATE OF h' ],
	[ 'whole rows', 1, 'gbr, local', 'SELECT (T).name, to_json(T) FROM T WHERE id IN (1, 3)' ],
	[ 'tableoid', 1, 'gbr, local', q{SELECT id, tableoid IS NOT NULL FROM T WHERE id IN (1, 3)} ],
);

sub regions_asked
{
	my ($plan) = @_;

	return 'no lookup' if $plan !~ /Region Lookup/;
	my ($regions) = $plan =~ /Region Lookup.*?Regions: ([^\n]*)/s;
	return join(', ', sort split(/, /, $regions // ''));
}

# the command's tag and rows, and all rows afterwards, in an order of their own
sub effect
{
	my ($table, $sql) = @_;

	(my $text = $sql) =~ s/\bT\b(?=\.|\)| SET| WHERE| USING| FOR| \(|$)/t/g;
	$text =~ s/(UPDATE|DELETE FROM|FROM|JOIN) t\b/$1 $table t/;
	my $out = $session->query("BEGIN; \\set QUIET off\n$text;\n\\set QUIET on\nSELECT 'all'; SELECT * FROM $table ORDER BY id; ROLLBACK");
	my ($answer, $rows) = split(/^all$/m, $out, 2);
	return join("\n", sort split(/\n/, $answer)) . "\nall$rows";
}

foreach my $case (@cases)
{
	my ($name, $trips, $regions, $sql) = @$case;

	(my $text = $sql) =~ s/\bT\b(?=\.|\)| SET| WHERE| USING| FOR| \(|$)/t/g;
	$text =~ s/(UPDATE|DELETE FROM|FROM|JOIN) t\b/$1 app.details t/;
	$session->query('BEGIN');
	my $got = $r->round_trips('usa', $text);
	$session->query('ROLLBACK');
	my $plan = $session->query("BEGIN; EXPLAIN (ANALYZE, VERBOSE, COSTS OFF, TIMING OFF, SUMMARY OFF) $text; ROLLBACK");

	is($got, $trips, "$name: $trips") or diag($plan);
	is(regions_asked($plan), $regions, "$name: regions") or diag($plan);
	is(effect('app.details', $sql), effect('public.plain', $sql), "$name: same as one table");
}

# a row that was changed while it was waited for is checked again, here as at its home; so is the
# row that it is joined with
my $other = $r->session('usa');
my $blocked = $r->session('usa');

sub after_other
{
	my ($first, $sql) = @_;

	$other->query("BEGIN; $first");
	my $pid = $blocked->query('SELECT pg_backend_pid()');
	$blocked->query_until(qr/begun/, "\\echo begun\n\\set QUIET off\n$sql;\n\\set QUIET on\n");
	$r->poll('usa', "SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = $pid AND (wait_event_type = 'Lock' OR wait_event_type = 'Extension')");
	$other->query('COMMIT');
	return $blocked->query('SELECT 1') =~ s/\n?1$//r;
}
foreach my $id (3, 4)
{
	my $where = $id == 3 ? 'here' : 'there';

	is(after_other("UPDATE app.details SET n = 50 WHERE id = $id", "UPDATE app.details SET n = n + 1 WHERE id = $id"), 'UPDATE 1', "$where: counted");
	is($session->query("SELECT n FROM app.details WHERE id = $id"), 51, "$where: the newer version was updated");
	is(after_other("UPDATE app.details SET n = 60 WHERE id = $id", "UPDATE app.details d SET n = d.n + g.id FROM here g WHERE g.id = d.id AND d.n = 51 AND abs(g.id) = $id"), 'UPDATE 0', "$where: the newer version does not pass");
	is(after_other("UPDATE app.details SET n = 61 WHERE id = $id", "UPDATE app.details d SET n = d.n + g.id FROM (SELECT DISTINCT id FROM here) g WHERE g.id = d.id AND d.n > 51 AND abs(g.id) = $id"), 'UPDATE 1', "$where: the newer version of a join");
	is($session->query("SELECT n FROM app.details WHERE id = $id"), 61 + $id, "$where: ... was updated");
	is(after_other("DELETE FROM app.details WHERE id = $id", "DELETE FROM app.details WHERE id IN (SELECT id FROM here WHERE abs(id) = $id)"), 'DELETE 0', "$where: deleted meanwhile");
	$session->query("INSERT INTO app.details VALUES ($id, (SELECT region FROM app.identity WHERE id = $id), 'person $id', 4, 'k')");
	is(after_other("UPDATE app.details SET name = 'new' WHERE id = $id", "SELECT d.name, h.n FROM here h JOIN app.details d USING (id) WHERE abs(h.id) = $id AND h.n <> 5 FOR UPDATE OF d"), 'new|' . $id, "$where: locked");
	is(after_other("UPDATE here SET n = 10 + n WHERE id = $id AND n <> 5", "SELECT d.name, h.n FROM here h JOIN app.details d USING (id) WHERE abs(h.id) = $id AND h.n <> 5 FOR UPDATE OF h"), 'new|' . ($id + 10), "$where: the other side of the join was changed");
	is(after_other("UPDATE here SET n = 20 + n WHERE id = $id AND n <> 5", "SELECT h.n FROM here h WHERE abs(id) = $id AND h.n <> 5 AND EXISTS (SELECT FROM app.details d WHERE d.id = h.id) FOR UPDATE"), $id + 30, "$where: a semijoin");
	$session->query("UPDATE here SET n = n - 30 WHERE id = $id AND n <> 5");
}

# a key that its recorded home does not hold, and a row elsewhere, are found by writes, too
sub hand { my ($region, $sql) = @_; $r->psql($region, "SET session_replication_role = replica; ALTER TABLE app.identity DISABLE TRIGGER ALL; $sql; ALTER TABLE app.identity ENABLE TRIGGER ALL"); return; }
hand('usa', q{UPDATE app.identity SET region = 'gbr' WHERE id = 2; UPDATE app.identity SET region = 'aus' WHERE id = 3});
is($session->query('UPDATE app.details SET n = 77 WHERE id IN (1, 2, 3, 10) RETURNING id') =~ s/\n/ /gr, '1 2 3', 'a stale directory: rows are written where they are') or diag($session->query('SELECT * FROM app.details WHERE id IN (1,2,3,10)'));
is($session->query('UPDATE app.details d SET n = 1 FROM here h WHERE h.id = d.id AND d.n = 77 RETURNING d.id') =~ s/\n/ /gr, '1 3', 'a stale directory, a join');
is($session->query('SELECT count(*) FROM (SELECT FROM app.details WHERE id IN (1, 2, 3) FOR UPDATE) x'), 3, 'a stale directory: rows are locked where they are');
is($session->query('SELECT name FROM app.details WHERE id IN (1, 2, 3) AND n = 77'), 'person 2', '... and once');
hand('usa', q{UPDATE app.identity SET region = 'aus' WHERE id = 2; UPDATE app.identity SET region = 'usa' WHERE id = 3});

# other regions may be away
$r->away('aus');
is($session->query('UPDATE app.details SET n = 5 WHERE id IN (1, 3) RETURNING id') =~ s/\n/ /gr, '1 3', 'a region that holds none of the keys may be away');
is($session->query('DELETE FROM app.details WHERE id = 6 RETURNING id'), '6', 'own residents always');
$r->back('aus');

done_testing();
