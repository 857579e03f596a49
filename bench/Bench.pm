# What the benchmarks share: the contenders, distances, statistics, and the table of
# results that report.pl reads.
#
# Contenders, all in one run, on the same servers, through the same links, over the same rows:
#
#   residency    the extension, as examples/identity declares it
#   fdw          postgres_fdw with its defaults, statistics never collected
#   tuned        postgres_fdw with async_capable, fetch_size 10000, batch_size 1000,
#                parallel_commit, and ANALYZE of all foreign tables
#   routing      functions in plpgsql over postgres_fdw with its defaults: each looks at a row's
#                region, writes each region's copy and then the home, row by row
#
# A contender but the first keeps its view of the data in a schema of its name at the
# gateway; what it reaches in the other regions is in their schema "plain", the same for all
# three.  They commit in one region after the other, without a common decision.
package Bench;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(dirname);
use IO::Handle;
use Time::HiRes qw(time sleep);

our @EXPORT_OK = qw(add_contenders contenders deployment distance fill keys_table median
  quantile record say_progress top uuid);

my $top = dirname(__FILE__) . '/..';
my @fdw = ('fdw', 'tuned', 'routing');
my %options = (
	fdw => '',
	routing => '',
	tuned => ", fetch_size '10000', batch_size '1000', async_capable 'true', parallel_commit 'true'");
my $table;    # the file of results

# Output of the test library goes to a log; progress goes to where we were started.
our $progress;
BEGIN
{
	open($progress, '>&', \*STDERR) or die "$!\n";
	$progress->autoflush(1);
	$ENV{PG_TEST_TIMEOUT_DEFAULT} = 3600;    # of a session, not of a statement
}

use lib dirname(__FILE__) . '/../test/lib';
use Regions;

sub top { return $top; }
sub contenders { return ('residency', @fdw); }
sub median { my @v = sort { $a <=> $b } @_; return @v % 2 ? $v[@v / 2] : ($v[@v / 2 - 1] + $v[@v / 2]) / 2; }
sub uuid { return join('-', map { join('', map { sprintf '%x', int rand 16 } 1 .. $_) } 8, 4, 4, 4, 12); }
sub say_progress { print {$progress} @_, "\n"; return; }

# the value that the share q of all is at or under
sub quantile
{
	my ($q, @v) = @_;
	@v = sort { $a <=> $b } @v;
	return $v[ int($q * $#v + 0.5) ];
}

# Adds one line to the table of results: name => value, undefined ones are left out.
sub record
{
	my (%value) = @_;

	unless ($table)
	{
		my $file = $ENV{BENCH_TABLE} // 'bench.tsv';
		open($table, '>>', $file) or die "$file: $!\n";
		$table->autoflush(1);
	}
	my $line = join("\t", map { "$_=$value{$_}" } grep { defined $value{$_} } sort keys %value);
	print {$table} "$line\n";
	say_progress($line =~ s/\t/  /gr);
	return;
}

# Three regions with the example's schema, behind the relay.
sub deployment
{
	my (%o) = @_;

	my $r = Regions->new(relay => 1, dbname => 'identity', %o);
	$r->psql('usa', '', extra_params => [ '-f', "$top/examples/identity/schema.sql" ]);
	return $r;
}

# Round trip times: "0", "20", or "80/200", where usa-gbr is 80, usa-aus 200, gbr-aus 120 ms.
sub distance
{
	my ($r, $distance) = @_;

	return $r->delay($distance / 2) unless $distance eq '80/200';
	$r->delay(40, 'usa', 'gbr');
	$r->delay(100, 'usa', 'aus');
	$r->delay(60, 'gbr', 'aus');
	return;
}

# The port by which the gateway reaches a region through the relay.
sub _port
{
	my ($r, $gateway, $region) = @_;
	return $r->psql($gateway, "SELECT option_value FROM pg_foreign_server, pg_options_to_table(srvoptions)
		WHERE srvname = '$region' AND option_name = 'port'");
}

# Tables and functions of all contenders but the first.
sub add_contenders
{
	my ($r, $gateway, @which) = @_;

	foreach my $region ($r->regions)
	{
		$r->psql($region, <<"SQL");
			CREATE ROLE plain LOGIN SUPERUSER PASSWORD 'plain';
			CREATE SCHEMA plain;
			CREATE TABLE plain.identity (uuid uuid PRIMARY KEY, region text NOT NULL, note text);
			CREATE TABLE plain.details (uuid uuid PRIMARY KEY, region text NOT NULL, name text NOT NULL);
SQL
	}
	$r->psql($gateway, 'CREATE EXTENSION postgres_fdw');
	foreach my $c (@which ? @which : @fdw)
	{
		$r->psql($gateway, <<"SQL");
			CREATE SCHEMA $c;
			CREATE TABLE $c.identity_details (uuid uuid, region text NOT NULL, name text NOT NULL) PARTITION BY LIST (region);
			CREATE TABLE $c.details_$gateway PARTITION OF $c.identity_details (PRIMARY KEY (uuid)) FOR VALUES IN ('$gateway');
SQL
		foreach my $region (grep { $_ ne $gateway } $r->regions)
		{
			my $port = _port($r, $gateway, $region);
			my $ssl = $r->{ssl} ? ", sslmode 'require'" : '';

			$r->psql($gateway, <<"SQL");
				CREATE SERVER ${c}_$region FOREIGN DATA WRAPPER postgres_fdw
					OPTIONS (host '127.0.0.1', port '$port', dbname '@{[ $r->dbname ]}'$options{$c}$ssl);
				CREATE USER MAPPING FOR PUBLIC SERVER ${c}_$region OPTIONS (user 'plain', password 'plain');
				CREATE FOREIGN TABLE $c.identity_$region (uuid uuid NOT NULL, region text NOT NULL, note text)
					SERVER ${c}_$region OPTIONS (schema_name 'plain', table_name 'identity');
				CREATE FOREIGN TABLE $c.details_$region PARTITION OF $c.identity_details FOR VALUES IN ('$region')
					SERVER ${c}_$region OPTIONS (schema_name 'plain', table_name 'details');
SQL
		}
		_functions($r, $gateway, $c);
	}
	return;
}

# Writes of one identity and of many.  "routing" works row by row and by the name of the
# region's table; the others let postgres_fdw route, and write sets where they can.
sub _functions
{
	my ($r, $gateway, $c) = @_;
	my @others = grep { $_ ne $gateway } $r->regions;
	my $insert = join("\n", map { "INSERT INTO $c.identity_$_ VALUES (u, r, t);" } @others);
	my $update = join("\n", map { "UPDATE $c.identity_$_ SET note = t WHERE uuid = u;" } @others);
	my $bulk = join("\n", map { "INSERT INTO $_ SELECT p.u, h[1 + n % cardinality(h)], 'x' FROM unnest(k) WITH ORDINALITY AS p (u, n);" }
		'plain.identity', map { "$c.identity_$_" } @others);
	my $homes = join(',', sort $r->regions);
	my ($add, $set) = $c eq 'routing'
	  ? ("EXECUTE format('INSERT INTO routing.details_%s VALUES (\$1, \$2, \$3)', r) USING u, r, n;",
		"EXECUTE format('UPDATE routing.details_%s SET name = \$2 WHERE uuid = \$1', r) USING u, n;")
	  : ("INSERT INTO $c.identity_details VALUES (u, r, n);",
		"UPDATE $c.identity_details SET name = n WHERE uuid = u AND region = r;");

	$r->psql($gateway, <<"SQL");
		CREATE FUNCTION $c.upsert(u uuid, n text, r text, t text) RETURNS boolean LANGUAGE plpgsql AS \$\$
		BEGIN
			INSERT INTO plain.identity VALUES (u, r, t) ON CONFLICT DO NOTHING;
			IF FOUND THEN
				$insert
				$add
				RETURN true;
			END IF;
			UPDATE plain.identity SET note = t WHERE uuid = u;
			$update
			$set
			RETURN false;
		END \$\$;
SQL
	$r->psql($gateway, $c eq 'routing' ? <<"SQL" : <<"SQL");
		CREATE FUNCTION $c.generate(f integer, l integer) RETURNS void LANGUAGE plpgsql AS \$\$
		DECLARE h text[] := '{$homes}';
		BEGIN
			FOR i IN f .. l LOOP
				PERFORM $c.upsert(gen_random_uuid(), 'Person ' || i, h[1 + i % cardinality(h)], 'x');
			END LOOP;
		END \$\$;
SQL
		CREATE FUNCTION $c.generate(f integer, l integer) RETURNS void LANGUAGE plpgsql AS \$\$
		DECLARE k uuid[] := ARRAY(SELECT gen_random_uuid() FROM generate_series(f, l)); h text[] := '{$homes}';
		BEGIN
			$bulk
			INSERT INTO $c.identity_details SELECT p.u, h[1 + n % cardinality(h)], 'Person ' || n
			  FROM unnest(k) WITH ORDINALITY AS p (u, n);
		END \$\$;
SQL
	return;
}

# Gives all contenders the rows that the first one has, without the relay's delay, and
# collects the statistics that each of them is said to have.
sub fill
{
	my ($r, $gateway, @which) = @_;

	foreach my $region ($r->regions)
	{
		$r->psql($region, "TRUNCATE plain.identity, plain.details;
			INSERT INTO plain.identity SELECT uuid, region, note FROM shared.identity;
			INSERT INTO plain.details SELECT uuid, region, name FROM $region.identity_details;
			VACUUM ANALYZE plain.identity, plain.details, shared.identity, shared.hierarchy_path, $region.identity_details");
	}
	foreach my $c (@which ? @which : @fdw)
	{
		$r->psql($gateway, "TRUNCATE $c.details_$gateway;
			INSERT INTO $c.details_$gateway SELECT uuid, region, name FROM $gateway.identity_details");
		$r->psql($gateway, "ANALYZE $c.details_$gateway");
	}
	$r->psql($gateway, 'ANALYZE tuned.identity_details') if grep { $_ eq 'tuned' } @which ? @which : @fdw;
	$r->psql($gateway, 'ANALYZE shared.identity_details');
	return;
}

# Table bench.key of the gateway: the uuid and home of number 1 to n, in random order.
sub keys_table
{
	my ($r, $gateway) = @_;

	$r->psql($gateway, 'CREATE SCHEMA IF NOT EXISTS bench; DROP TABLE IF EXISTS bench.key;
		CREATE TABLE bench.key (n integer PRIMARY KEY, uuid uuid, region text);
		INSERT INTO bench.key SELECT row_number() OVER (ORDER BY random()), uuid, region FROM shared.identity;
		ANALYZE bench.key');
	return $r->psql($gateway, 'SELECT count(*) FROM bench.key');
}

1;
