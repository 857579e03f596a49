# What goes to the home of a row, and what comes back: only the rows and columns that a
# statement needs, ordered and limited there where that is right; and the answers are
# those of a plain local table.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(regions => [qw(usa gbr)]);

# about scans: lookups are another matter
$r->psql('usa', 'ALTER DATABASE app SET residency.enable_lookup = off');

$r->psql('usa', q{
	SELECT residency.run_everywhere($ddl$
		CREATE SCHEMA shared;
		CREATE TABLE shared.p (id int NOT NULL, region text NOT NULL, name text, n numeric, at timestamptz,
			german text COLLATE "ucs_basic");
	$ddl$);
	SELECT residency.make_resident('shared.p', 'region', key => '{id}');
	CREATE TABLE public.q (LIKE shared.p);
	INSERT INTO public.q SELECT i, CASE WHEN i % 2 = 0 THEN 'usa' ELSE 'gbr' END,
		CASE WHEN i % 7 > 0 THEN 'name' || i % 13 END, i * 1.5, '2024-01-01 00:00+00', 'g' || i FROM generate_series(1, 60) i;
	INSERT INTO shared.p SELECT * FROM public.q;
	CREATE FUNCTION public.plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS
	$f$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (VERBOSE, COSTS OFF) ' || query; END $f$;
});

# the plan of a statement, one line after the other
sub explained
{
	my ($query, @before) = @_;

	return $r->psql('usa', join('', map { "$_;\n" } @before) . 'SELECT * FROM public.plan(' . Regions::quote($query) . ')');
}

# the SQL sent by it
sub sent
{
	return join("\n", explained(@_) =~ /Remote SQL: (.*)/g);
}

# a query over shared.p, what it sends, and the same answer from public.q
sub is_sent
{
	my ($query, $sql, $name) = @_;
	my $local = $query =~ s/\bshared\.p( p)?\b/public.q p/gr;

	is(sent($query), $sql, $name);
	is($r->psql('usa', $query), $r->psql('usa', $local), "$name: same answer");
	return;
}

# columns and conditions
is_sent('SELECT 1 FROM shared.p', 'SELECT NULL FROM gbr.p', 'no column without need');
is_sent("SELECT name FROM shared.p WHERE region = 'gbr' AND id < 10 ORDER BY 1",
	q{SELECT name FROM gbr.p WHERE (id OPERATOR(pg_catalog.<) '10'::integer) AND (region OPERATOR(pg_catalog.=) 'gbr'::pg_catalog.text) ORDER BY name ASC NULLS LAST},
	'one column, two conditions');
is(sent("SELECT name FROM shared.p WHERE region = 'usa'"), '', 'nothing goes to a region that the statement excludes');
is_sent('SELECT p FROM shared.p p WHERE id = 3', q{SELECT id, region, name, n, at, german FROM gbr.p WHERE (id OPERATOR(pg_catalog.=) '3'::integer)},
	'a whole row has all columns');
is_sent('SELECT id FROM shared.p WHERE at < now() AND id = 3',
	q{SELECT id FROM gbr.p WHERE (id OPERATOR(pg_catalog.=) '3'::integer) AND (at OPERATOR(pg_catalog.<) $1::timestamp with time zone)},
	'now() is sent by value');
is($r->psql('usa', q{SELECT tableoid::regclass FROM shared.p WHERE id = 3}), 'gbr.p', 'tableoid is that of the foreign table');
is($r->psql('usa', q{SELECT count(*) FROM shared.p WHERE tableoid = 'gbr.p'::regclass}), 30, 'in a condition too');

# order and limit
is_sent('SELECT id FROM shared.p ORDER BY id LIMIT 3', 'SELECT id FROM gbr.p ORDER BY id ASC NULLS LAST LIMIT 3', 'LIMIT of sorted partitions');
is_sent('SELECT count(*) FROM (SELECT FROM shared.p LIMIT 40) x', 'SELECT NULL FROM gbr.p LIMIT 40', 'LIMIT without order');
is_sent('SELECT name, id FROM shared.p ORDER BY name DESC NULLS LAST, id LIMIT 3 OFFSET 2',
	'SELECT id, name FROM gbr.p ORDER BY name DESC NULLS LAST, id ASC NULLS LAST LIMIT 5', 'OFFSET is applied here, to all partitions');
is(sent('SELECT name FROM gbr.p ORDER BY id LIMIT 3 OFFSET 2'), 'SELECT id, name FROM gbr.p ORDER BY id ASC NULLS LAST LIMIT 3 OFFSET 2',
	'and there if there is one table only');
is($r->psql('usa', 'SELECT string_agg(id::text, $$ $$) FROM (SELECT id FROM gbr.p ORDER BY id LIMIT 3 OFFSET 2) x'), '5 7 9', 'once');
is($r->psql('usa', 'SELECT string_agg(id::text, $$ $$) FROM (SELECT id FROM gbr.p WHERE id % 3 = 0 ORDER BY -id LIMIT 2 OFFSET 1) x'), '51 45',
	'by an expression, with a condition');
is_sent('SELECT max(id) FROM shared.p', 'SELECT pg_catalog.max(id) FROM gbr.p', 'max() is left to the home');
is_sent('SELECT id FROM shared.p ORDER BY german, id LIMIT 2', 'SELECT id, german FROM gbr.p', 'no order under a collation that may differ');
unlike(sent($_), qr/LIMIT/, "no LIMIT: $_") foreach
	'SELECT DISTINCT name FROM shared.p LIMIT 1',
	'SELECT count(*) FROM shared.p LIMIT 1',
	'SELECT count(*) OVER () FROM shared.p LIMIT 1',
	'SELECT generate_series(0, id) FROM shared.p LIMIT 3',
	'SELECT id FROM shared.p WHERE random() < 0.1 LIMIT 3',
	'SELECT id FROM shared.p ORDER BY random() LIMIT 3',
	'SELECT id FROM shared.p ORDER BY n FETCH FIRST 2 ROWS WITH TIES',
	'SELECT p.id FROM shared.p JOIN public.q USING (id) LIMIT 3',
	'SELECT id FROM shared.p LIMIT NULL',
	'SELECT id FROM shared.p LIMIT 3 OFFSET 9223372036854775807',
	'SELECT id FROM shared.p LIMIT (random() * 3)::int';
is_sent('SELECT id FROM shared.p ORDER BY id LIMIT (SELECT 2)', 'SELECT id FROM gbr.p ORDER BY id ASC NULLS LAST LIMIT $1::bigint', 'a LIMIT that is computed first');
is_sent("SELECT id FROM (SELECT id FROM shared.p UNION ALL SELECT id + 100 FROM shared.p) x ORDER BY id DESC LIMIT 2",
	"SELECT id FROM gbr.p ORDER BY id DESC NULLS FIRST LIMIT 2\nSELECT id FROM gbr.p ORDER BY (id OPERATOR(pg_catalog.+) '100'::integer) DESC NULLS FIRST LIMIT 2",
	'LIMIT over a union');
is_sent('SELECT q.id, x.id FROM public.q, LATERAL (SELECT id FROM shared.p WHERE p.id > q.id ORDER BY id LIMIT 1) x WHERE q.id < 4 ORDER BY 1',
	'SELECT id FROM gbr.p WHERE (id OPERATOR(pg_catalog.>) $1::integer) ORDER BY id ASC NULLS LAST LIMIT 1', 'LIMIT in a lateral subquery');
is_sent('SELECT id FROM shared.p WHERE current_user = $$nobody$$ ORDER BY id LIMIT 1', 'SELECT id FROM gbr.p ORDER BY id ASC NULLS LAST LIMIT 1',
	'a condition without columns is checked here');

# parameters, of a plan made for any of them
is($r->psql('usa', $_->[0]), $_->[1], "generic plan: $_->[2]") foreach
	['SET plan_cache_mode = force_generic_plan; PREPARE a(int, text, bigint) AS SELECT id FROM shared.p WHERE id > $1 AND name < $2 ORDER BY id LIMIT $3;
		EXECUTE a(3, $$name5$$, 2); EXECUTE a(50, $$name5$$, 3)', "4\n10\n51\n52\n53", 'values and LIMIT'],
	['SET plan_cache_mode = force_generic_plan; PREPARE a(bigint, bigint) AS SELECT id FROM shared.p ORDER BY id LIMIT $1 OFFSET $2;
		EXECUTE a(NULL, 58); EXECUTE a(9223372036854775807, 59); EXECUTE a(1, NULL); EXECUTE a(0, 0); EXECUTE a(1, 9223372036854775807)', "59\n60\n60\n1",
		'LIMIT and OFFSET, with extremes'],
	['SET plan_cache_mode = force_generic_plan; PREPARE a(bigint, bigint) AS SELECT id FROM gbr.p ORDER BY id LIMIT $1 OFFSET $2;
		EXECUTE a(NULL, 28); EXECUTE a(9223372036854775807, 29); EXECUTE a(1, NULL)', "57\n59\n59\n1", 'LIMIT and OFFSET at the home'],
	['SET plan_cache_mode = force_generic_plan; PREPARE a(int) AS SELECT count(*) FROM shared.p WHERE $1 = 1 LIMIT 1; EXECUTE a(1); EXECUTE a(2)', "60\n0", 'a condition without columns'],
	['SET plan_cache_mode = force_generic_plan; PREPARE a(text) AS SELECT count(*) FROM shared.p WHERE name = $1; EXECUTE a($$name1$$); EXECUTE a(NULL)', "4\n0", 'NULL'],
	['PREPARE a(int) AS SELECT count(*) FROM shared.p WHERE id = $1; ' . 'EXECUTE a(3);' x 7, join("\n", (1) x 7), 'beyond the fifth execution'];
$r->fails('usa', 'SELECT id FROM shared.p LIMIT -1', '2201W', qr/LIMIT must not be negative/, 'a negative LIMIT is an error');

# locks are taken at the home
like(sent("SELECT id FROM shared.p WHERE id < 5 FOR $_"), qr/ FOR $_$/, "FOR $_") foreach
	'UPDATE', 'NO KEY UPDATE', 'SHARE', 'KEY SHARE', 'UPDATE NOWAIT', 'SHARE SKIP LOCKED';
unlike(sent('SELECT p.id FROM shared.p JOIN public.q USING (id) FOR UPDATE OF q'), qr/ FOR /, 'no lock on the other table of a join');

# conditions of a policy come before those of the client
$r->psql('usa', q{
	CREATE ROLE reader;
	GRANT USAGE ON SCHEMA shared TO reader;
	GRANT SELECT ON shared.p TO reader;
	GRANT EXECUTE ON FUNCTION public.plan TO reader;
	ALTER TABLE shared.p ENABLE ROW LEVEL SECURITY;
	CREATE POLICY few ON shared.p FOR SELECT USING (id < 10);
});
is(sent('SELECT id FROM shared.p WHERE n / id > 0 AND id > 3', 'SET ROLE reader'),
	q{SELECT id, n FROM gbr.p WHERE (id OPERATOR(pg_catalog.<) '10'::integer) AND (id OPERATOR(pg_catalog.>) '3'::integer)},
	'a condition that could leak stays here');
$r->psql('usa', 'ALTER TABLE shared.p DISABLE ROW LEVEL SECURITY');

# joins
is_sent('SELECT q.id, p.name FROM public.q JOIN shared.p USING (id) WHERE q.id = 5',
	q{SELECT id, name FROM gbr.p WHERE (id OPERATOR(pg_catalog.=) '5'::integer)}, 'a constant passes through a join');
like(explained('SELECT count(*) FROM public.q JOIN shared.p USING (id)'), qr/Remote SQL: SELECT id FROM gbr\.p( ORDER BY id ASC NULLS LAST)?$/m, 'a table is fetched once, not once for each row');
is($r->psql('usa', 'SELECT q.id, p.id FROM public.q LEFT JOIN gbr.p p ON p.id = q.id WHERE q.id < 4 ORDER BY 1'), "1|1\n2|\n3|3", 'outer join');

# writes: in one statement where the home can do all of it
my %written = (
	q{UPDATE shared.p SET name = name || 1, n = n + 1 WHERE id = 5} =>
		q{UPDATE gbr.p SET name = (name OPERATOR(pg_catalog.||) '1'::pg_catalog.text), n = (n OPERATOR(pg_catalog.+) '1'::numeric) WHERE (id OPERATOR(pg_catalog.=) '5'::integer)},
	q{UPDATE shared.p SET at = now() WHERE id = 5 RETURNING id, tableoid} =>
		q{UPDATE gbr.p SET at = $1::timestamp with time zone WHERE (id OPERATOR(pg_catalog.=) '5'::integer) RETURNING id},
	q{UPDATE shared.p SET name = DEFAULT WHERE id = 5 RETURNING 1} =>
		q{UPDATE gbr.p SET name = NULL::pg_catalog.text WHERE (id OPERATOR(pg_catalog.=) '5'::integer) RETURNING NULL},
	q{DELETE FROM shared.p WHERE id = 5 RETURNING *} =>
		q{DELETE FROM gbr.p WHERE (id OPERATOR(pg_catalog.=) '5'::integer) RETURNING id, region, name, n, at, german},
	q{UPDATE shared.p SET region = 'gbr', n = 1 WHERE id = 5 AND region = 'gbr'} =>
		q{UPDATE gbr.p SET region = 'gbr'::pg_catalog.text, n = '1'::numeric WHERE (id OPERATOR(pg_catalog.=) '5'::integer) AND (region OPERATOR(pg_catalog.=) 'gbr'::pg_catalog.text)},
);
is(sent($_), $written{$_}, $_) foreach sort keys %written;
like(sent($_), qr/^(UPDATE|DELETE FROM) gbr\.p (SET name = \$2 |SET region = \$2 |)WHERE ctid OPERATOR\(pg_catalog\.=\) \$1::pg_catalog\.tid.*\nSELECT .* FOR /, "row by row: $_") foreach
	q{UPDATE gbr.p SET name = random()::text WHERE id = 5},
	q{UPDATE gbr.p SET name = 'x' WHERE random() < 2},
	q{UPDATE gbr.p SET region = 'usa' WHERE id = 5},
	q{UPDATE gbr.p SET region = region WHERE id = 5},
	q{UPDATE gbr.p SET name = q.name FROM public.q WHERE q.id = p.id},
	q{DELETE FROM gbr.p USING public.q WHERE q.id = p.id},
	q{UPDATE gbr.p SET name = (SELECT max(name) FROM public.q WHERE q.id = p.id)};
$r->fails('usa', q{INSERT INTO gbr.p (id, region) VALUES (5, 'gbr') ON CONFLICT (id) DO NOTHING}, '42P10', qr/no unique/, 'ON CONFLICT with a column is refused');

# row triggers and generated columns are the home's, so they are no reason to fetch rows
$r->psql('usa', q{
	SELECT residency.run_everywhere($ddl$
		CREATE TABLE shared.t (id int NOT NULL, region text NOT NULL, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, touched int DEFAULT 0);
		CREATE FUNCTION shared.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN new.touched := old.touched + 1; RETURN new; END';
		CREATE FUNCTION shared.spare() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN CASE WHEN old.a < 100 THEN old END; END';
	$ddl$);
	SELECT residency.make_resident('shared.t', 'region', key => '{id}');
	SELECT residency.run_everywhere($ddl$
		CREATE TRIGGER touch BEFORE UPDATE ON shared.t FOR EACH ROW EXECUTE FUNCTION shared.touch();
		CREATE TRIGGER spare BEFORE DELETE ON shared.t FOR EACH ROW EXECUTE FUNCTION shared.spare();
	$ddl$);
	INSERT INTO shared.t (id, region, a) SELECT i, CASE WHEN i % 2 = 0 THEN 'usa' ELSE 'gbr' END, i FROM generate_series(1, 6) i;
});
is(sent('UPDATE shared.t SET a = a + 100 WHERE id < 4'),
	q{UPDATE gbr.t SET a = (a OPERATOR(pg_catalog.+) '100'::integer) WHERE (id OPERATOR(pg_catalog.<) '4'::integer)}, 'UPDATE with trigger and generated column');
is(sent('DELETE FROM shared.t WHERE id = 5'), q{DELETE FROM gbr.t WHERE (id OPERATOR(pg_catalog.=) '5'::integer)}, 'DELETE with trigger');
is(sent('WITH d AS (DELETE FROM shared.t WHERE id = 5 RETURNING a) SELECT a FROM d'),
	q{DELETE FROM gbr.t WHERE (id OPERATOR(pg_catalog.=) '5'::integer) RETURNING a}, 'in a WITH query');
is($r->psql('usa', 'WITH u AS (UPDATE shared.t SET a = a + 100 WHERE id < 4 RETURNING *) SELECT * FROM u ORDER BY id'),
	"1|gbr|101|202|1\n2|usa|102|204|1\n3|gbr|103|206|1", 'the trigger runs once, RETURNING has what it made');
is($r->psql('usa', q{WITH d AS (DELETE FROM shared.t RETURNING id) SELECT string_agg(id::text, ' ' ORDER BY id) FROM d}), '4 5 6', 'rows that a trigger keeps are not counted');
is($r->psql('usa', q{SET plan_cache_mode = force_generic_plan; PREPARE u(int) AS UPDATE shared.t SET a = $1 WHERE id = $1 % 100; EXECUTE u(201); EXECUTE u(203);
	SELECT * FROM shared.t ORDER BY id}), "1|gbr|201|402|2\n2|usa|102|204|1\n3|gbr|203|406|2", 'prepared');
like(sent('UPDATE gbr.t SET a = random() WHERE id = 1'), qr/ctid/, 'but not what the home cannot compute');

# options
$r->fails('usa', $_->[0], 'HV00D', $_->[1], $_->[0]) foreach
	[q{CREATE SERVER s FOREIGN DATA WRAPPER residency OPTIONS (hst 'x')}, qr/Valid options of a server are: .*\bhost\b/],
	[q{CREATE SERVER s FOREIGN DATA WRAPPER residency OPTIONS (password 'x')}, qr/"password" is not allowed for a server/],
	[q{ALTER SERVER gbr OPTIONS (ADD options '-c search_path=x')}, qr/invalid option "options"/],
	[q{CREATE USER MAPPING FOR reader SERVER gbr OPTIONS (host 'x')}, qr/not allowed for a user mapping/],
	[q{CREATE FOREIGN TABLE public.f (a int) SERVER gbr OPTIONS (table_name 'x')}, qr/takes no options/];
$r->fails('usa', q{ALTER SERVER gbr OPTIONS (SET port '99999')}, '22023', qr/1 to 65535/, 'a port is a port');

done_testing();
