# What must be so when the torture test (Torture.pm) is over: the promises, each against what
# the regions hold and what the clients were told.
package Aftermath;

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep time);

# s after which a region that reaches no other one knows it, and after which a server that
# has restarted does: until then they may ask the others, and fail
my ($knows, $knows_again) = (2.5, 6);

# why a transaction may fail at any time: somebody ended or cancelled it
my $ended = qr/^(?:57P0[1-5]|57014 canceling statement due to user request|XX000 fault point|lost:|rolled back)/;

# an internal error in another region; which one, its log tells
my $elsewhere = qr/region "\w+": error in a statement/;

# After settling.
sub check
{
	my ($t) = @_;

	read_conflicts($t);
	check_logs($t);
	check_reasons($t);
	check_residents($t);
	check_globals($t);
	check_transactions($t);
	check_counters($t);
	check_copies($t);
	check_homes($t);
	check_made($t);
	check_alone($t);
	return;
}

# Rows of a query in one region, each a list of columns.
sub rows
{
	my ($t, $region, $sql) = @_;
	return map { [ split /\|/, $_, -1 ] } split /\n/, $t->r->psql($region, $sql);
}

# All conflicts: { relation, key, kind, home, region, constraint, txn, row, known => [regions] }.
sub conflicts
{
	my ($t) = @_;
	my @columns = qw(relation key kind home region constraint txn row);
	my %conflicts;

	foreach my $region ($t->r->regions)
	{
		foreach my $row (rows($t, $region, q{SELECT relation, key[1], kind, home, region, constraint_name, row->>'txn', row FROM residency.conflicts}))
		{
			my $conflict = $conflicts{ join('|', @$row) } //= {};

			@{$conflict}{@columns} = @$row;
			push @{ $conflict->{known} }, $region;
		}
	}
	return map { $conflicts{$_} } sort keys %conflicts;
}

# A region that has been cured of a conflict tells its home when that tries again, which is every half minute.
my $cured = 45;

# Conflicts: each is known alike in two regions.
sub read_conflicts
{
	my ($t) = @_;
	my $end = time + $cured;
	my @all;

	do
	{
		@all = conflicts($t);
		sleep(0.5) if grep { @{ $_->{known} } < 2 } @all;
	} while (time < $end && grep { @{ $_->{known} } < 2 } @all);
	$t->{conflict_keys} = {};
	$t->{conflicts} = {};
	$t->{excused} = {};
	foreach my $c (@all)
	{
		my $where = join(' ', sort @{ $c->{known} });

		# it could not take the row; or what it has made itself stays for what refers to it there
		$t->{excused}{ $c->{relation} }{ $c->{key} }{ $c->{region} } = 1 if $c->{kind} ne 'key' || $c->{constraint} ne '';
		$t->{conflict_keys}{"$c->{relation} $c->{kind}"}{ $c->{key} } = 1;
		$t->{stored}{ $c->{txn} } = 1 if $c->{txn} ne '';
		$t->{conflicts}{"$c->{relation} $c->{kind}"}++;
		$t->violation("conflict known in $where only: $c->{relation} {$c->{key}} $c->{kind} $c->{home} $c->{region} $c->{row}")
		  if $where ne join(' ', sort $c->{home}, $c->{region});
	}
	return;
}

# Decides all conflicts, as an operator would; what is open after a while, and the last errors.
sub decide
{
	my ($t, $seconds) = @_;
	my $end = time + $seconds;
	my (@open, %errors);

	while ((@open = conflicts($t)) && time < $end)
	{
		my %n;

		$n{"$_->{relation} $_->{key}"}++ foreach @open;
		%errors = ();
		foreach my $c (@open)
		{
			my ($code, $out, $error) = $t->r->try($c->{home}, decision($t, $c, $n{"$c->{relation} $c->{key}"}));

			$errors{$1} = 1 if $code && $error =~ /(ERROR: .*)/;
		}
		sleep(0.3);
	}
	return '' unless @open;
	return 'conflicts cannot be decided: ' . join('; ', map { "$_->{relation} {$_->{key}} $_->{kind} $_->{home} $_->{region} $_->{row}" } @open)
	  . '; ' . join('; ', sort keys %errors);
}

# SQL to run at the home of a conflict's row.  A row that lost goes, with what refers to it; a
# row of app.made gets another key.
sub decision
{
	my ($t, $c, $number) = @_;
	my ($keep, $changes) = ('current', '{}');
	my $room = '';

	if ($c->{relation} eq 'app.made' && $c->{kind} eq 'key' && $number == 1)
	{
		($keep, $changes) = ('stored', sprintf('{"id": %d}', $c->{txn}));
		$t->{expected_row}{ $c->{txn} } = 1;
	}
	elsif ($c->{kind} ne 'key') { $room = make_room($t, $c); }
	return "$room SELECT residency.resolve_conflict('$c->{relation}', '{$c->{key}}', '$keep', '$changes')";
}

# What is in the way of a row that broke a reference is deleted, where it is.
sub make_room
{
	my ($t, $c) = @_;

	# of an identity that two regions have made the one in the region first by name stays
	$t->r->try($c->{region}, "DELETE FROM app.details WHERE id = $c->{key} AND region = '$c->{region}'")
	  if $c->{relation} eq 'app.identity' && $c->{home} lt $c->{region};
	$t->r->try($c->{region}, "DELETE FROM app.child WHERE parent = $c->{key}") if $c->{relation} eq 'app.parent';
	return $c->{relation} eq 'app.child' ? "DELETE FROM app.child WHERE id = $c->{key};" : '';
}

# After all conflicts are decided, and settling: copies are equal without exception.
sub check_decided
{
	my ($t) = @_;
	my %holds = map { $_->[0] => 1 } rows($t, 'usa', 'SELECT txn FROM app.made');

	$t->{conflict_keys} = {};
	$t->{excused} = {};
	check_copies($t);
	check_homes($t);
	foreach my $txn (sort grep { !$holds{$_} } keys %{ $t->{expected_row} }) { $t->violation("row of transaction $txn in app.made is not there after the decision to keep it"); }
	return;
}

# Keys of conflicts of a table, of some kinds, for "NOT IN".
sub keys_of
{
	my ($t, $table, $kinds) = @_;
	return join(', ', -1, map { keys %{ $t->{conflict_keys}{$_} } } grep { /^\Q$table\E (?:$kinds)$/ } keys %{ $t->{conflict_keys} });
}

# Nothing in the servers' logs that should never be there; when they came up.
sub check_logs
{
	my ($t) = @_;

	foreach my $region ($t->r->regions)
	{
		foreach my $line (split /\n/, slurp_file($t->r->node($region)->logfile))
		{
			my $at = $line =~ /^(\d+\.\d+) / ? $1 : time;

			next if $at < $t->{begin};    # an earlier run may have written the same log
			push @{ $t->{came_up}{$region} }, $at if $line =~ /LOG:  database system is ready to accept connections/;
			$t->violation("$region log: $line")
			  if $line =~ /PANIC|TRAP:|terminated by signal (?!9)|invalid page|could not read block|LOG:  .*corrupt|\] XX\w{3} .*(?:LOG|ERROR|FATAL):  (?!.*(?:fault point|error in a statement$))/;
		}
	}
	return;
}

# Nobody was told what never should be.
sub check_reasons
{
	my ($t) = @_;

	foreach my $why (sort keys %{ $t->{reasons} })
	{
		$t->violation("$t->{reasons}{$why} x $why")
		  if $why =~ /^(?:XX(?!000 (?:fault point|$elsewhere))|not refused)|\[XX|due to statement timeout/;
	}
	return;
}

# "there" for what transactions left among residents: all or nothing of each
sub check_residents
{
	my ($t) = @_;

	foreach my $region ($t->r->regions)
	{
		foreach my $row (rows($t, $region, "SELECT txn FROM $region.marker")) { $t->{there}{ $row->[0] }{"resident of $region"} = 1; }
	}
	return;
}

# the same among global rows, of which each region has a copy
sub check_globals
{
	my ($t) = @_;

	foreach my $region ($t->r->regions)
	{
		foreach my $row (rows($t, $region, 'SELECT txn, region FROM app.token')) { $t->{there}{ $row->[0] }{"$row->[1]'s, copy in $region"} = 1; }
	}
	return;
}

# Told "committed": everywhere; told "aborted": nowhere; unknown: all or nothing.
sub check_transactions
{
	my ($t) = @_;
	my %there = %{ $t->{there} // {} };
	my @regions = $t->r->regions;

	foreach my $x (sort { $a->{number} <=> $b->{number} } $t->results)
	{
		my $found = delete $there{ $x->{number} } // {};
		my @expected = ((map { "resident of $_" } @{ $x->{residents} }), map { my $home = $_; map { "$home\'s, copy in $_" } @regions } @{ $x->{globals} });
		my @missing = grep { !$found->{$_} } @expected;
		my $wrong = $x->{told} eq 'committed' ? @missing > 0 : $x->{told} =~ /^(?:unknown|silent)$/ ? @missing > 0 && %$found : scalar %$found;

		$x->{there} = %$found > 0;
		$t->violation("transaction $x->{number} ($x->{kind}) at $x->{gateway}, told $x->{told} ($x->{why}) at $x->{end}: there: "
			  . join(', ', sort keys %$found) . '; not there: ' . join(', ', @missing)) if $wrong;
		$t->violation("transaction $x->{number} ($x->{kind}) at $x->{gateway} hangs: $x->{why}") if $x->{told} eq 'silent';
	}
	$t->violation("nobody began transaction $_") foreach keys %there;
	return;
}

# Counters are the sum of the transactions that are there.
sub check_counters
{
	my ($t) = @_;
	my %home = $t->plan->lasting;
	my $ids = join(', ', keys %home);
	my (%expected, %resident, %global);

	foreach my $x (grep { $_->{there} } $t->results)
	{
		$expected{$_} += $x->{changes}{$_} foreach keys %{ $x->{changes} };
	}
	foreach my $region ($t->r->regions)
	{
		$resident{$region} = { map { @$_ } rows($t, $region, "SELECT id, n FROM $region.details WHERE id IN ($ids)") };
		$global{$region} = { map { @$_ } rows($t, $region, "SELECT id, n FROM app.identity WHERE id IN ($ids)") };
	}
	foreach my $id (sort { $a <=> $b } keys %home)
	{
		my $n = $resident{ $home{$id} }{$id} // 'nothing';
		my ($residents, $globals) = map { $expected{"$_$id"} // 0 } qw(r g);

		$t->violation("details $id in $home{$id} counted $n, not $residents") if $n ne $residents;
		foreach my $region ($t->r->regions)
		{
			$n = $global{$region}{$id} // 'nothing';
			$t->violation("identity $id in $region counted $n, not $globals") if $n ne $globals;
		}
	}
	return;
}

# Copies are equal in all regions, but for those that a conflict names: each concerns one region, and
# all others are equal for that key as well.
sub check_copies
{
	my ($t) = @_;

	foreach my $table (qw(app.identity app.parent app.child app.brief app.made))
	{
		my %copies;

		foreach my $region ($t->r->regions)
		{
			$copies{ $_->[0] }{$region} = $_->[1] foreach rows($t, $region, "SELECT id, replace(t::text, '|', '/') FROM $table t");
		}
		foreach my $id (sort { $a <=> $b } keys %copies)
		{
			my %different = map { $copies{$id}{$_} // 'nothing' => 1 } grep { !$t->{excused}{$table}{$id}{$_} } $t->r->regions;

			$t->violation("copies of $table $id differ: " . join(', ', map { "$_ has " . ($copies{$id}{$_} // 'nothing') } $t->r->regions)) if keys %different > 1;
		}
	}
	return;
}

# Each identity has exactly one detail row, in its home region; each child its parent.
sub check_homes
{
	my ($t) = @_;
	my $apart = keys_of($t, 'app.identity', 'key');
	my $undecided = keys_of($t, 'app.parent', '\w+');

	foreach my $region ($t->r->regions)
	{
		my $bad = $t->r->psql($region, qq{
			SELECT string_agg(x, '; ') FROM (
				SELECT 'no detail row here: ' || i::text FROM app.identity i
				WHERE i.region = '$region' AND (SELECT count(*) FROM $region.details d WHERE d.id = i.id) <> 1
				UNION ALL SELECT 'no identity at home here: ' || d.id FROM $region.details d
				WHERE NOT EXISTS (SELECT FROM app.identity i WHERE i.id = d.id AND i.region = '$region') AND d.id NOT IN ($apart)
				UNION ALL SELECT 'no parent: ' || c::text FROM app.child c
				WHERE NOT EXISTS (SELECT FROM app.parent p WHERE p.id = c.parent) AND c.parent NOT IN ($undecided)) AS y (x)});

		$t->violation("$region: $bad") if $bad ne '';
	}
	return;
}

# Rows made apart never vanish: each holds, or is in residency.conflicts.
sub check_made
{
	my ($t) = @_;
	my %holds = map { $_->[0] => 1 } rows($t, 'usa', 'SELECT txn FROM app.made');

	foreach my $x (grep { $_->{made} ne '' && $_->{there} } $t->results)
	{
		my $number = $x->{number};

		$t->violation("row $x->{made} of app.made, by transaction $number at $x->{gateway}, has vanished") unless $holds{$number} || $t->{stored}{$number};
		$t->violation("row $x->{made} of app.made, by transaction $number at $x->{gateway}, holds and is a conflict") if $holds{$number} && $t->{stored}{$number};
		delete $holds{$number};
	}
	$t->violation("nobody made the row of transaction $_ in app.made") foreach keys %holds;
	return;
}

# A client's own residents can be written at any time; and its own global rows, and new
# ones, while their home knows that it is alone.
sub check_alone
{
	my ($t) = @_;

	$t->{alone} = { committed => 0, excused => 0 };
	foreach my $x (grep { $_->{kind} =~ /^own/ && $_->{told} ne 'not begun' } $t->results)
	{
		my $alone = alone($t, $x);

		$t->{alone}{committed}++ if $alone && $x->{told} eq 'committed';
		$t->{alone}{excused}++ if $alone && $x->{told} ne 'committed';
		next if $x->{told} eq 'committed' || $x->{why} =~ $ended;
		$t->violation("transaction $x->{number} ($x->{kind}) at $x->{gateway} from $x->{begin} to $x->{end}, told $x->{told} ($x->{why}), though it needs no other region")
		  if $alone || $x->{kind} eq 'own resident';
	}
	return;
}

# true if a transaction ran where it was known that no other region can be reached
sub alone
{
	my ($t, $x) = @_;

	return 0 if grep { $_ > $x->{begin} - $knows_again && $_ < $x->{end} } @{ $t->{came_up}{ $x->{gateway} } // [] };
	return scalar grep { $_->[0] eq $x->{gateway} && $_->[1] + $knows < $x->{begin} && $x->{end} < $_->[2] } $t->nemesis->times_alone;
}

1;
