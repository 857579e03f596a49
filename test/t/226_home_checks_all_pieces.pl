# A statement that writes very many rows travels in several pieces.  The home of one of them checks
# its foreign keys also while it is catching up, whatever is in the last piece.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(relay => 1, delay => 2);
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE SCHEMA app;
	CREATE TABLE app.node (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.node, note text);
$$)});
$r->psql('usa', q{SELECT residency.make_global('app.node', 'region')});
$r->psql('usa', q{INSERT INTO app.node VALUES (1, 'aus', NULL, 'deleted at home'), (2, 'aus', NULL, 'stays')});

# aus has lost sight of the others, and deletes a row that they still have; it is back, and catching up
$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'away')}) foreach qw(usa gbr);
$r->psql('aus', 'DELETE FROM app.node WHERE id = 1');
$r->psql($_, q{SELECT residency.set_region_state('aus', 'catching up')}) foreach qw(usa gbr);
is($r->psql('usa', 'SELECT count(*) FROM app.node WHERE id = 1'), 1, 'a row is known that is no more at its home');

# the first piece has a row of aus, the last one has none
sub many
{
	my ($parent, $first) = @_;
	return "INSERT INTO app.node SELECT n, CASE WHEN n = $first THEN 'aus' ELSE 'usa' END, CASE WHEN n = $first THEN $parent END, repeat('x', 200) FROM generate_series($first, $first + 45000) n";
}
$r->fails('usa', q{INSERT INTO app.node VALUES (10, 'aus', 1, '')}, '40001', qr/not complete yet/, 'a row that refers to it is refused by its home');
$r->fails('usa', many(1, 1001), '40001', qr/not complete yet/, 'also in a statement of many pieces');
is($r->psql('aus', 'SELECT count(*) FROM app.node n WHERE parent IS NOT NULL AND NOT EXISTS (SELECT FROM app.node p WHERE p.id = n.parent)'), 0, 'so no row refers to one that is no more');
$r->psql('usa', many(2, 100001));
is($r->psql('aus', 'SELECT count(*) FROM app.node WHERE parent = 2'), 1, 'one that refers to a row that is there is taken');
is($r->psql('usa', q{SELECT count(*) FROM residency.backlog WHERE region = 'aus'}), 45000, 'and all rows homed elsewhere are noted, whether they were sent or not');

# a statement that fails after its first piece leaves nothing behind
$r->fails('usa', many(2, 200001) =~ s/repeat\('x', 200\)/CASE WHEN n = 245000 THEN (1 \/ (n - 245000))::text ELSE repeat('x', 200) END/r, '22012', qr/division by zero/, 'a statement fails in the middle');
is($r->psql('usa', q{SELECT count(*) FROM app.node WHERE id > 200000}) . $r->psql('aus', q{SELECT count(*) FROM app.node WHERE id > 200000}), '00', 'and has written nothing');
$r->psql('usa', q{INSERT INTO app.node VALUES (11, 'usa', 2, '')});
is($r->prepared, 0, 'nothing is left prepared');

$r->teardown;
done_testing();
