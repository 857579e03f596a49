# One line is cut while all servers live: each pair of the three.  The region that reaches both
# ships what it is the home of, so only what one of the two is the home of has to wait.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(relay => 1, delay => 2, conf => "residency.workers = on\nresidency.away_after = '1s'\n");
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE SCHEMA app;
	CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text);
$$)});
$r->psql('usa', q{SELECT residency.make_global('app.item', 'region')});
$r->psql('usa', q{INSERT INTO app.item VALUES (1, 'usa', 'x'), (2, 'gbr', 'x'), (3, 'aus', 'x')});
my %row = (usa => 1, gbr => 2, aus => 3);

sub state
{
	my ($here, $there, $state) = @_;
	return $r->poll($here, "SELECT state = '$state' FROM residency.catch_up WHERE region = '$there'");
}
sub note_in { my ($region, $id) = @_; return $r->psql($region, "SELECT note FROM app.item WHERE id = $id"); }

foreach my $pair ([qw(usa gbr aus)], [qw(gbr aus usa)], [qw(aus usa gbr)])
{
	my ($a, $b, $both) = @$pair;
	my $name = "no line between $a and $b";

	foreach my $one ($r->regions)
	{
		ok(state($one, $_, 'up'), "$one: $_ is up") foreach grep { $_ ne $one } $r->regions;
	}
	$r->relay->away("$_") foreach "$a>$b", "$b>$a";
	ok(state($a, $b, 'away') && state($b, $a, 'away'), "$name: each leaves the other out");
	ok(state($both, $a, 'up') && state($both, $b, 'up'), "$name: $both does not");

	$r->psql($a, "UPDATE app.item SET note = '$a to $both' WHERE id = $row{$both}");
	ok($r->poll($b, "SELECT note = '$a to $both' FROM app.item WHERE id = $row{$both}"), "$name: what $both is the home of arrives by way of it");
	is($r->psql($both, 'SELECT count(*) FROM residency.backlog'), 0, 'at once');
	$r->psql($a, "UPDATE app.item SET note = '$a to $a' WHERE id = $row{$a}");
	is(note_in($both, $row{$a}) . ', ' . $r->psql($a, 'SELECT count(*) FROM residency.backlog'), "$a to $a, 1", "$name: what $a is the home of waits there");
	isnt(note_in($b, $row{$a}), "$a to $a", "and $b has not got it");
	$r->fails($a, "UPDATE app.item SET note = 'y' WHERE id = $row{$b}", '08\w{3}', qr/"$b"/, "$name: what $b is the home of cannot be written in $a");
	$r->psql($both, "UPDATE app.item SET note = '$both to $b' WHERE id = $row{$b}");
	is(note_in($a, $row{$b}), "$both to $b", "but in $both it can");
	$r->psql($both, "UPDATE app.item SET note = '$both to $a' WHERE id = $row{$a}");
	is(note_in($b, $row{$a}), "$both to $a", "and what was missed is mended when $both writes it");

	$r->psql($b, "INSERT INTO app.item VALUES ($row{$b} * 100, '$b', 'made in $b')");
	$r->relay->back("$_") foreach "$a>$b", "$b>$a";
	ok($r->poll($a, "SELECT count(*) = 1 FROM app.item WHERE id = $row{$b} * 100"), "$name: when it is mended the rest arrives");
	ok($r->poll($_, 'SELECT count(*) = 0 FROM residency.backlog'), "$_ has no notes left") foreach $r->regions;
	$r->all_equal(q{SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY id)) FROM app.item t}, 'all copies are equal');
	$r->psql('usa', 'DELETE FROM app.item WHERE id > 3') if state('usa', 'gbr', 'up') && state('usa', 'aus', 'up');
}

# --- one leaves while another returns ----------------------------------------------------------------
$r->away('aus');
ok(state('usa', 'aus', 'away') && state('gbr', 'aus', 'away'), 'aus is gone');
$r->psql('usa', q{INSERT INTO app.item SELECT n, (ARRAY['usa', 'gbr'])[n % 2 + 1], 'missed by aus' FROM generate_series(1000, 1999) n});
$r->relay->away($_) foreach 'usa>gbr', 'gbr>usa';
$r->relay->back($_) foreach 'usa>aus', 'aus>usa';
ok($r->poll('aus', q{SELECT count(*) = 500 FROM app.item WHERE note = 'missed by aus' AND region = 'usa'}), 'aus returns to usa, which gbr has left: it gets what usa is the home of');
$r->psql('usa', q{UPDATE app.item SET note = 'missed by gbr' WHERE id BETWEEN 1000 AND 1100 AND region = 'usa'});
$r->relay->back($_) foreach 'usa>gbr', 'gbr>usa', 'gbr>aus', 'aus>gbr';
ok($r->poll($_, 'SELECT count(*) = 0 FROM residency.backlog') && $r->poll($_, q{SELECT bool_and(state = 'up') FROM residency.catch_up}), "$_: all are up in the end")
  foreach $r->regions;
$r->all_equal(q{SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY id)) FROM app.item t}, 'and all copies are equal');
is(join('', map { $r->psql($_, 'SELECT count(*) FROM residency.conflicts') } $r->regions) . $r->prepared, '0000', 'without conflicts, nothing prepared');

$r->teardown;
done_testing();
