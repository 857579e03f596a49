# Rows made apart that cannot both be: they end in residency.conflicts, whole, in two regions;
# shipping goes on, all copies become equal, and residency.resolve_conflict() decides.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(relay => 1, delay => 2);
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE SCHEMA app;
	CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text, size int GENERATED ALWAYS AS (length(note)) STORED);
	CREATE TABLE app.mail (id int PRIMARY KEY, region text NOT NULL, address text UNIQUE);
	CREATE TABLE app.tag (name text PRIMARY KEY, region text NOT NULL, mail text UNIQUE);
	CREATE TABLE app.node (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.node);
$$)});
$r->psql('usa', qq{SELECT residency.make_global('app.$_', 'region')}) foreach qw(item mail tag node);

# aus on one side, usa and gbr on the other; and all together again, not caught up
sub apart
{
	$r->away('aus');
	$r->psql($_, q{SELECT residency.set_region_state('aus', 'away')}) foreach qw(usa gbr);
	$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'away')}) foreach qw(usa gbr);
	return;
}
sub together
{
	$r->back('aus');
	$r->psql($_, q{SELECT residency.set_region_state('aus', 'catching up')}) foreach qw(usa gbr);
	$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'catching up')}) foreach qw(usa gbr);
	return;
}
sub all_up
{
	$r->psql($_, q{SELECT residency.set_region_state('aus', 'up')}) foreach qw(usa gbr);
	$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'up')}) foreach qw(usa gbr);
	is(join(' ', map { $r->psql($_, 'SELECT count(*) FROM residency.backlog') } $r->regions), '0 0 0', 'no note is left');
	is($r->prepared, 0, 'nothing is left prepared');
	return;
}
sub ship
{
	my ($from, $to, $final) = @_;
	return $r->psql($from, "SELECT residency.ship('$to', " . ($final ? 'true' : 'false') . ')');
}
sub conflicts
{
	my ($region) = @_;
	return $r->psql($region, q{SELECT coalesce(string_agg(concat_ws(' ', relation, key, kind, home, region, constraint_name, row), ', ' ORDER BY relation::text, key, region), '') FROM residency.conflicts});
}

# --- one key, made apart ------------------------------------------------------------------------
# whichever side ships first, the region first by name wins
foreach my $first (qw(aus usa))
{
	my $id = $first eq 'aus' ? 1 : 2;
	my $said = "app.item {$id} key aus usa {\"id\": $id, \"note\": \"from usa\", \"size\": 8, \"region\": \"usa\"}";

	apart();
	$r->psql('usa', "INSERT INTO app.item VALUES ($id, 'usa', 'from usa'), ($id + 50, 'usa', 'goes on')");
	$r->psql('aus', "INSERT INTO app.item VALUES ($id, 'aus', 'from aus')");
	together();
	if ($first eq 'usa')
	{
		is(ship('usa', 'aus'), 2, 'the region that is second by name ships its row');
		is($r->psql('aus', "SELECT count(*) || min(note) FROM app.item WHERE id IN ($id, $id + 50) AND region = CASE id WHEN $id THEN 'aus' ELSE 'usa' END"), '2from aus', 'which is not written, but others are');
		is(conflicts('usa') . conflicts('aus'), '', 'that is no conflict yet');
	}
	is(ship('aus', 'usa'), 1, 'the region first by name ships its row');
	is(ship('aus', 'gbr'), 1, 'also to who had the other one');
	ship('usa', 'aus');
	is($r->all_equal(qq{SELECT region || ': ' || note FROM app.item WHERE id = $id}, 'it holds everywhere'), 'aus: from aus', 'with its home');
	is(conflicts($_), $said, "$_ keeps the other row") foreach qw(usa aus);
	is(conflicts('gbr'), '', 'gbr has nothing to do with it');
	all_up();
	foreach my $gateway ($r->regions)
	{
		$r->fails($gateway, "UPDATE app.item SET note = 'x' WHERE id = $id", '40001', qr/item/, "$gateway: the key cannot be written");
		$r->fails($gateway, "DELETE FROM app.item WHERE id = $id", '40001', qr/item/, "$gateway: nor deleted");
	}
	$r->psql('gbr', "UPDATE app.item SET note = 'other' WHERE id = $id + 50");
	$r->fails('gbr', "SELECT residency.resolve_conflict('app.item', '{$id}')", '02000', qr/no conflict/, 'only who knows the conflict can decide');
	if ($first eq 'aus')
	{
		$r->psql('usa', "SELECT residency.resolve_conflict('app.item', '{$id}')");
		is($r->all_equal("SELECT note FROM app.item WHERE id = $id", 'the current row is kept'), 'from aus', 'as it was');
	}
	else
	{
		$r->psql('aus', "SELECT residency.resolve_conflict('app.item', '{$id}', 'stored', '{\"id\": 60}')");
		is($r->all_equal("SELECT string_agg(region || ' ' || note, ' ' ORDER BY id) FROM app.item WHERE id IN ($id, 60)", 'the stored row gets another key'), 'aus from aus usa from usa', 'beside the other one');
	}
	is(conflicts('usa') . conflicts('aus'), '', 'the conflict is decided');
	$r->psql('gbr', "UPDATE app.item SET note = 'free' WHERE id = $id");
	is($r->all_equal("SELECT note FROM app.item WHERE id = $id", 'and the key can be written'), 'free', 'everywhere');
}

# the row that lost is written over the other one
apart();
$r->psql('usa', "INSERT INTO app.item VALUES (3, 'usa', 'from usa')");
$r->psql('aus', "INSERT INTO app.item VALUES (3, 'aus', 'from aus')");
together();
ship('aus', 'usa');
ship('aus', 'gbr');
all_up();
$r->psql('usa', q{SELECT residency.resolve_conflict('app.item', '{3}', 'stored')});
is($r->all_equal('SELECT region || note FROM app.item WHERE id = 3', 'the stored row is written over it'), 'ausfrom usa', 'and the home stays');

# one of the two is gone again
apart();
$r->psql('usa', "INSERT INTO app.item VALUES (4, 'usa', 'from usa')");
$r->psql('aus', "INSERT INTO app.item VALUES (4, 'aus', 'from aus')");
$r->psql('usa', 'DELETE FROM app.item WHERE id = 4');
together();
is(ship('usa', 'aus') . ship('aus', 'usa') . ship('aus', 'gbr'), '111', 'a row that is gone is no rival');
is($r->all_equal('SELECT note FROM app.item WHERE id = 4', 'the other row holds'), 'from aus', 'without a conflict');
is(conflicts('usa') . conflicts('aus'), '', 'indeed');
all_up();

# all three have made it, none of them knowing of another one
apart();
$r->away('gbr');
$r->psql('usa', q{SELECT residency.set_region_state('gbr', 'away')});
$r->psql('gbr', q{SELECT residency.set_region_state('usa', 'away')});
$r->psql($_, "INSERT INTO app.item VALUES (7, '$_', 'from $_')") foreach $r->regions;
$r->back('gbr');
$r->psql('usa', q{SELECT residency.set_region_state('gbr', 'catching up')});
$r->psql('gbr', q{SELECT residency.set_region_state('usa', 'catching up')});
together();
is(ship('gbr', 'usa'), 1, 'the second one ships to the third one first');
is($r->psql('usa', 'SELECT note FROM app.item WHERE id = 7'), 'from gbr', 'and holds there');
is(ship('usa', 'gbr') . ship('usa', 'aus'), '00', 'which has nothing to ship any more');
is(ship('gbr', 'aus') . ship('aus', 'gbr') . ship('aus', 'usa'), '111', 'then it meets the first one');
ship('gbr', 'usa');
is($r->all_equal('SELECT region || note FROM app.item WHERE id = 7', 'whose row holds everywhere'), 'ausfrom aus', 'in the end');
is(join(', ', map { $r->psql($_, q{SELECT string_agg(home || '>' || region || (row ->> 'note'), '+' ORDER BY home) FROM residency.conflicts}) } $r->regions),
	'gbr>usafrom usa, aus>gbrfrom gbr+gbr>usafrom usa, aus>gbrfrom gbr', 'and both of the others are kept');
$r->psql('usa', q{SELECT residency.set_region_state('gbr', 'up')});
$r->psql('gbr', q{SELECT residency.set_region_state('usa', 'up')});
all_up();
$r->fails('gbr', q{SELECT residency.resolve_conflict('app.item', '{7}', 'stored', '{"id": 51}')}, '23505', qr/item_pkey/, 'a key that another row has is refused');
$r->psql('gbr', q{SELECT residency.resolve_conflict('app.item', '{7}', 'stored', '{"id": 70}')});
is(join(', ', map { $r->psql($_, q{SELECT string_agg(home || '>' || region, '+') FROM residency.conflicts}) } $r->regions), 'gbr>usa, gbr>usa, ', 'a decision is about one of them');
$r->psql('gbr', q{UPDATE app.item SET note = 'free' WHERE id = 7});
$r->psql('usa', q{SELECT residency.resolve_conflict('app.item', '{7}', 'stored', '{"id": 71}')});
is($r->all_equal(q{SELECT string_agg(concat_ws(' ', id, region, note), ', ' ORDER BY id) FROM app.item WHERE id IN (7, 70, 71)}, 'all copies are equal'),
	'7 aus free, 70 gbr from gbr, 71 usa from usa', 'and nothing is lost');
is(conflicts('usa') . conflicts('aus') . conflicts('gbr'), '', 'when all is decided');
all_up();

# --- a second unique key --------------------------------------------------------------------------------
$r->psql('usa', q{INSERT INTO app.mail VALUES (1, 'usa', 'a'), (2, 'usa', 'b')});
apart();
$r->psql('usa', q{UPDATE app.mail SET address = 'c' WHERE id = 1; UPDATE app.mail SET address = 'a' WHERE id = 2; UPDATE app.mail SET address = 'b' WHERE id = 1});
$r->psql('usa', q{INSERT INTO app.mail VALUES (10, 'usa', 'x'), (12, 'usa', 'fine')});
$r->psql('aus', q{INSERT INTO app.mail VALUES (11, 'aus', 'x')});
together();
is(ship('usa', 'aus'), 1, 'what breaks a unique key waits for what may cure it');
is(ship('usa', 'aus', 1), 3, 'and goes to the conflicts when nothing is left to come');
is($r->psql('aus', 'SELECT string_agg(concat(id, address), $$ $$ ORDER BY id) FROM app.mail'), '1a 2b 11x 12fine', 'the region has its own row, and all others');
is(conflicts('aus'), 'app.mail {1} unique usa aus mail_address_key {"id": 1, "region": "usa", "address": "b"}, '
	  . 'app.mail {10} unique usa aus mail_address_key {"id": 10, "region": "usa", "address": "x"}, '
	  . 'app.mail {2} unique usa aus mail_address_key {"id": 2, "region": "usa", "address": "a"}', 'they are kept whole');
is(conflicts('usa'), conflicts('aus'), 'at home too');
is(ship('aus', 'usa', 1) . ship('aus', 'gbr', 1), '11', 'the other side\'s row cannot be shipped either');
all_up();
$r->psql('aus', q{UPDATE app.mail SET address = 'y' WHERE id = 11});
$r->psql('usa', q{SELECT residency.resolve_conflict('app.mail', '{10}')});
is(ship('usa', 'aus'), 1, 'when the cause is gone, the row is shipped again');
$r->psql('aus', q{SELECT residency.resolve_conflict('app.mail', '{11}')});
is(ship('aus', 'usa') . ship('aus', 'gbr'), '11', 'on both sides');
# two rows that have swapped their values: the one is changed, and the other
$r->psql('usa', q{SELECT residency.resolve_conflict('app.mail', '{1}', 'stored', '{"address": "z"}'); SELECT residency.resolve_conflict('app.mail', '{2}', 'stored')});
is($r->all_equal('SELECT string_agg(concat(id, address), $$ $$ ORDER BY id) FROM app.mail', 'all copies are equal'), '1z 2a 10x 11y 12fine', 'with all rows');
ship('usa', 'aus');
is(conflicts('usa') . conflicts('aus') . conflicts('gbr'), '', 'and no conflict is left');

# --- in one batch with a row that breaks a constraint -----------------------------------------------------
# the batch fails, and each row is looked at by itself
apart();
$r->psql('usa', q{INSERT INTO app.tag VALUES ('both', 'usa', 'by usa'), ('mail', 'usa', 'same'), ('gone', 'usa', 'x')});
$r->psql('usa', q{DELETE FROM app.tag WHERE name = 'gone'});
$r->psql('aus', q{INSERT INTO app.tag VALUES ('both', 'aus', 'by aus'), ('post', 'aus', 'same'), ('gone', 'aus', 'y')});
together();
is(ship('usa', 'aus', 1), 3, 'all of the batch is dealt with');
is($r->psql('aus', q{SELECT string_agg(concat_ws(' ', name, region, mail), ', ' ORDER BY name) FROM app.tag}), 'both aus by aus, gone aus y, post aus same', 'nothing that the region has is overwritten');
is(ship('aus', 'usa', 1) . ship('aus', 'gbr', 1), '33', 'nor of the other batch');
my $lost = 'app.tag {both} key aus usa {"mail": "by usa", "name": "both", "region": "usa"}, ';
is(conflicts('usa'), "${lost}app.tag {mail} unique usa aus tag_mail_key {\"mail\": \"same\", \"name\": \"mail\", \"region\": \"usa\"}, "
	  . 'app.tag {post} unique aus usa tag_mail_key {"mail": "same", "name": "post", "region": "aus"}', 'the row that lost and those that break the constraint are in conflicts');
(my $aus = conflicts('aus')) =~ s/app\.tag \{post\} unique aus gbr .*?\}, //;
is($aus, conflicts('usa'), 'in both, and of gbr only what aus has shipped there');
$r->psql('usa', q{UPDATE app.tag SET mail = 'other' WHERE name = 'mail'});
$r->psql('usa', q{SELECT residency.resolve_conflict('app.tag', '{both}'), residency.resolve_conflict('app.tag', '{mail}')});
$r->psql('aus', q{SELECT residency.resolve_conflict('app.tag', '{post}')});
ship('usa', 'aus');
ship('aus', $_) foreach qw(usa gbr);
is($r->all_equal(q{SELECT string_agg(concat_ws(' ', name, region, mail), ', ' ORDER BY name) FROM app.tag}, 'all copies are equal'), 'both aus by aus, gone aus y, mail usa other, post aus same', 'with all rows that hold');
is(conflicts('usa') . conflicts('aus') . conflicts('gbr'), '', 'and no conflict is left');
all_up();

# --- references ---------------------------------------------------------------------------------------------
$r->psql('usa', q{INSERT INTO app.node VALUES (1, 'usa', NULL)});
apart();
$r->psql('usa', q{DELETE FROM app.node WHERE id = 1});
$r->psql('aus', q{INSERT INTO app.node VALUES (2, 'aus', 1)});
together();
is(ship('usa', 'aus') . ship('usa', 'aus', 1), '01', 'a row that is no more is still referred to');
is(ship('aus', 'usa') . ship('aus', 'usa', 1) . ship('aus', 'gbr', 1), '011', 'and what refers to it has nothing to refer to');
is(conflicts('usa'), 'app.node {1} reference usa aus node_parent_fkey, app.node {2} reference aus usa node_parent_fkey {"id": 2, "parent": 1, "region": "aus"}', 'both are conflicts');
all_up();
$r->psql('aus', q{DELETE FROM app.node WHERE id = 2});
$r->psql('usa', q{SELECT residency.resolve_conflict('app.node', '{1}')});
is(ship('usa', 'aus'), 1, 'when nothing refers to it any more it goes');
$r->psql('aus', q{SELECT residency.resolve_conflict('app.node', '{2}')});
ship('aus', $_) foreach qw(usa gbr);
is($r->all_equal('SELECT count(*) FROM app.node', 'all copies are equal'), 0, 'and empty');
is(conflicts('usa') . conflicts('aus') . conflicts('gbr'), '', 'and no conflict is left');
all_up();

# a key that its home has given up is made anew with another home, while aus alone refers to the old row
$r->psql('usa', q{INSERT INTO app.node VALUES (3, 'gbr', NULL)});
apart();
$r->psql('aus', q{INSERT INTO app.node VALUES (4, 'aus', 3)});
$r->psql('usa', q{DELETE FROM app.node WHERE id = 3});
$r->psql('usa', q{INSERT INTO app.node VALUES (3, 'usa', NULL)});
together();
$r->psql($_, q{SELECT residency.set_region_state('aus', 'catching up')}) foreach qw(usa gbr);
is(ship('gbr', 'aus') . ship('usa', 'aus'), '00', 'the old row is still referred to, and the new one of no more right than another home\'s');
is(ship('gbr', 'aus', 1), 1, 'that the old one is no more is a conflict');
is(ship('usa', 'aus'), 1, 'but its home has said so: the new one is written over it');
is($r->psql('aus', 'SELECT region FROM app.node WHERE id = 3') . conflicts('aus'), 'usa', 'and no conflict is left there');
ship('aus', $_) foreach qw(usa gbr);
$r->psql('gbr', q{SELECT residency.resolve_conflict('app.node', '{3}')});
is(ship('gbr', 'aus'), 1, 'nor where the old one was');
is($r->all_equal('SELECT string_agg(concat(id, region, parent), $$ $$ ORDER BY id) FROM app.node', 'all copies are equal'), '3usa 4aus3', 'with what refers to the row');
is(conflicts('usa') . conflicts('aus') . conflicts('gbr'), '', 'and no conflict is left');
all_up();
$r->psql('usa', 'DELETE FROM app.node');

# --- what a writer pays ---------------------------------------------------------------------------------------
# entries that are gone, but whose place in the file is not, make nobody look up each key
is(join(' ', map { $r->psql($_, 'SELECT (SELECT count(*) FROM residency.conflict) || $$ $$ || (pg_relation_size($$residency.conflict$$) > 0)') } $r->regions), '0 true 0 true 0 true', 'there were conflicts, and are none');
is($r->psql('usa', q{BEGIN; INSERT INTO app.item SELECT n, 'usa', 'many' FROM generate_series(1001, 1500) n;
	SELECT sum(seq_scan + coalesce(idx_scan, 0)) < 10 FROM pg_stat_xact_all_tables WHERE schemaname = 'residency' AND relname = 'conflict'; ROLLBACK}), 't', 'after the last conflict is decided no key is looked up');

$r->psql('usa', 'CREATE ROLE plain');
$r->fails('usa', q{SET ROLE plain; SELECT * FROM residency.conflicts}, '42501', qr/denied/, 'conflicts are for superusers');
$r->fails('usa', q{SET ROLE plain; SELECT residency.resolve_conflict('app.item', '{1}')}, '42501', qr/denied/, 'and so are decisions');
$r->fails('usa', q{SELECT residency.resolve_conflict('app.item', '{1}', 'mine')}, '22023', qr/which row to keep/, 'which are to be clear');
# --- a row that holds cannot be stored in a third region, which has the one that lost ----------------
$r->psql('usa', q{INSERT INTO app.node VALUES (50, 'usa', NULL), (51, 'usa', NULL)});
apart();
$r->psql('aus', q{INSERT INTO app.node VALUES (60, 'aus', 50)});
$r->psql('usa', q{INSERT INTO app.node VALUES (60, 'usa', 51)});
$r->psql('usa', q{DELETE FROM app.node WHERE id = 50});
together();
ship(@$_, 1) foreach [ 'usa', 'aus' ], [ 'aus', 'usa' ], [ 'aus', 'gbr' ];
is(conflicts('gbr'), 'app.node {60} reference aus gbr node_parent_fkey {"id": 60, "parent": 50, "region": "aus"}', 'a third region cannot take the row that holds');
is($r->psql('gbr', 'SELECT count(*) FROM app.node WHERE id = 60'), 0, 'and has no longer the one that does not');
$r->psql('aus', q{SELECT residency.resolve_conflict('app.node', '{60}')});
ship('aus', $_, 1) foreach qw(usa gbr);
$r->psql('aus', q{SELECT residency.set_region_state(name, 'up') FROM residency.region WHERE name <> 'aus'});
$r->psql($_, q{SELECT residency.set_region_state('aus', 'up')}) foreach qw(usa gbr);
$r->psql('aus', q{SELECT residency.resolve_conflict('app.node', '{60}', 'stored', '{"parent": 51}')});
is($r->all_equal('SELECT region, parent FROM app.node WHERE id = 60', 'it can be written with a reference that all have'), 'aus|51', 'and is the same everywhere');
$r->psql('usa', q{SELECT residency.resolve_conflict('app.node', '{50}')});
ship(@$_, 1) foreach [ 'usa', 'aus' ], [ 'usa', 'gbr' ], [ 'aus', 'usa' ], [ 'aus', 'gbr' ];
is(join('', map { conflicts($_) } $r->regions), '', 'then nothing is left to be decided');
is($r->all_equal('SELECT count(*) FROM app.node WHERE id IN (50, 60)', 'and all have'), 1, 'this row only');
all_up();

$r->teardown;
done_testing();
