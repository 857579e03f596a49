# A statement over regions behaves as one statement: it does not see its own writes, it
# rechecks rows that changed under it, and it ends cleanly when a region's session does.
use strict;
use warnings;

use Regions;
use Test::More;

my $r = Regions->new(regions => [qw(usa gbr)]);

$r->psql('usa', "SELECT residency.run_everywhere(\$\$$_\$\$)") foreach
  'CREATE TABLE public.item (id int PRIMARY KEY, region text NOT NULL, n int)';
$r->psql('usa', "SELECT residency.make_resident('item', 'region', key => '{id}')");
$r->psql('usa', q{
	CREATE TABLE public.here (id int PRIMARY KEY, n int);
	INSERT INTO here SELECT i, 0 FROM generate_series(1, 10) i;
	INSERT INTO item SELECT i, 'gbr', i FROM generate_series(1, 3000) i;
	INSERT INTO item SELECT i, 'usa', i FROM generate_series(3001, 3010) i;
	CREATE FUNCTION same(i int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN i; END';
});
my $count = sub { my ($where) = @_; return $r->psql('gbr', 'SELECT count(*) FROM gbr.item WHERE ' . ($where // 'true')); };

# rows that a statement writes are not rows that it reads
$r->psql('usa', q{INSERT INTO item SELECT id + 10000, region, n FROM item});
is($count->(), 6000, 'INSERT from the table itself');
$r->psql('usa', q{SET residency.fetch_size = 64; INSERT INTO item SELECT id + 20000, 'gbr', n FROM item});
is($count->(), 12020, 'in several batches');
$r->psql('usa', 'UPDATE item SET n = same(n) + 1 WHERE id < 20000');
is($count->('n = id % 10000 + 1 AND id < 20000'), 6000, 'UPDATE row by row changes each row once');
is($r->psql('usa', q{SET residency.fetch_size = 64; DELETE FROM item a USING item b WHERE same(a.id) = b.id + 10000 AND b.id % 10 = 0 AND a.region = 'gbr' RETURNING 1}) =~ tr/1//, 300 + 301 + 301,
	'DELETE joined to the table itself');
is($count->(), 12020 - 902, 'and what it leaves');
is($r->psql('usa', q{
	SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off;
	WITH w AS (INSERT INTO item SELECT id + 50000, 'gbr', 0 FROM here RETURNING id)
	SELECT count(*), (SELECT count(*) FROM item WHERE id > 50000), sum((SELECT count(*) FROM item i WHERE i.id = w.id)) FROM w}),
	'10|0|0', 'scans that begin behind a write of their own statement do not see it');
is($count->('id > 50000'), 10, 'but the rows are there afterwards');
is($r->psql('usa', q{
	CREATE FUNCTION rows_now() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT count(*) FROM item WHERE id > 60000';
	BEGIN; INSERT INTO item VALUES (60001, 'gbr', 0); SELECT rows_now(); ROLLBACK}), 1, 'the next statement sees them');

# a row that changes under a statement is looked at again
my $waiting = q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'};
{
	my $a = $r->session('usa');
	my $b = $r->session('usa');

	$a->query('BEGIN; UPDATE here SET n = 5 WHERE id = 3');
	$b->query_until(qr/begun/, "\\echo begun\nUPDATE here h SET n = h.n + i.n FROM gbr.item i WHERE i.id = h.id AND i.id IN (3, 4);\n");
	ok($r->poll('usa', $waiting), 'a statement waits for a local row');
	$a->query('COMMIT');
	is($b->query('SELECT id, n FROM here WHERE id IN (3, 4) ORDER BY id'), "3|9\n4|5", 'and takes its new version, with the remote row that it had joined');
	$_->quit foreach $a, $b;
}
{
	my $a = $r->session('gbr');
	my $b = $r->session('usa');

	$a->query('BEGIN; UPDATE gbr.item SET n = 1000 WHERE id = 3');
	$b->query_until(qr/begun/, "\\echo begun\nUPDATE item SET n = same(n) + 1 WHERE id IN (3, 5);\n");
	ok($r->poll('gbr', $waiting), 'a statement waits for a remote row');
	$a->query('COMMIT');
	is($b->query('SELECT id, n FROM item WHERE id IN (3, 5) ORDER BY id'), "3|1001\n5|7", 'and takes its new version');
	$_->quit foreach $a, $b;
}
{
	my $a = $r->session('gbr');
	my $b = $r->session('usa');

	$a->query('BEGIN; UPDATE gbr.item SET n = -1 WHERE id = 6; DELETE FROM gbr.item WHERE id = 7');
	$b->query_until(qr/begun/, "\\echo begun\nUPDATE item SET n = same(n) + 1 WHERE id IN (6, 7, 8) AND n > 0;\n");
	ok($r->poll('gbr', $waiting), 'a statement waits for rows that will not fit any more');
	$a->query('COMMIT');
	is($b->query('SELECT id, n FROM item WHERE id IN (6, 7, 8) ORDER BY id'), "6|-1\n8|10", 'and leaves them');
	$_->quit foreach $a, $b;
}

# a cursor that is held is read to its end at COMMIT, whatever its size
is($r->psql('usa', q{
	SET residency.fetch_size = 64;
	INSERT INTO item SELECT i, 'gbr', i FROM generate_series(100001, 130000) i;
	BEGIN;
	DECLARE c CURSOR WITH HOLD FOR SELECT id FROM item WHERE id > 100000 ORDER BY id;
	FETCH 2 FROM c;
	COMMIT;
	MOVE 29997 IN c;
	FETCH 2 FROM c;
	CLOSE c;
	DELETE FROM item WHERE id > 100000;
}), "100001\n100002\n130000", 'a large cursor WITH HOLD');
is($r->psql('usa', q{
	CREATE PROCEDURE step() LANGUAGE plpgsql AS $$
	DECLARE r record; n int := 0;
	BEGIN
		FOR r IN SELECT id FROM gbr.item WHERE id <= 5 ORDER BY id LOOP
			UPDATE item SET n = 0 WHERE id = r.id;
			n := n + 1;
			COMMIT;
		END LOOP;
		INSERT INTO here VALUES (100, n);
	END $$;
	CALL step();
	SELECT n FROM here WHERE id = 100;
}), 5, 'a procedure that commits inside a loop over a scan');

# the home's session goes away
my $session = $r->session('usa', on_error_stop => 0);
$session->query('SET residency.fetch_size = 64; BEGIN; DECLARE c CURSOR FOR SELECT id FROM gbr.item; FETCH 1 FROM c');
is($r->psql('gbr', q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'residency_usa' AND pid <> pg_backend_pid()}), 1, 'the home ends the session');
$session->query('FETCH ALL FROM c; UPDATE item SET n = 1 WHERE id = 1');
like($session->{stderr}, qr/region "gbr".*(lost|terminat)/s, 'the statement says that the connection is lost');
$session->{stderr} = '';
$session->query('ROLLBACK');
is($session->query('SELECT count(*) FROM item WHERE id <= 10'), 9, 'the session goes on with a new connection');

# the gateway's session goes away in the middle of a scan
my $pid = $session->query('SELECT pg_backend_pid()');
$session->query('BEGIN; DECLARE c CURSOR FOR SELECT id FROM gbr.item; FETCH 1 FROM c');
$r->psql('usa', "SELECT pg_terminate_backend($pid)");
ok($r->poll('gbr', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'residency_usa'}), 'nothing is left at the home');

done_testing();
