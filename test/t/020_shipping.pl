# What is computed at the home has the answer it would have here: each construct runs
# over a resident table whose rows live in two regions, and over a plain local table
# with the same rows.  And what should be shipped is, what must not be is not.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(regions => [qw(usa gbr)]);

$r->psql('usa', q{
	SELECT residency.run_everywhere($ddl$
		CREATE SCHEMA shared;
		CREATE TYPE shared.mood AS ENUM ('sad', 'ok', 'happy');
		CREATE DOMAIN shared.positive AS int CHECK (value > 0);
		CREATE TYPE shared.pair AS (a int, b text);
		CREATE FUNCTION shared.twice(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 * 2; END';
		CREATE TABLE shared.p (
			id int NOT NULL, region text NOT NULL, gone int,
			name text, cname text COLLATE "POSIX", vc varchar(20), ch char(5), nm name,
			i2 smallint, i8 bigint, n numeric, f4 real, f8 float8, cash money,
			d date, tm time, tz timetz, ts timestamp, tstz timestamptz, iv interval,
			b bool, u uuid, by bytea, bt bit(4), vb varbit, ip inet, net cidr, mac macaddr,
			js json, j jsonb, x xml, arr int[], tarr text[], marr shared.mood[],
			r int4range, nr numrange, pt point, bx box, tv tsvector,
			m shared.mood, dom shared.positive, pr shared.pair, "Mixed ""Case" int, o oid);
		ALTER TABLE shared.p DROP COLUMN gone;
	$ddl$);
	SELECT residency.make_resident('shared.p', 'region', key => '{id}');
	CREATE TABLE public.q (LIKE shared.p);
	INSERT INTO public.q
	SELECT i, CASE WHEN i % 2 = 0 THEN 'usa' ELSE 'gbr' END,
		CASE WHEN i % 7 = 0 THEN NULL ELSE 'name' || i % 13 END,
		CASE i % 4 WHEN 0 THEN 'Aa' WHEN 1 THEN 'aB' WHEN 2 THEN 'ÄÖ' ELSE E'it''s \\\\ "q"' END,
		'vc' || i % 5, 'c' || i % 4, 'nm' || i % 5,
		i, i::bigint * 10000000000, CASE WHEN i % 11 = 0 THEN 'NaN' ELSE i * 1.25 - 10 END,
		i / 7.0::real, CASE WHEN i % 10 = 0 THEN '-Infinity' ELSE (i - 20) / 3.0 END, i * 1.5,
		date '2024-01-01' + i, time '00:00' + i * interval '11 min',
		(time '00:00' + i * interval '11 min')::timetz,
		CASE WHEN i % 12 = 0 THEN 'infinity' ELSE timestamp '2024-01-01' + i * interval '37 min' END,
		timestamptz '2024-03-31 00:00+01' + i * interval '7 min', i * interval '1 day 3 hours',
		CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END, md5((i % 9)::text)::uuid,
		decode(md5((i % 9)::text), 'hex'), (i % 16)::bit(4), (i % 16)::bit(4)::varbit,
		('10.0.' || i % 4 || '.' || i)::inet, ('10.' || i % 4 || '.0.0/16')::cidr, '08:00:2b:01:02:03',
		json_build_object('a', i % 4), jsonb_build_object('a', i % 4, 'b', 'x' || i % 3, 'c', array[i, i % 2]),
		xmlelement(name a, i % 3), array[i, i % 3, NULL], array['t' || i % 3, NULL, E'we"ird\\\\' || i % 2],
		array['sad', 'ok']::shared.mood[], int4range(i % 10, i % 10 + 5), numrange(i % 10, NULL),
		point(i % 5, i), box(point(0, 0), point(i % 5, 1)), to_tsvector('simple', 'word' || i % 4),
		(array['sad', 'ok', 'happy']::shared.mood[])[1 + i % 3], 1 + i % 6,
		CASE WHEN i % 10 > 0 THEN ROW(i % 3, 'p' || i % 2)::shared.pair END, i % 8, i % 8
	FROM generate_series(1, 60) i;
	INSERT INTO shared.p SELECT * FROM public.q;

	-- "equal" or what differs; "shipped" if the home checks the whole condition
	CREATE FUNCTION public.compare(cond text, OUT equal text, OUT shipped bool) LANGUAGE plpgsql AS $f$
	DECLARE
		theirs text;
		ours text;
		line text;
	BEGIN
		BEGIN
			EXECUTE 'SELECT string_agg(id::text, '','' ORDER BY id) FROM shared.p WHERE ' || cond INTO theirs;
		EXCEPTION WHEN OTHERS THEN
			theirs := 'error ' || SQLSTATE;
		END;
		BEGIN
			EXECUTE 'SELECT string_agg(id::text, '','' ORDER BY id) FROM public.q AS p WHERE ' || cond INTO ours;
		EXCEPTION WHEN OTHERS THEN
			ours := 'error ' || SQLSTATE;
		END;
		equal := CASE WHEN theirs IS NOT DISTINCT FROM ours THEN 'equal'
			ELSE coalesce(theirs, 'none') || ' instead of ' || coalesce(ours, 'none') END;
		shipped := true;
		FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) SELECT id FROM gbr.p AS p WHERE ' || cond LOOP
			IF line ~ '^ *Filter:' THEN
				shipped := false;
			END IF;
		END LOOP;
	END $f$;
});

is($r->psql('gbr', 'SELECT count(*) FROM gbr.p'), 30, 'rows lie at their homes');
is($r->psql('usa', 'SELECT count(*) FROM (SELECT p::text FROM shared.p EXCEPT ALL SELECT q::text FROM public.q) x'),
	0, 'every value of every type comes back as it was');
is($r->psql('usa', 'SELECT count(*) FROM (SELECT q::text FROM public.q EXCEPT ALL SELECT p::text FROM shared.p) x'),
	0, 'and none is missing');

my @shipped = (
	# every type: compared with a constant of its own
	q{id = 5}, q{id IN (1, 2, 3, 50)}, q{id BETWEEN 10 AND 20}, q{region = 'gbr'}, q{name = 'name3'},
	q{cname < 'a'}, q{cname = E'it''s \\\\ "q"'}, q{vc = 'vc3'}, q{vc > 'vc2'}, q{ch = 'c1'}, q{ch = 'c1   '}, q{nm = 'nm2'},
	q{i2 = 7}, q{i8 > 300000000000}, q{n > 12.5}, q{n = 'NaN'}, q{f4 = 1}, q{f8 > 1.3333}, q{f8 = '-Infinity'},
	q{cash > '12.00'::money}, q{d >= '2024-02-01'}, q{tm < '03:00'}, q{tz < '03:00+00'}, q{ts > '2024-01-01 12:00'},
	q{ts = 'infinity'}, q{tstz > '2024-03-31 02:30+01'}, q{iv > '20 days 5 hours'}, q{b}, q{NOT b}, q{b IS NOT TRUE},
	q{b IS UNKNOWN}, q{u = 'c4ca4238-a0b9-2382-0dcc-509a6f75849b'}, q{by = '\xc4ca4238a0b923820dcc509a6f75849b'},
	q{bt = B'0101'}, q{vb > B'0011'}, q{ip << '10.0.2.0/24'}, q{net = '10.2.0.0/16'}, q{mac = '08:00:2b:01:02:03'},
	q{j @> '{"a": 2}'}, q{j ->> 'b' = 'x1'}, q{(j -> 'a')::int > 1}, q{j['a'] = '2'}, q{js ->> 'a' = '3'},
	q{arr[2] = 1}, q{arr[1:2] = array[5, 2]}, q{arr @> array[4]}, q{2 = ANY (arr)}, q{arr[:1] = array[9]},
	q{tarr && array[E'we"ird\\\\1']}, q{tarr[1] = 't2'}, q{r @> 7}, q{r && int4range(3, 4)}, q{nr @> 3.5},
	q{pt <@ box '(0,0),(3,20)'}, q{bx @> point '(2,0.5)'}, q{tv @@ 'word2'::tsquery},
	q{m = 'ok'}, q{m > 'sad'}, q{m IN ('sad', 'happy')}, q{marr @> array['ok']::shared.mood[]}, q{dom = 3}, q{dom > 2 AND dom < 5},
	q{pr = ROW(1, 'p1')::shared.pair}, q{pr > ROW(1, 'p0')::shared.pair}, q{"Mixed ""Case" = 4}, q{o = 3}, q{o > 5::oid},
	# nulls
	q{name IS NULL}, q{name IS NOT NULL}, q{pr IS NULL}, q{pr IS NOT NULL}, q{name IS DISTINCT FROM 'name1'},
	q{name IS NOT DISTINCT FROM NULL}, q{b IS DISTINCT FROM true}, q{i2 IS DISTINCT FROM id}, q{NULLIF(id % 3, 1) IS NULL},
	q{NULLIF(name, 'name1') = 'name2'}, q{coalesce(name, 'none') = 'none'}, q{name <> ALL (array['name1', 'name2'])},
	q{name = ANY (array['name1', NULL])}, q{id = NULL}, q{name NOT IN ('name1', 'name2')},
	# forms
	q{id % 7 = 0 OR (id > 50 AND NOT id = 55)}, q{CASE WHEN id > 30 THEN id % 2 ELSE id % 3 END = 0},
	q{CASE m WHEN 'ok' THEN 1 WHEN 'sad' THEN 2 END = 2}, q{CASE id % 3 WHEN 0 THEN name WHEN 1 THEN 'one' ELSE vc END = 'one'},
	q{CASE WHEN id > 59 THEN 1 END IS NULL}, q{greatest(id, 30) = 30}, q{least(name, vc) = 'name1'}, q{(id, name) < (20, 'name3')},
	q{(region, id) >= ('gbr', 30)}, q{-id < -40}, q{@ (id - 30) < 3}, q{id::text = '7'}, q{id::numeric / 7 > 5.5}, q{n::int = 10},
	q{name::varchar(4) = 'name'}, q{(i8 / 10000000000)::int2 = i2}, q{array[id, i2] = array[7, 7]}, q{name LIKE 'name1%'},
	q{name ILIKE 'NAME_'}, q{name ~ '[25]$'}, q{name SIMILAR TO 'name(1|2)'}, q{upper(cname) = 'AA'}, q{length(cname) > 2},
	q{substring(name from 5 for 1) = '1'}, q{position('e1' in name) > 0}, q{overlay(name placing 'XX' from 1) = 'XXme1'},
	q{trim(both 'n' from name) = 'ame3'}, q{extract(dow from d) = 1}, q{extract(hour from ts) = 5}, q{date_trunc('day', ts) = '2024-01-02'},
	q{d + 10 > '2024-03-01'}, q{ts - '2024-01-01'::timestamp > '1 day'}, q{ts AT TIME ZONE 'UTC' > '2024-01-02 00:00+00'},
	q{md5(name) < '8'}, q{round(n, 1) = 2.5}, q{power(f8, 2) > 16}, q{bt & B'0011' = B'0011'}, q{r * int4range(0, 6) = int4range(3, 6)},
	q{name || vc = 'name1vc1'}, q{name COLLATE "C" > 'name5'}, q{name < 'name5' COLLATE "C"}, q{cname < name}, q{array_length(arr, 1) = 3},
	q{octet_length(by) = 16}, q{x::text LIKE '%1%'}, q{j ? 'b'}, q{jsonb_array_length(j -> 'c') = 2}, q{num_nulls(name, b) = 2}, q{m >= 'ok' AND m::shared.mood < 'happy'},
	q{concat_ws('-', 'a', 'b') = 'a-b' AND id < 4},
	q{n::numeric(5, 1) = 2.5}, q{ts::timestamp(0) = '2024-01-01 00:37'}, q{bt::bit(2) = B'01'}, q{ch::char(1) = 'c'}, q{iv::interval day > '20 days'},
	q{substring(bt from 2 for 2) = B'10'}, q{arr || 4 = array[5, 2, NULL, 4]}, q{tarr[2] IS NULL}, q{(array['x', name])[2] = 'name1'},
	q{id = ANY (array[i2, 3])}, q{ARRAY[m, 'ok'] = ARRAY['ok', 'ok']::shared.mood[]}, q{dom IN (1, 2)}, q{dom::bigint + 1 = 4},
	q{coalesce(NULLIF(ch, 'c1'), 'none') = 'none'}, q{CASE WHEN b THEN cname ELSE name END > 'a'}, q{(name IS NULL) = (b IS NULL)}, q{b = (id > 30)},
	q{name NOT LIKE E'name\\\\_%'}, q{name LIKE 'name_' ESCAPE ''}, q{cname LIKE '%"q"'}, q{concat_ws('', name) IS NULL OR TRUE},
	# without columns: computed here, sent as a parameter
	q{tstz < now()}, q{d < current_date}, q{tstz > now() - interval '100 years'}, q{name <> current_user}, q{id = shared.twice(4)},
	q{id < (SELECT 7)}, q{id = ANY (ARRAY(SELECT generate_series(2, 5)))}, q{vc = 'vc' || (SELECT 3)}, q{region = 'g' || 'br'},
	q{id = (SELECT max(id) FROM public.q)}, q{to_char(now(), 'YYYY') > vc},
);
my @local = (
	q{pr IN (ROW(1, 'p1'), ROW(2, 'p0'))},
	q{shared.twice(id) = 10}, q{random() >= 0 AND id = 3}, q{tstz::text LIKE '%00%' OR id = 1}, q{to_char(ts, 'DD') = '02'},
	q{tstz > '2024-03-31 02:30+01' AND date_trunc('day', tstz) > '2024-03-31'}, q{d::text = '2024-01-08'}, q{tstz + '1 day' > '2024-04-01'},
	q{f8::text = '1'}, q{by::text = '\xc4ca4238a0b923820dcc509a6f75849b'}, q{iv::text > '3'}, q{o::regclass IS NULL OR id = 1},
	q{p IS NULL}, q{(p).id = 3 AND p IS NOT NULL}, q{tableoid > 0::oid}, q{x::text LIKE '%1%' AND random() < 2},
	q{name < 'name5' COLLATE "ucs_basic"}, q{j::text LIKE '%x1%' AND random() < 2},
	q{m::text = 'ok'}, q{id::text::xml::text = '3'}, q{tarr::text LIKE '%weird%' OR id = 1}, q{concat(name, id) = 'name11'},
	q{CASE WHEN id > 100 THEN 1 / (id - id) ELSE 1 END = 1 AND CASE WHEN id > 100 THEN id / length(substr(current_user, 1, 0)) ELSE 1 END = 1},
);

# become joins, so no condition is left on the scan
my @joins = (q{id IN (SELECT dom FROM public.q)}, q{EXISTS (SELECT FROM public.q WHERE q.id = p.id + 55)});

# one session; one line for each condition
sub run_cases
{
	my ($expected, @conds) = @_;
	my $script = join('', map { my $c = $_; $c =~ s/'/''/g; "SELECT equal, shipped FROM public.compare(E'" . ($c =~ s/\\/\\\\/gr) . "');\n" } @conds);
	my @answers = split(/\n/, $r->psql('usa', $script));

	is($answers[$_] // 'no answer', "equal|$expected", $conds[$_]) foreach 0 .. $#conds;
}

run_cases('t', @shipped);
run_cases('f', @local);
run_cases('t', @joins);

# order: by each column, in both directions, of two sorted partitions
my @columns = split(/\n/, $r->psql('usa', q{SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = 'public.q'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum}));
my %unsortable = map { $_ => 1 } qw(js x pt bx);
foreach my $order ('ASC', 'DESC', 'ASC NULLS FIRST', 'DESC NULLS LAST')
{
	my @sort = grep { !$unsortable{$_} } @columns;
	my @answers = split(/\n/, $r->psql('usa', join('', map {
		my $by = "ORDER BY $_ $order, id LIMIT 40";
		"SELECT (SELECT array_agg(id) FROM (SELECT id FROM shared.p $by) p) = (SELECT array_agg(id) FROM (SELECT id FROM public.q $by) q);\n" } @sort)));

	is($answers[$_], 't', "ORDER BY $sort[$_] $order") foreach 0 .. $#sort;
}
is($r->psql('usa', q{EXPLAIN (VERBOSE, COSTS OFF) SELECT id FROM gbr.p ORDER BY name, m DESC, n NULLS FIRST LIMIT 5}) =~ /(ORDER BY .*)/ && $1,
	'ORDER BY name ASC NULLS LAST, m DESC NULLS FIRST, n ASC NULLS FIRST LIMIT 5', 'sorted at the home');

# new values: of each column by a value sent as a parameter, and by an expression there
$r->psql('usa', join('', map { my $t = $_; (
	(map { "UPDATE $t SET $_ = (SELECT $_ FROM public.source WHERE id = 7) WHERE id BETWEEN 20 AND 29;\n" } grep { !/^(id|region)$/ } @columns),
	"UPDATE $t SET name = upper(name) || '-' || vc, n = n * 2, arr = arr || id, j = j || '{\"z\": 1}', d = d + 1, pr = ROW(id, name), m = CASE WHEN b THEN 'sad' ELSE m END, vc = left(name, 3) WHERE id > 30;\n",
	"UPDATE $t SET arr[2] = id, (pr).b = 'sub' WHERE id < 10;\n" =~ s/\(pr\)/pr/r,
	"DELETE FROM $t WHERE id % 10 = 0;\n") } 'shared.p', 'public.q') =~ s/^/CREATE TABLE public.source AS SELECT * FROM public.q;\n/r);
is($r->psql('usa', "SELECT count(*) FROM (SELECT $_->[0]::text FROM $_->[1] EXCEPT ALL SELECT $_->[2]::text FROM $_->[3]) x"), 0, "$_->[1] has no other rows than $_->[3]")
	foreach ['p', 'shared.p p', 'q', 'public.q'], ['q', 'public.q', 'p', 'shared.p p'];

done_testing();
