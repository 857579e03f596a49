# Joining regions: what init() and add_region() refuse, that a refusal leaves nothing
# behind, that all regions learn of each other, and that no secret is written down.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $oesterreich = "\xc3\x96sterreich";
my $quoted = q{o'br "q"};
my $r = Regions->new(regions => [ 'usa', 'eu-west', $oesterreich, $quoted ], join => 0);
my $there = $r->connection('eu-west') . " user=$r->{user}";

sub state_here
{
	my ($region) = @_;
	return $r->psql($region, q{SELECT (SELECT count(*) FROM residency.region), (SELECT count(*) FROM pg_foreign_server),
		(SELECT count(*) FROM pg_user_mapping), (SELECT count(*) FROM pg_roles WHERE rolname ~ '^residency_'),
		(SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_')});
}

# init
$r->fails('usa', q{SELECT residency.add_region('gbr', 'host=x')}, '55000', qr/not a region yet.*HINT:.*residency\.init/s, 'init comes first');
foreach my $bad (['', '22023', qr/must not be empty/], ['pg_x', '42939', qr/reserved/], ['public', '42939', qr/reserved/],
	['residency', '42939', qr/reserved/], ['x' x 64, '42622', qr/63 bytes/])
{
	$r->fails('usa', "SELECT residency.init('$bad->[0]')", $bad->[1], $bad->[2], "name '$bad->[0]' is refused");
}
$r->fails('usa', q{SELECT residency.init('usa', 'host=x password=secret')}, '22023', qr/must not contain a password/, 'no password in a connection');
$r->psql('usa', q{SELECT residency.init('usa')});
$r->fails('usa', q{SELECT residency.init('gbr')}, '55000', qr/is region "usa" already.*HINT/s, 'init works once');
is($r->psql('usa', 'SELECT name, number, home FROM residency.regions'), 'usa|1|t', 'a deployment of one region');
$r->psql('usa', 'CREATE ROLE nobody');
$r->fails('usa', q{SET ROLE nobody; SELECT residency.run_everywhere('SELECT 1')}, '42501', qr/permission denied/, 'ordinary roles run nothing everywhere');
is($r->psql('usa', 'SET ROLE nobody; SELECT count(*) FROM residency.regions'), '1', 'but may see the regions');

# add_region: each thing that can be wrong is an error of its own, and changes nothing
my $before = state_here('usa');
my $other = state_here('eu-west');
sub refused
{
	my ($sql, $sqlstate, $like, $name) = @_;

	$r->fails('usa', $sql, $sqlstate, $like, $name);
	is(state_here('usa'), $before, "$name: nothing is left here");
	is(state_here('eu-west'), $other, "$name: nothing is left there");
}
refused("SELECT residency.add_region('eu-west', '$there password=secret')", '22023', qr/must not contain a password.*CREATE USER MAPPING/s, 'password');
refused("SELECT residency.add_region('eu-west', 'nonsense')", '22023', qr/connection string is not valid/, 'no connection string');
refused("SELECT residency.add_region('eu-west', 'host=127.0.0.1 port=1 dbname=app')", '08001', qr/eu-west/, 'no server there');
refused("SELECT residency.add_region('eu-west')", '22023', qr/no server yet/, 'neither server nor connection');
refused("SELECT residency.add_region('usa', '$there')", '42710', qr/has joined already/, 'own name');
refused("SELECT residency.add_region('pg_x', '$there')", '42939', qr/reserved/, 'reserved name');
refused("SELECT residency.add_region('eu-west', '" . $r->connection('usa') . " user=$r->{user}')", '22023', qr/leads back to this region/, 'own address');

$r->psql('eu-west', 'DROP EXTENSION residency');
$r->fails('usa', "SELECT residency.add_region('eu-west', '$there')", '55000',
	qr/is not installed in the database of region "eu-west".*CREATE EXTENSION/s, 'no extension there');
is(state_here('usa'), $before, 'no extension there: nothing is left here');
$r->psql('eu-west', 'CREATE EXTENSION residency');
$other = state_here('eu-west');

$r->psql('eu-west', q{CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'});
my $latin = $there =~ s/dbname=\w+/dbname=latin/r;
$r->node('eu-west')->safe_psql('latin', 'CREATE EXTENSION residency');
refused("SELECT residency.add_region('eu-west', '$latin')", '55000', qr/another encoding: LATIN1 there, UTF8 here/, 'other encoding');

$r->psql('eu-west', 'CREATE ROLE plain LOGIN');
refused("SELECT residency.add_region('eu-west', '" . $r->connection('eu-west') . " user=plain')", '42501', qr/must be superuser in region "eu-west"/, 'no superuser there');

$r->conf('eu-west', 'max_prepared_transactions = 0');
$r->restart('eu-west');
refused("SELECT residency.add_region('eu-west', '$there')", '55000', qr/no prepared transactions.*max_prepared_transactions = 200/s, 'no prepared transactions there');
$r->conf('eu-west', "max_prepared_transactions = 20\nshared_preload_libraries = ''");
$r->restart('eu-west');
refused("SELECT residency.add_region('eu-west', '$there')", '55000', qr/does not preload.*shared_preload_libraries = 'residency'/s, 'not preloaded there');
$r->fails('eu-west', q{SELECT residency.init('eu-west')}, '55000', qr/not set up to be a region.*shared_preload_libraries = 'residency'/s, 'init asks for it too');
$r->conf('eu-west', "shared_preload_libraries = 'residency'");
$r->restart('eu-west');

$r->psql('eu-west', q{SELECT residency.init('gbr')});
$other = state_here('eu-west');
refused("SELECT residency.add_region('eu-west', '$there')", '55000', qr/is region "gbr" already/, 'another name there');
$r->psql('eu-west', 'DROP EXTENSION residency CASCADE; DROP SCHEMA gbr; CREATE EXTENSION residency');
$other = state_here('eu-west');

$r->psql('usa', q{SELECT residency.set_connection('host=127.0.0.1 port=1 dbname=app')});
refused("SELECT residency.add_region('eu-west', '$there')", '08001', qr/region "eu-west" cannot reach region "usa".*set_connection/s, 'no way back');
$r->psql('usa', q{SELECT residency.set_connection('} . $r->connection('usa') . q{')});

# in one atomic commit: what fails at the very end is undone everywhere
$r->fails('usa', "BEGIN; SELECT residency.add_region('eu-west', '$there'); SELECT 1/0", '22012', qr/division/, 'an error after it');
is(state_here('usa'), $before, 'undone here');
is(state_here('eu-west'), $other, 'undone there');

# joining, with names that need quotes, initialised or not, and a server made by hand
$r->psql('usa', "SELECT residency.add_region('eu-west', '$there')");
($before, $other) = (state_here('usa'), state_here('eu-west'));
refused("SELECT residency.add_region('eu-west', '$there')", '42710', qr/has joined already/, 'twice');
$r->psql($oesterreich, "SELECT residency.init('$oesterreich')");
my $incarnation = $r->psql($oesterreich, 'SELECT incarnation FROM residency.self');
$r->psql('usa', "SELECT residency.add_region('$oesterreich', '" . $r->connection($oesterreich) . " user=$r->{user}')");
is($r->psql($oesterreich, 'SELECT incarnation FROM residency.self'), $incarnation, 'a region keeps its incarnation');
$r->psql('usa', 'CREATE SERVER ' . Regions::identifier($quoted) . " FOREIGN DATA WRAPPER residency OPTIONS (host '127.0.0.1', port '"
	  . $r->port($quoted) . "', dbname 'app', sslmode 'disable')");
$r->psql('usa', 'CREATE USER MAPPING FOR CURRENT_USER SERVER ' . Regions::identifier($quoted) . " OPTIONS (user '$r->{user}')");
$r->psql('usa', 'SELECT residency.add_region(' . Regions::quote($quoted) . ')');

is($r->all_equal('SELECT name, number, incarnation FROM residency.region ORDER BY number') =~ tr/\n//, 3, 'four regions');
$r->all_equal('SELECT deployment FROM residency.self');
is($r->psql($_, 'SELECT name FROM residency.regions WHERE home'), $_, "$_ knows itself") foreach $r->regions;
is($r->psql($_, q{SELECT count(*) FROM pg_foreign_server s JOIN residency.region r ON s.srvname = r.name}), 3, "servers in $_") foreach $r->regions;
is($r->psql($_, q{SELECT count(*) FROM pg_namespace n JOIN residency.region r ON n.nspname = r.name}), 4, "schemas in $_") foreach $r->regions;
is($r->psql($_, q{SELECT count(*) FROM pg_roles p JOIN residency.region r ON p.rolname = r.role
	WHERE p.rolcanlogin AND NOT p.rolinherit AND NOT p.rolsuper}), 3, "gateway roles in $_") foreach $r->regions;
is($r->psql($_, q{SELECT count(*) FROM pg_authid a JOIN residency.region r ON a.rolname = r.role WHERE a.rolpassword LIKE 'SCRAM-SHA-256$%'}),
	3, "SCRAM verifiers in $_") foreach $r->regions;
is($r->prepared, 0, 'nothing prepared is left');

# every region reaches every other with its own credential
foreach my $gateway ($r->regions)
{
	is($r->psql($gateway, q{SELECT count(*) FROM pg_user_mappings m WHERE m.usename = 'public'}), 3, "mappings of $gateway");
}

# secrets: not to be read by ordinary users, and written down nowhere but in the mapping
my @secrets = split /\n/, $r->psql('usa', q{SELECT o.option_value FROM pg_user_mapping m CROSS JOIN LATERAL pg_options_to_table(m.umoptions) o
	WHERE o.option_name = 'password'});
is(scalar(@secrets), 3, 'three secrets in usa');
is(scalar(grep { /^[0-9a-f]{48}$/ } @secrets), 3, 'of 192 bits');
is($r->psql('usa', q{SET ROLE nobody; SELECT count(*) FROM pg_user_mappings WHERE umoptions IS NOT NULL}), 0, 'hidden from ordinary users');
foreach my $region ($r->regions)
{
	foreach my $secret (@secrets)
	{
		my $log = slurp_file($r->node($region)->logfile);

		ok(index($log, $secret) < 0, "a secret is not in the log of $region");
	}
	ok(slurp_file($r->node($region)->logfile) !~ /SCRAM-SHA-256\$/, "nor a verifier in the log of $region");
}

# renew
$r->psql('usa', 'SELECT residency.renew()');
isnt($r->psql('usa', 'SELECT incarnation FROM residency.self'), '', 'there is an incarnation');
$r->all_equal('SELECT incarnation FROM residency.region ORDER BY number', 'all regions know the new incarnation');
is($r->psql('usa', 'SELECT count(*) FROM residency.region r JOIN residency.self s ON r.name = s.region AND r.incarnation = s.incarnation'), 1, 'and it is ours');

done_testing();
