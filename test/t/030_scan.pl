# Rows of another region are the rows that their home holds: of every type, under any
# setting, in any number, read as often and in whatever order a statement likes.
use strict;
use warnings;

use Regions;
use Test::More;

my $r = Regions->new(regions => [qw(usa gbr)]);

# every built-in base type, and what can be made of them, with values that are hard to write
my @columns = (
	[ 'b', 'boolean', 'true' ],
	[ 'i2', 'smallint', '-32768' ],
	[ 'i4', 'integer', '2147483647' ],
	[ 'i8', 'bigint', '-9223372036854775808' ],
	[ 'n', 'numeric', '12345678901234567890.000000000000000000012300' ],
	[ 'n2', 'numeric(10,2)', '99999999.99' ],
	[ 'nn', 'numeric', "'NaN'" ],
	[ 'ni', 'numeric', "'-Infinity'" ],
	[ 'f4', 'real', '0.1' ],
	[ 'f8', 'double precision', '0.1::float8 + 0.2::float8' ],
	[ 'fi', 'double precision', "'-Infinity'" ],
	[ 'm', 'money', '1234567.89::numeric::money' ],
	[ 't', 'text', "E'a\\tb\\nc\\\\d\"e''f \xe2\x82\xac \$1'" ],
	[ 'te', 'text', "''" ],
	[ 'v', 'varchar(20)', "'NULL'" ],
	[ 'c', 'char(5)', "'a'" ],
	[ 'c1', '"char"', "'x'" ],
	[ 'nm', 'name', "'Name'" ],
	[ 'by', 'bytea', "'\\x00ff5c27'" ],
	[ 'd', 'date', "'0044-03-15 BC'" ],
	[ 'di', 'date', "'infinity'" ],
	[ 'd5', 'date', "'12345-01-02'" ],
	[ 'ti', 'time', "'24:00:00'" ],
	[ 'tz', 'timetz', "'12:34:56.789012-07:30'" ],
	[ 'ts', 'timestamp', "'2024-02-29 23:59:59.999999'" ],
	[ 'tst', 'timestamptz', "'1883-11-18 12:00:00+00'" ],
	[ 'tsi', 'timestamptz', "'-infinity'" ],
	[ 'iv', 'interval', "'-1 year -2 mons +3 days -04:05:06.7'" ],
	[ 'iv2', 'interval', "'-1 day'" ],
	[ 'u', 'uuid', "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'" ],
	[ 'ip', 'inet', "'2001:db8::1/64'" ],
	[ 'ci', 'cidr', "'10.0.0.0/8'" ],
	[ 'ma', 'macaddr', "'08:00:2b:01:02:03'" ],
	[ 'ma8', 'macaddr8', "'08:00:2b:01:02:03:04:05'" ],
	[ 'bi', 'bit(5)', "B'10101'" ],
	[ 'bv', 'bit varying', "B''" ],
	[ 'po', 'point', "'(0.1,1e-300)'" ],
	[ 'li', 'line', "'{1,2,0.3}'" ],
	[ 'ls', 'lseg', "'[(1,2),(3,4.1)]'" ],
	[ 'bx', 'box', "'((3,4.1),(1,2))'" ],
	[ 'pa', 'path', "'[(1,2),(3,4.1)]'" ],
	[ 'pg', 'polygon', "'((1,2),(3,4.1),(5,6))'" ],
	[ 'ce', 'circle', "'<(1,2.2),3.3>'" ],
	[ 'j', 'json', q('{"a" : [1, null, "\u00e9"]}') ],
	[ 'jb', 'jsonb', q('{"a": [1, null, "x''y"], "n": 1.10}') ],
	[ 'jp', 'jsonpath', q('$.a[*] ? (@ > 1)') ],
	[ 'x', 'xml', "XMLPARSE(CONTENT '<a>1</a>text')" ],
	[ 'tv', 'tsvector', "'fat:2,4 cat:3 rat:5A'" ],
	[ 'tq', 'tsquery', "'fat & (rat | cat)'" ],
	[ 'rc', 'regclass', "'pg_catalog.pg_class'" ],
	[ 'rt', 'regtype', "'pg_catalog.int4'" ],
	[ 'lsn', 'pg_lsn', "'16/B374D848'" ],
	[ 'r4', 'int4range', "'[1,10)'" ],
	[ 'rn', 'numrange', "'(,1.50]'" ],
	[ 'rd', 'daterange', "'[2024-01-01,infinity)'" ],
	[ 'rz', 'tstzrange', "'[2024-01-01 00:00:00+00,)'" ],
	[ 'mr', 'int4multirange', "'{[1,3),[5,7)}'" ],
	[ 'ai', 'integer[]', "'[2:3][1:2]={{1,NULL},{3,4}}'" ],
	[ 'at', 'text[]', q('{"a,b","c\"d",NULL,"NULL","",x}') ],
	[ 'ad', 'timestamptz[]', "'{2024-01-02 03:04:05+00,infinity}'" ],
	[ 'am', 'money[]', 'ARRAY[1.5::numeric::money]' ],
	[ 'en', 'public.mood', "'so so'" ],
	[ 'ae', 'public.mood[]', q('{ok,"so so"}') ],
	[ 'dom', 'public.positive', '5' ],
	[ 'co', 'public.address', q(ROW('a "b" (c), d', NULL, '2024-02-03', 0.1)) ],
	[ 'ac', 'public.address[]', q(ARRAY[ROW('x', 1, '2024-02-03', 0.1)::public.address]) ],
	[ 'fr', 'public.period', "'[0.1,0.3)'" ],
);

$r->psql('usa', "SELECT residency.run_everywhere(\$\$$_\$\$)") foreach
  "CREATE TYPE public.mood AS ENUM ('ok', 'so so')",
  'CREATE DOMAIN public.positive AS integer CHECK (VALUE > 0)',
  'CREATE TYPE public.address AS (street text, number integer, since date, lat double precision)',
  'CREATE TYPE public.period AS RANGE (subtype = float8)',
  'CREATE TABLE public.value (id int PRIMARY KEY, gone1 text, region text NOT NULL, '
  . join(', ', map { "$_->[0] $_->[1]" } @columns) . ', gone2 int)',
  'ALTER TABLE public.value DROP COLUMN gone1, DROP COLUMN gone2',
  'CREATE TABLE public.item (id int PRIMARY KEY, region text NOT NULL, ref int, name text)';
$r->psql('usa', "SELECT residency.make_resident('$_', 'region', key => '{id}')") foreach qw(value item);

# an own dropped column in the partition of one side only: names count, not positions
my $values = join(', ', map { "($_->[2])::$_->[1]" } @columns);
my $names = join(', ', map { $_->[0] } @columns);

$r->psql('gbr', "INSERT INTO gbr.value (id, region, $names) SELECT 1, 'gbr', $values");
$r->psql('gbr', "INSERT INTO gbr.value (id, region) VALUES (2, 'gbr')");

my @settings = (
	'',
	"SET DateStyle = 'SQL, DMY'; SET IntervalStyle = sql_standard; SET extra_float_digits = -3; SET TimeZone = 'America/St_Johns';",
	"SET DateStyle = 'German'; SET IntervalStyle = iso_8601; SET bytea_output = escape; SET TimeZone = 'Asia/Kathmandu';",
	"SET DateStyle = 'Postgres, MDY'; SET IntervalStyle = postgres_verbose; SET xmloption = document; SET search_path = pg_temp;",
);
foreach my $set (@settings)
{
	my $name = $set || 'default settings';
	my $sql = "$set SELECT whole.*, whole::text FROM public.value whole ORDER BY id";
	my $home = $r->psql('gbr', $sql);

	cmp_ok(length($home), '>', 2000, 'there is something to compare');
	is($r->psql('usa', $sql), $home, "rows read from another region are equal: $name");
	$r->psql('usa', "$set INSERT INTO public.value (id, region, $names) SELECT 3, 'gbr', $values");
	$r->psql('usa', "$set INSERT INTO public.value (id, region) VALUES (4, 'gbr')");
	is($r->psql('gbr', 'SELECT count(DISTINCT row(' . join(', ', map { "$_->[0]::text" } @columns) . ')) FROM gbr.value'),
		2, "rows written from another region are equal: $name");
	$r->psql('usa', "$set DELETE FROM public.value WHERE id IN (3, 4)");
	# each column's value as a parameter
	is($r->psql('usa', join(';', $set, map { "SELECT count(*) FROM public.value WHERE $_->[0]::text = (SELECT $_->[0]::text FROM public.value WHERE id = 1)" } @columns)),
		join("\n", (1) x @columns), "values as they are read are found again: $name");
}

# a type that differs: the column is named, the value is not
$r->psql('gbr', "ALTER TYPE public.mood ADD VALUE 'secret'");
$r->psql('gbr', "UPDATE gbr.value SET en = 'secret' WHERE id = 1");
my ($code, $out, $err) = $r->try('usa', 'SELECT en FROM public.value');
like($err, qr/ERROR:  22P02: a value of column "en" that another region sent does not fit/, 'an input error names the column');
unlike($err, qr/secret/, 'an input error does not contain the value');

# many rows: several batches, both sizes of batch, rescans
$r->psql('gbr', "INSERT INTO gbr.item SELECT i, 'gbr', i % 100, 'item ' || i FROM generate_series(1, 50000) i");
$r->psql('usa', "INSERT INTO usa.item SELECT i, 'usa', i % 100, 'item ' || i FROM generate_series(50001, 50100) i");
$r->psql($_, 'ANALYZE usa.item, gbr.item') foreach qw(gbr);
my $sum = '50100|1255030050|4950';
foreach my $kb (64, 2048, 1048576)
{
	is($r->psql('usa', "SET residency.fetch_size = $kb; SELECT count(*), sum(id), sum(DISTINCT ref) FROM item"),
		$sum, "all rows arrive once, with batches of $kb kB");
}
is($r->psql('usa', 'SELECT count(*) FROM (SELECT id FROM item ORDER BY id LIMIT 30000 OFFSET 10) x'), 30000, 'LIMIT and OFFSET over several batches');
is($r->psql('usa', "SELECT repeat(name, 10000)::bytea IS NOT NULL FROM item WHERE id = 7"), 't', 'a wide expression');
$r->psql('usa', "UPDATE item SET name = repeat('w', 3000000) WHERE id IN (1, 2, 3)");
is($r->psql('usa', 'SELECT sum(length(name)) FROM item WHERE id <= 3'), 9000000, 'wide rows, both ways');

# one region several times in a plan, more than one batch each, read in turns
my $off = 'SET enable_hashjoin = off; SET enable_material = off; SET enable_memoize = off;';
is($r->psql('usa', "SET residency.fetch_size = 64; SET enable_hashjoin = off; SET enable_nestloop = off;
	SELECT count(*), sum(a.id) FROM gbr.item a JOIN gbr.item b USING (id) JOIN item c USING (id) WHERE a.id > 10"),
	'49990|1250024945', 'two scans of one region in one plan, merged');
is($r->psql('usa', "$off SET enable_mergejoin = off; SELECT count(*) FROM (SELECT generate_series(1, 3)) x, LATERAL (SELECT count(*) FROM gbr.item WHERE id > 100) y"),
	3, 'a scan is read again from its beginning');
is($r->psql('usa', "$off SET enable_mergejoin = off; SELECT x, (SELECT count(*) FROM item i WHERE i.ref = x AND i.id > 1000) FROM generate_series(1, 3) x"),
	"1|491\n2|491\n3|491", 'a scan is read again with other parameters');
is($r->psql('usa', "$off SET enable_mergejoin = off; SELECT sum((SELECT id FROM item i WHERE i.id = x)) FROM (VALUES (5), (5), (7), (NULL), (50001)) v(x)"),
	50018, 'a scan is read again with the same parameters');
is($r->psql('usa', "$off SET enable_mergejoin = off; SET residency.fetch_size = 64;
	SELECT count(*) FROM (VALUES (20000), (40000), (40000)) v(x), LATERAL (SELECT * FROM gbr.item i WHERE i.id <= x OFFSET 0) y"),
	100000, 'a scan of several batches is read again');

# functions that scan, called by a scan, per row
$r->psql('usa', q{
	CREATE FUNCTION inner_count(n int) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT count(*) FROM item WHERE ref = n AND id <= 200); END $$;
	CREATE FUNCTION outer_count(n int) RETURNS bigint LANGUAGE plpgsql AS $$
	DECLARE r record; s bigint := 0;
	BEGIN
		FOR r IN SELECT id FROM item WHERE ref = n AND id <= 500 LOOP s := s + inner_count(r.id); END LOOP;
		RETURN s;
	END $$;
});
is($r->psql('usa', 'SELECT sum(outer_count(i.id)) FROM item i WHERE i.id BETWEEN 10 AND 12'), 6, 'a scan inside a function inside a scan');
is($r->psql('usa', q{SELECT sum(inner_count(i.ref)) FROM gbr.item i WHERE id <= 3000}), 3000 * 2, 'a function that scans, called for each row');

# cursors
is($r->psql('usa', q{
	SET residency.fetch_size = 64;
	BEGIN;
	DECLARE a CURSOR FOR SELECT id FROM item ORDER BY id;
	DECLARE b SCROLL CURSOR FOR SELECT id FROM gbr.item ORDER BY id;
	DECLARE c CURSOR WITH HOLD FOR SELECT id FROM gbr.item ORDER BY id LIMIT 3000;
	FETCH 1 FROM a; MOVE 5000 IN b; FETCH 1 FROM b; MOVE 4000 IN a; FETCH 1 FROM a;
	FETCH BACKWARD 2 FROM b; FETCH FIRST FROM b; FETCH LAST FROM b;
	CLOSE b; FETCH 1 FROM a;
	COMMIT;
	MOVE 2999 IN c; FETCH 2 FROM c;
}), join("\n", 1, 5001, 4002, 5000, 4999, 1, 50000, 4003, 3000), 'several cursors, read in turns and backward');
is($r->psql('usa', q{
	BEGIN;
	DECLARE a CURSOR FOR SELECT id FROM gbr.item ORDER BY id;
	FETCH 1 FROM a;
	SAVEPOINT s;
	MOVE 30000 IN a;
	FETCH 1 FROM a;
	ROLLBACK TO s;
	FETCH 1 FROM a;
	COMMIT;
}), join("\n", 1, 30002, 30003), 'a cursor outlives a savepoint that it was read in');
$r->fails('usa', q{
	BEGIN;
	DECLARE a CURSOR FOR SELECT id FROM gbr.item ORDER BY id;
	SAVEPOINT s;
	FETCH 1 FROM a;
	ROLLBACK TO s;
	MOVE 30000 IN a;
}, '24000', qr/the rest of this scan is gone from region "gbr"/, 'a scan begun after a savepoint goes with it');
is($r->psql('usa', q{
	BEGIN;
	DECLARE a CURSOR FOR SELECT id FROM gbr.item ORDER BY id;
	SAVEPOINT s;
	FETCH 1 FROM a;
	ROLLBACK TO s;
	CLOSE a;
	SELECT count(*) FROM gbr.item;
	COMMIT;
}), "1\n50000", 'such a scan can be closed');

# prepared statements, beyond the fifth execution
my $prepared = 'PREPARE p(int) AS SELECT name FROM item WHERE id = $1;' . join('', map { "EXECUTE p($_);" } 11 .. 18, 50001);
is($r->psql('usa', $prepared), join("\n", map { "item $_" } 11 .. 18, 50001), 'a prepared statement, custom and generic plan');

# subtransactions and errors
is($r->psql('usa', q{
	CREATE TABLE public.seen (what text);
	DO $$
	DECLARE r record; n int := 0;
	BEGIN
		FOR r IN SELECT id FROM gbr.item ORDER BY id LIMIT 12000 LOOP
			BEGIN
				n := n + 1;
				IF r.id % 4000 = 0 THEN PERFORM 1 / (id - id) FROM gbr.item WHERE id = r.id; END IF;
			EXCEPTION WHEN division_by_zero THEN
				INSERT INTO seen VALUES ('error at ' || r.id);
			END;
		END LOOP;
		INSERT INTO seen VALUES (n);
	END $$;
	SELECT * FROM seen;
}), "error at 4000\nerror at 8000\nerror at 12000\n12000", 'errors of scans that are caught inside a scan');
$r->fails('usa', 'SELECT 1 / (ref - ref) FROM gbr.item WHERE 10 / (ref - ref) > 0', '22012', qr/region "gbr"|division by zero/, 'an error at the home');
is($r->psql('usa', q{
	BEGIN;
	SELECT count(*) FROM item WHERE id = 1;
	SAVEPOINT s;
	\set ON_ERROR_STOP 0
	SELECT 10 / (ref - ref) FROM gbr.item WHERE 10 / (ref - ref) > 0;
	\set ON_ERROR_STOP 1
	ROLLBACK TO s;
	SELECT count(*) FROM item WHERE id = 2;
	COMMIT;
}, on_error_stop => 0), "1\n1", 'a transaction goes on after ROLLBACK TO');

# statement_timeout and cancel while rows are on their way, and the session lives on
$r->fails('usa', q{SET statement_timeout = 300; SELECT count(pg_sleep(0.001)) FROM gbr.item}, '57014', qr/statement timeout/, 'statement_timeout in a scan');
my $session = $r->session('usa', on_error_stop => 0);
$session->query('BEGIN');
is($session->query('SELECT count(*) FROM item WHERE id < 10'), 9, 'a session at work');
$session->query('COMMIT');
{
	my $lock = $r->session('gbr');
	$lock->query('BEGIN; LOCK TABLE gbr.item');
	$session->query("SET statement_timeout = '500ms'");
	$session->query('SELECT count(*) FROM item');
	like($session->{stderr}, qr/statement timeout/, 'a statement that waits at the home is cancelled');
	$session->{stderr} = '';
	$lock->query('ROLLBACK');
	$lock->quit;
}
is($r->poll('gbr', "SELECT count(*) = 0 FROM pg_locks WHERE NOT granted"), 1, 'the home waits no longer');
is($session->query('SELECT count(*) FROM item'), 50100, 'the session goes on after it');

# memory: a million rows grow the backend by less than 64 MB
$r->psql('gbr', "TRUNCATE gbr.item; INSERT INTO gbr.item SELECT i, 'gbr', i, 'a name of some length ' || i FROM generate_series(1, 1000000) i");
$session->query('SELECT count(*) FROM gbr.item WHERE id < 10');
my $pid = $session->query('SELECT pg_backend_pid()');
# VmHWM counts shared buffers as well, anonymous memory is what grows
my $peak = sub { open(my $f, '<', "/proc/$pid/status") or return 0; my ($kb) = grep { /^RssAnon/ } <$f>; return $kb =~ /(\d+)/ ? $1 : 0; };
my $before = $peak->();
my $most = $before;
$session->query("SET statement_timeout = 0; BEGIN; DECLARE big CURSOR FOR SELECT * FROM gbr.item");
for my $i (1 .. 20)
{
	$session->query('MOVE 50000 IN big');
	my $now = $peak->();
	$most = $now if $now > $most;
}
$session->query('COMMIT');
cmp_ok($before, '>', 0, 'memory of the backend is known');
cmp_ok($most - $before, '<', 64 * 1024, 'a million rows grow the backend by less than 64 MB');
note('grew by ' . ($most - $before) . ' kB');
$session->quit;

done_testing();
