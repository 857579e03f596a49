# What one statement, function or trigger does to rows of global tables one after another is valid
# where it is done, so it is in all other regions, although those get it as states of rows: keys that move
# up, values of unique keys that another row takes, foreign keys that act while triggers ask other regions.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 2);

sub everywhere { my ($sql) = @_; $r->psql('usa', "SELECT residency.run_everywhere(\$everywhere\$ $sql \$everywhere\$)"); return; }

# The SQL runs at each gateway, on these rows; afterwards all regions have what one server would have.
sub same
{
	my ($name, %o) = @_;

	foreach my $gateway ($r->regions)
	{
		foreach my $table (@{ $o{tables} }) { $r->psql('usa', "DELETE FROM app.$table"); }
		$r->psql('usa', $o{rows});
		my ($code, $out, $error) = $r->try($gateway, $o{sql});
		ok(!$code, "$name, at $gateway") or diag $error;
		is($r->all_equal($o{query}, $name), $o{result}, 'is the same everywhere');
	}
	return;
}

People::make($r);
everywhere(q{
	CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text);
	CREATE TABLE app.mail (id int PRIMARY KEY, region text NOT NULL, address text UNIQUE, note text);
	CREATE TABLE app.place (id int PRIMARY KEY, region text NOT NULL, n int UNIQUE DEFERRABLE, note text);
	CREATE TABLE app.parent (id int PRIMARY KEY, region text NOT NULL);
	CREATE TABLE app.child (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.parent ON DELETE CASCADE ON UPDATE CASCADE);
	CREATE TABLE app.strict (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.parent ON UPDATE RESTRICT);
	CREATE INDEX ON app.child (parent); CREATE INDEX ON app.strict (parent);
});
$r->psql('usa', "SELECT residency.make_global('app.$_', 'region')") foreach qw(item mail place parent child strict);

# --- keys that move up ---------------------------------------------------------------------------
# each region has rows of its own that follow
everywhere(q{CREATE TABLE app.follows (item int PRIMARY KEY REFERENCES app.item ON UPDATE CASCADE ON DELETE CASCADE, note text)});
my $items = q{SELECT (SELECT string_agg(id || note, ' ' ORDER BY id) FROM app.item), (SELECT string_agg(item || note, ' ' ORDER BY item) FROM app.follows)};
foreach my $homes ([qw(gbr gbr gbr)], [qw(usa gbr aus)])
{
	my $rows = join(', ', map { "($_, '$homes->[$_ - 2]', 'abc')" } 2 .. 4) =~ s/'abc'/'a'/r =~ s/'abc'/'b'/r =~ s/'abc'/'c'/r;
	my $follow = q{INSERT INTO app.follows SELECT id, upper(note) FROM app.item};
	my @all = (tables => ['item'], rows => "INSERT INTO app.item VALUES $rows", query => $items);

	foreach my $case (
		[ 'keys move up', 'UPDATE app.item SET id = id - 1', '1a 2b 3c|1A 2B 3C' ],
		[ 'a gap is closed', 'DELETE FROM app.item WHERE id = 2; UPDATE app.item SET id = id - 1', '2b 3c|2B 3C' ],
		[ 'two keys are swapped in a block', 'DO $$BEGIN UPDATE app.item SET id = 9 WHERE id = 2; UPDATE app.item SET id = 2 WHERE id = 3; UPDATE app.item SET id = 3 WHERE id = 9; END$$', '2b 3a 4c|2B 3A 4C' ],
		[ 'a key goes round', 'DO $$BEGIN UPDATE app.item SET id = 9 WHERE id = 2; UPDATE app.item SET id = 10 WHERE id = 9; UPDATE app.item SET id = 9 WHERE id = 4; END$$', '3b 9c 10a|3B 9C 10A' ],
		[ 'a key is made anew behind', q{DO $$BEGIN UPDATE app.item SET id = 9 WHERE id = 2; INSERT INTO app.item VALUES (2, 'aus', 'n'); UPDATE app.item SET id = 8 WHERE id = 2; END$$}, '3b 4c 8n 9a|3B 4C 9A' ])
	{
		foreach my $gateway ($r->regions)
		{
			my $name = "$case->[0], homes @$homes, at $gateway";
			my ($code, $out, $error);

			$r->psql('usa', 'DELETE FROM app.item');
			$r->psql('usa', "INSERT INTO app.item VALUES $rows");
			$r->psql($_, $follow) foreach $r->regions;
			($code, $out, $error) = $r->try($gateway, $case->[1]);
			ok(!$code, $name) or diag $error;
			is($r->all_equal($items, $name), $case->[2], 'is the same everywhere, and what belongs to the rows follows');
		}
	}
}

# --- values of another unique key -------------------------------------------------------------------
my @mail = (tables => ['mail'], rows => q{INSERT INTO app.mail VALUES (1, 'usa', 'a'), (2, 'gbr', 'b')}, query => q{SELECT string_agg(id || address, ' ' ORDER BY id) FROM app.mail});
same('a row written before takes the value of one that is deleted', @mail, result => '1b',
	sql => q{DO $$BEGIN UPDATE app.mail SET note = 'x' WHERE id = 1; DELETE FROM app.mail WHERE id = 2; UPDATE app.mail SET address = 'b' WHERE id = 1; END$$});
same('values are swapped in a block', @mail, result => '1b 2a',
	sql => q{DO $$BEGIN UPDATE app.mail SET address = 'tmp' WHERE id = 2; UPDATE app.mail SET address = 'b' WHERE id = 1; UPDATE app.mail SET address = 'a' WHERE id = 2; END$$});
same('a row that was written takes a value after the row that had it', @mail, result => '1b 2c',
	sql => q{BEGIN; UPDATE app.mail SET note = 'x' WHERE id = 1; UPDATE app.mail SET address = CASE id WHEN 2 THEN 'c' ELSE 'b' END; COMMIT});
# sent in the middle of the block, but not waited for
$r->psql('usa', q{DELETE FROM app.mail; INSERT INTO app.mail VALUES (1, 'gbr', 'a'), (2, 'aus', 'b')});
my $plain = q{UPDATE app.mail SET note = 'x'};
$r->warm('usa', $plain);
my $trips = $r->round_trips('usa', $plain);
is($r->round_trips('usa', q{DO $$BEGIN UPDATE app.mail SET address = 'tmp' WHERE id = 2; UPDATE app.mail SET address = 'b' WHERE id = 1; UPDATE app.mail SET address = 'a' WHERE id = 2; END$$}), $trips,
	'a block that passes values on takes as many round trips as one UPDATE');
cmp_ok($trips, '>', 0, 'which takes some');
my $many = 45000;
same('values of many rows move up', tables => ['place'], rows => "INSERT INTO app.place SELECT n, 'gbr', n, repeat('x', 200) FROM generate_series(1, $many) n",
	sql => 'UPDATE app.place SET n = n + 1', query => 'SELECT min(n), max(n), count(*) FROM app.place', result => "2|" . ($many + 1) . "|$many");

# --- foreign keys, and triggers in between -----------------------------------------------------------
my @family = (tables => [qw(strict child parent)], rows => q{INSERT INTO app.parent VALUES (1, 'usa'), (2, 'gbr'), (3, 'aus'); INSERT INTO app.child VALUES (1, 'gbr', 1), (2, 'usa', 2), (3, 'aus', 3)},
	query => q{SELECT (SELECT string_agg(id::text, ' ' ORDER BY id) FROM app.parent), (SELECT string_agg(id || '-' || parent, ' ' ORDER BY id) FROM app.child), (SELECT string_agg(id || '-' || parent, ' ' ORDER BY id) FROM app.strict)});
everywhere(q{
	CREATE FUNCTION app.caught() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN BEGIN PERFORM 1; EXCEPTION WHEN unique_violation THEN NULL; END; RETURN NULL; END $f$;
	CREATE FUNCTION app.asks() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN PERFORM count(*) FROM app.details; RETURN NULL; END $f$;
});
foreach my $function (qw(caught asks))
{
	foreach my $on (qw(parent child))
	{
		foreach my $kind ('AFTER DELETE OR UPDATE ON app.TABLE FOR EACH ROW', 'AFTER DELETE OR UPDATE ON app.TABLE FOR EACH STATEMENT')
		{
			my $trigger = $kind =~ s/TABLE/$on/r;
			everywhere("CREATE TRIGGER aa $trigger EXECUTE FUNCTION app.$function(); CREATE TRIGGER zz $trigger EXECUTE FUNCTION app.$function()");
			same("rows are deleted with those that refer to them; $function $trigger", @family, sql => 'DELETE FROM app.parent WHERE id < 3', result => '3|3-3|');
			same("keys change with those that refer to them; $function $trigger", @family, sql => 'UPDATE app.parent SET id = id + 10', result => '11 12 13|1-11 2-12 3-13|');
			everywhere("DROP TRIGGER aa ON app.$on; DROP TRIGGER zz ON app.$on");
		}
	}
}
same('a key that is not to change is there again', @family, result => '1 2 3 4|1-4 2-2 3-3|1-1',
	sql => q{DO $$BEGIN UPDATE app.parent SET id = 4 WHERE id = 1; INSERT INTO app.parent VALUES (1, 'gbr'); INSERT INTO app.strict VALUES (1, 'gbr', 1); END$$});
same('rows are deleted, then the table of those that refer to them is emptied', @family, result => '||',
	sql => q{DO $$BEGIN DELETE FROM app.parent; TRUNCATE app.child; END$$});

# a changed key does not keep all that is written later in the transaction in memory
$r->psql('usa', 'DELETE FROM app.item');
my $writer = $r->session('gbr');
$writer->query_safe($_) foreach 'BEGIN', q{INSERT INTO app.item VALUES (1, 'usa', 'x')}, 'UPDATE app.item SET id = 2', q{INSERT INTO app.item SELECT n, 'gbr', 'x' FROM generate_series(1001, 400000) n};
my $bytes = $writer->query_safe(q{SELECT coalesce(sum(total_bytes), 0) FROM pg_backend_memory_contexts WHERE name = 'residency notes'});
cmp_ok($bytes, '<', 40 * 1024 * 1024, 'very many rows after a changed key are not kept in memory');
$writer->query_safe(q{UPDATE app.item SET id = -id WHERE id = 300000; INSERT INTO app.item VALUES (300000, 'aus', 'anew')});
$writer->query_safe('COMMIT');
$writer->quit;
is($r->all_equal('SELECT count(*), sum(id), string_agg(note, $$ $$) FILTER (WHERE id IN (2, -300000, 300000)) FROM app.item', 'all of them'), '399002|' . (399000 * 401001 / 2 - 300000 - 300000 + 2 + 300000) . '|x x anew', 'and what changes later');

# a trigger at the home keeps a row of a piece from being written
everywhere(q{
	CREATE FUNCTION app.never() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN RETURN NULL; END $f$;
	CREATE TRIGGER never BEFORE INSERT OR UPDATE ON app.child FOR EACH ROW WHEN (new.id = 7) EXECUTE FUNCTION app.never();
	ALTER TABLE app.child ENABLE REPLICA TRIGGER never;
});
$r->psql('usa', q{DELETE FROM app.child; DELETE FROM app.parent; INSERT INTO app.parent SELECT n, 'usa' FROM generate_series(1, 2) n});
$r->psql('usa', q{WITH p AS (INSERT INTO app.parent SELECT n, repeat('gbr', 1) FROM generate_series(100, 150000) n) INSERT INTO app.child VALUES (7, 'gbr', 1), (8, 'gbr', 2)});
is($r->psql('gbr', 'SELECT string_agg(id::text, $$ $$) FROM app.child'), '8', 'a row that a trigger keeps from being written at home has no checks to wait for');
is($r->prepared, 0, 'nothing is left prepared');

$r->teardown;
done_testing();
