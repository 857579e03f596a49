# A region that comes and goes: each time that it leaves soon after its return, twice as many
# answers are wanted before it is used again.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use Regions;

# a ping each 100 ms, a fifth of the time
my $r = Regions->new(regions => [qw(usa gbr)], relay => 1, delay => 2, conf => "residency.workers = on\nresidency.away_after = 500ms\n");
my $pause = 0.1;
my $is_away = q{SELECT state = 'away' FROM residency.regions WHERE name = 'gbr'};
my $read = 0;

# usa's log since the last look
sub new_log
{
	my $log = slurp_file($r->node('usa')->logfile, $read);
	$read += length($log);
	return $log;
}

ok($r->poll('usa', q{SELECT state = 'up' FROM residency.regions WHERE name = 'gbr'}), 'both are up');
new_log();

foreach my $wanted (3, 6, 12, 24, 24)
{
	$r->relay->hold('usa>gbr');
	ok($r->poll('usa', $is_away), 'a region leaves');
	my $messages = $r->relay->counts('usa>gbr')->{messages_out};
	my $start = time;
	$r->relay->resume('usa>gbr');
	ok($r->poll('usa', $is_away, 'f'), 'and returns');

	# what is known from outside: so much time has passed, so many messages were sent
	my $took = time - $start;
	my ($answers) = new_log() =~ /LOG:  region "gbr" is back: (\d+) answers in a row/;
	is($answers, $wanted, "after $wanted answers");
	cmp_ok($took, '>', ($wanted - 1) * $pause * 0.9, 'one after the other');
	cmp_ok($r->relay->counts('usa>gbr')->{messages_out} - $messages, '>=', $wanted, 'each of them to a question');
	is(scalar(() = new_log() =~ /region "gbr" is/g), 0, 'once');
}

# answers that do not come in a row do not count
$r->relay->hold('usa>gbr');
ok($r->poll('usa', $is_away), 'it leaves again');
foreach my $n (1 .. 3)
{
	$r->relay->resume('usa>gbr');
	$r->poll('usa', q{SELECT problem IS NULL FROM residency.regions WHERE name = 'gbr'});
	$r->relay->cut('usa>gbr');
	$r->relay->hold('usa>gbr');
	is($r->psql('usa', $is_away), 't', "answers between two faults, $n: it is still away");
}
is(scalar(() = new_log() =~ /is back/g), 0, 'it was not taken to be back in between');

$r->teardown;
done_testing();
