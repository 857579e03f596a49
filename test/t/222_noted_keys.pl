# Keys are noted as they are when a row is written.  While some are, a global table's key stays what it
# is; and a key that cannot be read all the same holds up no other, and is not taken for another row's.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(relay => 1, delay => 2);
sub everywhere { return 'SELECT residency.run_everywhere(' . Regions::quote($_[0]) . ')'; }
$r->psql('usa', everywhere(q{
	CREATE SCHEMA app;
	CREATE TYPE app.color AS ENUM ('red', 'green');
	CREATE DOMAIN app.small AS int;
	CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text);
	CREATE TABLE app.mail (id int PRIMARY KEY, region text NOT NULL, address text UNIQUE);
	CREATE TABLE app.paint (color app.color PRIMARY KEY, region text NOT NULL, note text);
	CREATE TABLE app.shoe (size app.small PRIMARY KEY, region text NOT NULL, note text);
}));
$r->psql('usa', qq{SELECT residency.make_global('app.$_', 'region')}) foreach qw(item mail paint shoe);

sub set_states { my ($state) = @_; $r->psql($_, "SELECT residency.set_region_state('aus', '$state')") foreach qw(usa gbr); return; }
sub ship { my ($final) = @_; return $r->psql('usa', "SELECT residency.ship('aus', " . ($final ? 'true' : 'false') . ')'); }
sub noted { return $r->psql('usa', q{SELECT coalesce(string_agg(relation::regclass || ' ' || key, ', ' ORDER BY seq), '') FROM residency.backlog}); }

# --- the key stays what it is --------------------------------------------------------------------
my $wider = 'ALTER TABLE app.item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (id, region)';
my $rename = q{ALTER TYPE app.color RENAME VALUE 'red' TO 'rot'};
my $narrow = 'ALTER DOMAIN app.small ADD CONSTRAINT smaller CHECK (value < 10) NOT VALID';
$r->psql('usa', q{INSERT INTO app.item VALUES (5, 'usa', 'x'); INSERT INTO app.shoe VALUES (44, 'usa', 'x')});
set_states('away');
$r->psql('usa', q{UPDATE app.item SET note = 'missed'; INSERT INTO app.paint VALUES ('red', 'usa', 'missed'); DELETE FROM app.shoe});
set_states('up');
is(noted(), 'app.item 1:5, app.paint 3:red, app.shoe 2:44', 'keys are noted');
my $refused = qr/cannot change the key of global table "\w+" while rows of it are noted for other regions.*residency\.catch_up/s;
$r->fails('usa', everywhere($wider), '55000', $refused, 'a primary key is not replaced');
$r->fails('usa', 'ALTER TABLE app.item DROP CONSTRAINT item_pkey', '55000', $refused, 'nor dropped');
$r->fails('usa', 'ALTER TABLE app.item ALTER id TYPE text', '55000', $refused, 'nor given another type');
$r->fails('usa', everywhere($rename), '55000', $refused, 'a value that a noted key has is not renamed');
$r->fails('usa', everywhere($narrow), '55000', $refused, 'nor a domain narrowed that one would not fit any more');
unlike(($r->try('usa', $narrow))[2], qr/44/, 'which is not told');
$r->psql('usa', everywhere($_)) foreach 'ALTER TABLE app.item ADD more int', 'ALTER TABLE app.item RENAME CONSTRAINT item_pkey TO item_key', 'ALTER TABLE app.item CLUSTER ON item_key',
	q{ALTER TYPE app.color ADD VALUE 'blue'}, q{ALTER TYPE app.color RENAME VALUE 'green' TO 'lime'}, 'ALTER DOMAIN app.small ADD CHECK (value < 100) NOT VALID', 'ALTER TABLE app.mail DROP CONSTRAINT mail_pkey, ADD PRIMARY KEY (id)';
is(ship(), 3, 'all else can be changed, and what is noted is shipped');
is($r->psql('aus', q{SELECT concat_ws(' ', (SELECT note FROM app.item), (SELECT color FROM app.paint), (SELECT count(*) FROM app.shoe))}), 'missed red 0', 'to where it was missed');

# also by what is in conflict
set_states('away');
$r->psql('usa', q{INSERT INTO app.mail VALUES (1, 'usa', 'x')});
$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'away')}) foreach qw(usa gbr);
$r->psql('aus', q{INSERT INTO app.mail VALUES (2, 'aus', 'x')});
set_states('catching up');
$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'catching up')}) foreach qw(usa gbr);
$r->psql('aus', q{SELECT residency.ship('usa', true), residency.ship('gbr', true)});
is(ship(1), 1, 'two rows are in each other\'s way');
set_states('up');
$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'up')}) foreach qw(usa gbr);
is(join(' ', map { $r->psql($_, 'SELECT count(*) FROM residency.backlog') } $r->regions), '0 0 0', 'nothing is noted');
my $mail = 'ALTER TABLE app.mail DROP CONSTRAINT mail_pkey, ADD PRIMARY KEY (id, region)';
$r->fails('usa', everywhere($mail), '55000', $refused, 'keys in residency.conflict count as well');
$r->psql('aus', 'DELETE FROM app.mail WHERE id = 2');
$r->psql($_->[0], "SELECT residency.resolve_conflict('app.mail', '{$_->[1]}')") foreach [ usa => 1 ], [ aus => 2 ];
ship();
$r->psql('aus', q{SELECT residency.ship('usa'), residency.ship('gbr')});
$r->psql('usa', everywhere($_)) foreach $wider =~ s/item_pkey/item_key/r, $rename, $narrow, $mail;
pass('when nothing is noted, keys can be changed');

# --- keys that cannot be read -----------------------------------------------------------------------
# of an older key, of no value of the type, of too many columns, and one as it should be
set_states('away');
$r->psql('usa', q{UPDATE app.item SET note = 'missed again'});
$r->psql('usa', q{INSERT INTO residency.backlog (region, relation, key) VALUES ('aus', 'app.item'::regclass, '1:5'), ('aus', 'app.paint'::regclass, '3:red'), ('aus', 'app.shoe'::regclass, '1:51:6')});
set_states('up');
$r->psql('usa', q{INSERT INTO residency.backlog (region, relation, key) VALUES ('aus', 'app.mail'::regclass, '1:13:usa')});
is(ship(), 2, 'keys that can be read are shipped');
is($r->psql('aus', 'SELECT note FROM app.item'), 'missed again', 'and their rows arrive');
is(noted(), 'app.item 1:5, app.paint 3:red, app.shoe 1:51:6', 'the others wait');
is(ship(1), 3, 'not for ever');
is($r->psql('usa', q{SELECT string_agg(concat_ws(' ', relation, key, kind, home, region, row), ', ' ORDER BY relation::text) FROM residency.conflicts}),
	'app.item {5} other usa aus, app.paint {red} other usa aus, app.shoe {5,6} other usa aus', 'they end in residency.conflicts');
$r->psql('usa', q{INSERT INTO residency.backlog (region, relation, key) SELECT region, relation, key FROM residency.conflict});
is(ship(1), 3, 'which may happen again');
is($r->psql('usa', 'SELECT count(*) FROM residency.conflict') . $r->prepared, '30', 'and leaves nothing else');

$r->teardown;
done_testing();
