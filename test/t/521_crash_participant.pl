# A participant dies at each arrow of the commit protocol, its own and the gateway's; and
# the one region of a transaction that wrote nowhere else.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use Crash;

my $c = Crash->new;
my $r = $c->r;
my @crashes = qw(crash_backend crash_server);
my @undecided = (outcome => 'none', told => 'aborted');
my @decided = (outcome => 'all', told => 'committed');

# at the participant's own points
foreach my $action (@crashes)
{
	$c->case("participant, $action at \"$_\"", there => { gbr => "$_:$action" }, @undecided) foreach qw(part_traced part_prepares part_prepared);
	$c->case("participant, $action at \"$_\"", there => { gbr => "$_:$action" }, @decided) foreach qw(part_applies part_applied);

	# while the transaction aborts, though all regions have prepared
	$c->case("participant, $action at \"$_\"", at => 'prepared:error', there => { gbr => "$_:$action" }, @undecided) foreach qw(part_rolls_back part_rolled_back);
}
$c->case("participant, error at \"$_\"", there => { gbr => "$_:error" }, @undecided) foreach qw(part_traced part_prepares);
$c->case('participant, error at "part_applies"', there => { gbr => 'part_applies:error' }, @decided);
$c->case('participant, error at "part_rolls_back"', at => 'prepared:error', there => { gbr => 'part_rolls_back:error' }, @undecided);

# Meanwhile the gateway's server dies, and its resolver has done what it can before the
# participant goes on; a session that does not notice then still does what it was told.
sub told_aus { return $c->until_gone('aus'); }
sub told_gbr { return $c->until_committed('gbr'); }
sub forgot { return $c->until_true('gbr', 'SELECT count(*) = 0 FROM residency.transaction'); }

foreach my $case ([ part_traced => 'hold', 'none', \&told_aus ], [ part_prepares => 'hold', 'none', \&told_aus ], [ part_prepared => 'hold', 'none', \&told_aus ],
	[ part_applies => 'hold', 'all', \&told_gbr ], [ part_applies => 'stall', 'all', \&told_gbr ], [ part_applied => 'hold', 'all', \&forgot ])
{
	my ($point, $how, $outcome, $resolved) = @$case;

	$c->case("gateway's server killed while a participant is at \"$point\" ($how)", there => { gbr => "$point:$how" }, outcome => $outcome, told => 'lost',
		settings => 'SET residency.commit_timeout = 30000',
		during => sub {
			$c->until_prepared('aus') if $outcome eq 'none';
			$r->kill9('usa');
			$r->start('usa');
			$resolved->();
		});
	$c->case("link cut while a participant is at \"$point\" ($how)", there => { gbr => "$point:$how" }, $outcome eq 'all' ? @decided : @undecided,
		during => sub { $c->cut('usa>gbr') });
}

# while the gateway is at one of its points, and goes on afterwards
foreach my $point (qw(commit_begins recorded))
{
	$c->case("participant killed while the gateway is at \"$point\"", at => "$point:hold", @undecided, during => sub { $r->kill9('gbr') });
}
foreach my $point (qw(prepared decided one_told all_told applied))
{
	$c->case("participant killed while the gateway is at \"$point\"", at => "$point:hold", @decided, during => sub { $r->kill9('gbr') });
}
$c->case('participant killed while the gateway is at "prepare_sent", not prepared yet', at => 'prepare_sent:hold', there => { gbr => 'part_prepares:hold' }, @undecided,
	during => sub { $r->kill9('gbr') });
$c->case('participant killed while the gateway is at "prepare_sent", prepared, not answered', at => 'prepare_sent:hold', there => { gbr => 'part_prepared:hold' }, @undecided,
	during => sub { $r->kill9('gbr') });
$c->case('participant killed while the gateway is at "prepare_sent", answered', at => 'prepare_sent:hold', @decided,
	during => sub { $c->until_prepared('gbr'); $c->until_answered('gbr'); $r->kill9('gbr') });

# of two participants one has answered; its loss is noticed before the other one has
foreach my $region (qw(aus gbr))
{
	$c->case("participant $region killed while the gateway is at \"one_prepared\"", at => 'one_prepared:hold', there => { gbr => 'part_prepares:hold' }, @undecided,
		during => sub {
			is(join(' ', map { $r->prepared($_) } qw(aus gbr)), '1 0', 'one is prepared, the other one is not');
			$r->kill9($region);
			$r->release('usa');
			$c->until_told;
		});
}

# while the gateway aborts, because a region could not prepare: that one, or one that has
foreach my $region (qw(gbr aus))
{
	$c->case("participant $region killed while the gateway is at \"aborting\"", at => 'aborting:hold', there => { gbr => 'part_prepares:hold' }, then => sub { $c->fail_to_prepare }, @undecided,
		during => sub { $r->kill9($region) });
}

# both at once
foreach my $point (qw(prepared decided one_told all_told))
{
	$c->case("both participants killed while the gateway is at \"$point\"", at => "$point:hold", @decided, during => sub { $r->kill9($_) foreach qw(gbr aus) });
}
$c->case('both participants killed while the gateway is at "one_prepared"', at => 'one_prepared:hold', there => { gbr => 'part_prepares:hold' }, @undecided,
	during => sub { $r->kill9($_) foreach qw(gbr aus) });

# COMMIT does not wait; nothing is written at the gateway; the session's second commit; DDL
$c->case("commit_wait = decided: participant, crash_server at \"$_\"", settings => 'SET residency.commit_wait = decided', there => { gbr => "$_:crash_server" },
	$_ eq 'part_prepared' ? @undecided : @decided) foreach qw(part_prepared part_applies);
foreach my $work ([ 'elsewhere', 'no row at the gateway', '' ], [ 'second', 'second commit', ':2' ], [ 'table', 'DDL', '' ])
{
	my ($which, $name, $nth) = @$work;

	$c->case("$name: participant, crash_server at \"$_\"", work => $which, there => { gbr => "$_:crash_server$nth" }, @undecided) foreach qw(part_traced part_prepared);
	$c->case("$name: participant killed while the gateway is at \"decided\"", work => $which, at => 'decided:hold', @decided, during => sub { $r->kill9('gbr') });
}

$c->case("DDL: participant, crash_server at \"$_\"", work => 'table', there => { gbr => "$_:crash_server" }, @decided) foreach qw(part_applies part_applied);

# one region alone: it is as a whole either way, and the client is told that it cannot be known
$c->case("one region alone, $_ at \"part_commits_alone\"", work => 'alone', there => { gbr => "part_commits_alone:$_" }, outcome => 'all', told => '08007') foreach @crashes;
$c->case('one region alone, killed at "alone_sent" before COMMIT arrived', work => 'alone', at => 'alone_sent:hold', outcome => 'none', told => '08007',
	pause => sub { $c->trap('usa>gbr', 'out', 'hold', 'COMMIT') },
	during => sub { $c->until_trapped('usa>gbr'); $r->kill9('gbr') });
$c->case('one region alone, killed at "alone_sent" when it had answered', work => 'alone', at => 'alone_sent:hold', outcome => 'all', told => 'committed',
	during => sub { $c->until_committed('gbr'); $c->until_answered('gbr'); $r->kill9('gbr') });

$c->finish;
