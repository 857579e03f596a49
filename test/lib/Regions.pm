# Several regions up, joined and torn down: the ground that most TAP tests stand on.
#
#   my $r = Regions->new(regions => [qw(usa gbr aus)], relay => 1, delay => 20);
#   $r->psql('usa', 'SELECT ...');
#   is($r->round_trips('usa', 'SELECT ...'), 1, 'one round trip');
#
# Options of new, all with the default in brackets:
#   regions    names, the first one is where the others are added [usa gbr aus]
#   join       residency.init and add_region are called; otherwise the servers run, the
#              extension is there, and no region knows of another [1]
#   extension  CREATE EXTENSION residency [1]; 0 gives plain servers
#   relay      each region reaches each other through a link of the relay of its own, named
#              "usa>gbr"; and each has a link for clients, named "client>usa" [0]
#   delay      ms each way between regions, if there is a relay [0]
#   scram      who comes by TCP logs in with SCRAM, but for the superuser [0]
#   ssl        the servers offer TLS; all but the superuser must use it [0]
#   fsync      for tests of crashes of the machine; a killed server needs none [0]
#   faults     servers with fault points (src/fault.h), which restart by themselves when a
#              backend is killed [0]
#   conf       further lines for postgresql.conf
#   dbname     [app]
#   one_server the regions are databases of one server, each of its region's name: for many of
#              them; nothing that concerns a whole server (stop, kill9, witness) makes sense then [0]
#
# Everyone connects to the servers as their superuser unless a test says otherwise.
package Regions;

use strict;
use warnings;

use Carp;
use File::Basename qw(dirname);
use File::Find ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More ();
use Time::HiRes qw(sleep time);

use Initdb;
use Relay;

my $lib = dirname(__FILE__);
my $deployments = 0;

# Starts the servers, and joins them.
sub new
{
	my ($class, %o) = @_;
	my $self = bless {
		regions => $o{regions} // [qw(usa gbr aus)],
		dbname => $o{dbname} // 'app',
		one_server => $o{one_server},
		delay => $o{delay} // 0,
		ssl => $o{ssl},
		nodes => {},
		sessions => {},
	}, $class;
	my $n = 0;

	$deployments++;
	foreach my $region (@{ $self->{regions} })
	{
		if ($self->{one_server} && $n++)
		{
			$self->{nodes}{$region} = $self->{nodes}{ $self->{regions}[0] };
			$self->_create_database($region, %o);
			next;
		}

		# directories and prepared names are made of a node's name: keep it plain
		my $name = $region =~ /^[a-z]+$/ ? $region : 'region' . $n;
		$name .= "_$deployments" if $deployments > 1;
		my $node = PostgreSQL::Test::Cluster->new($name, $o{faults} ? (install_path => $ENV{RESIDENCY_FAULTS}) : ());

		$n++;
		Initdb::init($node);
		$self->_configure($node, %o);
		$node->start;
		$self->{nodes}{$region} = $node;
		$self->_create_database($region, %o);
	}
	$self->{user} = $self->psql($self->{regions}[0], 'SELECT current_user');
	$self->join if ($o{extension} // 1) && ($o{join} // 1);
	$self->add_relay if $o{relay};
	return $self;
}

# Makes the database of a region.
sub _create_database
{
	my ($self, $region, %o) = @_;
	my $name = $self->dbname($region);

	$self->node($region)->safe_psql('postgres', 'CREATE DATABASE ' . identifier($name) . " TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'");
	$self->psql($region, 'CREATE EXTENSION residency') if $o{extension} // 1;
	return;
}

# Writes postgresql.conf, pg_hba.conf and certificates of one server.
sub _configure
{
	my ($self, $node, %o) = @_;
	my $data = $node->data_dir;
	my $conf = slurp_file("$lib/../residency.conf");
	my $user = (getpwuid($>))[0];
	my $host = $o{ssl} ? 'hostssl' : 'host';

	$conf =~ s/^shared_preload_libraries.*$//m unless $o{extension} // 1;
	$conf .= "listen_addresses = '127.0.0.1'\nlog_statement = none\n";
	$conf .= "fsync = on\n" if $o{fsync};
	$conf .= "restart_after_crash = on\n" if $o{faults};
	if ($o{ssl})
	{
		PostgreSQL::Test::Utils::system_or_bail('openssl', 'req', '-new', '-x509', '-days', '2', '-nodes',
			'-newkey', 'rsa:2048', '-subj', '/CN=localhost', '-out', "$data/server.crt", '-keyout', "$data/server.key");
		chmod 0600, "$data/server.key";

		# PostgreSQL 15 takes a single curve, and not the one that OpenSSL's clients guess
		# first: each connection would begin with one more round trip (docs/decisions.md)
		append_to_file("$data/openssl.cnf", "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\n"
			  . "system_default = default\n[default]\nGroups = P-256:X25519\n");
		$ENV{OPENSSL_CONF} = "$data/openssl.cnf";
		$conf .= "ssl = on\n";
	}
	$node->append_conf('postgresql.conf', $conf . ($o{conf} // ''));

	unlink("$data/pg_hba.conf");
	$node->append_conf('pg_hba.conf', join("\n", 'local all all trust', "host all $user 127.0.0.1/32 trust",
		"$host all all 127.0.0.1/32 " . ($o{scram} ? 'scram-sha-256' : 'trust')));
	return;
}

# What a region is told about how to reach another one directly.
sub connection
{
	my ($self, $region) = @_;

	return join(' ', 'host=127.0.0.1', 'port=' . $self->port($region), "dbname=" . $self->dbname($region),
		# without it libpq asks for TLS first, at the cost of a round trip
		$self->{ssl} ? 'sslmode=require' : 'sslmode=disable');
}

# Makes one deployment of all regions, from the first one.
sub join
{
	my ($self) = @_;
	my ($first, @others) = @{ $self->{regions} };

	$self->psql($first, sprintf('SELECT residency.init(%s, %s)', quote($first), quote($self->connection($first))));
	$self->psql($first, sprintf('SELECT residency.add_region(%s, %s)', quote($_),
		quote($self->connection($_) . " user=$self->{user}"))) foreach @others;
	return;
}

# Puts the relay between joined regions, and in front of each for clients.
sub add_relay
{
	my ($self) = @_;
	my $relay = $self->{relay} = Relay->new;

	foreach my $gateway (@{ $self->{regions} })
	{
		$self->{client_port}{$gateway} =
		  $relay->link(link_name('client', $gateway), port => $self->port($gateway), client => 1);
		foreach my $region (grep { $_ ne $gateway } @{ $self->{regions} })
		{
			my $port = $relay->link(link_name($gateway, $region), port => $self->port($region), delay => $self->{delay});
			my $server = identifier($region);

			next unless $self->psql($gateway, 'SELECT count(*) FROM pg_foreign_server WHERE srvname = ' . quote($region));
			$self->psql($gateway, "ALTER SERVER $server OPTIONS (SET port '$port')");
		}
	}
	return;
}

# SQL literal and identifier
sub quote { my ($s) = @_; $s =~ s/'/''/g; return "'$s'"; }
sub identifier { my ($s) = @_; $s =~ s/"/""/g; return "\"$s\""; }

# the relay's name of a link; blanks separate words there
sub link_name { my $s = CORE::join('>', @_); $s =~ s/\s/_/g; return $s; }

sub relay { my ($self) = @_; return $self->{relay} // croak 'these regions have no relay'; }
sub regions { my ($self) = @_; return @{ $self->{regions} }; }
sub node { my ($self, $region) = @_; return $self->{nodes}{$region} // croak "no region $region"; }
sub port { my ($self, $region) = @_; return $self->node($region)->port; }
sub dbname { my ($self, $region) = @_; return $self->{one_server} && $region ? $region : $self->{dbname}; }

# Changes the delay between all regions, or between two, both ways of asking.
sub delay
{
	my ($self, $ms, @between) = @_;

	foreach my $a ($self->regions)
	{
		foreach my $b (grep { $_ ne $a } $self->regions)
		{
			next if @between && 2 != grep { $_ eq $a || $_ eq $b } @between;
			$self->relay->delay(link_name($a, $b), $ms);
		}
	}
	$self->{delay} = $ms if $ms > $self->{delay} || !@between;
	return;
}

# Cuts a region off from all others, which keep running; and brings it back.
sub away { my ($self, $region) = @_; $self->relay->away($_) foreach $self->_links($region); return; }
sub back { my ($self, $region) = @_; $self->relay->back($_) foreach $self->_links($region); return; }

sub _links
{
	my ($self, $region) = @_;
	return map { (link_name($region, $_), link_name($_, $region)) } grep { $_ ne $region } $self->regions;
}

# Runs SQL in one region and returns its output; an error ends the test.
sub psql
{
	my ($self, $region, $sql, %o) = @_;
	return $self->node($region)->safe_psql($self->dbname($region), $sql, %o);
}

# The same, where an error may be what is looked for: (exit code, output, errors).
# VERBOSITY is verbose, so the errors name SQLSTATE.
sub try
{
	my ($self, $region, $sql, %o) = @_;
	my ($out, $err) = ('', '');
	my $code = $self->node($region)->psql($self->dbname($region), $sql, stdout => \$out, stderr => \$err,
		extra_params => [ '-v', 'VERBOSITY=verbose', @{ $o{extra_params} // [] } ], on_error_stop => 1, %o);

	return ($code, $out, $err);
}

# Test: the SQL fails in that region with that SQLSTATE, and its messages match.
sub fails
{
	my ($self, $region, $sql, $sqlstate, $like, $name) = @_;
	my ($code, $out, $err) = $self->try($region, $sql);
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return Test::More::ok($code != 0 && $err =~ /(?:ERROR|FATAL):  $sqlstate: / && $err =~ $like, $name)
	  || Test::More::diag("exit code $code, errors: $err");
}

# A psql session (PostgreSQL::Test::BackgroundPsql); with client => 1 through the link
# whose round trips are counted.
sub session
{
	my ($self, $region, %o) = @_;
	my @extra = @{ delete $o{extra_params} // [] };

	push @extra, '-d', "host=127.0.0.1 port=$self->{client_port}{$region} dbname=" . $self->dbname($region) if delete $o{client};
	return $self->node($region)->background_psql($self->dbname($region), extra_params => \@extra, %o);
}

# The session that round_trips uses in that region.
sub warm
{
	my ($self, $region, @sql) = @_;

	local $ENV{PGSSLMODE} = 'disable';
	local $ENV{PGGSSENCMODE} = 'disable';
	my $session = $self->{sessions}{$region} //= $self->session($region, client => 1, on_error_stop => 0);

	$session->query($_) foreach @sql;
	return $session;
}

# Round trips that the client waited for until it had the answer to one request; in
# list context also its ms.  All calls for a region share a session, so
# connections are warm once it has used them (see warm).
sub round_trips
{
	my ($self, $region, $sql) = @_;
	my $session = $self->warm($region);

	$session->{stderr} = '';
	my ($trips, $ms) = $self->relay->waited(sub { $session->query($sql) });
	croak "round_trips: $session->{stderr}" if $session->{stderr} && $session->{stderr} =~ /ERROR|FATAL/;
	return wantarray ? ($trips, $ms) : $trips;
}

# The same for the first request of a new backend.
sub first_round_trips
{
	my ($self, $region, $sql) = @_;
	my ($out, $err) = ('', '');
	my $code;

	local $ENV{PGSSLMODE} = 'disable';
	local $ENV{PGGSSENCMODE} = 'disable';
	my ($trips, $ms) = $self->relay->waited(sub {
		$code = $self->node($region)->psql($self->dbname($region), undef, stdout => \$out, stderr => \$err,
			connstr => "host=127.0.0.1 port=$self->{client_port}{$region} dbname=" . $self->dbname($region),
			extra_params => [ '-c', $sql ]);
	});
	croak "first_round_trips: $err" if $code;
	return wantarray ? ($trips, $ms) : $trips;
}

# Waits until the query says what is expected ("t"); false after the usual time.
sub poll
{
	my ($self, $region, $sql, $expected) = @_;
	return $self->node($region)->poll_query_until($self->dbname($region), $sql, $expected // 't');
}

# What the regions answer to a query if they do not agree, else the empty string.
sub disagreement
{
	my ($self, $sql) = @_;
	my @answers = map { $self->psql($_, $sql) } $self->regions;
	my @regions = $self->regions;

	return '' unless grep { $_ ne $answers[0] } @answers;
	return CORE::join(' / ', map { "$regions[$_]: $answers[$_]" } 0 .. $#regions);
}

# Test: all regions answer the query alike.  Returns the first one's answer.
sub all_equal
{
	my ($self, $sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	Test::More::is($self->disagreement($sql), '', $name // "all regions agree: $sql");
	return $self->psql($self->{regions}[0], $sql);
}

# Prepared transactions in a region, or in all.
sub prepared
{
	my ($self, @regions) = @_;
	my $n = 0;

	$n += $self->psql($_, 'SELECT count(*) FROM pg_prepared_xacts') foreach @regions ? @regions : $self->regions;
	return $n;
}

# The servers' lives.
sub start { my ($self, $region) = @_; $self->node($region)->start; return; }
sub stop { my ($self, $region, $mode) = @_; $self->node($region)->stop($mode // 'fast'); return; }
sub restart { my ($self, $region) = @_; $self->node($region)->restart; return; }

# Kills a server with all its processes, as a power failure would (but for what the
# kernel has in its cache), and leaves it down: start follows.
sub kill9
{
	my ($self, $region) = @_;
	my $node = $self->node($region);
	my $file = $node->data_dir . '/postmaster.pid';
	my ($postmaster) = slurp_file($file) =~ /^(\d+)/;
	my $end = time + 30;

	# a backend that sees its postmaster die has time for a last word, a power failure leaves none
	kill 'STOP', $postmaster;
	my @pids = children($postmaster);
	kill 'KILL', @pids;
	sleep(0.01) while time < $end && grep { alive($_) } @pids;
	kill 'KILL', $postmaster;
	sleep(0.01) while time < $end && alive($postmaster);
	croak "processes of $region do not die" if grep { alive($_) } $postmaster, @pids;
	$node->kill9;

	# what nobody has reaped yet would be taken for a running postmaster
	unlink($file, map { $node->host . "/.s.PGSQL." . $node->port . $_ } ("", ".lock"));
	return;
}

# Starts a server that is down or on its way there; waits for one that is coming back.
sub revive
{
	my ($self, $region) = @_;
	my $node = $self->node($region);
	my $end = time + 30;

	while (time < $end)
	{
		my $file = $node->data_dir . '/postmaster.pid';

		if (!-e $file)
		{
			undef $node->{_pid};
			return if $node->start(fail_ok => 1);    # it may run into a fault point at once
			next;
		}
		return $self->_reload($region) if $node->psql($self->{dbname}, 'SELECT 1') == 0;
		sleep(0.05);
	}
	croak "region $region does not come back";
}

# process ids of a process's children
sub children
{
	my ($parent) = @_;
	return grep { (stat_of($_))[1] == $parent } map { m{(\d+)$} } glob('/proc/[0-9]*');
}

# state and parent of a process; 'Z' if it is no more
sub stat_of
{
	my ($pid) = @_;

	open(my $file, '<', "/proc/$pid/stat") or return ('Z', 0);
	my $line = readline($file) // '';
	return $line =~ /\) (\w) (\d+)/ ? ($1, $2) : ('Z', 0);
}

sub alive { my ($pid) = @_; return (stat_of($pid))[0] !~ /[ZX]/; }

# Arms a fault point in all sessions of a region's server, those that run included, or in
# those of an application_name.  It acts once, and not again after the server has
# restarted.  A server that is down has it when it starts.
sub arm
{
	my ($self, $region, $fault, $application) = @_;

	$self->expect_fault($region);
	$self->_set_fault($region, $fault, $application // '');
	return if !-e $self->node($region)->data_dir . '/postmaster.pid';
	$self->_reload($region);
	$self->poll($region, "SELECT current_setting('residency.fault') = '$fault'") or croak "fault point is not armed in $region";
	return;
}

# Disarms it; who still holds there goes on.  Sessions learn of it when the configuration is read.
sub disarm
{
	my ($self, $region) = @_;

	$self->release($region);
	$self->_set_fault($region, '', '');
	return;
}

# A fault point that a session arms for itself may act in this region, and was not passed yet.
sub expect_fault
{
	my ($self, $region) = @_;
	my $data = $self->node($region)->data_dir;

	unlink("$data/residency_fault_fired", "$data/residency_fault_release");
	return;
}

# as ALTER SYSTEM would; also in a server that is down
sub _set_fault
{
	my ($self, $region, $fault, $application) = @_;

	append_to_file($self->node($region)->data_dir . '/postgresql.auto.conf',
		"residency.fault = '$fault'\nresidency.fault_application = '$application'\n");
	return;
}

# lets a server that runs read its configuration
sub _reload
{
	my ($self, $region) = @_;
	my ($postmaster) = slurp_file($self->node($region)->data_dir . '/postmaster.pid') =~ /^(\d+)/;

	kill 'HUP', $postmaster;
	return;
}

# What regions answer to the same question, asked side by side; each is one psql process,
# and what is wrong with one ends the test.
sub ask
{
	my ($self, $sql, @regions) = @_;
	my @asked;
	my @answers;

	foreach my $region (@regions)
	{
		open(my $pipe, '-|', 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $self->node($region)->connstr($self->dbname($region)), '-c', $sql) or croak "psql: $!";
		push @asked, $pipe;
	}
	foreach my $region (@regions)
	{
		my $pipe = shift @asked;
		my $answer = do { local $/; readline($pipe) } // '';

		close($pipe) or croak "region $region cannot answer: $sql";
		chomp $answer;
		push @answers, $answer;
	}
	return @answers;
}

# Lets a process go on that an action "hold" stopped.
sub release { my ($self, $region) = @_; append_to_file($self->node($region)->data_dir . '/residency_fault_release', ''); return; }

# True if the fault point that was armed last has acted.
sub fired { my ($self, $region) = @_; return -e $self->node($region)->data_dir . '/residency_fault_fired'; }

# Waits for that.
sub wait_fired
{
	my ($self, $region, $seconds) = @_;
	my $end = time + ($seconds // 30);

	until ($self->fired($region))
	{
		croak "nothing came by the fault point of $region" if time > $end;
		sleep(0.01);
	}
	return;
}

# Adds lines to a region's postgresql.conf and reloads it.
sub conf
{
	my ($self, $region, $lines) = @_;
	$self->node($region)->append_conf('postgresql.conf', $lines);
	$self->node($region)->reload;
	return;
}

# The independent witness: files of a region (data directory with WAL, and server log) in which
# the bytes are found; a UUID also in its binary form.  Buffers are written out before.
sub witness
{
	my ($self, $region, $value) = @_;
	my $node = $self->node($region);
	my @forms = ($value);
	my @found;

	push @forms, pack('H*', $value =~ s/-//gr) if $value =~ /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
	utf8::encode($_) foreach grep { utf8::is_utf8($_) } @forms;
	$self->psql($region, 'CHECKPOINT') if -e $node->data_dir . '/postmaster.pid';
	File::Find::find({
		no_chdir => 1,
		wanted => sub {
			push @found, $_ if -f $_ && contains($_, @forms);
		}
	}, $node->data_dir, $node->logfile);
	return @found;
}

# Where the bytes are though they should not be, or are not though they should, one a line.
sub misplaced
{
	my ($self, $value, @homes) = @_;
	my %home = map { $_ => 1 } @homes;
	my @wrong;

	foreach my $region ($self->regions)
	{
		my @found = $self->witness($region, $value);

		push @wrong, map { "$region: $_" } @found unless $home{$region};
		push @wrong, "$region: not found, though it should be" if $home{$region} && !@found;
	}
	return CORE::join("\n", @wrong);
}

# Test: the bytes are in the data of these regions (a list) and nowhere else.
sub only_in
{
	my ($self, $value, $homes, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return Test::More::is($self->misplaced($value, @$homes), '', $name // "found in @$homes only");
}

# True if one of the byte strings is in the file; reads it piece by piece, with an overlap.
sub contains
{
	my ($path, @bytes) = @_;
	my $overlap = 0;
	my $kept = '';

	foreach (@bytes) { $overlap = length($_) if length($_) > $overlap; }
	open(my $file, '<:raw', $path) or return 0;    # files come and go
	while (read($file, my $piece, 1 << 20))
	{
		my $text = $kept . $piece;

		foreach my $b (@bytes) { return 1 if index($text, $b) >= 0; }
		$kept = length($text) > $overlap ? substr($text, -$overlap) : $text;
	}
	return 0;
}

# Ends sessions, servers and relay; also happens when the test ends.
sub teardown
{
	my ($self) = @_;

	$_->quit foreach values %{ $self->{sessions} };
	$self->{sessions} = {};
	$_->stop('immediate') foreach values %{ $self->{nodes} };
	$self->{relay}->stop if $self->{relay};
	return;
}

1;
