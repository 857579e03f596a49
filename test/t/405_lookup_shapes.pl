# Every shape that gives a region lookup its keys has the answer of one plain table with the same
# rows, in one round trip; keys with many rows, keys without rows, NULLs and duplicates everywhere.
use strict;
use warnings;

use People;
use Regions;
use Test::More;

my $r = Regions->new(relay => 1);

People::make($r);
$r->psql('usa', q{
	SELECT residency.run_everywhere('CREATE TABLE app.address (no int PRIMARY KEY, id int NOT NULL, region text NOT NULL, street text, n int)');
	SELECT residency.run_everywhere('CREATE INDEX ON app.address (id)');
	SELECT residency.make_resident('app.address', 'region', key => '{id}', directory => 'app.identity');
	INSERT INTO app.identity SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], CASE WHEN i % 4 > 0 THEN 'n' || i % 50 END FROM generate_series(1, 3000) i;
	INSERT INTO app.address SELECT i, 1 + i * 7 % 900, (ARRAY['usa', 'gbr', 'aus'])[1 + (1 + i * 7 % 900) % 3], CASE WHEN i % 3 > 0 THEN 'street ' || i % 20 END, i % 10 FROM generate_series(1, 3000) i;
	CREATE TABLE public.plain AS SELECT * FROM app.address;
	CREATE INDEX ON plain (id);
	CREATE TABLE public.here (id int, n int, t text);
	INSERT INTO here SELECT CASE WHEN i % 5 > 0 THEN i * 3 % 1000 END, i % 10, 't' || i % 7 FROM generate_series(1, 40) i;
	INSERT INTO here VALUES (7, 1, 'x'), (7, 1, 'x'), (99999, 2, 'y');
	CREATE SEQUENCE public.calls;
	CREATE FUNCTION public.noisy(int) RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN PERFORM nextval('calls'); RETURN $1; END $$;
	CREATE FUNCTION public.keys(int) RETURNS SETOF int LANGUAGE sql STABLE ROWS 5 AS $$ SELECT i FROM generate_series(1, $1) i $$;
	ANALYZE;
	ANALYZE app.address;
});
$r->delay(2);
# tables as small as these would rather be fetched as a whole
my $session = $r->warm('usa', 'SELECT count(*) FROM app.address', 'SET enable_hashjoin = off', 'SET enable_mergejoin = off', 'SET enable_nestloop = off');

sub with_table { my ($sql, $table) = @_; $sql =~ s/\bT\b/$table/g; return $sql; }

# the same answer, rows in any order; trips undef: more than one is in order
sub same
{
	my ($name, $trips, $sql) = @_;
	my $text = with_table($sql, 'app.address');
	my $plan = $session->query("EXPLAIN $text");
	my $got = $session->query($text);
	my $want = $session->query(with_table($sql, 'public.plain'));

	like($plan, qr/Region Lookup/, "$name: a lookup");
	is(join("\n", sort split(/\n/, $got)), join("\n", sort split(/\n/, $want)), "$name: same answer") or diag($plan);
	is(scalar $r->round_trips('usa', $text), $trips, "$name: round trips") or diag($plan) if defined $trips;
	return;
}

my @shapes = (
	[ 'a value', 1, 'SELECT * FROM T WHERE id = 7' ],
	[ 'a value of another type', 1, 'SELECT * FROM T WHERE id = 7::bigint' ],
	[ 'the value on the left', 1, 'SELECT * FROM T WHERE 7 = id AND n > 2' ],
	[ 'a subquery as value', 0, 'SELECT * FROM T WHERE id = (SELECT max(id) FROM here WHERE id < 50)' ],
	[ 'an array', 1, 'SELECT * FROM T WHERE id = ANY (ARRAY[7, 7, 8, NULL, 9, 99999])' ],
	[ 'an array of a subquery', 1, 'SELECT * FROM T WHERE id = ANY (ARRAY(SELECT id FROM here))' ],
	[ 'IN a list', 1, 'SELECT * FROM T WHERE id IN (7, 8, 9) AND street IS NOT NULL' ],
	[ 'IN a subquery', 1, 'SELECT * FROM T WHERE id IN (SELECT id FROM here WHERE n < 5)' ],
	[ 'IN a subquery with a limit', 1, 'SELECT * FROM T WHERE id IN (SELECT id FROM here ORDER BY id, n LIMIT 5)' ],
	[ 'EXISTS over the table', 1, 'SELECT h.* FROM here h WHERE EXISTS (SELECT FROM T t WHERE t.id = h.id AND t.n = 3)' ],
	[ 'EXISTS with a condition on both', 1, 'SELECT h.* FROM here h WHERE EXISTS (SELECT FROM T t WHERE t.id = h.id AND t.n > h.n)' ],
	[ 'EXISTS below the table', 1, 'SELECT t.* FROM T t WHERE EXISTS (SELECT FROM here h WHERE t.id = h.id)' ],
	[ 'NOT EXISTS', 1, 'SELECT h.* FROM here h WHERE NOT EXISTS (SELECT FROM T t WHERE t.id = h.id AND t.n > h.n)' ],
	[ 'an inner join', 1, 'SELECT h.*, t.street FROM here h JOIN T t USING (id)' ],
	[ 'an inner join with more conditions', 1, 'SELECT h.*, t.street FROM here h JOIN T t ON t.id = h.id AND t.n <> h.n AND t.street < h.t' ],
	[ 'a left join', 1, 'SELECT h.*, t.no, t.street FROM here h LEFT JOIN T t USING (id)' ],
	[ 'a left join with conditions', 1, 'SELECT h.*, t.no FROM here h LEFT JOIN T t ON t.id = h.id AND t.n <> h.n AND h.n > 3 AND t.n > 2' ],
	[ 'a right join', 1, 'SELECT h.*, t.no FROM T t RIGHT JOIN here h ON t.id = h.id AND t.n = 1' ],
	[ 'a filter above a left join', 1, 'SELECT h.*, t.no FROM here h LEFT JOIN T t USING (id) WHERE t.n IS DISTINCT FROM 3 AND coalesce(t.street, h.t) < $$street 5$$' ],
	[ 'a global table', 1, q{SELECT i.note, t.no FROM app.identity i JOIN T t USING (id) WHERE i.note = 'n7'} ],
	[ 'a global table and a local one', 1, q{SELECT i.note, t.no, h.t FROM here h JOIN app.identity i USING (id) JOIN T t USING (id)} ],
	[ 'a CTE', 1, 'WITH c AS (SELECT DISTINCT id FROM here) SELECT t.* FROM c JOIN T t USING (id)' ],
	[ 'a materialized CTE', 1, 'WITH c AS MATERIALIZED (SELECT id, n FROM here) SELECT c.n, t.no FROM c JOIN T t USING (id)' ],
	[ 'a function', 1, 'SELECT k, t.no FROM keys(5) k JOIN T t ON t.id = k' ],
	[ 'generate_series', 1, 'SELECT t.* FROM generate_series(1, 20) g LEFT JOIN T t ON t.id = g AND t.n = 2' ],
	[ 'VALUES', 1, 'SELECT v.b, t.no FROM (VALUES (7, 1), (8, 2), (NULL, 3)) v (a, b) LEFT JOIN T t ON t.id = v.a' ],
	[ 'an expression over the outer side', 1, 'SELECT h.n, t.no FROM here h JOIN T t ON t.id = h.id + 1' ],
	[ 'an aggregate', 1, 'SELECT h.t, count(*), sum(t.n), min(t.street) FROM here h JOIN T t USING (id) GROUP BY h.t' ],
	[ 'DISTINCT and a limit', undef, 'SELECT count(*) FROM (SELECT DISTINCT t.id FROM here h JOIN T t USING (id) LIMIT 3) x' ],
	[ 'a window', 1, 'SELECT no, row_number() OVER (PARTITION BY t.id ORDER BY no) FROM here h JOIN T t USING (id) WHERE h.n = 1' ],
	[ 'UNION ALL', undef, 'SELECT no FROM T WHERE id = 7 UNION ALL SELECT no FROM T WHERE id IN (8, 9)' ],
	[ 'two lookups side by side', undef, 'SELECT a.no, b.no FROM here h JOIN T a USING (id) JOIN T b ON b.id = h.n' ],
	[ 'a lookup whose keys come from another', 2, 'SELECT b.no FROM (SELECT t.n + 1 AS k FROM here h JOIN T t USING (id) WHERE h.n = 1 OFFSET 0) a JOIN T b ON b.id = a.k' ],
	[ 'LATERAL', undef, 'SELECT h.id, x.no FROM (SELECT * FROM here WHERE id IS NOT NULL LIMIT 3) h, LATERAL (SELECT no FROM T t WHERE t.id = h.id ORDER BY no LIMIT 2) x' ],
	[ 'a correlated subquery', undef, 'SELECT h.id, (SELECT count(*) FROM T t WHERE t.id = h.id) FROM (SELECT * FROM here WHERE n = 1 LIMIT 3) h' ],
	[ 'a whole row', 1, 'SELECT (a).street, to_jsonb(a) FROM here h JOIN T a USING (id) WHERE h.n = 1' ],
	[ 'a condition that is never true', 0, 'SELECT t.no FROM here h JOIN T t USING (id) WHERE h.n = 77' ],
);
same(@$_) foreach @shapes;

# a full join has no key side: it is a scan, with the right answer
is($session->query('SELECT count(*), count(h.id), count(t.id) FROM here h FULL JOIN app.address t USING (id)'),
	$session->query('SELECT count(*), count(h.id), count(t.id) FROM here h FULL JOIN public.plain t USING (id)'), 'a full join');

# a volatile or expensive outer side is computed once for each row
$session->query("SELECT setval('calls', 1)");
$session->query('SELECT count(*) FROM (SELECT noisy(id) AS id FROM here OFFSET 0) o JOIN app.address t USING (id)');
is($session->query('SELECT last_value FROM calls'), 44, 'a volatile outer side is computed once');
$session->query("SELECT setval('calls', 1)");
is($session->query('SELECT count(*) FROM app.address WHERE id = ANY (ARRAY(SELECT noisy(id) FROM here WHERE id < 60))'),
	$session->query('SELECT count(*) FROM plain WHERE id = ANY (ARRAY(SELECT id FROM here WHERE id < 60))'), 'a volatile array');
is($session->query('SELECT last_value FROM calls'), $session->query('SELECT 1 + count(*) FROM here WHERE id < 60'), '... is computed once');

# prepared statements, with plans of their own and generic ones
foreach my $mode (qw(force_custom_plan force_generic_plan auto))
{
	$session->query("SET plan_cache_mode = $mode; DEALLOCATE ALL");
	$session->query('PREPARE one(int, int) AS SELECT no FROM app.address WHERE id = $1 AND n >= $2 ORDER BY no');
	$session->query('PREPARE many(int[]) AS SELECT count(*), sum(no) FROM app.address WHERE id = ANY ($1)');
	$session->query('PREPARE joined(text) AS SELECT count(*), sum(no) FROM here h LEFT JOIN app.address t ON t.id = h.id AND t.street <> $1');
	foreach my $id (1 .. 7, 'NULL')
	{
		is($session->query("EXECUTE one($id, 3)"), $session->query("SELECT no FROM plain WHERE id = $id AND n >= 3 ORDER BY no"), "$mode: a key, $id");
	}
	is($session->query("EXECUTE many('{1,2,NULL,3,3}')"), $session->query('SELECT count(*), sum(no) FROM plain WHERE id IN (1, 2, 3)'), "$mode: an array");
	is($session->query('EXECUTE many(NULL)'), '0|', "$mode: no array");
	is($session->query("EXECUTE joined('street 3')"), $session->query(q{SELECT count(*), sum(no) FROM here h LEFT JOIN plain t ON t.id = h.id AND t.street <> 'street 3'}), "$mode: a join");
	is(scalar $r->round_trips('usa', 'EXECUTE one(4, 0)'), 1, "$mode: one round trip");
	is(scalar $r->round_trips('usa', 'EXECUTE one(3, 0)'), 0, "$mode: none for a key of this region");
}
$session->query('RESET plan_cache_mode');

# plpgsql: variables as keys, loops, and errors that are caught between
$r->psql('usa', q{CREATE FUNCTION public.visit() RETURNS text LANGUAGE plpgsql AS $$
	DECLARE k int; found record; n int := 0; caught int := 0;
	BEGIN
		FOR k IN 1 .. 12 LOOP
			FOR found IN SELECT a.no FROM app.address a WHERE a.id = k ORDER BY a.no LOOP
				BEGIN
					n := n + 1;
					IF found.no % 7 = 0 THEN PERFORM 1 / 0; END IF;
				EXCEPTION WHEN division_by_zero THEN caught := caught + 1;
				END;
			END LOOP;
		END LOOP;
		RETURN n || ' rows, ' || caught || ' caught';
	END $$});
is($session->query('SELECT visit()'), $session->query(q{SELECT count(*) || ' rows, ' || count(*) FILTER (WHERE no % 7 = 0) || ' caught' FROM plain WHERE id <= 12}), 'plpgsql');

# cursors: backwards, and held over the end of the transaction
foreach my $table (qw(app.address public.plain))
{
	my $join = "SELECT h.n, t.no FROM here h JOIN $table t USING (id) ORDER BY 1, 2";

	push @{ $r->{cursor} }, scalar $session->query("BEGIN; DECLARE c SCROLL CURSOR FOR $join; FETCH 5 FROM c; MOVE LAST IN c; FETCH BACKWARD 3 FROM c; FETCH ABSOLUTE 2 FROM c; COMMIT");
	push @{ $r->{held} }, scalar $session->query("BEGIN; DECLARE c CURSOR WITH HOLD FOR $join; FETCH 2 FROM c; COMMIT; FETCH 3 FROM c; CLOSE c");
}
is($r->{cursor}[0], $r->{cursor}[1], 'a cursor, forward and backward');
is($r->{held}[0], $r->{held}[1], 'a held cursor');

done_testing();
