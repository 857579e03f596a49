# The test bed itself: what Regions.pm says of regions is so, and its tests can fail.
# The servers are plain ones: nothing of the extension is needed to know that.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use Regions;

my $r = Regions->new(extension => 0, relay => 1, delay => 20, scram => 1);

is(join(' ', $r->regions), 'usa gbr aus', 'three regions');
is($r->psql($_, 'SELECT current_database()'), 'app', "$_ runs") foreach $r->regions;

# one delay apart: dblink in usa asks gbr through the relay
$r->psql('usa', 'CREATE EXTENSION dblink');
{
	my $port = $r->relay->link('usa>gbr_by_hand', port => $r->port('gbr'), delay => 20);
	$r->warm('usa', "SELECT dblink_connect('gbr', 'host=127.0.0.1 port=$port dbname=app sslmode=disable')");
	my ($trips, $ms) = $r->round_trips('usa', "SELECT dblink_exec('gbr', 'SET work_mem = 100')");
	is($trips, 1, 'one round trip, counted at the client of usa');
	cmp_ok($ms, '>=', 40, 'took two delays');
	is($r->round_trips('usa', 'SELECT 1'), 0, 'nothing remote, none');
	is($r->first_round_trips('usa', "SELECT dblink_connect('gbr', 'host=127.0.0.1 port=$port dbname=app sslmode=disable')"),
		1, 'a new backend connects');
}

# agreement
$r->psql($_, 'CREATE TABLE t (v text)') foreach $r->regions;
$r->psql($_, q{INSERT INTO t VALUES ('same')}) foreach $r->regions;
is($r->all_equal('SELECT v FROM t'), 'same', 'the common answer is returned');
$r->psql('aus', q{UPDATE t SET v = 'other'});
is($r->disagreement('SELECT v FROM t'), 'usa: same / gbr: same / aus: other', 'disagreement is seen');

# errors by SQLSTATE
$r->fails('gbr', 'SELECT 1/0', '22012', qr/division by zero/, 'an error is known by its SQLSTATE');
my ($code, $out, $err) = $r->try('gbr', 'SELECT 7');
is("$code $out", '0 7', 'no error, and the answer');

# log-ins
$r->psql('gbr', q{CREATE ROLE somebody LOGIN PASSWORD 'right'});
my $to = 'host=127.0.0.1 port=' . $r->port('gbr') . ' dbname=app user=somebody password=';
is(($r->node('gbr')->psql('app', 'SELECT 1', connstr => "${to}right"))[0], 0, 'SCRAM lets the right one in');
is(($r->node('gbr')->psql('app', 'SELECT 1', connstr => "${to}wrong"))[0], 2, 'and no other');

# witness: heap and WAL, binary, log; where it is, and where it is not
{
	my $name = 'Zebedee' . '-Quill';
	my $uuid = '6f1d31a0-94c5-4a3e-8d7c-0123456789ab';

	$r->psql('gbr', "CREATE TABLE person (id uuid, name text); INSERT INTO person VALUES ('$uuid', '$name')");
	my @files = $r->witness('gbr', $name);
	ok(scalar(grep { m{/base/} } @files), 'found in the table');
	ok(scalar(grep { m{/pg_wal/} } @files), 'and in the WAL');
	ok(scalar(grep { m{/base/} } $r->witness('gbr', $uuid)), 'a UUID is found in its binary form');
	is(scalar($r->witness($_, $name)), 0, "not in $_") foreach qw(usa aus);
	$r->only_in($name, ['gbr'], 'so it is in gbr only');
	$r->try('aus', "SELECT '$name'::int");
	ok(scalar(grep { /\.log$/ } $r->witness('aus', $name)), 'found in a server log');
	like($r->misplaced($name, 'gbr'), qr/^aus: .*\.log$/, 'and then it is no longer in gbr only');
}

# lives
$r->kill9('gbr');
isnt(($r->try('gbr', 'SELECT 1'))[0], 0, 'a killed region does not answer');
$r->start('gbr');
is($r->psql('gbr', 'SELECT count(*) FROM person'), 1, 'and comes back with what it knew');
$r->psql('gbr', "BEGIN; INSERT INTO person VALUES (NULL, 'x'); PREPARE TRANSACTION 'p'");
is($r->prepared, 1, 'a prepared transaction is counted');
is($r->prepared('usa', 'aus'), 0, 'where it is');
$r->psql('gbr', "ROLLBACK PREPARED 'p'");

$r->teardown;
done_testing();
