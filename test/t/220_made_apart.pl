# Two regions that cannot reach each other make rows with the same key.  A third region that
# both reach keeps them from it; where there was none, all copies become equal in the end,
# whatever is done to the rows meanwhile and whoever meets whom first: the row of the region
# first by name holds, the other one is in residency.conflicts.  Each pair of the three; workers
# do it all.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Regions;

my $r = Regions->new(relay => 1, delay => 2, conf => "residency.workers = on\nresidency.away_after = '3s'\n");
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE SCHEMA app;
	CREATE TABLE app.item (id text PRIMARY KEY, region text NOT NULL, note text);
$$)});
$r->psql('usa', q{SELECT residency.make_global('app.item', 'region')});

# what a region thinks of another one
sub thinks
{
	my ($here, $there, $state) = @_;
	return $r->poll($here, "SELECT state = '$state' FROM residency.catch_up WHERE region = '$there'");
}
# cuts the line between two regions, or mends it, and waits until they know
sub cut
{
	my ($a, $b) = @_;
	$r->relay->away($_) foreach "$a>$b", "$b>$a";
	return ok(thinks($a, $b, 'away') && thinks($b, $a, 'away'), "no line between $a and $b");
}
sub mend
{
	my ($a, $b) = @_;
	$r->relay->back($_) foreach "$a>$b", "$b>$a";
	return ok(thinks($a, $b, 'up') && thinks($b, $a, 'up'), "a line between $a and $b, and nothing is left to be shipped");
}
sub no_notes
{
	my ($name) = @_;
	return ok(3 == grep({ $r->poll($_, 'SELECT count(*) = 0 FROM residency.backlog') } $r->regions), $name);
}
sub rows
{
	my ($region) = @_;
	return $r->psql($region, q{SELECT coalesce(string_agg(concat_ws(' ', id, region, note), ', ' ORDER BY id), '') FROM app.item});
}
sub conflicts
{
	my ($region) = @_;
	return $r->psql($region, q{SELECT coalesce(string_agg(concat_ws(' ', array_to_string(key, ''), kind, home, region, row ->> 'note'), ', ' ORDER BY key, kind, region), '') FROM residency.conflicts});
}

foreach my $one ($r->regions)
{
	ok(thinks($one, $_, 'up'), "$one: $_ is up") foreach grep { $_ ne $one } $r->regions;
}

foreach my $pair ([qw(usa gbr aus)], [qw(gbr aus usa)], [qw(aus usa gbr)])
{
	my ($a, $b, $both) = @$pair;
	my ($first, $second) = sort($a, $b);
	my $name = "$a and $b";

	# --- a third region reaches both -------------------------------------------------------------
	$r->psql($b, "INSERT INTO app.item VALUES ('own', '$b', 'x')");
	cut($a, $b);
	$r->psql($a, "INSERT INTO app.item VALUES ('k', '$a', 'by $a')");
	$r->fails($b, "INSERT INTO app.item VALUES ('k', '$b', 'by $b')", '40001', qr/region "$both": a row .* has its home in region "$a", not "$b"/, "$name: $both keeps a second row of a key from being made");
	$r->fails($b, "UPDATE app.item SET id = 'k' WHERE id = 'own'", '40001', qr/region "$both": a row .* has its home in region "$a", not "$b"/, "$name: or from getting that key");
	$r->fails($b, "BEGIN; INSERT INTO app.item VALUES ('new', '$b', 'x'); SELECT count(*) FROM app.item; UPDATE app.item SET id = 'k' WHERE id = 'new'; COMMIT",
		'40001', qr/region "$both": a row .* has its home in region "$a", not "$b"/, "$name: also in the transaction that makes it");
	is(rows($both), "k $a by $a, own $b x", 'nothing is overwritten');
	$r->psql($both, "UPDATE app.item SET note = 'by $both' WHERE id = 'own'");
	$r->psql($a, "UPDATE app.item SET id = 'k2' WHERE id = 'k'");
	$r->psql($b, "INSERT INTO app.item VALUES ('k', '$b', 'free')");
	mend($a, $b);
	no_notes("$name: no note is left");
	is($r->all_equal(q{SELECT string_agg(concat_ws(' ', id, region, note), ', ' ORDER BY id) FROM app.item}, "$name: all copies are equal"),
		"k $b free, k2 $a by $a, own $b by $both", 'with what was written');
	is(join('', map { conflicts($_) } $r->regions), '', 'without conflicts');
	$r->psql('usa', 'DELETE FROM app.item');

	# --- none does; each meets the third one first ---------------------------------------------------
	cut($a, $b);
	cut($a, $both);
	cut($b, $both);
	my @cases = qw(keep first_updates first_deletes first_renames second_updates second_deletes second_renames
		alone_first_updates alone_first_deletes alone_first_renames alone_second_updates alone_second_deletes alone_second_renames
		third_updates third_deletes third_renames);
	foreach my $region ($a, $b)
	{
		$r->psql($region, "INSERT INTO app.item VALUES " . join(', ', map { "('$_', '$region', 'by $region')" } @cases));
	}
	foreach my $who ([ $first, 'alone_first' ], [ $second, 'alone_second' ])
	{
		my ($region, $case) = @$who;

		$r->psql($region, "UPDATE app.item SET note = 'again by $region' WHERE id = '${case}_updates'");
		$r->psql($region, "DELETE FROM app.item WHERE id = '${case}_deletes'");
		$r->psql($region, "UPDATE app.item SET id = id || '_$region' WHERE id = '${case}_renames'");
	}
	mend($_, $both) foreach $a, $b;
	is($r->psql($both, "SELECT region || count(*) FROM app.item WHERE id NOT LIKE 'alone%' GROUP BY region"), "$first" . grep({ !/alone/ } @cases), "$name: $both has the rows of $first");
	if ($second eq $b)
	{
		like(conflicts($both), qr/keep unique $second $both by $second/, "$name: until they meet, that $both does not take the rows of $second is in conflicts");
		is(conflicts($both), conflicts($second), 'of both');
	}
	$r->psql($first, "UPDATE app.item SET note = 'late by $first' WHERE id = 'first_updates'");
	$r->psql($first, "DELETE FROM app.item WHERE id = 'first_deletes'");
	$r->psql($first, "UPDATE app.item SET id = 'first_renamed' WHERE id = 'first_renames'");
	foreach my $who ([ $second, 'second', $both, $first ], [ $both, 'third', $second, $second ])
	{
		my ($gateway, $case, $where, $whose) = @$who;
		my $says = qr/region "$where": a row .* has its home in region "$whose"/;

		$r->fails($gateway, "UPDATE app.item SET note = 'late' WHERE id = '${case}_updates'", '40001', $says, "$name: $gateway cannot write a key that has another home in $where");
		$r->fails($gateway, "DELETE FROM app.item WHERE id = '${case}_deletes'", '40001', $says, 'nor delete it');
		$r->fails($gateway, "UPDATE app.item SET id = '${case}_renamed' WHERE id = '${case}_renames'", '40001', $says, 'nor change it');
	}
	mend($a, $b);
	no_notes("$name: no note is left");
	ok($r->poll($_, q{SELECT count(*) = 0 FROM residency.conflicts WHERE kind <> 'key'}), "$_: nothing else is in the way") foreach $r->regions;

	my %hold = map { $_ => "$first by $first" } @cases;
	$hold{$_} = "$second by $second" foreach qw(first_deletes first_renames alone_first_deletes alone_first_renames);
	$hold{first_updates} = "$first late by $first";
	$hold{alone_first_updates} = "$first again by $first";
	$hold{first_renamed} = "$first by $first";
	$hold{"alone_first_renames_$first"} = "$first by $first";
	$hold{"alone_second_renames_$second"} = "$second by $second";
	is($r->all_equal(q{SELECT string_agg(concat_ws(' ', id, region, note), ', ' ORDER BY id) FROM app.item}, "$name: all copies are equal"),
		join(', ', map { "$_ $hold{$_}" } sort keys %hold), "$name: the rows of $first hold, where it has not given them up");
	my %lost = map { $_ => "by $second" } grep { $hold{$_} =~ /^$first/ && !/alone_second_(deletes|renames)/ } @cases;
	$lost{alone_second_updates} = "again by $second";
	foreach my $region ($first, $second)
	{
		is(conflicts($region), join(', ', map { "$_ key $first $second $lost{$_}" } sort keys %lost), "$name: each row that lost is in conflicts of $region");
	}
	is(conflicts($both), '', 'and of nobody else');
	$r->fails($_, "UPDATE app.item SET note = 'x' WHERE id = 'keep'", '40001', qr/item/, "$_: their keys cannot be written") foreach $r->regions;
	$r->psql($second, q{SELECT residency.resolve_conflict('app.item', key) FROM residency.conflicts});
	is(join('', map { conflicts($_) } $r->regions), '', 'until it is decided');
	$r->psql('usa', 'DELETE FROM app.item');
	is($r->prepared, 0, 'nothing is left prepared');
}

$r->teardown;
done_testing();
