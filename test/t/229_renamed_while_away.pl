# A global row gets another primary key while a region is away: the region that comes back gives its own
# row the new key, so that what refers to the row there follows it, as it does in the others.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(relay => 1, delay => 2);
my $global = join(' ', map { "CREATE TABLE app.$_;" } 'country (code text PRIMARY KEY, region text NOT NULL, name text UNIQUE, note text)',
	'parent (id int PRIMARY KEY, region text NOT NULL, name text UNIQUE)',
	'child (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.parent ON UPDATE CASCADE, changes int NOT NULL DEFAULT 0)',
	'log (id int PRIMARY KEY, region text NOT NULL, about int)', 'node (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.node ON UPDATE CASCADE)',
	'named (id int PRIMARY KEY, region text NOT NULL, name text REFERENCES app.parent (name) ON UPDATE CASCADE)',
	'strict (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.parent DEFERRABLE)',
	'town (country text REFERENCES app.country ON UPDATE CASCADE, n int, region text NOT NULL, PRIMARY KEY (country, n))');
my @tables = $global =~ /TABLE (app\.\w+)/g;
$r->psql('usa', "SELECT residency.run_everywhere(\$\$ CREATE SCHEMA app; $global CREATE TABLE app.person (id int, region text NOT NULL, country text REFERENCES app.country ON UPDATE CASCADE ON DELETE CASCADE, PRIMARY KEY (id, region)) \$\$)");
$r->psql('usa', "SELECT residency.make_global('$_', 'region')") foreach @tables;
$r->psql('usa', q{SELECT residency.make_resident('app.person', 'region', key => '{id}')});
$r->psql($_, q{CREATE TABLE app.visit (id int, country text REFERENCES app.country ON UPDATE CASCADE ON DELETE SET NULL)}) foreach $r->regions;

# users' triggers run where something is written by a client, and only there
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE FUNCTION app.count() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.changes := OLD.changes + 1; RETURN NEW; END';
	CREATE FUNCTION app.tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO app.log SELECT coalesce(max(id), 0) + 1, ''gbr'', NEW.id FROM app.log; RETURN NULL; END';
	CREATE TRIGGER count BEFORE UPDATE ON app.child FOR EACH ROW EXECUTE FUNCTION app.count();
	CREATE TRIGGER tell AFTER UPDATE ON app.child FOR EACH ROW EXECUTE FUNCTION app.tell();
$$)});

# aus is left out by the others, or the other way round as well; and they are all together again
sub state { my ($here, $there, $state) = @_; $r->psql($here, "SELECT residency.set_region_state('$there', '$state')"); return; }
sub apart { state($_, 'aus', 'away') foreach qw(usa gbr); return; }
sub both_apart { apart(); state('aus', $_, 'away') foreach qw(usa gbr); return; }
sub together { state($_, 'aus', 'up') foreach qw(usa gbr); state('aus', $_, 'up') foreach qw(usa gbr); return; }
sub ship
{
	my ($from, $final, $to) = @_;
	$to //= 'aus';
	state($from, $to, 'catching up');
	return $r->psql($from, "SELECT residency.ship('$to', " . ($final ? 'true' : 'false') . ')');
}
sub ship_all { my @order = @_; foreach my $n (1 .. 3) { ship($_) foreach @order; } return; }

# the codes that residents and local rows refer to, in one region
my $followers = q{SELECT concat_ws('; ', (SELECT string_agg(id || coalesce(country, '-'), ' ' ORDER BY id) FROM app.person WHERE region = '%1$s'),
	(SELECT string_agg(id || coalesce(country, '-'), ' ' ORDER BY id) FROM app.visit))};
sub followers { my ($region) = @_; return $r->psql($region, sprintf($followers, $region)); }
sub none_left
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join(' ', map { $r->psql($_, "SELECT concat_ws('+', " . join(', ', map { "(SELECT count(*) FROM residency.$_)" } qw(backlog backlog_move conflict)) . ')') } $r->regions), '0+0+0 0+0+0 0+0+0', "$name: no note and no conflict is left");
	$r->all_equal('SELECT concat_ws(chr(10), ' . join(', ', map { "(SELECT '$_ ' || string_agg(t::text, ', ' ORDER BY t::text) FROM $_ AS t)" } @tables) . ')', "$name: all global tables are the same everywhere");
	is($r->prepared, 0, "$name: nothing is left prepared");
	return;
}

# two countries with people and visits in usa, gbr and aus
sub begin
{
	$r->psql('usa', "DELETE FROM $_") foreach 'app.town', 'app.person', 'app.child', 'app.log', 'app.node', 'app.named', 'app.strict', 'app.parent', 'app.country';
	$r->psql($_, 'DELETE FROM app.visit') foreach $r->regions;
	$r->psql('usa', q{INSERT INTO app.country VALUES ('GB', 'usa', 'Britain'), ('FR', 'usa', 'France')});
	$r->psql('usa', q{INSERT INTO app.person SELECT n, r, c FROM unnest(ARRAY['usa', 'gbr', 'aus']) r, (VALUES (1, 'GB'), (2, 'FR')) v (n, c)});
	$r->psql($_, q{INSERT INTO app.visit VALUES (1, 'GB'), (2, 'FR')}) foreach $r->regions;
	return;
}

# What is done at one gateway while aus is away has the same effects on what refers to it there
# as in a region that was up.
sub same_effect
{
	my ($name, $expected, @statements) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	foreach my $gateway (qw(usa gbr))
	{
		begin();
		apart();
		$r->psql($gateway, $_) foreach @statements;
		is(followers('aus'), '1GB 2FR; 1GB 2FR', "$name, at $gateway: aus knows nothing of it");
		ship_all('usa', 'gbr');
		together();
		is(followers('gbr'), $expected, "$name, at $gateway: what happens where the row is known");
		is(followers('aus'), $expected, 'happens in aus too');
		none_left("$name, at $gateway");
	}
	return;
}

same_effect('another key', '1UK 2FR; 1UK 2FR', q{UPDATE app.country SET code = 'UK' WHERE code = 'GB'});
same_effect('another key and other values', '1UK 2FR; 1UK 2FR', q{UPDATE app.country SET code = 'UK', name = 'United Kingdom' WHERE code = 'GB'; UPDATE app.country SET note = 'x'});
same_effect('another key twice', '1UK 2FR; 1UK 2FR', q{UPDATE app.country SET code = 'XX' WHERE code = 'GB'}, q{UPDATE app.country SET code = 'UK' WHERE code = 'XX'});
same_effect('twice in one transaction', '1UK 2FR; 1UK 2FR', q{BEGIN; UPDATE app.country SET code = 'XX' WHERE code = 'GB'; UPDATE app.country SET code = 'UK' WHERE code = 'XX'; COMMIT});
same_effect('another key and back', '1GB 2FR; 1GB 2FR', q{UPDATE app.country SET code = 'UK' WHERE code = 'GB'}, q{UPDATE app.country SET code = 'GB' WHERE code = 'UK'});
same_effect('two keys exchanged', '1FR 2GB; 1FR 2GB', q{UPDATE app.country SET code = 'XX' WHERE code = 'GB'}, q{UPDATE app.country SET code = 'GB' WHERE code = 'FR'}, q{UPDATE app.country SET code = 'FR' WHERE code = 'XX'});
same_effect('exchanged in one transaction', '1FR 2GB; 1FR 2GB', q{BEGIN; UPDATE app.country SET code = 'XX' WHERE code = 'GB'; UPDATE app.country SET code = 'GB' WHERE code = 'FR'; UPDATE app.country SET code = 'FR' WHERE code = 'XX'; COMMIT});
same_effect('a key that a later row has again', '1UK 2FR; 1UK 2FR', q{UPDATE app.country SET code = 'UK' WHERE code = 'GB'}, q{INSERT INTO app.country VALUES ('GB', 'usa', 'Other')});
same_effect('that row gets another one too', '1UK 2FR; 1UK 2FR', q{UPDATE app.country SET code = 'UK' WHERE code = 'GB'}, q{INSERT INTO app.country VALUES ('GB', 'usa', 'Other')}, q{UPDATE app.country SET code = 'XX' WHERE code = 'GB'});
same_effect('the key of a row that was deleted', '2GB; 1- 2GB', q{DELETE FROM app.country WHERE code = 'GB'}, q{UPDATE app.country SET code = 'GB' WHERE code = 'FR'});
same_effect('deleted afterwards', '2FR; 1- 2FR', q{UPDATE app.country SET code = 'UK' WHERE code = 'GB'}, q{DELETE FROM app.country WHERE code = 'UK'});
same_effect('deleted, and another row gets its key', '2UK; 1- 2UK', q{UPDATE app.country SET code = 'UK' WHERE code = 'GB'}, q{DELETE FROM app.country WHERE code = 'UK'}, q{UPDATE app.country SET code = 'UK' WHERE code = 'FR'});
same_effect('a row that aus never had', '1GB 2FR; 1GB 2FR', q{BEGIN; INSERT INTO app.country VALUES ('DE', 'usa', 'Germany'); UPDATE app.country SET code = 'D' WHERE code = 'DE'; COMMIT}, q{UPDATE app.country SET code = 'XX' WHERE code = 'D'});
same_effect('undone', '1GB 2FR; 1GB 2FR', q{BEGIN; UPDATE app.country SET code = 'UK' WHERE code = 'GB'; ROLLBACK}, q{BEGIN; SAVEPOINT a; UPDATE app.country SET code = 'UK' WHERE code = 'GB'; ROLLBACK TO a; UPDATE app.country SET note = 'x'; COMMIT});
same_effect('keys of which a row of a global table has one in its own', '1UK 2FR; 1UK 2FR', q{INSERT INTO app.town VALUES ('GB', 1, 'usa'), ('GB', 2, 'gbr')}, q{UPDATE app.country SET code = 'UK' WHERE code = 'GB'});

# --- tables that are global refer to it ------------------------------------------------------------------
# the row and the one that refers to it have different homes: neither can come without the other
foreach my $order ([ 'usa', 'gbr' ], [ 'gbr', 'usa' ])
{
	my $name = "@$order";
	begin();
	$r->psql('usa', q{INSERT INTO app.parent VALUES (1, 'usa', 'one'); INSERT INTO app.child VALUES (1, 'gbr', 1); INSERT INTO app.named VALUES (1, 'gbr', 'one');
		INSERT INTO app.node VALUES (1, 'usa', NULL), (2, 'gbr', 1), (3, 'usa', 2)});
	$r->psql('usa', q{INSERT INTO app.town VALUES ('GB', 1, 'usa'), ('GB', 2, 'gbr')});
	apart();
	$r->psql('usa', q{UPDATE app.parent SET id = 2 WHERE id = 1; UPDATE app.country SET code = 'UK' WHERE code = 'GB'; UPDATE app.node SET id = id + 10 WHERE id < 3});
	ship_all(@$order);
	is($r->psql('aus', q{SELECT (SELECT string_agg(parent::text, ' ') FROM app.child) || (SELECT string_agg(country, ' ') FROM app.town) || (SELECT string_agg(concat(id, '>', parent), ' ' ORDER BY id) FROM app.node)}), '2UK UK3>12 11> 12>11', "$name: rows that refer to one with another key follow it");
	$r->psql('usa', q{UPDATE app.parent SET name = 'two' WHERE id = 2});
	ship_all(@$order);
	is($r->psql('aus', q{SELECT name FROM app.named}), 'two', "$name: so do those that refer to another unique key");
	together();
	none_left($name);
}

# a row that aus alone has made refers to it: all get what it becomes there
begin();
$r->psql('usa', q{INSERT INTO app.parent VALUES (1, 'usa', 'one')});
both_apart();
$r->psql('usa', q{UPDATE app.parent SET id = 2 WHERE id = 1; UPDATE app.country SET code = 'UK' WHERE code = 'GB'});
$r->psql('aus', q{INSERT INTO app.child VALUES (5, 'aus', 1); INSERT INTO app.town VALUES ('GB', 5, 'aus')});
ship_all('usa');
is($r->psql('aus', q{SELECT (SELECT string_agg(parent::text, ' ') FROM app.child) || (SELECT string_agg(country, ' ') FROM app.town)}), '2UK', 'a row that was made in aus meanwhile follows');
ship('aus', 0, $_) foreach qw(usa gbr);
together();
none_left('made meanwhile');

# --- what stands against it --------------------------------------------------------------------------
# a reference without an action: what refers to the row was changed by hand, in another home
begin();
$r->psql('usa', q{INSERT INTO app.parent VALUES (1, 'usa', 'one'); INSERT INTO app.strict VALUES (1, 'gbr', 1)});
apart();
$r->psql('usa', q{BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE app.parent SET id = 2, name = 'two' WHERE id = 1; UPDATE app.strict SET parent = 2; UPDATE app.country SET code = 'UK' WHERE code = 'GB'; COMMIT});
cmp_ok(ship('usa'), '>', 0, 'what can be renamed is, beside what cannot');
is(followers('aus'), '1UK 2FR; 1UK 2FR', 'with what refers to it');
is($r->psql('aus', q{SELECT string_agg(concat(id, name), ' ') FROM app.parent}), '1one', 'the other row waits');
is(ship('gbr'), 0, 'as does the one that refers to it');
cmp_ok(ship('usa', 1), '>', 0, 'and when nothing else can cure it, it is shipped as two rows');
is(ship('gbr'), 1, 'what refers to the new one is taken');
$r->psql('usa', q{SELECT residency.resolve_conflict(relation, key) FROM residency.conflicts});
ship_all('usa');
together();
none_left('without an action');

# somebody writes what refers to it in aus
begin();
apart();
$r->psql('usa', q{UPDATE app.country SET code = 'UK', note = 'renamed' WHERE code = 'GB'; INSERT INTO app.country VALUES ('GB', 'usa', 'Other')});
my $writer = $r->session('aus');
$writer->query_safe(q{BEGIN; UPDATE app.visit SET id = id});
ship_all('usa');
is($r->psql('aus', q{SELECT string_agg(code || name, ' ' ORDER BY code) FROM app.country}), 'FRFrance GBBritain', 'a row that cannot be renamed now is left alone, and so is the one that has its key');
$writer->query_safe('COMMIT');
$writer->quit;
ship_all('usa');
together();
is(followers('aus'), '1UK 2FR; 1UK 2FR', 'until the writer is done');
none_left('a writer');

# one gateway's rename is noted, the next one's, back, comes directly: what is shipped late does not undo it
begin();
$r->psql('usa', q{INSERT INTO app.parent VALUES (1, 'usa', 'one'); INSERT INTO app.child VALUES (1, 'gbr', 1)});
apart();
$r->psql('usa', 'UPDATE app.parent SET id = 2 WHERE id = 1');
cmp_ok(ship('gbr', 1), '>', 0, 'what refers to the row cannot be taken yet');
state('gbr', 'aus', 'up');
$r->psql('gbr', 'UPDATE app.parent SET id = 1 WHERE id = 2');
is($r->psql('aus', 'SELECT parent FROM app.child'), 1, 'a rename back reaches the region directly');
ship('usa') foreach 1 .. 3;
is($r->psql('aus', 'SELECT string_agg(id::text, $$ $$) || (SELECT $$, $$ || parent FROM app.child) FROM app.parent'), '1, 1', 'and stays when the earlier one is shipped');
$r->psql($_, q{SELECT residency.resolve_conflict(relation, key) FROM residency.conflicts WHERE home = residency.own_region()}) foreach qw(usa gbr);
ship_all(qw(usa gbr));
together();
none_left('there and back by two ways');

# very many
begin();
$r->psql('usa', q{INSERT INTO app.country SELECT n, 'usa', 'country ' || n FROM generate_series(1, 12000) n});
$r->psql('aus', q{INSERT INTO app.visit SELECT n, n FROM generate_series(1, 12000) n});
apart();
$r->psql('gbr', q{UPDATE app.country SET code = 'c' || code WHERE code < 'A'});
1 while ship('usa');
together();
is($r->psql('aus', q{SELECT count(*) FROM app.visit WHERE country = 'c' || id}), 12000, 'of very many rows each is followed');
none_left('very many');

$r->teardown;
done_testing();
