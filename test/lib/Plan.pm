# What the torture test does, as a function of the seed: transactions and misfortunes.
# Torture.pm carries it out.
package Plan;

use strict;
use warnings;

# rows that are never deleted, and count; rows that come and go
my @lasting = 1 .. 12;
my ($first_passing, $passing) = (100, 40);

sub new
{
	my ($class, %o) = @_;
	return bless {%o}, $class;
}

# A sequence of numbers of its own for each word: n => 0 .. n-1.
sub dice
{
	my ($self, @words) = @_;
	my $state = $self->{seed};

	foreach my $byte (unpack('C*', join(' ', @words))) { $state = ($state * 31 + $byte + 1) & 0x7fffffff; }
	my $roll = sub {
		my ($n) = @_;
		$state = ($state * 1103515245 + 12345) & 0x7fffffff;
		return int($state / 65536) % $n;
	};
	$roll->(2) for 1 .. 5;
	return $roll;
}

sub lasting { return @lasting; }
sub home { my ($self, $id) = @_; return $self->{regions}[ $id % @{ $self->{regions} } ]; }

# SQL that makes the tables, functions and lasting rows, at the first region.
sub schema
{
	my ($self) = @_;
	my $people = join(', ', map { sprintf("(%d, '%s')", $_, $self->home($_)) } @lasting);

	return (
		q{SELECT residency.run_everywhere($$
			CREATE SCHEMA app;
			CREATE TABLE app.identity (id int PRIMARY KEY, region text NOT NULL, note text, n int NOT NULL DEFAULT 0);
			CREATE TABLE app.details (id int PRIMARY KEY, region text NOT NULL, name text, n int NOT NULL DEFAULT 0);
			CREATE TABLE app.parent (id int PRIMARY KEY, region text NOT NULL, note text);
			CREATE TABLE app.child (id int PRIMARY KEY, region text NOT NULL, parent int NOT NULL REFERENCES app.parent ON DELETE CASCADE, note text);
			CREATE INDEX ON app.child (parent);
			CREATE TABLE app.marker (txn int, region text NOT NULL, PRIMARY KEY (txn, region));
		$$)},
		q{SELECT residency.make_global('app.identity', 'region')},
		q{SELECT residency.make_global('app.parent', 'region')},
		q{SELECT residency.make_global('app.child', 'region')},
		q{SELECT residency.make_resident('app.details', 'region', key => '{id}', directory => 'app.identity')},
		q{SELECT residency.make_resident('app.marker', 'region', key => '{txn}')},
		q{SELECT residency.run_everywhere($$
			CREATE FUNCTION app.put(the_id int, home text, word text) RETURNS void LANGUAGE plpgsql AS $f$
			BEGIN
				INSERT INTO app.identity (id, region, note) VALUES (the_id, home, word) ON CONFLICT (id) DO UPDATE SET note = excluded.note;
				UPDATE app.details SET name = word WHERE id = the_id;
				IF NOT FOUND THEN
					INSERT INTO app.details (id, region, name) SELECT i.id, i.region, word FROM app.identity i WHERE i.id = the_id;
				END IF;
			END $f$;
			CREATE FUNCTION app.caught(the_id int) RETURNS void LANGUAGE plpgsql AS $f$
			BEGIN
				UPDATE app.identity SET n = n + 1000 WHERE id = the_id;
				UPDATE app.details SET n = n + 1000 WHERE id = the_id;
				RAISE SQLSTATE 'P0099';
			EXCEPTION WHEN SQLSTATE 'P0099' THEN NULL;
			END $f$;
			CREATE FUNCTION app.count(the_id int, number int) RETURNS void LANGUAGE plpgsql AS $f$
			BEGIN
				UPDATE app.identity SET n = n + 1 WHERE id = the_id;
				UPDATE app.details SET n = n + 1 WHERE id = the_id;
				INSERT INTO app.marker VALUES (number, 'usa'), (number, 'gbr'), (number, 'aus');
			END $f$;
		$$)},
		"INSERT INTO app.identity (id, region) VALUES $people",
		"INSERT INTO app.details (id, region) VALUES $people");
}

# The nth transaction of a client: { number, gateway, steps, regions, changes }.
sub transaction
{
	my ($self, $client, $n) = @_;
	my $gateway = $self->dice('gateway', $client, int($n / 8))->(scalar @{ $self->{regions} });
	my $roll = $self->dice('transaction', $client, $n);
	my $t = {
		number => $client * 1_000_000 + $n,
		gateway => $self->{regions}[$gateway],
		steps => [], changes => {}, touched => {}, level => 0 };

	if ($roll->(10) == 0) { $self->in_one_statement($t, $roll); }
	else { $self->in_a_block($t, $roll); }
	$t->{regions} = [ sort keys %{ $t->{touched} } ];
	return $t;
}

# everything in one statement, which commits by itself
sub in_one_statement
{
	my ($self, $t, $roll) = @_;
	my $id = $lasting[ $roll->(scalar @lasting) ];

	$t->{changes} = { "g$id" => 1, "r$id" => 1 };
	$t->{touched}{$_} = 1 foreach @{ $self->{regions} };
	$t->{steps} = [ { sql => "SELECT app.count($id, $t->{number})", commit => 1 } ];
	return;
}

# one to four operations in a transaction block, some of them in savepoints
sub in_a_block
{
	my ($self, $t, $roll) = @_;
	my $operations = 1 + $roll->(4);

	step($t, 'BEGIN');
	for (1 .. $operations)
	{
		my $saved = $roll->(5);

		if ($saved == 0)		# undone
		{
			my %before = (changes => { %{ $t->{changes} } }, touched => { %{ $t->{touched} } });

			step($t, 'SAVEPOINT s');
			$self->operation($t, $roll);
			step($t, 'ROLLBACK TO s');
			$t->{$_} = $before{$_} foreach keys %before;
		}
		elsif ($saved == 1)
		{
			step($t, 'SAVEPOINT s');
			$self->operation($t, $roll);
			step($t, 'RELEASE s');
		}
		else { $self->operation($t, $roll); }
	}
	$t->{touched}{ $self->{regions}[ $roll->(scalar @{ $self->{regions} }) ] } = 1 unless %{ $t->{touched} };
	step($t, 'INSERT INTO app.marker VALUES ' . join(', ', map { "($t->{number}, '$_')" } sort keys %{ $t->{touched} }));
	push @{ $t->{steps} }, { sql => $roll->(12) == 0 ? 'ROLLBACK' : 'COMMIT', commit => 1 };
	return;
}

sub step { my ($t, $sql, %o) = @_; push @{ $t->{steps} }, { sql => $sql, %o }; return; }

# One operation, with what it changes.
sub operation
{
	my ($self, $t, $roll) = @_;
	my $kind = (qw(count_global count_resident count_resident transfer transfer put put remove move caught parent child orphan read))[ $roll->(13) ];
	my $id = $lasting[ $roll->(scalar @lasting) ];
	my $other = $lasting[ $roll->(scalar @lasting) ];
	my $passing_id = $first_passing + $roll->($passing);
	my $region = $self->{regions}[ $roll->(scalar @{ $self->{regions} }) ];
	my $home = $self->home($id);
	my $word = "t$t->{number}";
	my $global = 1;

	if ($kind eq 'count_global')
	{
		step($t, "UPDATE app.identity SET n = n + 1 WHERE id = $id");
		$t->{changes}{"g$id"}++;
	}
	elsif ($kind eq 'count_resident')
	{
		step($t, "UPDATE app.details SET n = n + 1 WHERE id = $id" . ($roll->(2) ? " AND region = '$home'" : ''));
		$t->{changes}{"r$id"}++;
		$t->{touched}{$home} = 1;
		$global = 0;
	}
	elsif ($kind eq 'transfer')
	{
		step($t, "UPDATE app.details SET n = n + CASE id WHEN $id THEN 5 ELSE -5 END WHERE id IN ($id, $other)");
		$t->{changes}{"r$other"} -= 5 if $other != $id;
		$t->{changes}{"r$id"} += 5;
		$t->{touched}{$_} = 1 foreach $home, $self->home($other);
		$global = 0;
	}
	elsif ($kind eq 'put') { step($t, "SELECT app.put($passing_id, '$region', '$word')"); }
	elsif ($kind eq 'remove')
	{
		step($t, "DELETE FROM app.details WHERE id = $passing_id");
		step($t, "DELETE FROM app.identity WHERE id = $passing_id");
	}
	elsif ($kind eq 'move')
	{
		my ($elsewhere) = grep { $_ ne $home } ($region, @{ $self->{regions} });

		step($t, 'SAVEPOINT m');
		step($t, "UPDATE app.details SET region = '$elsewhere' WHERE id = $id", refused => '0A000');
		step($t, 'ROLLBACK TO m');
		$global = 0;
	}
	elsif ($kind eq 'caught') { step($t, "SELECT app.caught($id)"); $global = 0; }
	elsif ($kind eq 'parent') { step($t, "INSERT INTO app.parent VALUES ($passing_id, '$region', '$word') ON CONFLICT (id) DO UPDATE SET note = excluded.note"); }
	elsif ($kind eq 'child')
	{
		step($t, "INSERT INTO app.child SELECT $passing_id * 10 + " . $roll->(3) . ", '$region', $passing_id, '$word' "
			  . "WHERE EXISTS (SELECT FROM app.parent WHERE id = $passing_id) ON CONFLICT (id) DO UPDATE SET note = excluded.note");
	}
	elsif ($kind eq 'orphan') { step($t, "DELETE FROM app.parent WHERE id = $passing_id"); }
	else { step($t, 'SELECT count(*), sum(n) FROM app.details'); $global = 0; }
	if ($global) { $t->{touched}{$_} = 1 foreach @{ $self->{regions} }; }
	return;
}

# fault points that something comes by all the time
my @points = qw(commit_begins recorded prepare_sent one_prepared prepared aborting decided one_told all_told applied alone_sent
  part_traced part_prepares part_prepared part_applies part_applied part_rolls_back part_rolled_back part_commits_alone);

# What befalls the regions within so many seconds: [ms, name, arguments], sorted; the last are
# over before the end.
sub misfortunes
{
	my ($self, $seconds) = @_;
	my $roll = $self->dice('misfortunes');
	my @regions = @{ $self->{regions} };
	my %busy;    # region => ms until which it has enough to bear
	my @events;

	for (my $ms = 1000; $ms < $seconds * 1000 - 4000; $ms += 100 + $roll->(700))
	{
		my $region = $regions[ $roll->(scalar @regions) ];
		my ($other) = ((grep { $_ ne $region } @regions)[ $roll->(@regions - 1) ]);
		my $link = "$region>$other";
		my $last = 200 + $roll->(1800);
		my $way = (qw(out in both))[ $roll->(3) ];
		my $kind = (qw(kill terminate cancel cancel terminate stop freeze cut cut away hold hold hold_away isolate fault fault fault fault fault))[ $roll->(19) ];
		my $nth = $roll->(1000);
		my $point = $points[ $roll->(scalar @points) ];
		my $action = (qw(crash_backend crash_backend crash_server terminate))[ $roll->(4) ];

		next if ($busy{$region} // 0) > $ms || ($busy{$other} // 0) > $ms;
		if ($kind =~ /^(?:kill|terminate|cancel)$/) { push @events, [ $ms, $kind, $region, $nth ]; $busy{$region} = $ms + 300; }
		elsif ($kind eq 'stop') { push @events, [ $ms, 'stop', $region ], [ $ms + $last, 'start', $region ]; $busy{$region} = $ms + $last + 500; }
		elsif ($kind eq 'freeze') { push @events, [ $ms, 'freeze', $region ], [ $ms + $last, 'thaw', $region ]; $busy{$region} = $ms + $last; }
		elsif ($kind eq 'cut') { push @events, [ $ms, 'cut', $link ]; }
		elsif ($kind eq 'away') { push @events, [ $ms, 'away', $link ], [ $ms + $last, 'back', $link ]; }
		elsif ($kind eq 'hold') { push @events, [ $ms, 'hold', $link, $way ], [ $ms + $last, 'back', $link ]; }
		elsif ($kind eq 'hold_away')
		{
			push @events, [ $ms, 'hold', $link, $way ], [ $ms + int($last / 2), 'away', $link ], [ $ms + $last, 'back', $link ];
		}
		elsif ($kind eq 'isolate') { push @events, [ $ms, 'isolate', $region ], [ $ms + $last, 'rejoin', $region ]; }
		else
		{
			push @events, [ $ms, 'fault', $region, "$point:$action:" . (1 + $roll->(3)) ];
			if ($action eq 'crash_server') { push @events, [ $ms + 1000, 'start', $region ]; $busy{$region} = $ms + 1500; }
			else { $busy{$region} = $ms + 600; }
		}
		$busy{$_} = $ms + $last foreach $kind =~ /away|hold|isolate/ ? ($region, $other) : ();
	}
	return sort { $a->[0] <=> $b->[0] } @events;
}

# the schedule, for people
sub print
{
	my ($self, $seconds, $clients, $transactions) = @_;

	print join(' ', @$_), "\n" foreach $self->misfortunes($seconds);
	foreach my $client (1 .. $clients)
	{
		foreach my $n (1 .. $transactions)
		{
			my $t = $self->transaction($client, $n);
			print "$t->{number} at $t->{gateway}: ", join('; ', map { $_->{sql} } @{ $t->{steps} }), "\n";
		}
	}
	return;
}

1;
