# A global table is the same in all regions after every kind of statement, at any gateway.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new;

# Runs DDL in all regions.
sub everywhere { my ($sql) = @_; $r->psql('usa', "SELECT residency.run_everywhere(\$everywhere\$ $sql \$everywhere\$)"); return; }

# All copies of a table hold the same rows, which are returned.
sub same
{
	my ($table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return $r->all_equal("SET TimeZone = 'UTC'; SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM $table t", $name);
}

# --- each kind of statement, at each gateway ---------------------------------------
everywhere(q{
	CREATE SCHEMA app;
	CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text);
});
$r->psql('usa', q{SELECT residency.make_global('app.item', 'region')});

my $n = 0;
foreach my $gateway ($r->regions)
{
	my ($a, $b) = (++$n * 10, $n * 10 + 1);

	$r->psql($gateway, "INSERT INTO app.item VALUES ($a, 'gbr', 'one'), ($b, 'aus', 'two')");
	is(same("(SELECT * FROM app.item WHERE id IN ($a, $b))", "$gateway: INSERT"), "($a,gbr,one) ($b,aus,two)", 'with its rows');
	is($r->psql($gateway, "UPDATE app.item SET note = note || '!' WHERE id IN ($a, $b) RETURNING note"), "one!\ntwo!", "$gateway: UPDATE RETURNING");
	is(same("(SELECT * FROM app.item WHERE id IN ($a, $b))", "$gateway: UPDATE"), "($a,gbr,one!) ($b,aus,two!)", 'with its values');
	$r->psql($gateway, "INSERT INTO app.item VALUES ($a, 'gbr', 'upserted'), ($a + 5, 'usa', 'new') ON CONFLICT (id) DO UPDATE SET note = excluded.note");
	is(same("(SELECT * FROM app.item WHERE id IN ($a, $a + 5))", "$gateway: ON CONFLICT DO UPDATE"), "($a,gbr,upserted) (" . ($a + 5) . ',usa,new)', 'with its rows');
	$r->psql($gateway, "INSERT INTO app.item VALUES ($a, 'aus', 'ignored') ON CONFLICT DO NOTHING");
	is(same("(SELECT * FROM app.item WHERE id = $a)", "$gateway: ON CONFLICT DO NOTHING"), "($a,gbr,upserted)", 'leaves the row');
	$r->psql($gateway, "DELETE FROM app.item WHERE id = $b");
	is(same("(SELECT * FROM app.item WHERE id = $b)", "$gateway: DELETE"), '', 'the row is gone');
	$r->psql($gateway, "COPY app.item FROM STDIN;\n$b\tusa\tcopied\n\\.\n");
	is(same("(SELECT * FROM app.item WHERE id = $b)", "$gateway: COPY"), "($b,usa,copied)", 'the row is there');
	$r->psql($gateway, "MERGE INTO app.item t USING (VALUES ($a), ($a + 6)) s(id) ON t.id = s.id
		WHEN MATCHED THEN UPDATE SET note = 'merged' WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'gbr', 'merged')");
	is(same("(SELECT id FROM app.item WHERE note = 'merged' AND id / 10 = $n)", "$gateway: MERGE"), "($a) (" . ($a + 6) . ')', 'both rows');
	$r->psql($gateway, "BEGIN; DECLARE c CURSOR FOR SELECT * FROM app.item WHERE id = $a FOR UPDATE; FETCH c;
		UPDATE app.item SET note = 'cursor' WHERE CURRENT OF c; COMMIT");
	is(same("(SELECT * FROM app.item WHERE id = $a)", "$gateway: WHERE CURRENT OF"), "($a,gbr,cursor)", 'the row');
	$r->psql($gateway, "WITH d AS (DELETE FROM app.item WHERE id = $b RETURNING *) INSERT INTO app.item SELECT $b + 1, region, note FROM d");
	is(same("(SELECT * FROM app.item WHERE id IN ($b, $b + 1))", "$gateway: WITH"), '(' . ($b + 1) . ',usa,copied)', 'both ends');
	same('app.item', "$gateway: all");
}

# --- a changed key -------------------------------------------------------------------
$r->psql('gbr', q{UPDATE app.item SET id = 500 WHERE id = 10});
is(same('(SELECT * FROM app.item WHERE id IN (10, 500))', 'a changed key'), '(500,gbr,cursor)', 'is one row');
$r->psql('usa', q{INSERT INTO app.item SELECT g, 'aus', 'chain' FROM generate_series(601, 603) g});
$r->psql('aus', q{BEGIN; UPDATE app.item SET id = id + 1 WHERE id = 603; UPDATE app.item SET id = id + 1 WHERE id = 602;
	UPDATE app.item SET id = id + 1, note = 'last' WHERE id = 601; COMMIT});
is(same('(SELECT id, note FROM app.item WHERE id BETWEEN 600 AND 610)', 'a chain of changed keys'), '(602,last) (603,chain) (604,chain)', 'as wanted');
$r->psql('aus', q{BEGIN; UPDATE app.item SET id = 699 WHERE id = 602; UPDATE app.item SET id = 602 WHERE id = 603;
	UPDATE app.item SET id = 603 WHERE id = 699; COMMIT});
is(same('(SELECT id, note FROM app.item WHERE id BETWEEN 600 AND 699)', 'keys that were swapped'), '(602,chain) (603,last) (604,chain)', 'as wanted');
$r->psql('gbr', q{BEGIN; DELETE FROM app.item WHERE id = 604; UPDATE app.item SET id = 604 WHERE id = 602; INSERT INTO app.item VALUES (602, 'usa', 'other'); COMMIT});
is(same('(SELECT * FROM app.item WHERE id BETWEEN 600 AND 699)', 'a key that is free again'), '(602,usa,other) (603,aus,last) (604,aus,chain)', 'as wanted');

# --- transactions and their parts ---------------------------------------------------------
$r->psql('usa', q{TRUNCATE app.item});
is(same('app.item', 'TRUNCATE'), '', 'empties all');
$r->psql('gbr', q{
	BEGIN;
	INSERT INTO app.item VALUES (1, 'usa', 'a'), (2, 'gbr', 'a');
	SAVEPOINT s;
	UPDATE app.item SET note = 'b';
	INSERT INTO app.item VALUES (3, 'aus', 'b');
	ROLLBACK TO s;
	UPDATE app.item SET note = 'c' WHERE id = 2;
	SAVEPOINT s;
	INSERT INTO app.item VALUES (4, 'aus', 'd');
	RELEASE s;
	COMMIT});
is(same('app.item', 'savepoints'), '(1,usa,a) (2,gbr,c) (4,aus,d)', 'what was rolled back is nowhere');
$r->psql('aus', q{DO $$
	BEGIN
		UPDATE app.item SET note = 'outer';
		FOR i IN 10 .. 14 LOOP
			BEGIN
				INSERT INTO app.item VALUES (i, 'gbr', 'loop');
				UPDATE app.item SET note = 'inner ' || i WHERE id = 1;
				IF i % 2 = 1 THEN RAISE 'odd'; END IF;
			EXCEPTION WHEN raise_exception THEN NULL;
			END;
		END LOOP;
	END $$});
is(same('app.item', 'exception blocks'), '(1,usa,"inner 14") (10,gbr,loop) (12,gbr,loop) (14,gbr,loop) (2,gbr,outer) (4,aus,outer)', 'what was caught is nowhere');
$r->psql('usa', q{BEGIN; DELETE FROM app.item; INSERT INTO app.item VALUES (1, 'aus', 'again'); ROLLBACK});
is(same('(SELECT count(*) FROM app.item)', 'ROLLBACK'), '(6)', 'undoes all');
$r->psql('usa', q{BEGIN; DELETE FROM app.item WHERE id = 1; INSERT INTO app.item VALUES (1, 'usa', 'again'); COMMIT});
is(same('(SELECT * FROM app.item WHERE id = 1)', 'deleted and inserted'), '(1,usa,again)', 'in one transaction');
$r->psql('usa', q{BEGIN; INSERT INTO app.item VALUES (70, 'gbr', 'x'); DELETE FROM app.item WHERE id = 70; COMMIT});
is(same('(SELECT * FROM app.item WHERE id = 70)', 'inserted and deleted'), '', 'in one transaction');
$r->psql('gbr', q{
	BEGIN;
	UPDATE app.item SET note = 'before' WHERE id = 1;
	SAVEPOINT s;
	TRUNCATE app.item;
	INSERT INTO app.item VALUES (1, 'usa', 'after TRUNCATE');
	ROLLBACK TO s;
	INSERT INTO app.item VALUES (80, 'aus', 'x');
	COMMIT});
is(same('(SELECT * FROM app.item WHERE id IN (1, 2, 80))', 'TRUNCATE undone'), '(1,usa,before) (2,gbr,outer) (80,aus,x)', 'by a savepoint');
$r->psql('gbr', q{BEGIN; UPDATE app.item SET note = 'gone'; TRUNCATE app.item; INSERT INTO app.item VALUES (1, 'aus', 'first'); COMMIT});
is(same('app.item', 'TRUNCATE between writes'), '(1,aus,first)', 'in order');
is($r->psql('usa', q{BEGIN; INSERT INTO app.item VALUES (2, 'aus', 'x'); SELECT count(*) FROM app.item; COMMIT}), '2', 'the gateway reads what it wrote');

# --- many rows: they go out in pieces, and are forgotten meanwhile --------------------------
$r->psql('usa', q{BEGIN; INSERT INTO app.item SELECT g, (ARRAY['usa', 'gbr', 'aus'])[1 + g % 3], repeat('x', 100) FROM generate_series(100, 50100) g;
	UPDATE app.item SET note = 'some' WHERE id % 100 = 0; DELETE FROM app.item WHERE id % 100 = 1; COMMIT});
is($r->all_equal(q{SELECT count(*), sum(hashtext(t::text)) FROM app.item t}, '50,000 rows'), $r->psql('usa', q{SELECT count(*), sum(hashtext(t::text)) FROM app.item t}), 'in pieces');
is($r->psql('aus', q{SELECT count(*) FILTER (WHERE note = 'some'), count(*) FROM app.item}), '501|49502', 'all changes');
$r->psql('gbr', q{UPDATE app.item SET note = 'y'});
is($r->all_equal(q{SELECT count(*), min(note), max(note) FROM app.item}), '49502|y|y', 'all of them updated');
$r->psql('aus', q{DO $$ BEGIN FOR i IN 1 .. 300 LOOP BEGIN
	UPDATE app.item SET note = 'round ' || i WHERE id BETWEEN i * 100 AND i * 100 + 150;
	IF i % 3 = 0 THEN RAISE 'no'; END IF;
	EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$});
$r->all_equal(q{SELECT count(*), sum(hashtext(t::text)), count(*) FILTER (WHERE note LIKE 'round%') FROM app.item t}, 'hundreds of subtransactions');
$r->psql('aus', q{DELETE FROM app.item});
is(same('app.item', 'all deleted'), '', 'everywhere');

# --- any definition ----------------------------------------------------------------------------
everywhere(q{
	CREATE TABLE app."Any ""Thing""" (
		gone1 text,
		"Key 1" text,
		"Land" text NOT NULL,
		gone2 int,
		key2 timestamptz,
		doubled int GENERATED ALWAYS AS (amount * 2) STORED,
		amount int,
		serial int GENERATED ALWAYS AS IDENTITY,
		"Upper" text DEFAULT 'dflt',
		PRIMARY KEY (key2, "Key 1"));
	ALTER TABLE app."Any ""Thing""" DROP gone1, DROP gone2;
	ALTER TABLE app."Any ""Thing""" ADD extra int DEFAULT 7;
});
$r->psql('usa', q{SELECT residency.make_global('app."Any ""Thing"""', 'Land')});
$r->psql('aus', q{SET TimeZone = 'Asia/Kolkata'; INSERT INTO app."Any ""Thing""" ("Key 1", "Land", key2, amount) VALUES
	('a "quoted" {thing}, \\\\ ', 'usa', '2020-01-01 00:00+00', 1), ('', 'gbr', 'infinity', NULL)});
my $any = q{app."Any ""Thing"""};
$r->all_equal(qq{SELECT count(*), count(doubled), min(doubled), count(DISTINCT serial), min(extra) FROM $any}, 'quoted names, dropped and generated columns');
is($r->psql('usa', qq{SELECT count(*), count(doubled), min(doubled), count(DISTINCT serial), min(extra) FROM $any}), '2|1|2|2|7', 'with their values');
$r->psql('gbr', qq{SET TimeZone = 'America/New_York'; SET DateStyle = 'German'; UPDATE $any SET amount = 21 WHERE "Key 1" <> ''; UPDATE $any SET "Upper" = NULL WHERE "Key 1" = ''});
is($r->psql('usa', qq{SELECT min(doubled) FROM $any}), '42', 'a home is not confused by the gateway\'s formats');
same($any, 'composite key');
everywhere(qq{ALTER TABLE $any ADD later text DEFAULT 'l'; ALTER TABLE $any DROP "Upper"});
$r->psql('aus', qq{UPDATE $any SET later = 'm' WHERE amount = 21; INSERT INTO $any ("Key 1", "Land", key2) VALUES ('n', 'aus', now())});
is(same("(SELECT later, amount FROM $any)", 'columns added and dropped later'), '(l,) (l,) (m,21)', 'with their values');

everywhere(q{
	CREATE TYPE app.mood AS ENUM ('sad', 'happy');
	CREATE TYPE app.pair AS (a int, b text);
	CREATE DOMAIN app.short AS text CHECK (length(value) < 10) NOT NULL;
	CREATE TABLE app.types (
		id uuid PRIMARY KEY, region varchar(10) NOT NULL,
		a bool, b bytea, c "char", d name, e int8, f int2, h text, i oid, j json, k jsonb, l point, m lseg, n path, o box, p polygon,
		q line, r float4, s float8, t circle, u macaddr, v inet, w cidr, x bpchar(5), y date, z time, aa timestamp, ab timestamptz,
		ac interval, ad timetz, ae bit(4), af varbit, ag numeric, ah tsvector, ai tsquery, aj int4range, ak tstzmultirange, al money,
		am xml, an regclass, ao int[], ap text[][], aq app.mood, ar app.pair, at app.pair[], au app.short, av macaddr8, aw pg_lsn, ax timestamptz[]);
});
$r->psql('usa', q{SELECT residency.make_global('app.types', 'region')});
$r->psql('gbr', q{SET bytea_output = 'escape'; SET IntervalStyle = 'iso_8601'; SET extra_float_digits = -5; SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Tokyo';
	INSERT INTO app.types VALUES ('6f1d31a0-94c5-4a3e-8d7c-0123456789ab', 'usa',
	true, '\x00ff27', '\101', 'Na me', -9223372036854775808, -3, E'line\n"quote'' \\ tab\t', 7, '{"a": [1, null]}', '{"b": "ü"}', '(1.5,-2)',
	'[(0,0),(1,1)]', '((0,0),(1,1))', '(2,2),(0,0)', '((0,0),(1,1),(1,0))', '{1,2,3}', 'NaN', 0.1::float8 + 0.2::float8, '<(1,2),3>', '08:00:2b:01:02:03',
	'10.1.2.3/8', '10.0.0.0/8', 'ab', '2024-02-29', '23:59:59.123456', '2024-03-04 01:02:03', '2024-03-04 01:02:03+05', '1 mon -3 days 04:05:06.7', '01:02:03+04',
	B'1010', B'101', 12345678901234567890.000123, 'a fat cat'::tsvector, 'fat & cat', '[1,5)', '{[2024-01-01 00:00+00,2024-02-01 00:00+00)}', 12.34,
	'<a>b</a>', 'app.types', '{1,NULL,3}', '{{a,b},{"c d",NULL}}', 'happy', '(1,"x y")', ARRAY[(1,'a')::app.pair, NULL], 'short', '08:00:2b:01:02:03:04:05', '16/B374D848',
	ARRAY['2024-03-04 01:02:03+05'::timestamptz, 'infinity'])});
same('app.types', 'every built-in type');
$r->psql('aus', q{UPDATE app.types SET f = 4});
is(same('(SELECT f FROM app.types)', 'and a home knows the version it has'), '(4)', 'whatever the gateway\'s formats');
$r->psql('gbr', q{SET bytea_output = 'escape'; SET IntervalStyle = 'iso_8601'; SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Tokyo'; SET extra_float_digits = -5; SET lc_monetary = 'C';
	UPDATE app.types SET f = 5});
is(same('(SELECT f FROM app.types)', 'likewise'), '(5)', 'with other formats');

# large values, out of line
$r->psql('usa', q{INSERT INTO app.item VALUES (1, 'gbr', (SELECT string_agg(md5(g::text), '') FROM generate_series(1, 200000) g)), (2, 'usa', (SELECT string_agg(md5(g::text), '') FROM generate_series(1, 5000) g))});
$r->all_equal(q{SELECT id, length(note), md5(note) FROM app.item ORDER BY id}, 'large values');
$r->psql('aus', q{UPDATE app.item SET note = note || 'x'});
is($r->all_equal(q{SELECT string_agg(length(note)::text, ' ' ORDER BY id) FROM app.item}), '6400001 160001', 'changed');

# --- what is refused -------------------------------------------------------------------------------
$r->fails('usa', q{INSERT INTO app.item VALUES (90, 'atlantis', 'x')}, '08\w{3}|22\w{3}|23\w{3}|42\w{3}', qr/atlantis/, 'a row of no region');
my %atlantis = (
	'UPDATE app.item SET region = $$atlantis$$ WHERE id = 1' => 'nor does one get no region',
	'UPDATE app.item SET region = $$atlantis$$, id = 91 WHERE id = 1' => 'nor with another key',
	'BEGIN; INSERT INTO app.item VALUES (90, $$usa$$, $$x$$); UPDATE app.item SET region = $$atlantis$$ WHERE id = 90; COMMIT' => 'nor in the transaction that makes it',
	'BEGIN; DELETE FROM app.item WHERE id = 1; INSERT INTO app.item VALUES (1, $$atlantis$$, $$x$$); COMMIT' => 'nor is it made anew without',
	'INSERT INTO app.item VALUES (1, $$usa$$, $$x$$) ON CONFLICT (id) DO UPDATE SET region = $$atlantis$$' => 'nor by ON CONFLICT');
$r->fails('usa', $_, '08\w{3}|22\w{3}|23\w{3}|42\w{3}', qr/atlantis/, $atlantis{$_}) foreach sort keys %atlantis;
$r->psql('usa', q{SELECT residency.run_everywhere('CREATE TABLE app.loose (id int PRIMARY KEY, region text NOT NULL)'); SELECT residency.make_global('app.loose', 'region');
	SELECT residency.run_everywhere('ALTER TABLE app.loose ALTER region DROP NOT NULL'); INSERT INTO app.loose VALUES (1, 'gbr')});
$r->fails($_, 'UPDATE app.loose SET region = NULL', '23502', qr/names no region/, "$_: nor does it lose its region") foreach qw(usa gbr);
is($r->all_equal('SELECT region FROM app.loose', 'it keeps it'), 'gbr', 'everywhere');
$r->fails('usa', q{SELECT residency.apply('{app.item}', '{usa}', '', true, '{}', false)}, '42501', qr/opened by another region/, 'apply is for regions only');
$r->psql('usa', q{CREATE ROLE plain});
$r->fails('usa', q{SET ROLE plain; SELECT residency.apply_truncate('{app.item}')}, '42501', qr/permission denied/, 'and not even callable by others');
$r->all_equal(q{SELECT count(*) FROM app.item}, 'nothing happened');
is($r->prepared, 0, 'nothing is left prepared');

$r->teardown;
done_testing();
