# Law 5: with both other regions cut off, silent or stopped, each region reads and writes its own
# residents, global rows homed there, and makes new ones, at local speed; what needs another
# region fails at once and names it.  Afterwards all regions agree.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 40, conf => "residency.workers = on\nresidency.away_after = 1s\n");
my %letter = (usa => 'u', gbr => 'g', aus => 'a');
my $id = 100;

People::make($r);
People::make_function($r);
$r->psql('usa', join(';', map { People::add($_->[0], $_->[1], $_->[1]) } [ 1, 'usa' ], [ 2, 'gbr' ], [ 3, 'aus' ]));
$r->psql('usa', q{SELECT residency.run_everywhere($$CREATE FUNCTION app.rename(int, text, text) RETURNS void LANGUAGE sql
	AS 'UPDATE app.details SET name = $3 WHERE id = $1 AND region = $2; UPDATE app.identity SET note = $3 WHERE id = $1'$$)});

sub becomes
{
	my ($at, $region, $state) = @_;
	return $r->poll($at, "SELECT state FROM residency.regions WHERE name = '$region'", $state);
}

# what an application does with residents of its own region; each line is a transaction
sub own_work
{
	my ($here) = @_;
	my $own = { usa => 1, gbr => 2, aus => 3 }->{$here};

	$id++;
	return (
		"SELECT name FROM app.details WHERE id = $own",
		"SELECT d.name, i.note FROM app.identity i JOIN app.details d USING (id, region) WHERE i.id = $own",
		"SELECT count(*) FROM app.details WHERE region = '$here'",
		'SELECT count(*) FROM app.identity',
		"UPDATE app.details SET name = 'n$id' WHERE id = $own AND region = '$here'",
		"SELECT app.rename($own, '$here', 'r$id')",
		"SELECT app.add($id, '$here', 'new')",
		"BEGIN; SELECT app.add(1000 + $id, '$here', 'newer'); SAVEPOINT s; UPDATE app.identity SET note = 'x' WHERE id = 1000 + $id; ROLLBACK TO s; COMMIT",
		"DELETE FROM app.details WHERE id = 1000 + $id AND region = '$here'",
		"DELETE FROM app.identity WHERE id = 1000 + $id",
	);
}

# Test: all of that succeeds without waiting for anybody.  No line is there, so who waits for a
# region waits until a time-out, of a second at least; one statement that a busy machine delays is none.
sub works_alone
{
	my ($here, $how) = @_;
	my $session = $r->warm($here);
	my @times;

	foreach my $sql (own_work($here))
	{
		my ($trips, $ms) = $r->round_trips($here, $sql);
		is($session->{stderr}, '', "$here alone, others $how: $sql");
		is($trips, 0, '... waits for no region');
		cmp_ok($ms, '<', 500, '... nor for a time-out');
		push @times, $ms;
	}
	cmp_ok((sort { $a <=> $b } @times)[ @times / 2 ], '<', 40, "$here alone, others $how: at local speed");
	return;
}

# Test: what needs an absent region fails at once and names it
sub fails_at_once
{
	my ($here, $how) = @_;
	my $session = $r->warm($here);

	foreach my $there (grep { $_ ne $here } $r->regions)
	{
		my $other = { usa => 1, gbr => 2, aus => 3 }->{$there};

		foreach my $sql ("SELECT name FROM app.details WHERE id = $other",
			"UPDATE app.details SET name = 'x' WHERE id = $other AND region = '$there'",
			"INSERT INTO app.details VALUES ($other, '$there', 'x')",
			"UPDATE app.identity SET note = 'x' WHERE id = $other",
			"INSERT INTO app.identity VALUES (9999, '$there', 'x')",
			"SELECT count(*) FROM app.details WHERE region = '$there'")
		{
			$session->{stderr} = '';
			my ($trips, $ms) = $r->relay->waited(sub { $session->query($sql) });
			like($session->{stderr}, qr/ERROR:  region "$there"(?: is|: it is) away.*HINT:/s, "$here, $there $how: $sql");
			cmp_ok($ms, '<', 200, '... at once');
		}
	}
	$session->{stderr} = '';
	my ($trips, $ms) = $r->relay->waited(sub { $session->query('SELECT count(*) FROM app.details') });
	like($session->{stderr}, qr/ERROR:  region "\w+": it is away/, "$here, others $how: reading all regions");
	cmp_ok($ms, '<', 200, '... at once');
	$session->{stderr} = '';
	is($session->query("SET residency.on_away = 'skip'; SELECT count(DISTINCT region) FROM app.details; SET residency.on_away = 'error'"), '1',
		'... or without them');
	return;
}

# brings all links back, and waits until all agree
sub all_back
{
	my ($how) = @_;

	foreach my $a ($r->regions)
	{
		foreach my $b (grep { $_ ne $a } $r->regions) { $r->relay->back("$a>$b"); }
	}
	foreach my $a ($r->regions)
	{
		foreach my $b (grep { $_ ne $a } $r->regions) { becomes($a, $b, 'up') or diag("$a never sees $b up"); }
	}
	ok($r->poll($_, 'SELECT count(*) = 0 FROM residency.backlog'), "$how: nothing is left to ship at $_") foreach $r->regions;
	$r->all_equal('SELECT id, region, note FROM app.identity ORDER BY id', "$how: all copies are equal afterwards");
	is($r->psql('usa', 'SELECT count(*) FROM app.identity i FULL JOIN app.details d USING (id, region) WHERE i.id IS NULL OR d.id IS NULL'), '0',
		"$how: everybody has details");
	is($r->prepared, 0, "$how: nothing is prepared");
	return;
}

foreach my $at ($r->regions)
{
	becomes($at, $_, 'up') foreach grep { $_ ne $at } $r->regions;
	$r->warm($at, own_work($at), 'SELECT count(*) FROM app.details');
}

# --- all links cut: every region is alone ---------------------------------------------------
foreach my $a ($r->regions)
{
	foreach my $b (grep { $_ ne $a } $r->regions) { $r->relay->away("$a>$b"); }
}
foreach my $at ($r->regions)
{
	ok(becomes($at, $_, 'away'), "$at knows that $_ is away") foreach grep { $_ ne $at } $r->regions;
}
foreach my $at ($r->regions)
{
	works_alone($at, 'cut off');
	fails_at_once($at, 'cut off');
}
all_back('cut off');

# --- all links silent ------------------------------------------------------------------------
$r->warm($_, 'SELECT count(*) FROM app.details') foreach $r->regions;
foreach my $a ($r->regions)
{
	foreach my $b (grep { $_ ne $a } $r->regions) { $r->relay->hold("$a>$b"); }
}

# before it is known: reads and writes of residents need nobody, so they never wait
my $start = time;
$r->psql('gbr', "SELECT name FROM app.details WHERE id = 2; UPDATE app.details SET name = 'early' WHERE id = 2 AND region = 'gbr'");
cmp_ok(time - $start, '<', 0.8, 'own residents are served before anybody knows');
foreach my $at ($r->regions)
{
	ok(becomes($at, $_, 'away'), "$at knows that $_ is silent") foreach grep { $_ ne $at } $r->regions;
}
foreach my $at ($r->regions)
{
	works_alone($at, 'silent');
	fails_at_once($at, 'silent');
}
all_back('silent');

# what a region that has just started takes the others for, until they are all away, at "which: states"
sub states_until_away
{
	my ($here) = @_;
	my (%seen, $last);
	my $end = time + 60;

	do
	{
		$last = $r->psql($here, "SELECT region, state FROM residency.region_states() ORDER BY 1");
		$seen{$_} = 1 foreach split /\n/, $last;
	} until (2 == (() = $last =~ /\|away$/mg) || time > $end);
	return join(' ', sort keys %seen);
}

# --- both others are stopped ---------------------------------------------------------------------
foreach my $here ($r->regions)
{
	my @others = grep { $_ ne $here } $r->regions;

	# sessions of servers that stop do not outlive them
	foreach my $region (keys %{ $r->{sessions} }) { (delete $r->{sessions}{$region})->quit; }
	$r->warm($here, 'SELECT count(*) FROM app.details');
	$r->stop($_, 'immediate') foreach @others;
	ok(becomes($here, $_, 'away'), "$here knows that $_ has stopped") foreach @others;
	works_alone($here, 'stopped');
	fails_at_once($here, 'stopped');
	(delete $r->{sessions}{$here})->quit;
	$r->restart($here);

	# what it has noted says that they lack something: they do not count as up in between
	is(states_until_away($here) =~ s/\S+\|(?:catching up|away) ?//gr, '', "$here finds it out again after a restart of its own, and never took them to be up");
	works_alone($here, 'stopped');
	$r->start($_) foreach @others;
	all_back('stopped');
}

done_testing();
