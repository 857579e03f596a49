# Triggers, foreign keys and constraints of global tables: each runs where it should, and
# once; what triggers write to global tables is the same in all regions.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new;

sub everywhere { my ($sql) = @_; $r->psql('usa', "SELECT residency.run_everywhere(\$everywhere\$ $sql \$everywhere\$)"); return; }
sub global { $r->psql('usa', "SELECT residency.make_global('$_', 'region')") foreach @_; return; }

# All copies of a table hold the same rows, which are returned.
sub same
{
	my ($table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return $r->all_equal("SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM $table t", $name);
}

People::make($r);

# --- row triggers that touch the row again --------------------------------------------------
everywhere(q{
	CREATE TABLE app.touched (id int PRIMARY KEY, region text NOT NULL, note text, n int DEFAULT 0);
	CREATE FUNCTION app.again() RETURNS trigger LANGUAGE plpgsql AS $f$
	BEGIN
		IF new.note NOT LIKE '%(touched)' THEN
			UPDATE app.touched SET note = new.note || ' (touched)', n = n + 1 WHERE id = new.id;
		END IF;
		RETURN NULL;
	END $f$;
	CREATE FUNCTION app.before() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN new.note := replace(new.note, 'x', 'y'); RETURN new; END $f$;
	CREATE TRIGGER a_again AFTER INSERT OR UPDATE ON app.touched FOR EACH ROW EXECUTE FUNCTION app.again();
	CREATE TRIGGER z_again AFTER INSERT OR UPDATE ON app.touched FOR EACH ROW WHEN (new.id = 7) EXECUTE FUNCTION app.again();
});
global('app.touched');
foreach my $gateway ($r->regions)
{
	$r->psql($gateway, q{INSERT INTO app.touched VALUES (1, 'gbr', 'v1'), (7, 'aus', 'v1')});
	$r->psql($gateway, q{UPDATE app.touched SET note = 'v2'});
	is(same('app.touched', "$gateway: a trigger touches the row again"), '(1,gbr,"v2 (touched)",2) (7,aus,"v2 (touched)",4)', 'the newest image is everywhere');
	$r->psql($gateway, q{BEGIN; UPDATE app.touched SET note = 'v3' WHERE id = 1; DELETE FROM app.touched WHERE id = 7; COMMIT; DELETE FROM app.touched});
	is(same('app.touched', "$gateway: and is deleted"), '', 'everywhere');
}
everywhere(q{CREATE TRIGGER b_before BEFORE INSERT OR UPDATE ON app.touched FOR EACH ROW EXECUTE FUNCTION app.before()});
$r->psql('gbr', q{INSERT INTO app.touched VALUES (2, 'usa', 'x (touched)')});
is(same('app.touched', 'a BEFORE trigger'), '(2,usa,"y (touched)",0)', 'runs before the row is captured');
# a trigger that renames the row, and asks another region in between
everywhere(q{
	DROP TRIGGER b_before ON app.touched; DROP TRIGGER a_again ON app.touched; DROP TRIGGER z_again ON app.touched;
	CREATE FUNCTION app.rename() RETURNS trigger LANGUAGE plpgsql AS $f$
	BEGIN
		IF new.id BETWEEN 50 AND 59 THEN
			UPDATE app.touched SET id = new.id + 10, n = n + 1 WHERE id = new.id;
			PERFORM count(*) FROM app.details;
		END IF;
		RETURN NULL;
	END $f$;
	CREATE TRIGGER a_rename AFTER INSERT OR UPDATE ON app.touched FOR EACH ROW EXECUTE FUNCTION app.rename();
});
$r->psql('aus', q{INSERT INTO app.touched VALUES (50, 'gbr', 'born')});
$r->psql('gbr', q{UPDATE app.touched SET id = 51 WHERE id = 2});
$r->psql('usa', q{BEGIN; UPDATE app.touched SET note = 'x' WHERE id = 60; UPDATE app.touched SET id = 52 WHERE id = 60; COMMIT});
is(same('app.touched', 'a trigger that renames the row'), '(61,usa,"y (touched)",1) (62,gbr,x,2)', 'leaves one row each');

# --- user triggers write other global tables: once, and captured ------------------------------
everywhere(q{
	CREATE TABLE app.main (id int PRIMARY KEY, region text NOT NULL, note text);
	CREATE TABLE app.log (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, region text NOT NULL, what text);
	CREATE FUNCTION app.log() RETURNS trigger LANGUAGE plpgsql AS $f$
	BEGIN INSERT INTO app.log (region, what) VALUES (new.region, tg_op || ' ' || new.id); RETURN NULL; END $f$;
	CREATE TRIGGER log AFTER INSERT OR UPDATE ON app.main FOR EACH ROW EXECUTE FUNCTION app.log();
	CREATE TABLE app.here (what text);
	CREATE FUNCTION app.here() RETURNS trigger LANGUAGE plpgsql AS $f$
	BEGIN INSERT INTO app.here VALUES (tg_op || ' ' || coalesce(new.id, old.id) || ' ' || current_user); RETURN NULL; END $f$;
	CREATE TRIGGER here AFTER INSERT OR UPDATE OR DELETE ON app.main FOR EACH ROW EXECUTE FUNCTION app.here();
	ALTER TABLE app.main ENABLE ALWAYS TRIGGER here;
	CREATE TRIGGER on_note AFTER UPDATE OF note ON app.main FOR EACH ROW EXECUTE FUNCTION app.here();
	ALTER TABLE app.main ENABLE REPLICA TRIGGER on_note;
});
global('app.main', 'app.log');
$r->psql($_, "INSERT INTO app.main VALUES (" . ord($_) . ", '$_', 'x')") foreach $r->regions;
is(same('(SELECT region, what FROM app.log)', 'a trigger that writes another global table'),
	'(aus,"INSERT 97") (gbr,"INSERT 103") (usa,"INSERT 117")', 'runs once, at the gateway');
is($r->all_equal(q{SELECT count(DISTINCT id) FROM app.log}), '3', 'its identity values do not collide');
my $owner = $r->{user};
is($r->all_equal(q{SELECT string_agg(what, ',' ORDER BY what) FROM app.here}, 'a trigger ENABLE ALWAYS'),
	"INSERT 103 $owner,INSERT 117 $owner,INSERT 97 $owner", 'runs in every region, as the owner');
$r->psql($_, 'DELETE FROM app.here') foreach $r->regions;
$r->psql('usa', q{UPDATE app.main SET note = note || 'y' WHERE id = 97});
is($r->psql('usa', q{SELECT string_agg(what, ',') FROM app.here}), "UPDATE 97 $owner", 'a REPLICA trigger does not run at the gateway');
is($r->psql($_, q{SELECT string_agg(what, ',') FROM app.here}), "UPDATE 97 $owner,UPDATE 97 $owner", "but at the copy in $_") foreach qw(gbr aus);
$r->psql('gbr', q{UPDATE app.main SET region = 'usa' WHERE id = 97});
is($r->psql('aus', q{SELECT count(*) FROM app.here}), '3', 'a trigger of other columns is not fired');
is(same('(SELECT id, region FROM app.main)', 'a region column that is no directory\'s can change'), '(103,gbr) (117,usa) (97,usa)', 'everywhere');

everywhere(q{
	CREATE TRIGGER leaf AFTER INSERT ON app.main FOR EACH ROW WHEN (new.note = 'leaf') EXECUTE FUNCTION app.log();
	ALTER TABLE app.main ENABLE ALWAYS TRIGGER leaf;
});
$r->fails('usa', q{INSERT INTO app.main VALUES (1, 'usa', 'leaf')}, '0A000', qr/global table/, 'a trigger at a copy cannot write a global table');
is(same('(SELECT id FROM app.main WHERE note = \'leaf\')', 'nor is anything left'), '', 'of it');

# --- foreign keys between global tables ----------------------------------------------------------
everywhere(q{
	CREATE TABLE app.parent (id int PRIMARY KEY, region text NOT NULL);
	CREATE TABLE app.child (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.parent ON DELETE CASCADE ON UPDATE CASCADE);
	CREATE TABLE app.kept (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.parent ON DELETE SET NULL);
	CREATE TABLE app.strict (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.parent ON DELETE RESTRICT);
	CREATE TABLE app.ring (id int PRIMARY KEY, region text NOT NULL, next int REFERENCES app.ring DEFERRABLE INITIALLY DEFERRED);
	CREATE TABLE app.tree (id int PRIMARY KEY, region text NOT NULL, up int REFERENCES app.tree, pad text);
	CREATE INDEX ON app.tree (up);
});
global(map { "app.$_" } qw(parent child kept strict ring tree));
foreach my $gateway ($r->regions)
{
	$r->psql($gateway, q{INSERT INTO app.parent SELECT g, (ARRAY['usa', 'gbr', 'aus'])[1 + g % 3] FROM generate_series(1, 6) g});
	$r->psql($gateway, q{INSERT INTO app.child SELECT g, (ARRAY['gbr', 'aus', 'usa'])[1 + g % 3], g FROM generate_series(1, 3) g});
	$r->psql($gateway, q{INSERT INTO app.kept VALUES (1, 'usa', 1), (4, 'gbr', 4)});
	$r->psql($gateway, q{INSERT INTO app.strict VALUES (5, 'aus', 5)});
	$r->psql($gateway, q{DELETE FROM app.parent WHERE id = 1});
	$r->psql($gateway, q{UPDATE app.parent SET id = 20 WHERE id = 2});
	is(same('app.child', "$gateway: ON DELETE and ON UPDATE CASCADE"), '(2,usa,20) (3,gbr,3)', 'the children follow');
	is(same('app.kept', "$gateway: ON DELETE SET NULL"), '(1,usa,) (4,gbr,4)', 'likewise');
	$r->fails($gateway, q{DELETE FROM app.parent WHERE id = 5}, '23503', qr/strict/, "$gateway: RESTRICT");
	$r->fails($gateway, q{INSERT INTO app.child VALUES (9, 'gbr', 99)}, '23503', qr/child/, "$gateway: no parent");
	$r->psql($gateway, q{BEGIN; INSERT INTO app.ring VALUES (1, 'usa', 2), (2, 'gbr', 3); INSERT INTO app.ring VALUES (3, 'aus', 1); COMMIT});
	is(same('app.ring', "$gateway: a deferred foreign key"), '(1,usa,2) (2,gbr,3) (3,aus,1)', 'within one transaction');
	$r->psql($gateway, q{INSERT INTO app.strict VALUES (6, 'usa', 6); BEGIN; DELETE FROM app.strict; DELETE FROM app.kept; DELETE FROM app.child; DELETE FROM app.parent; DELETE FROM app.ring; COMMIT});
	is(same("app.$_", "$gateway: all is deleted"), '', "in $_") foreach qw(parent child kept strict ring);
}
# the home decides: a parent that is only missing there
$r->psql('usa', q{INSERT INTO app.parent VALUES (1, 'usa')});
$r->psql('gbr', q{ALTER TABLE app.parent DISABLE TRIGGER residency_capture; DELETE FROM app.parent; ALTER TABLE app.parent ENABLE ALWAYS TRIGGER residency_capture});
$r->fails('aus', q{INSERT INTO app.child VALUES (1, 'gbr', 1)}, '23503', qr/gbr/, 'the home of a row checks its references');
$r->psql('aus', q{INSERT INTO app.child VALUES (2, 'usa', 1)});
is(same('app.child', 'other copies do not'), '(2,usa,1)', 'and take the row');
$r->fails('gbr', q{INSERT INTO app.parent VALUES (1, 'usa')}, '40001', qr/usa/, 'nor can a row be made twice');
$r->psql('usa', q{DELETE FROM app.child; DELETE FROM app.parent});

# many rows: checked when the last piece is there
$r->psql('gbr', q{INSERT INTO app.tree SELECT g, (ARRAY['usa', 'gbr', 'aus'])[1 + g % 3], CASE WHEN g < 45000 THEN g + 1 END, repeat('x', 150) FROM generate_series(1, 45000) g});
is($r->all_equal(q{SELECT count(*), count(up) FROM app.tree}, 'a batch in pieces whose rows reference later ones'), '45000|44999', 'comes whole');
$r->psql('aus', q{ALTER TABLE app.tree DISABLE TRIGGER residency_capture; DELETE FROM app.tree WHERE id = 1; ALTER TABLE app.tree ENABLE ALWAYS TRIGGER residency_capture});
$r->fails('gbr', q{INSERT INTO app.tree SELECT g, 'aus', CASE WHEN g = 50001 THEN 1 ELSE g - 1 END, repeat('x', 150) FROM generate_series(50001, 80000) g}, '23503', qr/aus/,
	'a reference of the first piece that the home does not have is found with the last one');
$r->psql('usa', q{DELETE FROM app.tree});
is(same('app.tree', 'a tree deleted in pieces'), '', 'everywhere');
$r->psql('gbr', q{BEGIN; INSERT INTO app.parent VALUES (1, 'usa'), (2, 'gbr'); INSERT INTO app.child VALUES (1, 'aus', 1); TRUNCATE app.parent CASCADE; INSERT INTO app.parent VALUES (3, 'aus'); COMMIT});
is(same('app.parent', 'TRUNCATE CASCADE'), '(3,aus)', 'of several tables');
is(same('app.child', 'that reference each other'), '', 'everywhere');

# several owners
everywhere(q{
	CREATE ROLE one; CREATE ROLE two; GRANT USAGE ON SCHEMA app TO one, two;
	CREATE TABLE app.of_one (id int PRIMARY KEY, region text NOT NULL);
	CREATE TABLE app.of_two (id int PRIMARY KEY, region text NOT NULL, ref int REFERENCES app.of_one);
	CREATE FUNCTION app.secret(int) RETURNS bool LANGUAGE plpgsql AS $f$ BEGIN RETURN current_user IN ('one', 'two'); END $f$;
	REVOKE ALL ON FUNCTION app.secret(int) FROM PUBLIC;
	GRANT EXECUTE ON FUNCTION app.secret(int) TO one, two;
	ALTER TABLE app.of_one ADD CHECK (app.secret(id)); ALTER TABLE app.of_two ADD CHECK (app.secret(id));
	ALTER TABLE app.of_one OWNER TO one; ALTER TABLE app.of_two OWNER TO two;
	GRANT ALL ON app.of_one, app.of_two TO one, two;
});
global('app.of_one', 'app.of_two');
$r->psql('gbr', q{SET ROLE one; WITH i AS (INSERT INTO app.of_one VALUES (1, 'usa'), (2, 'aus')) INSERT INTO app.of_two VALUES (1, 'usa', 1), (2, 'aus', 2)});
is(same('app.of_two', 'tables of two owners in one statement'), '(1,usa,1) (2,aus,2)', 'whose checks only they may call');
$r->psql('aus', q{SET ROLE two; BEGIN; DELETE FROM app.of_two; DELETE FROM app.of_one; COMMIT});
is(same('app.of_one', 'and deleted'), '', 'everywhere');

# --- what resident tables reference -------------------------------------------------------------
$r->psql('usa', People::add(1, 'usa', 'Ann') . ';' . People::add(2, 'gbr', 'Bob'));
$r->fails($_, q{DELETE FROM app.identity WHERE id = 2}, '23503', qr/gbr.*residency_home|residency_home.*gbr|residency_home/s, "$_: an identity with details is not deleted") foreach $r->regions;
is(same('(SELECT id FROM app.identity)', 'nor is it gone anywhere'), '(1) (2)', 'whole');
$r->fails('aus', q{UPDATE app.identity SET region = 'aus' WHERE id = 2}, '0A000', qr/region/, 'the region of a directory row is not changed');
everywhere(q{
	CREATE FUNCTION app.emigrate() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN new.region := 'aus'; RETURN new; END $f$;
	CREATE TRIGGER "~~late" BEFORE UPDATE ON app.identity FOR EACH ROW WHEN (new.note = 'emigrate') EXECUTE FUNCTION app.emigrate();
});
$r->fails('usa', q{UPDATE app.identity SET note = 'emigrate' WHERE id = 2}, '0A000', qr/region/, 'not by a late BEFORE trigger either');
$r->psql('aus', q{DELETE FROM app.details WHERE id = 2; DELETE FROM app.identity WHERE id = 2});
is(same('(SELECT id FROM app.identity)', 'without details it is'), '(1)', 'deleted');

# a directory has a BEFORE trigger of ours, which locks rows that this transaction wrote already
$r->psql('usa', q{BEGIN; INSERT INTO app.identity VALUES (3, 'gbr', 'a'); UPDATE app.identity SET note = 'b' WHERE id = 3;
	SAVEPOINT s; UPDATE app.identity SET note = 'c' WHERE id = 3; RELEASE s; COMMIT});
is(same('(SELECT id, note FROM app.identity WHERE id = 3)', 'a row of a directory written in each statement of a transaction'), '(3,c)', 'has its last state');
$r->psql('usa', q{BEGIN; UPDATE app.identity SET note = 'd' WHERE id = 3; DELETE FROM app.identity WHERE id = 3; COMMIT});
is(same('(SELECT id FROM app.identity WHERE id = 3)', 'and deleted in the end'), '', 'is gone');

# secondary unique keys, without values
everywhere(q{CREATE TABLE app.mail (id int PRIMARY KEY, region text NOT NULL, mail text CONSTRAINT mail_once UNIQUE)});
global('app.mail');
$r->psql('usa', q{INSERT INTO app.mail VALUES (1, 'usa', 'secret@value')});
$r->fails('gbr', q{INSERT INTO app.mail VALUES (2, 'usa', 'secret@value')}, '23505', qr/mail_once/, 'a second unique key at the gateway');
$r->psql('gbr', q{ALTER TABLE app.mail DISABLE TRIGGER residency_capture; DELETE FROM app.mail; ALTER TABLE app.mail ENABLE ALWAYS TRIGGER residency_capture});
my ($code, $out, $err) = $r->try('gbr', q{INSERT INTO app.mail VALUES (2, 'usa', 'secret@value')});
like($err, qr/23505.*mail_once/s, 'and at a copy');
unlike($err, qr/secret\@value.*DETAIL|DETAIL.*secret\@value/s, 'without its value');

is($r->prepared, 0, 'nothing is left prepared');
$r->teardown;
done_testing();
