# Round trips that the client of the walkthrough waits for, over distance: regions are
# asked side by side, never once per row and never one after the other.
use strict;
use warnings;

use File::Basename qw(dirname);
use lib dirname(__FILE__) . '/../lib';
use PostgreSQL::Test::Utils;
use Regions;
use Test::More;

my $top = dirname(__FILE__) . '/../..';
my ($below) = slurp_file("$top/examples/identity/SEED.md") =~ /```\n(WITH targets.*?)```/s;
my $r = Regions->new(regions => [qw(usa gbr aus)], dbname => 'identity', relay => 1);

$r->psql('usa', '', extra_params => [ '-f', "$top/examples/identity/schema.sql" ]);

sub uuid { return join('-', map { join('', map { sprintf '%x', int rand 16 } 1 .. $_) } 8, 4, 4, 4, 12); }

# The statement of three people; undef is somebody new.
sub three_people
{
	my ($dave, $queen) = @_;
	return sprintf(q{SELECT shared.upsert_identity('%s', 'David Welch', 'usa', 'nice') AS dave,
		shared.upsert_identity('%s', 'Da Queen', 'gbr', 'a powerhouse') AS queen,
		shared.upsert_identity('%s', 'Someone Random', 'aus', 'always new') AS rando},
		$dave // uuid(), $queen // uuid(), uuid());
}

my $root = $r->psql('usa', 'SELECT FROM util.generate_identities(1, 3000, false); SELECT util.create_manager_tree(15)');
$root =~ s/\s//g;
$below =~ s/__ROOT_PERSON_UUID_HERE__/$root/;
$r->warm('usa', 'SELECT count(*) FROM shared.identity_details', three_people(), $below);
$r->delay(40, 'usa', 'gbr');
$r->delay(100, 'usa', 'aus');
$r->delay(60, 'gbr', 'aus');

foreach my $case ([ 'applied', 2, 3 ], [ 'decided', 1, 2 ])
{
	my ($wait, $new, $again) = @$case;
	my @known = (uuid(), uuid());

	$r->warm('usa', "SET residency.commit_wait = $wait", three_people());
	is($r->round_trips('usa', three_people(@known)), $new, "three people, all new, commit_wait = $wait: $new");
	is($r->round_trips('usa', three_people(@known)), $again, "the same again, commit_wait = $wait: $again");
}
$r->warm('usa', 'RESET residency.commit_wait');

is($r->round_trips('usa', 'SELECT * FROM shared.identity'), 0, 'who exists is known here: no round trip');
is($r->round_trips('usa', 'SELECT * FROM shared.identity_details'), 1, 'details of all regions: one');
is($r->round_trips('usa', 'SELECT * FROM usa.identity_details'), 0, 'details of this region: none');
is($r->round_trips('usa', "SELECT count(*) FROM shared.hierarchy WHERE path[1] = '$root'"), 0, 'a tree without names: none');
is($r->round_trips('usa', $below), 1, 'a tree with the names of its 121 people: one');

my ($trips, $ms) = $r->round_trips('usa', 'SELECT * FROM util.generate_identities(1, 10000, false)');
cmp_ok($ms, '<', 5000, '10,000 identities in less than 5 s');

done_testing();
