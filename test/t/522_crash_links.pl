# The link between gateway and participant is cut or falls silent, in either direction, at
# each arrow of the commit protocol; it comes back, or the connections are lost for good.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

use Crash;

my $c = Crash->new;
my $r = $c->r;
my $relay = $r->relay;
my @undecided = (outcome => 'none', told => 'aborted');
my @decided = (outcome => 'all', told => 'committed');
my $slow = { gbr => 'part_prepares:hold' };

# Three cases of the link to a region, while the gateway is at a point: cut; silent and then
# back, where what was held arrives late; silent and then cut, where it never arrives.
sub cut_at
{
	my ($point, $link, $how, %o) = @_;

	$c->case("$link cut ($how) at \"$point\"" . ($o{when} // ''), at => "$point:hold", %o, then => $o{failing}, during => sub {
		$o{ready}->() if $o{ready};
		$c->cut($link, $how);
	});
	return;
}

sub silent_at
{
	my ($point, $link, $way, %o) = @_;

	foreach my $end ($o{ends} ? @{ $o{ends} } : qw(back cut))
	{
		$c->case("$link silent ($way) at \"$point\"" . ($o{when} // '') . ", then $end", at => "$point:hold",
			mend_first => $end eq 'back', %o, then => $o{failing}, $end eq 'back' ? @{ $o{back} // [] } : (),
			during => sub {
				$o{ready}->() if $o{ready};
				$relay->hold($link, $way);
				$r->release($_) foreach $r->regions;
				$o{then} ? $o{then}->() : sleep(0.3);
				$c->cut($link) if $end eq 'cut';
			});
	}
	return;
}

sub late { return $c->until_prepared('gbr'); }

# nothing was sent: PREPARE goes lost, or its answer
foreach my $point (qw(commit_begins recorded))
{
	cut_at($point, 'usa>gbr', 'rst', @undecided);
	silent_at($point, 'usa>gbr', 'out', @undecided, back => \@decided);
	silent_at($point, 'usa>gbr', 'in', @undecided, back => \@decided, then => \&late);
}

# PREPARE is on its way: it is not answered, or it is
cut_at('prepare_sent', 'usa>gbr', $_, @undecided, when => ', not answered', there => $slow) foreach qw(rst fin);
silent_at('prepare_sent', 'usa>gbr', 'in', @undecided, when => ', not answered', there => $slow, back => \@decided, then => \&late);
sub answered { return ($c->until_prepared('gbr'), $c->until_answered('gbr')); }
cut_at('prepare_sent', 'usa>gbr', $_, @decided, when => ', answered', ready => \&answered) foreach qw(rst fin);
silent_at('prepare_sent', 'usa>gbr', $_, @decided, when => ', answered', ready => \&answered) foreach qw(out in);

# aus has answered, gbr has not
cut_at('one_prepared', 'usa>gbr', 'rst', @undecided, when => ', the other region', there => $slow);
silent_at('one_prepared', 'usa>gbr', 'in', @undecided, when => ', the other region', there => $slow, back => \@decided, then => \&late);
silent_at('one_prepared', 'usa>aus', 'in', @decided, when => ', that region', there => $slow, ends => ['back'], then => sub { $c->until_committed('gbr') });

# that one is lost before the other one has answered
$c->case('usa>aus cut at "one_prepared", that region', at => 'one_prepared:hold', there => $slow, @undecided,
	during => sub {
		$c->cut('usa>aus');
		$r->release('usa');
		$c->until_told;
	});

# all have answered
foreach my $point (qw(prepared decided one_told all_told))
{
	cut_at($point, 'usa>gbr', $_, @decided) foreach qw(rst fin);
	silent_at($point, 'usa>gbr', $_, @decided) foreach qw(out in);
}
cut_at('one_told', 'usa>aus', 'rst', @decided);
cut_at('applied', 'usa>gbr', 'rst', @decided);
cut_at($_, 'usa>gbr', 'rst', @decided, when => ', commit_wait = decided', settings => 'SET residency.commit_wait = decided') foreach qw(prepared decided);

# gbr could not prepare, aus learns of it next
{
	my %o = (@undecided, there => $slow, failing => sub { $c->fail_to_prepare });

	cut_at('aborting', 'usa>aus', $_, %o) foreach qw(rst fin);
	silent_at('aborting', 'usa>aus', 'out', %o);
}

# both other regions cut off at once: nobody is there who could be asked
foreach my $point (qw(recorded prepared decided))
{
	$c->case("gateway cut off at \"$point\"", at => "$point:hold", $point eq 'recorded' ? @undecided : @decided, during => sub { $r->away('usa') });
}

# the ways back: they are not needed, neither by the gateway nor by its resolver
foreach my $point (qw(recorded prepared decided))
{
	$c->case("ways back cut at \"$point\"", at => "$point:hold", @decided, during => sub { $c->cut("$_>usa") foreach qw(gbr aus) });
}
$c->case("gateway, crash_server at \"$_\", ways back cut", at => "$_:crash_server", outcome => $_ eq 'decided' ? 'all' : 'none', told => 'lost',
	during => sub {
		$c->cut("$_>usa") foreach qw(gbr aus);
		$c->until_down('usa');
		$r->revive('usa');
		$c->until_gone($_, 10) foreach qw(gbr aus);
	}) foreach qw(prepared decided);

# the link stays cut: gbr hears from aus what was decided
$c->case('link cut at "decided" for long', at => 'decided:hold', @decided,
	during => sub {
		$c->cut('usa>gbr');
		$r->release('usa');
		$c->until_committed('gbr', 10);
	});

# the one region that was written: COMMIT, or its answer, is in the link
foreach my $way ([ 'out', 'none' ], [ 'in', 'all' ])
{
	my ($direction, $outcome) = @$way;
	my %o = (work => 'alone', at => 'alone_sent:hold',
		pause => sub { $c->trap('usa>gbr', $direction, 'hold', 'COMMIT') });

	$c->case("one region alone, silent ($direction) at \"alone_sent\", then cut ($_)", %o, outcome => $outcome, told => '08007',
		during => sub { $c->until_trapped('usa>gbr'); $c->cut('usa>gbr', $_) }) foreach qw(rst fin);
	$c->case("one region alone, silent ($direction) at \"alone_sent\", then back", %o, outcome => 'all', told => 'committed', mend_first => 1,
		during => sub { $c->until_trapped('usa>gbr'); $r->release('usa'); sleep(0.3) });
}

$c->finish;
