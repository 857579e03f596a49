# A row of a global table that another one refers to is deleted, or gets another key, at one gateway
# while the reference is made at another: either the one fails or the other, whatever their homes are.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use Regions;

my $r = Regions->new(relay => 1, delay => 2, conf => "residency.lock_timeout = 30s\n");
my @regions = $r->regions;

sub everywhere { my ($sql) = @_; $r->psql('usa', "SELECT residency.run_everywhere(\$everywhere\$ $sql \$everywhere\$)"); return; }

everywhere(q{
	CREATE SCHEMA app;
	CREATE ROLE someone; GRANT USAGE ON SCHEMA app TO someone;
	CREATE TABLE app.parent (id int PRIMARY KEY, region text NOT NULL, note text);
	CREATE TABLE app.child (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.parent ON DELETE CASCADE ON UPDATE CASCADE);
	CREATE TABLE app.strict (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.parent);
	CREATE TABLE app.late (id int PRIMARY KEY, region text NOT NULL, parent int REFERENCES app.parent DEFERRABLE);
	CREATE INDEX ON app.child (parent); CREATE INDEX ON app.strict (parent); CREATE INDEX ON app.late (parent);
	ALTER TABLE app.strict OWNER TO someone; GRANT REFERENCES ON app.parent TO someone; GRANT SELECT ON app.parent TO someone;
});
$r->psql('usa', "SELECT residency.make_global('app.$_', 'region')") foreach qw(parent child strict late);
my $lost = join(' UNION ALL ', map { "SELECT id FROM app.$_ c WHERE NOT EXISTS (SELECT FROM app.parent p WHERE p.id = c.parent)" } qw(child strict late));

# Until somebody waits for a lock in some region, or the session is idle.
sub until_it_waits
{
	my ($gateway) = @_;

	foreach (1 .. 600)
	{
		return if grep { $r->psql($_, 'SELECT count(*) FROM pg_locks WHERE NOT granted') } @regions;
		return if $r->psql($gateway, q{SELECT count(*) FROM pg_stat_activity WHERE state = 'idle' AND query ~ 'parent'});
		sleep(0.05);
	}
	die 'neither waits nor ends';
}

# Somebody at one gateway has a reference uncommitted while another gateway removes what it refers to;
# then the reference is committed.  Returns what both were told.
my $id = 0;
sub race
{
	my ($referring, $removing, $reference, $removal) = @_;
	my ($writer, $remover) = map { $r->session($_, on_error_stop => 0) } $referring, $removing;
	my @told;

	$writer->query($_) foreach 'BEGIN', $reference;
	$remover->query('\set VERBOSITY verbose');
	$remover->query_until(qr/removing/, "\\echo removing\n$removal;\n");
	until_it_waits($removing);
	$writer->query('COMMIT');
	$remover->query('SELECT 1');
	@told = ($writer->{stderr}, $remover->{stderr});
	$_->quit foreach $writer, $remover;
	return @told;
}

my $retry = qr/ERROR:  40001: .*could not serialize access to global table/;

foreach my $removal ('DELETE FROM app.parent WHERE id = ID', 'UPDATE app.parent SET id = id + 1000 WHERE id = ID')
{
	foreach my $homes ([ 'usa', 'aus' ], [ 'gbr', 'aus' ], [ 'gbr', 'usa' ], [ 'aus', 'gbr' ], [ 'aus', 'aus' ])
	{
		foreach my $table (qw(child strict late))
		{
			my $name = "row of $table, home $homes->[1], made at aus; at usa, home $homes->[0], " . ($removal =~ s/ .*//r);
			$id++;
			$r->psql('usa', "INSERT INTO app.parent VALUES ($id, '$homes->[0]')");
			my ($writer, $remover) = race('aus', 'usa', "INSERT INTO app.$table VALUES ($id, '$homes->[1]', $id)", $removal =~ s/ID/$id/r);

			is($writer, '', "$name: the reference is committed");
			is($r->all_equal("SELECT count(*) FROM ($lost) AS l", 'all references'), 0, 'are kept');
			# at its home the reference has locked what it refers to: if that is where it is removed, it is seen there
			if ($homes->[1] eq 'usa') { like($remover, $table eq 'child' ? qr/^$/ : qr/ERROR:  23503: /, 'the other one waits, and sees it'); }
			else { like($remover, $retry, 'the other one is told to try again'); }
			my $stays = $remover ne '' || 0;
			is($r->all_equal("SELECT count(*) FROM app.parent WHERE id = $id", 'what is referred to'), $stays, $stays ? 'is there' : 'is not');
		}
		# the one that was told to try again does so
		$r->psql('usa', "DELETE FROM app.strict; DELETE FROM app.late");
		$r->psql('usa', $removal =~ s/= ID/> 0/r);
		is($r->all_equal("SELECT count(*) FROM ($lost) AS l", 'when it tries again'), 0, 'the reference goes or follows');
		$r->psql('usa', 'DELETE FROM app.parent');
		is($r->all_equal('SELECT count(*) FROM app.child', 'and a deletion'), 0, 'takes the rows that refer to it along');
	}
}

# more rows than go in one piece; what is referred to is in the first one
my $rows = 45000;
$r->psql('usa', "INSERT INTO app.parent SELECT n, 'usa', repeat('x', 200) FROM generate_series(10001, 10000 + $rows) n");
my ($writer, $remover) = race('aus', 'usa', q{INSERT INTO app.child VALUES (1, 'aus', 10002)}, q{UPDATE app.parent SET id = id + 100000 WHERE id > 10000});
is($writer, '', 'many rows: the reference is committed');
like($remover, $retry, 'the other one is told to try again');
is($r->all_equal('SELECT count(*) FROM app.parent WHERE id = 10002', 'what is referred to'), 1, 'is there');
$r->psql('usa', "INSERT INTO app.child SELECT n, 'gbr', n FROM generate_series(10001, 10000 + $rows) n");
$r->psql('usa', q{UPDATE app.parent SET id = id + 100000 WHERE id > 10000});
is($r->all_equal('SELECT min(parent), max(parent), count(*) FROM app.child', 'without such a reference'), '110001|' . (110000 + $rows) . '|' . ($rows + 1), 'rows that refer to them follow, in pieces too');
# the last piece has rows that refer, none that are referred to
($writer, $remover) = race('aus', 'usa', q{INSERT INTO app.child VALUES (2, 'aus', 110002)}, q{DELETE FROM app.parent});
is($writer, '', 'many rows deleted: the reference is committed');
like($remover, $retry, 'the other one is told to try again');
$r->psql('usa', 'DELETE FROM app.parent');
is($r->all_equal('SELECT count(*) FROM app.child', 'and in pieces'), 0, 'they are deleted');

# tables of two owners in one statement
$r->psql('usa', q{INSERT INTO app.parent VALUES (1, 'gbr'), (2, 'gbr'); INSERT INTO app.strict VALUES (2, 'gbr', 2)});
my $both = q{WITH s AS (DELETE FROM app.strict) DELETE FROM app.parent WHERE id < 10};
($writer, $remover) = race('aus', 'usa', q{INSERT INTO app.child VALUES (1, 'aus', 1)}, $both);
is($writer, '', 'two owners: the reference is committed');
like($remover, $retry, 'the other one is told to try again');
is($r->all_equal('SELECT count(*) FROM app.parent', 'what is referred to'), 2, 'is there');
$r->psql('usa', $both);
is($r->all_equal('SELECT (SELECT count(*) FROM app.parent) + (SELECT count(*) FROM app.child) + (SELECT count(*) FROM app.strict)', 'without such a reference'), 0, 'all are deleted');

# whether a client has deferred a constraint is not known elsewhere: there it waits for the commit
foreach my $gateway (@regions)
{
	foreach my $home (@regions)
	{
		$r->psql($gateway, qq{BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO app.late VALUES (1, '$home', 1); INSERT INTO app.parent VALUES (1, '$home'); COMMIT});
		is($r->all_equal('SELECT count(*) FROM app.late', "$gateway, home $home: first the reference, then the row"), 1, 'is committed');
		$r->fails($gateway, q{BEGIN; SET CONSTRAINTS ALL DEFERRED; DELETE FROM app.parent; COMMIT}, '23503', qr/late/, 'a row that is referred to stays');
		$r->psql($gateway, q{BEGIN; SET CONSTRAINTS ALL DEFERRED; DELETE FROM app.parent; DELETE FROM app.late; COMMIT});
		is($r->all_equal('SELECT count(*) FROM app.parent', 'first the row, then the reference'), 0, 'is deleted');
	}
}
# a reference made in a region that was alone, and is not shipped yet
$r->psql('usa', q{INSERT INTO app.parent VALUES (1, 'gbr'), (2, 'gbr')});
$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'away')}) foreach qw(usa gbr);
$r->psql('aus', q{INSERT INTO app.child VALUES (1, 'aus', 1)});
is($r->psql('usa', 'SELECT count(*) FROM app.child'), 0, 'a reference is known in one region only');
$r->fails('usa', $_, '40001', qr/region "aus"/, 'what it refers to stays: ' . s/ .*//r) foreach 'DELETE FROM app.parent', 'UPDATE app.parent SET id = id + 10';
$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'catching up'); SELECT residency.ship('$_', true); SELECT residency.set_region_state('$_', 'up')}) foreach qw(usa gbr);
is($r->all_equal('SELECT (SELECT count(*) FROM app.child), (SELECT count(*) FROM app.parent)', 'once it is shipped'), '1|2', 'all regions have both');
$r->psql('usa', 'DELETE FROM app.parent');
is($r->all_equal('SELECT count(*) FROM app.child', 'and a deletion'), 0, 'takes it along');
is($r->prepared, 0, 'nothing is left prepared');

$r->teardown;
done_testing();
