# What the torture test does, as a function of the seed: transactions and misfortunes.
# Torture.pm has the clients that run the transactions, Nemesis.pm brings the misfortunes.
package Plan;

use strict;
use warnings;

# Rows that are never deleted, and count, written by all; rows that come and go; and rows of
# each client alone, in each region, so that nobody else can be why it cannot write them.
my @shared = 1 .. 12;
my ($first_passing, $passing) = (100, 42);
my ($first_own, $first_new) = (1000, 10_000_000);

# Places of src/fault.h: at a gateway or participant of a commit, in the resolver, in the
# health worker, in catch-up.  The value tells whether an error can be raised there.  No region
# joins meanwhile.
my %commit_points = (
	commit_begins => 1, recorded => 1, prepare_sent => 1, one_prepared => 1, prepared => 1, aborting => 0, decided => 0,
	one_told => 0, all_told => 0, applied => 0, alone_sent => 1,
	part_traced => 1, part_prepares => 1, part_prepared => 0, part_applies => 1, part_applied => 0, part_rolls_back => 1,
	part_rolled_back => 0, part_commits_alone => 0);
my %resolver_points = (resolver_knows => 1, resolver_told => 1, resolver_forgets => 1, peer_knows => 1, peer_finished => 1);
my %health_points = (health_changes => 0);
my %ship_points = (
	ship_begins => 1, ship_answered => 1, shipped => 0, flip_locked => 0, flipped => 0, part_ships => 1, part_shipped => 1);

# seed, regions, clients
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

# one of a list
sub pick { my ($roll, @list) = @_; return $list[ $roll->(scalar @list) ]; }

# a list in another order
sub shuffle
{
	my ($roll, @list) = @_;
	my @out;

	push @out, splice(@list, $roll->(scalar @list), 1) while @list;
	return @out;
}

sub home { my ($self, $id) = @_; return $self->{regions}[ $id % @{ $self->{regions} } ]; }
sub points { return sort keys %commit_points, keys %resolver_points, keys %health_points, keys %ship_points; }

# the row that is a client's own in a region, and the regions in which it has one
sub own
{
	my ($self, $client, $region) = @_;
	my ($n) = grep { $self->{regions}[$_] eq $region } 0 .. $#{ $self->{regions} };

	return $first_own + $client * @{ $self->{regions} } + $n;
}

# rows that count, by id: their home
sub lasting
{
	my ($self) = @_;
	my %home = map { $_ => $self->home($_) } @shared;

	foreach my $region (@{ $self->{regions} }) { $home{ $self->own($_, $region) } = $region foreach 1 .. $self->{clients}; }
	return %home;
}

# SQL that makes the tables, functions and lasting rows, at the first region.
sub schema
{
	my ($self) = @_;
	my %home = $self->lasting;
	my $people = join(', ', map { "($_, '$home{$_}')" } sort { $a <=> $b } keys %home);

	return (
		q{SELECT residency.run_everywhere($$
			CREATE SCHEMA app;
			CREATE TABLE app.identity (id int PRIMARY KEY, region text NOT NULL, note text, n int NOT NULL DEFAULT 0);
			CREATE TABLE app.details (id int PRIMARY KEY, region text NOT NULL, name text, n int NOT NULL DEFAULT 0);
			CREATE TABLE app.parent (id int PRIMARY KEY, region text NOT NULL, note text);
			CREATE TABLE app.child (id int PRIMARY KEY, region text NOT NULL, parent int NOT NULL REFERENCES app.parent ON DELETE CASCADE ON UPDATE CASCADE, note text);
			CREATE INDEX ON app.child (parent);
			CREATE TABLE app.brief (id int PRIMARY KEY, region text NOT NULL, note text);
			CREATE TABLE app.made (id int PRIMARY KEY, region text NOT NULL, txn int NOT NULL);
			CREATE TABLE app.marker (txn int, region text NOT NULL, PRIMARY KEY (txn, region));
			CREATE TABLE app.token (txn int, region text NOT NULL, PRIMARY KEY (txn, region));
		$$)},
		(map { "SELECT residency.make_global('app.$_', 'region')" } qw(identity parent child brief made token)),
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
			CREATE FUNCTION app.count(the_id int, home text, number int) RETURNS void LANGUAGE plpgsql AS $f$
			BEGIN
				UPDATE app.identity SET n = n + 1 WHERE id = the_id;
				UPDATE app.details SET n = n + 1 WHERE id = the_id;
				INSERT INTO app.token VALUES (number, home);
				INSERT INTO app.marker VALUES (number, home);
			END $f$;
		$$)},
		"INSERT INTO app.identity (id, region) VALUES $people",
		"INSERT INTO app.details (id, region) VALUES $people");
}

# How a client's session begins at a gateway: it stays for eight transactions.
sub session
{
	my ($self, $client, $n) = @_;
	my $roll = $self->dice('gateway', $client, int($n / 8));
	my $gateway = pick($roll, @{ $self->{regions} });
	my $wait = $roll->(4) == 0 ? 'decided' : 'applied';

	return ($gateway, "SET statement_timeout = '20s'; SET lock_timeout = '3s'; SET residency.commit_wait = '$wait'");
}

# the number of a session's last transaction
sub last_of_session { my ($self, $n) = @_; return 8 * int($n / 8) + 7; }

# kinds of transactions, as often as they are wanted
my @kinds = (('own_resident') x 4, ('own_global') x 3, ('own_new') x 2, 'apart', ('in_one_statement') x 2, ('in_a_block') x 8);

# The nth transaction of a client: { number, kind, gateway, steps, residents, globals,
# changes, made }.  "residents" are the regions in which it leaves a row in app.marker,
# "globals" the homes of its rows in app.token, of which every region gets a copy; "changes"
# is what it adds to counters: r<id> in app.details, g<id> in app.identity.
sub transaction
{
	my ($self, $client, $n) = @_;
	my $roll = $self->dice('transaction', $client, $n);
	my ($gateway) = $self->session($client, $n);
	my $t = { number => $client * 1_000_000 + $n, client => $client, gateway => $gateway, kind => pick($roll, @kinds), steps => [], changes => {}, touched => {}, global => {} };
	my $kind = $t->{kind};

	$self->$kind($t, $roll, $n);
	$t->{residents} = [ sort keys %{ $t->{touched} } ];
	$t->{globals} = [ sort keys %{ $t->{global} } ];
	$t->{kind} =~ tr/_/ /;
	return $t;
}

sub step { my ($t, $sql, %o) = @_; push @{ $t->{steps} }, { sql => $sql, %o }; return; }
sub commit { my ($t, $sql) = @_; step($t, $sql // 'COMMIT', commit => 1); return; }

# the rows that tell of the transaction
sub leave_marks
{
	my ($t) = @_;
	my @residents = sort keys %{ $t->{touched} };
	my @globals = sort keys %{ $t->{global} };

	step($t, 'INSERT INTO app.marker VALUES ' . join(', ', map { "($t->{number}, '$_')" } @residents)) if @residents;
	step($t, 'INSERT INTO app.token VALUES ' . join(', ', map { "($t->{number}, '$_')" } @globals)) if @globals;
	return;
}

# A resident of the gateway's: needs no other region, whatever has become of them.
sub own_resident
{
	my ($self, $t, $roll) = @_;
	my $id = $self->own($t->{client}, $t->{gateway});

	$t->{changes} = { "r$id" => 1 };
	$t->{touched}{ $t->{gateway} } = 1;
	step($t, 'BEGIN');
	step($t, "SELECT d.n, i.note FROM app.identity i JOIN app.details d USING (id, region) WHERE i.id = $id") if $roll->(3) == 0;
	step($t, "UPDATE app.details SET n = n + 1 WHERE id = $id" . ($roll->(2) ? " AND region = '$t->{gateway}'" : ''));
	leave_marks($t);
	commit($t);
	return;
}

# A global row homed at the gateway: needs nobody once those that are away are known to be.
sub own_global
{
	my ($self, $t, $roll) = @_;
	my $id = $self->own($t->{client}, $t->{gateway});

	$t->{changes} = { "g$id" => 1 };
	$t->{global}{ $t->{gateway} } = 1;
	step($t, 'BEGIN');
	step($t, "UPDATE app.identity SET n = n + 1, note = 't$t->{number}' WHERE id = $id");
	leave_marks($t);
	commit($t);
	return;
}

# A new identity homed at the gateway; the same holds.
sub own_new
{
	my ($self, $t, $roll) = @_;
	my $id = $first_new + $t->{number};

	$t->{touched}{ $t->{gateway} } = $t->{global}{ $t->{gateway} } = 1;
	step($t, 'BEGIN');
	step($t, "SELECT app.put($id, '$t->{gateway}', 't$t->{number}')");
	leave_marks($t);
	commit($t);
	return;
}

# A row whose key others are after as well, perhaps at a region that this one cannot reach:
# whoever is told that it was made finds it, in the table or among the conflicts.
sub apart
{
	my ($self, $t, $roll, $n) = @_;

	$t->{made} = 5 * int($n / 40) + $roll->(5);
	$t->{global}{ $t->{gateway} } = 1;
	step($t, 'BEGIN');
	step($t, "INSERT INTO app.made VALUES ($t->{made}, '$t->{gateway}', $t->{number})");
	leave_marks($t);
	commit($t);
	return;
}

# everything in one statement, which commits by itself
sub in_one_statement
{
	my ($self, $t, $roll) = @_;
	my $id = $roll->(2) ? pick($roll, @shared) : pick($roll, grep { $self->home($_) eq $t->{gateway} } @shared);
	my $home = $self->home($id);

	$t->{changes} = { "g$id" => 1, "r$id" => 1 };
	$t->{touched}{$home} = $t->{global}{$home} = 1;
	commit($t, "SELECT app.count($id, '$home', $t->{number})");
	return;
}

# the regions that a block is about: the gateway, others, or all
sub scope
{
	my ($self, $t, $roll) = @_;
	my ($one, $two) = shuffle($roll, grep { $_ ne $t->{gateway} } @{ $self->{regions} });

	return @{ pick($roll, ([ $t->{gateway} ]) x 3, ([ $t->{gateway}, $one ]) x 3, [$one], [ $one, $two ], ([ $t->{gateway}, $one, $two ]) x 2) };
}

# one to four operations in a transaction block, some of them in savepoints
sub in_a_block
{
	my ($self, $t, $roll) = @_;
	my @scope = $self->scope($t, $roll);
	my $operations = 1 + $roll->(4);

	step($t, 'BEGIN');
	for (1 .. $operations)
	{
		my $saved = $roll->(5);
		my %before = map { $_ => { %{ $t->{$_} } } } qw(changes touched global);

		step($t, 'SAVEPOINT s') if $saved < 2;
		$self->operation($t, $roll, @scope);
		step($t, 'RELEASE s') if $saved == 1;
		next if $saved != 0;
		step($t, 'ROLLBACK TO s');
		$t->{$_} = $before{$_} foreach keys %before;
	}
	$t->{global}{ $t->{gateway} } = 1 if %{ $t->{global} } && $roll->(2);
	$t->{touched}{ $scope[0] } = 1 unless %{ $t->{global} };
	leave_marks($t);
	commit($t, $roll->(12) == 0 ? 'ROLLBACK' : 'COMMIT');
	return;
}

my @operations = ((qw(count_global count_resident count_resident transfer transfer put put remove move caught parent child orphan read)) x 2, qw(rename rename rehome brief brief clear));

# One operation on rows homed in those regions, with what it changes.
sub operation
{
	my ($self, $t, $roll, @scope) = @_;
	my %inside = map { $_ => 1 } @scope;
	my @ids = grep { $inside{ $self->home($_) } } @shared;
	my $what = pick($roll, @operations);
	my %row = (id => pick($roll, @ids), other => pick($roll, @ids), scope => \@scope, word => "t$t->{number}");

	# rows that come and go mostly come where one would expect them, else keys are made apart only
	$row{passing} = $first_passing + $roll->($passing);
	$row{region} = $roll->(8) && $inside{ $self->home($row{passing}) } ? $self->home($row{passing}) : pick($roll, @scope);
	$row{home} = $self->home($row{id});
	my $name = "op_$what";
	$self->$name($t, $roll, \%row);
	return;
}

sub op_count_global
{
	my ($self, $t, $roll, $row) = @_;

	step($t, "UPDATE app.identity SET n = n + 1 WHERE id = $row->{id}");
	$t->{changes}{"g$row->{id}"}++;
	$t->{global}{ $row->{home} } = 1;
	return;
}

sub op_count_resident
{
	my ($self, $t, $roll, $row) = @_;

	step($t, "UPDATE app.details SET n = n + 1 WHERE id = $row->{id}" . ($roll->(2) ? " AND region = '$row->{home}'" : ''));
	$t->{changes}{"r$row->{id}"}++;
	$t->{touched}{ $row->{home} } = 1;
	return;
}

sub op_transfer
{
	my ($self, $t, $roll, $row) = @_;
	my ($id, $other) = ($row->{id}, $row->{other});

	step($t, "UPDATE app.details SET n = n + CASE id WHEN $id THEN 5 ELSE -5 END WHERE id IN ($id, $other)");
	$t->{changes}{"r$other"} -= 5 if $other != $id;
	$t->{changes}{"r$id"} += 5;
	$t->{touched}{$_} = 1 foreach $row->{home}, $self->home($other);
	return;
}

sub op_put
{
	my ($self, $t, $roll, $row) = @_;

	step($t, "SELECT app.put($row->{passing}, '$row->{region}', '$row->{word}')");
	$t->{global}{ $row->{region} } = 1;
	return;
}

sub op_remove
{
	my ($self, $t, $roll, $row) = @_;

	step($t, "DELETE FROM app.details WHERE id = $row->{passing}");
	step($t, "DELETE FROM app.identity WHERE id = $row->{passing}");
	$t->{global}{ $row->{region} } = 1;
	return;
}

# a resident with lasting rows elsewhere cannot move like that
sub op_move
{
	my ($self, $t, $roll, $row) = @_;
	my ($elsewhere) = grep { $_ ne $row->{home} } (@{ $row->{scope} }, @{ $self->{regions} });

	step($t, 'SAVEPOINT m');
	step($t, "UPDATE app.details SET region = '$elsewhere' WHERE id = $row->{id}", refused => '0A000');
	step($t, 'ROLLBACK TO m');
	return;
}

sub op_caught { my ($self, $t, $roll, $row) = @_; step($t, "SELECT app.caught($row->{id})"); return; }

sub op_parent
{
	my ($self, $t, $roll, $row) = @_;

	step($t, "INSERT INTO app.parent VALUES ($row->{passing}, '$row->{region}', '$row->{word}') ON CONFLICT (id) DO UPDATE SET note = excluded.note");
	$t->{global}{ $row->{region} } = 1;
	return;
}

sub op_child
{
	my ($self, $t, $roll, $row) = @_;

	step($t, "INSERT INTO app.child SELECT $row->{passing} * 10 + " . $roll->(3) . ", '$row->{region}', $row->{passing}, '$row->{word}' "
		  . "WHERE EXISTS (SELECT FROM app.parent WHERE id = $row->{passing}) ON CONFLICT (id) DO UPDATE SET note = excluded.note");
	$t->{global}{ $row->{region} } = 1;
	return;
}

sub op_orphan
{
	my ($self, $t, $roll, $row) = @_;

	step($t, "DELETE FROM app.parent WHERE id = $row->{passing}");
	$t->{global}{ $row->{region} } = 1;
	return;
}

# another key: its children follow
sub op_rename
{
	my ($self, $t, $roll, $row) = @_;
	my $key = $first_passing + $roll->($passing);

	step($t, "UPDATE app.parent SET id = $key, note = '$row->{word}' WHERE id = $row->{passing} AND NOT EXISTS (SELECT FROM app.parent WHERE id = $key)");
	$t->{global}{ $row->{region} } = 1;
	return;
}

# another home, which needs all regions
sub op_rehome
{
	my ($self, $t, $roll, $row) = @_;

	step($t, "UPDATE app.parent SET region = '$row->{region}' WHERE id = $row->{passing}");
	$t->{global}{ $row->{region} } = 1;
	return;
}

# rows of a table that somebody empties now and then
sub op_brief
{
	my ($self, $t, $roll, $row) = @_;

	step($t, "INSERT INTO app.brief VALUES ($row->{passing}, '$row->{region}', '$row->{word}') ON CONFLICT (id) DO UPDATE SET note = excluded.note");
	$t->{global}{ $row->{region} } = 1;
	return;
}

sub op_clear
{
	my ($self, $t, $roll, $row) = @_;

	step($t, $roll->(2) ? 'TRUNCATE app.brief' : "DELETE FROM app.brief WHERE id < $row->{passing}");
	$t->{global}{ $row->{region} } = 1;
	return;
}

sub op_read
{
	my ($self, $t, $roll, $row) = @_;
	my $regions = join(', ', map { "'$_'" } @{ $row->{scope} });

	step($t, 'SELECT count(*), sum(n) FROM app.details' . (@{ $row->{scope} } < @{ $self->{regions} } ? " WHERE region IN ($regions)" : ''));
	return;
}

# What befalls the regions within so many seconds: [ms, name, arguments], sorted.  Long
# outages, one after another, and small misfortunes beside them.
sub misfortunes
{
	my ($self, $seconds) = @_;
	my $plan = { until => $seconds * 1000 - 3000, events => [], processes => [], links => [], points => [] };

	$self->outages($plan);
	$self->trifles($plan);
	return sort { $a->[0] <=> $b->[0] } @{ $plan->{events} };
}

sub event { my ($plan, $ms, @what) = @_; push @{ $plan->{events} }, [ $ms, @what ]; return; }

# For that time nothing else befalls a region's processes, a link, or an armed point.
sub reserve { my ($plan, $what, $name, $from, $to) = @_; push @{ $plan->{$what} }, [ $name, $from, $to ]; return; }
sub taken
{
	my ($plan, $what, $name, $from, $to) = @_;
	return scalar grep { $_->[0] eq $name && $_->[1] < $to && $from < $_->[2] } @{ $plan->{$what} };
}

sub links
{
	my ($self, $region) = @_;
	return map { ("$region>$_", "$_>$region") } grep { $_ ne $region } @{ $self->{regions} };
}

# Long enough for regions to be away, left out and noted for, and then caught up.  "alone" is
# a region that reaches no other one, and must go on by itself.
sub outages
{
	my ($self, $plan) = @_;
	my $roll = $self->dice('outages');
	my @alone = shuffle($roll, qw(isolate silence scatter));
	my @kinds = ($alone[0], shuffle($roll, @alone[ 1, 2 ], qw(stop stop_two freeze)));
	my $ms = 2500;

	for (my $n = 0; $ms < $plan->{until} - 3500; $n++)
	{
		my $end = $ms + 3500 + $roll->(2500);
		my ($one, $two, $three) = shuffle($roll, @{ $self->{regions} });
		my $kind = $kinds[ $n % @kinds ];
		my %o = (
			isolate => { alone => [$one], begin => [ [ 'isolate', $one ] ], end => [ [ 'rejoin', $one ] ] },
			silence => { alone => [$one], begin => [ [ 'silence', $one ] ], end => [ [ 'rejoin', $one ] ] },
			scatter => { alone => [ $one, $two, $three ], begin => [ [ 'isolate', $one ], [ 'isolate', $two ] ], end => [ [ 'rejoin', $one ], [ 'rejoin', $two ] ] },
			stop => { down => [$one], begin => [ [ 'stop', $one ] ], end => [ [ 'start', $one ] ] },
			stop_two => { alone => [$three], down => [ $one, $two ], begin => [ [ 'stop', $one ], [ 'stop', $two ] ], end => [ [ 'start', $one ], [ 'start', $two ] ] },
			freeze => { down => [$one], begin => [ [ 'freeze', $one ] ], end => [ [ 'thaw', $one ] ] });

		$self->outage($plan, $roll, $ms, $end, $o{$kind});
		$ms = $end + 3000 + $roll->(2000);
	}
	return;
}

# one of them
sub outage
{
	my ($self, $plan, $roll, $ms, $end, $o) = @_;
	my @regions = @{ $self->{regions} };

	event($plan, $ms, @$_) foreach @{ $o->{begin} };
	event($plan, $ms, 'alone', @{ $o->{alone} }) if $o->{alone};
	event($plan, $end, 'together') if $o->{alone};
	event($plan, $end, @$_) foreach @{ $o->{end} };
	foreach my $region (@{ $o->{alone} // [] }, @{ $o->{down} // [] })
	{
		reserve($plan, 'processes', $region, $ms - 1500, $end + 500);
		reserve($plan, 'points', $region, $ms - 1500, $end - 800);
		reserve($plan, 'links', $_, $ms, $end) foreach $self->links($region);
	}

	# whoever notices that they are away does, or what is shipped when they are back, more often than not
	return if $roll->(4) == 0;
	my %points = (%ship_points, %health_points);
	my $point = pick($roll, sort keys %points);
	my @down = @{ $o->{down} // [] };
	my @others = grep { my $r = $_; !grep { $_ eq $r } @down } @regions;
	my $region = pick($roll, $point =~ /^part_/ && @down ? @down : @others);

	event($plan, $end - 700, 'fault', $region, fault($roll, $point, $points{$point}), 300 + $roll->(1200));
	reserve($plan, 'points', $region, $end - 800, $end + 3000);
	return;
}

# an action that is possible there, mostly the first time that somebody comes by
sub fault
{
	my ($roll, $point, $may_fail) = @_;
	my $action = pick($roll, qw(crash_backend crash_server terminate hold hold), $may_fail ? ('error') x 2 : ());

	return "$point:$action:" . ($roll->(4) ? 1 : 2);
}

my @trifles = (qw(kill terminate terminate cancel cancel kill_worker kill_worker behead stop freeze
	cut cut cut away hold hold hold_away isolate slow slow), ('fault') x 12, ('resolver') x 3);

# Everything else, which is short.
sub trifles
{
	my ($self, $plan) = @_;
	my $roll = $self->dice('misfortunes');

	for (my $ms = 1000; $ms < $plan->{until}; $ms += 100 + $roll->(400))
	{
		my ($region, $other) = shuffle($roll, @{ $self->{regions} });
		my $what = pick($roll, @trifles);
		my %o = (region => $region, link => "$region>$other", last => 200 + $roll->(1300), way => pick($roll, qw(out in both)), nth => $roll->(1000));

		if ($what =~ /^(?:kill|terminate|cancel|kill_worker|behead|stop|freeze)$/) { trifle_of_processes($plan, $ms, $what, \%o, $roll); }
		elsif ($what =~ /^(?:fault|resolver)$/) { trifle_of_points($plan, $ms, $what, \%o, $roll); }
		else { $self->trifle_of_links($plan, $ms, $what, \%o, $roll); }
	}
	return;
}

# A region's processes are killed, cancelled or stopped.
sub trifle_of_processes
{
	my ($plan, $ms, $what, $o, $roll) = @_;
	my $region = $o->{region};
	my $end = $ms + $o->{last};
	my $rest = $what =~ /^(?:terminate|cancel)$/ ? 0 : 2500;    # a server that has restarted is given some time
	my $worker = pick($roll, qw(resolver health catch-up));

	return if taken($plan, 'processes', $region, $ms, $end + $rest);
	reserve($plan, 'processes', $region, $ms, $end + $rest) if $rest;
	if ($what eq 'stop') { event($plan, $ms, 'stop', $region); event($plan, $end, 'start', $region); }
	elsif ($what eq 'freeze') { event($plan, $ms, 'freeze', $region); event($plan, $end, 'thaw', $region); }
	elsif ($what eq 'kill_worker') { event($plan, $ms, 'kill_worker', $region, $worker); }
	elsif ($what eq 'behead') { event($plan, $ms, 'behead', $region, $o->{last}); }
	else { event($plan, $ms, $what, $region, $o->{nth}); }
	return;
}

# A process that comes by a fault point dies, fails or stops.
sub trifle_of_points
{
	my ($plan, $ms, $what, $o, $roll) = @_;
	my $points = $what eq 'fault' ? \%commit_points : \%resolver_points;
	my $point = pick($roll, sort keys %$points);
	my $fault = fault($roll, $point, $points->{$point});
	my $region = $o->{region};

	my $crash = $fault =~ /crash/;

	return if taken($plan, 'points', $region, $ms, $ms + 1500) || ($crash && taken($plan, 'processes', $region, $ms, $ms + 1500));
	reserve($plan, 'points', $region, $ms, $ms + 1500);
	reserve($plan, 'processes', $region, $ms, $ms + 2500) if $crash;
	event($plan, $ms, 'fault', $region, $fault, $o->{last});

	# answers that are lost give the resolver something to do
	event($plan, $ms + $_, 'cut', $o->{link}) foreach $what eq 'resolver' ? (100, 300, 500) : ();
	return;
}

# A link is cut, silent or slow.
sub trifle_of_links
{
	my ($self, $plan, $ms, $what, $o, $roll) = @_;
	my $link = $o->{link};
	my $end = $ms + $o->{last};
	my @links = $what eq 'isolate' ? $self->links($o->{region}) : ($link);

	return if grep { taken($plan, 'links', $_, $ms, $end) } @links;
	reserve($plan, 'links', $_, $ms, $end) foreach @links;
	if ($what eq 'cut') { event($plan, $ms, 'cut', $link); }
	elsif ($what eq 'isolate') { event($plan, $ms, 'isolate', $o->{region}); event($plan, $end, 'rejoin', $o->{region}); }
	elsif ($what eq 'slow')
	{
		event($plan, $ms + int($_ * $o->{last} / 4), 'slow', $link, 2 + $roll->(60), 2 + $roll->(60)) foreach 0 .. 3;
		event($plan, $end, 'slow', $link, 0, 0);
	}
	else
	{
		event($plan, $ms, $what =~ /^hold/ ? ('hold', $link, $o->{way}) : ('away', $link));
		event($plan, $ms + int($o->{last} / 2), 'away', $link) if $what eq 'hold_away';
		event($plan, $end, 'back', $link);
	}
	return;
}

# the schedule, for people
sub print
{
	my ($self, $seconds, $transactions) = @_;

	print join(' ', @$_), "\n" foreach $self->misfortunes($seconds);
	foreach my $client (1 .. $self->{clients})
	{
		foreach my $n (1 .. $transactions)
		{
			my $t = $self->transaction($client, $n);
			print "$t->{number} at $t->{gateway}, $t->{kind}: ", join('; ', map { $_->{sql} } @{ $t->{steps} }), "\n";
		}
	}
	return;
}

1;
