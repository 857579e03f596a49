# A transaction in doubt may hold a whole table: DDL in all regions. Who waits for that is parsing or
# planning, where no timer of a statement runs, or committing.  The resolver ends such waits.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(faults => 1, conf => "residency.workers = on\nresidency.resolve_interval = 1s\nresidency.doubt_timeout = '1500ms'\n");
People::make($r);
People::make_function($r);
$r->psql('usa', "SELECT app.add(20, 'gbr', 'one'), app.add(30, 'aus', 'two')");
$r->psql('gbr', 'CREATE TABLE app.deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)');

# ms that something takes
sub ms { my ($what) = @_; my $begin = time; $what->(); return 1000 * (time - $begin); }

# sessions with a past: one that has planned before, and one that has not
my $session = $r->session('gbr', on_error_stop => 0, on_error_die => 0);
$session->query_safe('PREPARE later AS SELECT count(*) FROM gbr.details; EXECUTE later');

$r->arm('usa', 'decided:crash_server');
$r->try('usa', q{SELECT residency.run_everywhere($$ALTER TABLE app.identity ADD COLUMN doubtful int; ALTER TABLE gbr.details ALTER COLUMN name SET DEFAULT ''$$)});
ok($r->fired('usa'), 'the gateway died when it had decided');
is($r->psql('gbr', 'SELECT count(*) FROM pg_prepared_xacts'), 1, 'gbr is in doubt');

# every way of waiting for the table
my %ways = (
	'a query' => 'SELECT * FROM app.identity',
	'a query of a partition' => 'SELECT count(*) FROM gbr.details',
	'a write' => q{UPDATE app.identity SET note = 'later' WHERE id = 20},
	'a function' => q{DO $$ BEGIN PERFORM FROM app.identity; END $$},
	'a lock' => 'BEGIN; LOCK TABLE app.identity IN ACCESS SHARE MODE',
	'a copy' => 'COPY app.identity TO STDOUT',
	'DDL' => 'ALTER TABLE app.identity ADD COLUMN other int');
foreach my $way (sort keys %ways)
{
	my $took = ms(sub { $r->fails('gbr', $ways{$way}, '55P03', qr/in doubt keeps.*"usa"/s, "$way ends, and names the region that knows"); });
	ok($took > 1300 && $took < 6000, "$way: after residency.doubt_timeout ($took ms)");
}
$session->{stderr} = '';
$session->query('EXECUTE later');
like($session->{stderr}, qr/in doubt keeps.*"usa"/, 'a prepared statement as well');
$session->{stderr} = '';
is($session->query_safe('SELECT 1'), 1, 'and its session goes on');
is(grep({ !/"usa"/ } slurp_file($r->node('gbr')->logfile) =~ /ERROR:  .*/g), 0, 'the log says the same');
is($r->psql('gbr', q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'}), 0, 'nobody waits any more');

# what the session has set counts
my $took = ms(sub { $r->fails('gbr', q{SET residency.doubt_timeout = '3500ms'; SELECT * FROM app.identity}, '55P03', qr/"usa"/, 'a longer time-out of the session') });
ok($took > 3300, "counts ($took ms)");
$r->fails('gbr', q{SET residency.doubt_timeout = 0; SET statement_timeout = '6s'; SELECT * FROM app.identity}, '57014', qr/statement timeout/, 'and one of 0: no limit');
$took = ms(sub { $r->fails('gbr', 'SELECT * FROM app.identity', '55P03', qr/"usa"/, 'the next session') });
ok($took < 3300, "has the server's again ($took ms)");

# at another gateway, by way of the home; waits that are no doubts go on
$r->fails('aus', q{SELECT count(*) FROM app.details WHERE region = 'gbr'}, '55P03', qr/"usa"/, 'at another gateway too');
{
	my $holder = $r->session('gbr');

	$holder->query_safe('BEGIN; INSERT INTO app.deferred VALUES (1)');
	my ($code, $out, $err) = $r->try('gbr', q{SET lock_timeout = '4s'; INSERT INTO app.deferred VALUES (1)});
	like($err, qr/lock timeout/, 'a deferred constraint that waits for a running transaction is not ended');
	$holder->query_safe('ROLLBACK');
	$holder->quit;
}

$r->disarm('usa');
$r->revive('usa');
ok($r->poll('gbr', 'SELECT count(*) = 0 FROM pg_prepared_xacts'), 'usa is back: nothing is in doubt');
is($r->psql('gbr', 'SELECT count(doubtful) FROM app.identity'), 0, 'and the table is free');

# a deferred unique key at COMMIT waits for one in doubt
$r->psql('usa', 'SELECT residency.run_everywhere($$CREATE TABLE app.everywhere (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)$$)');
$r->arm('usa', 'decided:crash_server');
$r->try('usa', 'SELECT residency.run_everywhere($$INSERT INTO app.everywhere VALUES (1)$$)');
is($r->psql('gbr', 'SELECT count(*) FROM pg_prepared_xacts'), 1, 'gbr is in doubt again');
$took = ms(sub { $r->fails('gbr', 'BEGIN; INSERT INTO app.everywhere VALUES (1); COMMIT', '55P03', qr/in doubt keeps.*"usa"/s, 'a deferred unique key ends at COMMIT') });
ok($took > 1300 && $took < 6000, "in time ($took ms)");
$r->disarm('usa');
$r->revive('usa');
ok($r->poll('gbr', 'SELECT count(*) = 1 FROM app.everywhere'), 'and the row is there when the doubt is over');

done_testing();
