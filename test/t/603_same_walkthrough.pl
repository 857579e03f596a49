# Every query of the walkthrough has the same answer in each region as on one plain server with the
# same rows, whatever way it is planned.
use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use SameAnswer;
use Test::More;

my $top = dirname(__FILE__) . '/../..';
my $same = SameAnswer->new(undef, regions => { dbname => 'identity' });
my $r = $same->regions;

$r->psql('usa', '', extra_params => [ '-f', "$top/examples/identity/schema.sql" ]);
$same->plain(q{
	CREATE SCHEMA shared;
	CREATE TABLE shared.identity (uuid uuid PRIMARY KEY, manager_uuid uuid, region text NOT NULL, note text, created_on timestamptz NOT NULL);
	CREATE TABLE shared.identity_details (uuid uuid PRIMARY KEY, region text NOT NULL, name text NOT NULL);
	CREATE TABLE shared.hierarchy_path (uuid uuid PRIMARY KEY, region text NOT NULL, depth int NOT NULL, path uuid[] NOT NULL);
	CREATE VIEW shared.hierarchy AS
		SELECT i.*, coalesce(p.depth, 1) AS depth, coalesce(p.path, ARRAY[i.uuid]) AS path
		FROM shared.identity i LEFT JOIN shared.hierarchy_path p ON p.uuid = i.uuid;
});
$same->plain("CREATE SCHEMA $_; CREATE VIEW $_.identity_details AS SELECT * FROM shared.identity_details WHERE region = '$_'") foreach $r->regions;

# Statements of the page that read; those that write are in @writes, in the page's order.
my (@reads, @writes);
{
	my $block;

	foreach my $line (split /\n/, slurp_file("$top/examples/identity/SEED.md"))
	{
		if ($line =~ /^```/)
		{
			foreach my $sql (grep { /\S/ } split /;/, $block // '')
			{
				next if $sql =~ m{^\./init\.sh};
				push @{ $sql =~ /upsert_identity|generate_identities|create_manager_tree/ ? \@writes : \@reads }, $sql;
			}
			$block = defined $block ? undef : '';
		}
		elsif (defined $block) { $block .= "$line\n" =~ s/^--.*//r; }
	}
}
is(@reads . ' ' . @writes, '14 3', 'the page has 14 statements that read and 3 that write');

# The rows that the regions have now, put into the plain server.
sub copy_rows
{
	foreach my $table (qw(identity identity_details hierarchy_path))
	{
		my $rows = $r->psql('usa', "COPY (SELECT * FROM shared.$table) TO STDOUT");
		$same->plain("TRUNCATE shared.$table;\nCOPY shared.$table FROM STDIN;\n" . ($rows eq '' ? '' : "$rows\n") . "\\.\n");
	}
	return;
}

# Test: all queries, at each region and planned in several ways
sub compare
{
	my ($when, $root) = @_;
	my @ways = ('', (map { "SET $_ = off" } $same->plan_settings), 'SET enable_hashjoin = off', 'SET enable_nestloop = off');
	my @lines = ('U0 walkthrough');

	copy_rows();
	foreach my $g (0 .. 2)
	{
		foreach my $way (@ways)
		{
			push @lines, "G$g RESET ALL", $way eq '' ? () : "G$g $way", map { "S$g " . s/__ROOT_PERSON_UUID_HERE__/$root/r } @reads;
		}
	}
	$same->judge($same->run(\@lines), name => $when);
	return;
}

my $nobody = '00000000-0000-0000-0000-000000000000';
compare('at first', $nobody);
$r->psql('usa', $writes[0]) foreach 1 .. 2;
compare('after the upserts', '7139f8aa-7f93-4657-83ad-b7d74a22159f');
$r->psql('gbr', $writes[1] =~ s/10000/1500/r);
my $root = $r->psql('aus', $writes[2]);
$r->psql('aus', "SELECT shared.upsert_identity('09a06d2e-a2e3-49a1-b3b6-a8a520fafc6c', 'Top', 'usa', NULL);
	UPDATE shared.identity SET manager_uuid = '09a06d2e-a2e3-49a1-b3b6-a8a520fafc6c' WHERE note LIKE 'Da%'");
compare('after the trees', $root);

done_testing();
