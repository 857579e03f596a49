# make_global and make_resident: on empty and on filled tables, with names, types and
# columns of every kind; what they refuse; what partitions inherit; who may do what.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $o = "\xc3\x96sterreich";
my $r = Regions->new(regions => [ 'usa', 'eu-west', $o ], scram => 1);
my $id = Regions::identifier($o);

sub everywhere { return 'SELECT residency.run_everywhere(' . Regions::quote($_[0]) . ')'; }

sub partition { my ($region, $table) = @_; return Regions::identifier($region) . '.' . $table; }

# ---- refusals of make_global: nothing is left behind
$r->psql('usa', everywhere(q{
	CREATE SCHEMA app;
	CREATE ROLE reader; CREATE ROLE owner;
	CREATE TABLE app.no_key (region text NOT NULL);
	CREATE TABLE app.nullable (id int PRIMARY KEY, region text);
	CREATE TABLE app.wrong_type (id int PRIMARY KEY, region int NOT NULL);
	CREATE UNLOGGED TABLE app.unlogged (id int PRIMARY KEY, region text NOT NULL);
	CREATE TABLE app.parted (id int, region text NOT NULL) PARTITION BY LIST (region);
	CREATE VIEW app.a_view AS SELECT 1 AS id, 'usa'::text AS region;
	CREATE TABLE app.differs (id int PRIMARY KEY, region text NOT NULL, c int);
	CREATE TABLE app.differs_rows (id int PRIMARY KEY, region text NOT NULL);
	CREATE TABLE app.strange_region (id int PRIMARY KEY, region text NOT NULL);
	CREATE TABLE app.only_there (id int PRIMARY KEY, region text NOT NULL);
}));
$r->psql('eu-west', 'ALTER TABLE app.differs ALTER c TYPE bigint; INSERT INTO app.differs_rows VALUES (1, $$usa$$); INSERT INTO app.only_there VALUES (1, $$usa$$)');
$r->psql('usa', 'CREATE TABLE app.here (id int PRIMARY KEY, region text NOT NULL); INSERT INTO app.differs_rows VALUES (2, $$usa$$); INSERT INTO app.strange_region VALUES (1, $$atlantis$$)');
foreach my $case (
	['no_key', '42P16', qr/has no primary key.*ADD PRIMARY KEY/s], ['nullable', '42P16', qr/may be null.*SET NOT NULL/s],
	['wrong_type', '42804', qr/has type integer/], ['unlogged', '42809', qr/temporary or unlogged/], ['parted', '42809', qr/not an ordinary table/],
	['a_view', '42809', qr/not an ordinary table/], ['differs', '42P16', qr/not the same in region "eu-west".*There: column c bigint. Here: column c integer/s],
	['here', '42P01', qr/region "(eu-west|$o)".*app.here does not exist/], ['differs_rows', '55000', qr/holds other rows in region "eu-west"/],
	['strange_region', '23514', qr/unknown regions: 'atlantis'/], ['only_there', '55000', qr/empty here, but holds rows in region "eu-west"/])
{
	my ($table, $sqlstate, $like) = @$case;

	$r->fails('usa', "SELECT residency.make_global('app.$table', 'region')", $sqlstate, $like, "make_global refuses $table");
}
$r->fails('usa', q{SELECT residency.make_global('app.nullable', 'nowhere')}, '42703', qr/column "nowhere"/, 'and a column that is not there');
is($r->psql($_, 'SELECT count(*) FROM residency.tables'), 0, "nothing is declared in $_") foreach $r->regions;
is($r->psql($_, q{SELECT count(*) FROM pg_trigger WHERE tgname ~ 'residency'}), 0, "no trigger is left in $_") foreach $r->regions;

# ---- a filled directory and a filled table, as awkward as they come
$r->psql('usa', everywhere(qq{
	CREATE TYPE app."Region" AS ENUM ('usa', 'eu-west', '$o');
	CREATE TYPE app.address AS (street text, "Zip Code" int);
	CREATE DOMAIN app.positive AS int CHECK (value > 0);
	CREATE TABLE app."Dir ectory" ("Id" int GENERATED ALWAYS AS IDENTITY, gone text, tenant int NOT NULL, "Region" app."Region" NOT NULL,
		note text DEFAULT 'd', twice int GENERATED ALWAYS AS (tenant * 2) STORED, PRIMARY KEY (tenant, "Id"));
	ALTER TABLE app."Dir ectory" DROP COLUMN gone;
	CREATE TABLE app."Det ails" (serial_no serial, gone int, "Id" int NOT NULL, tenant int NOT NULL, "Region" app."Region" NOT NULL,
		name text COLLATE "C" NOT NULL DEFAULT 'anon', addresses app.address[], tags text[], p app.positive, f float8, m money, b bytea, ts timestamptz,
		twice int GENERATED ALWAYS AS (tenant * 2) STORED, always_id bigint GENERATED ALWAYS AS IDENTITY, UNIQUE (name), CHECK (tenant > 0));
	ALTER TABLE app."Det ails" DROP COLUMN gone;
	CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN new.tags = new.tags || ''touched''::text; RETURN new; END';
	CREATE FUNCTION app.told() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''statement trigger''; RETURN NULL; END';
	CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON app."Det ails" FOR EACH ROW EXECUTE FUNCTION app.touch();
	CREATE TRIGGER told AFTER INSERT ON app."Det ails" FOR EACH STATEMENT EXECUTE FUNCTION app.told();
	COMMENT ON TABLE app."Det ails" IS 'of persons'; COMMENT ON COLUMN app."Det ails".name IS 'full name';
	GRANT SELECT, UPDATE (name) ON app."Det ails" TO reader; GRANT USAGE ON SCHEMA app TO reader, owner;
	ALTER TABLE app."Det ails" ENABLE ROW LEVEL SECURITY;
	CREATE POLICY visible ON app."Det ails" FOR SELECT TO reader USING (name <> 'hidden');
	ALTER TABLE app."Det ails" OWNER TO owner;
	ALTER SEQUENCE app."Det ails_serial_no_seq" RESTART 500;
}));
$r->psql('usa', qq{
	INSERT INTO app."Dir ectory" (tenant, "Region") SELECT i, (ARRAY['usa', 'eu-west', '$o'])[1 + i % 3]::app."Region" FROM generate_series(1, 300) i;
	INSERT INTO app."Det ails" ("Id", tenant, "Region", name, addresses, p, f, m, b, ts)
		SELECT "Id", tenant, "Region", CASE tenant WHEN 1 THEN 'hidden' ELSE 'na"me, ' || tenant END, ARRAY[ROW('x,"y', 1)::app.address], 5, 0.1 + 0.2, 12.5, '\\x00ff',
			'2026-01-01 00:00:00.123456+05' FROM app."Dir ectory"});
my $content = q{SELECT md5(string_agg((d.serial_no, d."Id", d.tenant, d."Region", d.name, d.addresses, d.tags, d.p, d.f, d.m, d.b, d.ts, d.twice, d.always_id)::text, ';' ORDER BY tenant)) FROM app."Det ails" d};
my $before = $r->psql('usa', $content);
my $directory = q{SELECT md5(string_agg(d::text, ';' ORDER BY tenant)) FROM app."Dir ectory" d};

# a session that knows the tables as they were
my $old = $r->session('eu-west');
$old->query('SELECT count(*) FROM app."Dir ectory"; SELECT count(*) FROM app."Det ails"; SELECT name FROM residency.regions');

$r->psql('usa', q{SELECT residency.make_global('app."Dir ectory"', 'Region')});
is($r->all_equal($directory), $r->psql('usa', $directory), 'a filled global table is copied, generated columns and identity included');
my ($code, $out, $err) = $r->try('usa', q{SELECT residency.make_resident('app."Det ails"', 'Region', key => '{Id,tenant}', directory => 'app."Dir ectory"')});
is($code, 0, 'a filled table becomes resident') || diag($err);
like($err, qr/moving 100 rows of table app."Det ails" to region "eu-west"/, 'progress is shown');
like($err, qr/moved 200 rows.*VACUUM FULL usa."Det ails"/, 'and what remains to be done');
unlike($err, qr/statement trigger/, 'user triggers rest meanwhile');

is($r->psql($_, $content), $before, "$_ sees the same rows as before, in all columns") foreach $r->regions;
is($r->psql($_, 'SELECT count(*), min("Region"), max("Region") FROM ONLY ' . partition($_, '"Det ails"')), "100|$_|$_", "$_ stores its own rows only") foreach $r->regions;
is($r->psql($_, q{SELECT relation, kind, key, directory FROM residency.tables ORDER BY relation::text}),
	qq(app."Det ails"|resident|{Id,tenant}|app."Dir ectory"\napp."Dir ectory"|global|{tenant,Id}|), "declared in $_") foreach $r->regions;

# sequences: disjoint, above all that was given out
{
	my (%seen, $low);

	foreach my $region ($r->regions)
	{
		foreach my $sequence ('"Det ails_serial_no_seq"', '"Det ails_always_id_seq"', '"Dir ectory_Id_seq"')
		{
			foreach my $value (split /\n/, $r->psql($region, "SELECT nextval('app.$sequence') FROM generate_series(1, 20)"))
			{
				$seen{$sequence}{$value}++;
				$low = $value if !defined($low) || $value < $low;
			}
		}
	}
	is(scalar(grep { $_ > 1 } map { values %$_ } values %seen), 0, 'no value of a sequence is given out in two regions');
	is(scalar(map { keys %$_ } values %seen), 180, 'out of 180');
	cmp_ok($low, '>', 300, 'and none below those in use');
}

# identity columns still count, through the table, in every region and to every region
foreach my $gateway ($r->regions)
{
	foreach my $home ($r->regions)
	{
		my $tenant = $r->psql($gateway, qq{INSERT INTO app."Dir ectory" (tenant, "Region") VALUES (1000, '$home') RETURNING "Id"});

		$tenant =~ s/\s.*//s;
		like($r->psql($gateway, qq{INSERT INTO app."Det ails" ("Id", tenant, "Region", name) VALUES ($tenant, 1000, '$home', '$gateway to $home') RETURNING always_id, twice}),
			qr/^\d+\|2000/, "a row from $gateway to $home");
		is($r->psql($home, 'SELECT count(*) FROM ONLY ' . partition($home, '"Det ails"') . qq{ WHERE name = '$gateway to $home' AND tags = '{touched}'}), 1,
			'is there, touched once by the trigger');
	}
}

$old->query(q{INSERT INTO app."Dir ectory" (tenant, "Region") VALUES (2000, 'usa')});
is($r->psql($_, 'SELECT count(*) FROM app."Dir ectory" WHERE tenant = 2000'), 1, "a session from before has its row copied to $_") foreach $r->regions;
is($old->query('SELECT count(*) FROM app."Det ails"'), 309, 'and sees all rows');
$old->query('DELETE FROM app."Dir ectory" WHERE tenant = 2000');
$old->quit;

# keys and constraints at the home
$r->fails('usa', q{INSERT INTO app."Det ails" ("Id", tenant, "Region", name) VALUES (5, 77777, 'eu-west', 'x')}, '23503', qr/residency_home/, 'no row without one in the directory');
$r->fails('usa', q{INSERT INTO app."Det ails" ("Id", tenant, "Region", name) SELECT "Id", tenant, 'usa', 'x' FROM app."Dir ectory" WHERE "Region" = 'eu-west' LIMIT 1},
	'23503', qr/residency_home/, 'nor in another region than it says');
$r->fails('usa', q{UPDATE app."Det ails" SET tenant = -1 WHERE "Region" = 'eu-west'}, '23514', qr/eu-west/, 'checks are checked');
$r->fails($_, q{UPDATE app."Det ails" SET "Region" = 'usa' WHERE "Region" = 'eu-west' AND tenant = 1}, '0A000', qr/cannot change the region/, "the region cannot be changed in $_") foreach $r->regions;
$r->fails('usa', q{UPDATE app."Dir ectory" SET "Region" = 'usa' WHERE "Region" = 'eu-west'}, '0A000', qr/cannot change the region/, 'nor in the directory');

# comments, rights, row security, owner
is($r->psql($_, q{SELECT obj_description('app."Det ails"'::regclass), col_description('app."Det ails"'::regclass, attnum), pg_get_userbyid(relowner)
	FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.oid = 'app."Det ails"'::regclass AND attname = 'name'}), 'of persons|full name|owner', "comments and owner in $_") foreach $r->regions;
is($r->psql('usa', q{SET ROLE reader; SELECT count(*) FROM app."Det ails" WHERE tenant < 1000}), 299, 'row security hides one row, which is elsewhere');
$r->fails('usa', q{SET ROLE reader; UPDATE app."Det ails" SET f = 1}, '42501', qr/permission denied/, 'no right to update a column');
$r->psql('usa', everywhere('CREATE ROLE late; GRANT USAGE ON SCHEMA app TO late; CREATE POLICY late ON app."Det ails" TO late USING (tenant < 4)'));
$r->fails('usa', q{SET ROLE late; SELECT count(*) FROM app."Det ails"}, '42501', qr/permission denied/, 'no right yet');
$r->psql('usa', everywhere('GRANT ALL ON app."Det ails" TO late'));
is($r->psql('usa', q{SET ROLE late; SELECT count(*) FROM app."Det ails"}), 3, 'a right and a policy given later, on the table, hold at the homes');
is($r->psql('usa', q{SET ROLE late; WITH d AS (DELETE FROM app."Det ails" RETURNING 1) SELECT count(*) FROM d}), 3, 'also for DELETE');
$r->psql('eu-west', 'REVOKE SELECT ON app."Det ails" FROM reader');
$r->fails('usa', q{SET ROLE reader; SELECT count(*) FROM app."Det ails"}, '42501', qr/region "eu-west"/, 'a right revoked at the home is revoked');
is($r->psql($_, q{SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE inhparent = 'app."Det ails"'::regclass AND pg_get_userbyid(relowner) = 'owner'}), 3, "partitions in $_ have the owner") foreach $r->regions;

# ---- columns added and dropped later
$r->psql('usa', everywhere('ALTER TABLE app."Det ails" ADD COLUMN later text DEFAULT $$new$$, DROP COLUMN m; ALTER TABLE app."Dir ectory" ADD COLUMN later int'));
is($r->psql('usa', q{UPDATE app."Det ails" SET later = 'updated' WHERE tenant IN (5, 6, 7); SELECT count(*), count(*) FILTER (WHERE later = 'updated') FROM app."Det ails"}), '306|3', 'a column added everywhere');
$r->psql('usa', q{UPDATE app."Dir ectory" SET later = 1 WHERE tenant < 10});
$r->all_equal('SELECT sum(later) FROM app."Dir ectory"');
$r->fails('usa', 'ALTER TABLE app."Det ails" DROP COLUMN "Id"', '2BP01', qr/part of the key/, 'key columns stay');
$r->fails('usa', 'ALTER TABLE app."Dir ectory" RENAME "Region" TO r', '2BP01', qr/region column/, 'and so do region columns');

foreach my $column ('seen timestamptz DEFAULT now()', 'code float8 DEFAULT random()', 'key uuid DEFAULT gen_random_uuid()', 'more serial', 'other int GENERATED ALWAYS AS IDENTITY')
{
	$r->fails('usa', everywhere(qq{ALTER TABLE app."Dir ectory" ADD COLUMN $column}), '0A000', qr/would get other values in each region.*without a default/s,
		"a column of a global table would differ: $column");
}
$r->fails('usa', everywhere('ALTER TABLE app."Det ails" ADD COLUMN more serial'), '0A000', qr/same values in several regions/, 'and a sequence of a resident one');
$r->psql('usa', everywhere(q{ALTER TABLE app."Dir ectory" ADD COLUMN seen timestamptz, ADD COLUMN fixed timestamp DEFAULT '2026-01-01', ADD COLUMN thrice int GENERATED ALWAYS AS (tenant * 3) STORED;
	ALTER TABLE app."Dir ectory" ALTER seen SET DEFAULT now()}));
$r->psql('usa', everywhere(q{ALTER TABLE app."Dir ectory" ALTER fixed SET DEFAULT now(), ALTER later TYPE bigint}));
$r->psql('eu-west', q{UPDATE app."Dir ectory" SET seen = now() WHERE tenant < 5; INSERT INTO app."Dir ectory" (tenant, "Region") VALUES (3000, 'usa')});
$r->all_equal('SELECT md5(string_agg(d::text, $$;$$ ORDER BY tenant)) FROM app."Dir ectory" d', 'the way that the hint shows keeps copies equal');

# ---- refusals of make_resident: nothing is left behind
$r->psql('usa', everywhere(q{
	CREATE TABLE app.person (uuid uuid, region text NOT NULL, name text);
	CREATE TABLE app.viewed (uuid uuid PRIMARY KEY, region text NOT NULL); CREATE VIEW app.looks AS SELECT * FROM app.viewed;
	CREATE TABLE app.referred (uuid uuid PRIMARY KEY, region text NOT NULL); CREATE TABLE app.refers (uuid uuid REFERENCES app.referred);
	CREATE TABLE app.used_type (uuid uuid PRIMARY KEY, region text NOT NULL); CREATE FUNCTION app.uses(app.used_type) RETURNS int LANGUAGE sql AS 'SELECT 1';
	CREATE TABLE app.identity (uuid uuid PRIMARY KEY, region text NOT NULL);
	CREATE TABLE app.twice (uuid uuid NOT NULL, region text NOT NULL);
	CREATE TABLE app.orphan (uuid uuid NOT NULL, region text NOT NULL);
	CREATE TABLE app.spread (uuid uuid NOT NULL, region text NOT NULL);
	CREATE TABLE app.many (id int PRIMARY KEY, uuid uuid NOT NULL, region text NOT NULL);
	CREATE SCHEMA other; CREATE TABLE other.person (uuid uuid, region text NOT NULL);
	CREATE TABLE app.wrong_key (uuid text, region text NOT NULL);
}));
$r->psql('usa', q{SELECT residency.make_global('app.identity', 'region')});
$r->psql('usa', q{INSERT INTO app.identity VALUES ('00000000-0000-0000-0000-000000000001', 'usa'), ('00000000-0000-0000-0000-000000000002', 'eu-west');
	INSERT INTO app.twice SELECT * FROM app.identity; INSERT INTO app.twice SELECT * FROM app.identity;
	INSERT INTO app.orphan VALUES ('00000000-0000-0000-0000-000000000003', 'eu-west');
	INSERT INTO app.many SELECT row_number() OVER (), i.* FROM app.identity i, generate_series(1, 3)});
$r->psql('eu-west', q{INSERT INTO app.spread VALUES ('00000000-0000-0000-0000-000000000001', 'usa')});
my $shape = q{SELECT count(*), count(*) FILTER (WHERE relkind IN ('f', 'p')), (SELECT count(*) FROM pg_constraint), (SELECT count(*) FROM residency.rule) FROM pg_class};
my %shape = map { $_ => $r->psql($_, $shape) } $r->regions;
foreach my $case (
	['viewed', undef, undef, '2BP01', qr/depend on it.*view app.looks/s], ['referred', undef, undef, '2BP01', qr/depend on it.*refers_uuid_fkey/s],
	['used_type', undef, undef, '2BP01', qr/depend on it.*app.uses/s], ['person', '{nope}', undef, '42703', qr/key column "nope"/],
	['person', undef, 'app.many', '42809', qr/app.many is not a global table/], ['wrong_key', undef, 'app.identity', '42804', qr/another type/],
	['person', '{name}', 'app.identity', '42830', qr/not the primary key of directory/], ['twice', undef, 'app.identity', '23505', qr/more than one row of a key/],
	['orphan', undef, 'app.identity', '23503', qr/directory app.identity does not know/], ['spread', undef, undef, '55000', qr/holds rows of other regions/],
	['strange_region', '{id}', undef, '23514', qr/unknown regions: 'atlantis'/])
{
	my ($table, $key, $directory, $sqlstate, $like) = @$case;
	my $sql = "SELECT residency.make_resident('app.$table', 'region'" . (defined $key ? ", key => '$key'" : '') . (defined $directory ? ", directory => '$directory'" : '') . ')';

	$r->fails('usa', $sql, $sqlstate, $like, "make_resident refuses: $sql");
	unlike(($r->try('usa', $sql))[2], qr/00000000-0000/, 'without showing a value');
}
is($r->psql($_, $shape), $shape{$_}, "nothing has changed in $_") foreach $r->regions;
$r->psql('usa', q{SELECT residency.make_resident('app.person', 'region', directory => 'app.identity')});
$r->fails('usa', q{SELECT residency.make_resident('other.person', 'region')}, '42P07', qr/name of table other.person already/, 'two tables of one name');
$r->fails('usa', q{SELECT residency.make_resident('app.person', 'region')}, '42710', qr/declared already/, 'twice');
$r->fails('usa', q{SET ROLE owner; SELECT residency.make_resident('app.twice', 'region')}, '42501', qr/permission denied/, 'superusers only');

# a table with a key of its own keeps it; a key may have many rows then
$r->psql('usa', q{SELECT residency.make_resident('app.many', 'region', directory => 'app.identity')});
is($r->psql($_, 'SELECT count(*) FROM app.many'), 6, "six rows of two keys, seen in $_") foreach $r->regions;
$r->psql('usa', q{DELETE FROM app.many; DELETE FROM app.identity});
is($r->all_equal('SELECT count(*) FROM app.identity'), 0, 'rows and then their identities can be deleted');

# dropped tables are forgotten
$r->psql('usa', everywhere('DROP TABLE app.many, app.person'));
is($r->psql($_, q{SELECT count(*) FROM residency.rule WHERE relation::text !~ 'ect|Det|identity'}), 0, "dropped tables are forgotten in $_") foreach $r->regions;
is($r->psql($_, q{SELECT count(*) FROM pg_class WHERE relname = 'many'}), 0, "with all partitions in $_") foreach $r->regions;
is($r->prepared, 0, 'nothing prepared is left');

done_testing();
