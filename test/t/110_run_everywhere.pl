# DDL in all regions: one atomic commit, errors that name region and statement, no
# deadlock of two changes, and refusal of what cannot be atomic.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(relay => 1);

sub everywhere { return 'SELECT residency.run_everywhere(' . Regions::quote($_[0]) . ')'; }

$r->psql('usa', everywhere(q{
	CREATE SCHEMA app; -- a comment; with a semicolon
	CREATE TABLE app.t (a int, b text DEFAULT 'x;y');
	INSERT INTO app.t VALUES (1);
	CREATE FUNCTION app.f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END; $$;
}));
is($r->all_equal('SELECT a, b, app.f() FROM app.t'), '1|x;y|1', 'several statements run in all regions');
is($r->prepared, 0, 'nothing prepared is left');

# one round trip for the statements, one for PREPARE, one for COMMIT PREPARED
$r->warm('usa', everywhere('SELECT 1'));
$r->delay(20);
cmp_ok($r->round_trips('usa', everywhere('CREATE TABLE app.r1 (a int); CREATE TABLE app.r2 (a int); CREATE INDEX ON app.r1 (a); COMMENT ON TABLE app.r1 IS $$r$$')),
	'<=', 3, 'any number of statements costs one round trip and the commit');
$r->delay(0);

# names mean the same everywhere
$r->psql('usa', 'SET search_path = app; ' . everywhere('CREATE TABLE unqualified (a int)'));
$r->all_equal(q{SELECT to_regclass('app.unqualified')}, 'the search_path goes along');
isnt($r->psql('gbr', q{SELECT to_regclass('app.unqualified')}), '', 'and the table is there');

# all or nothing
$r->psql('aus', 'CREATE TABLE app.only_aus (a int)');
$r->fails('usa', everywhere('CREATE TABLE app.fine (a int); CREATE TABLE app.only_aus (a int); SELECT 1'),
	'42P07', qr/region "aus".*CONTEXT:  statement 2 of residency.run_everywhere\(\) in region "aus"/s, 'an error names the region and the statement');
is($r->all_equal(q{SELECT to_regclass('app.fine')}), '', 'nothing is left anywhere');
$r->fails('usa', everywhere('CREATE TABLE app.fine (a int); SELECT 1/0'), '22012', qr/statement 2 .* in region "usa"/, 'also of this region');
$r->fails('usa', 'BEGIN; ' . everywhere('CREATE TABLE app.fine (a int)') . '; SELECT 1/0', '22012', qr/division/, 'an error after it');
is($r->all_equal(q{SELECT to_regclass('app.fine')}), '', 'undone everywhere');
$r->fails('usa', everywhere('CREATE TABLE app.fine (a int); CREATE TABL x'), '42601', qr/syntax error/, 'a syntax error comes before anything runs');

# what cannot be atomic
foreach my $sql ('BEGIN', 'COMMIT', 'CREATE DATABASE x', 'VACUUM app.t', 'ALTER SYSTEM SET work_mem = 1', 'CREATE INDEX CONCURRENTLY ON app.t (a)',
	'NOTIFY x', 'SET work_mem = 1', 'COPY app.t FROM STDIN', 'CREATE TEMP TABLE x (a int)', 'PREPARE x AS SELECT 1', 'DROP INDEX CONCURRENTLY app.i')
{
	$r->fails('usa', everywhere("SELECT 1; $sql"), '0A000', qr/cannot be part of one atomic commit.*statement 2/s, "$sql is refused");
}
$r->psql('usa', everywhere('SET LOCAL work_mem = 100; ANALYZE app.t; SELECT 1'));
pass('SET LOCAL and ANALYZE are not');

# rights: the role is that of the admin mapping, which can be dropped after set-up
$r->psql('usa', 'CREATE ROLE deployer; GRANT EXECUTE ON FUNCTION residency.run_everywhere(text) TO deployer');
$r->psql('usa', 'DROP USER MAPPING FOR CURRENT_USER SERVER aus');
$r->fails('usa', everywhere('SELECT 1'), '42501', qr/no admin mapping for region "aus".*CREATE USER MAPPING/s, 'without admin mapping, nothing');
$r->psql('usa', "CREATE USER MAPPING FOR CURRENT_USER SERVER aus OPTIONS (user '$r->{user}')");

# a role that is no superuser, with mappings of its own
$r->psql('usa', "CREATE USER MAPPING FOR deployer SERVER $_ OPTIONS (user '$r->{user}')") foreach qw(gbr aus);
$r->fails('usa', 'SET ROLE deployer; ' . everywhere('CREATE TABLE app.deployed (a int)'), '42501', qr/permission denied for schema app/, 'own rights decide here');
$r->psql('usa', 'GRANT CREATE, USAGE ON SCHEMA app TO deployer');
$r->psql('usa', 'SET ROLE deployer; ' . everywhere('CREATE TABLE app.deployed (a int)'));
isnt($r->all_equal(q{SELECT to_regclass('app.deployed')}), '', 'a role that is no superuser can be granted it');

# two at once, at two gateways, in opposite order of locks: both succeed, one after the other
$r->psql('gbr', "CREATE USER MAPPING FOR CURRENT_USER SERVER $_ OPTIONS (user '$r->{user}')") foreach qw(usa aus);
{
	my ($one, $two) = map { $r->session($_) } qw(usa gbr);

	foreach my $i (1 .. 5)
	{
		$one->query_until(qr/started/, "\\echo started\n" . everywhere("ALTER TABLE app.t ADD COLUMN u$i int") . ";\n");
		$two->query_until(qr/started/, "\\echo started\n" . everywhere("ALTER TABLE app.t ADD COLUMN g$i int") . ";\n");
		$_->query('SELECT 1') foreach $one, $two;
	}
	$_->quit foreach $one, $two;
	is($r->all_equal(q{SELECT count(*) FROM pg_attribute WHERE attrelid = 'app.t'::regclass AND attname ~ '^[ug]\d$'}), 10, 'ten columns from two gateways');
}

# no lock is waited for longer than residency.lock_timeout
{
	my $holder = $r->session('gbr');

	$holder->query('BEGIN; LOCK TABLE app.t');
	$r->fails('usa', q{SET residency.lock_timeout = '300ms'; } . everywhere('ALTER TABLE app.t ADD COLUMN late int'),
		'55P03', qr/region "gbr"/, 'a lock held in another region ends the change');
	$holder->query('ROLLBACK');
	$holder->quit;
}
is($r->prepared, 0, 'nothing prepared is left at the end');

done_testing();
