# Round trips that a client waits for, as the law says: opening connections costs what
# the protocol asks for and in all regions at once; after that a statement waits once.
# All delays are equal, so the count is that of the longest chain of questions.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $all = 'SELECT count(*) FROM app.details';
my $one = "SELECT name FROM app.details WHERE region = 'gbr' AND id = 2";

# the shortest of five times in ms: what a busy machine adds is not distance
sub shortest
{
	my ($r, $sql) = @_;
	my ($ms) = sort { $a <=> $b } map { ($r->round_trips('usa', $sql))[1] } 1 .. 5;

	return $ms;
}

# The first statement of a backend, by how regions log in: one for its own question, the
# rest for opening connections.
foreach my $how ([ 'trust', 2 ], [ 'SCRAM', 4, scram => 1 ], [ 'TLS 1.3 and SCRAM', 6, scram => 1, ssl => 1 ])
{
	my ($name, $expected, @options) = @$how;
	my $r = Regions->new(relay => 1, delay => 20, @options);

	People::make($r);
	$r->psql('usa', People::add(1, 'usa', 'Dave'));
	$r->psql('usa', People::add(2, 'gbr', 'Zebedee-Quill'));
	$r->psql('usa', People::add(3, 'aus', 'Bruce'));

	is($r->first_round_trips('usa', $one), $expected, "$name: first statement, one other region: $expected");
	is($r->first_round_trips('usa', $all), $expected, "$name: first statement, two other regions: $expected");
	$r->warm('usa', $all);
	is($r->round_trips('usa', $all), 1, "$name: then one for both");
	if ($name ne 'trust')
	{
		$r->teardown;
		next;
	}

	is($r->round_trips('usa', $one), 1, 'one row of another region: 1');
	is($r->round_trips('usa', "SELECT name FROM app.details WHERE region = 'usa' AND id = 1"), 0, 'a row of this region: none');
	is($r->round_trips('usa', 'SELECT count(*) FROM app.identity'), 0, 'a global table: none');
	is($r->round_trips('usa', "UPDATE app.details SET name = 'Q' WHERE region = 'gbr' AND id = 2"), 2,
		'an update in another region: 2, the row and its commit');

	# who is not asked hears nothing
	$r->relay->reset;
	$r->round_trips('usa', $one);
	cmp_ok($r->relay->counts('usa>gbr')->{bytes_out}, '>', 0, 'the region of the row is asked');
	is($r->relay->counts('usa>aus')->{bytes_out}, 0, 'and no other');

	# regions differ in distance: the farthest is what is waited for
	$r->delay(5);
	$r->delay(60, 'usa', 'aus');
	$r->warm('usa', $all);
	is($r->round_trips('usa', $all), 1, 'regions near and far: 1');
	my $ms = shortest($r, $all);
	cmp_ok($ms, '>=', 120, 'as long as the far one takes');
	cmp_ok($ms, '<', 120 * 1.5, 'and no longer');
	cmp_ok(shortest($r, $one), '<', 60, 'the near one alone takes its own time');

	# away and back
	$r->delay(0);
	$r->away('gbr');
	$r->fails('usa', $one, '08\w+', qr/gbr/, 'a region away: class 08, and named');
	is($r->psql('usa', "SELECT name FROM app.details WHERE region = 'usa' AND id = 1"), 'Dave', 'own residents always');
	is($r->psql('gbr', "SELECT name FROM app.details WHERE region = 'gbr' AND id = 2"), 'Q', 'also in the region that is away');
	$r->back('gbr');
	is($r->psql('usa', $one), 'Q', 'and back');

	# the witness, once with everything in place
	$r->only_in('Zebedee-Quill', ['gbr'], 'a name is on the disks of its region only');
	$r->teardown;
}

done_testing();
