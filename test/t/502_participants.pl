# The region where a transaction began is gone. A participant that knows the outcome tells the
# others; what nobody knows waits for residency.decide().
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(relay => 1, delay => 2,
	conf => "residency.workers = on\nresidency.resolve_interval = '1s'\nresidency.doubt_timeout = '500ms'\nresidency.away_after = '1s'\n");
People::make($r);
People::make_function($r);
my $id = 0;
my $log_start = -s $r->node('gbr')->logfile;
my %trapped = ('usa>gbr' => 0, 'usa>aus' => 0);

# usa adds two people, at gbr and aus, and dies when a message comes by on these links;
# what else is on its way arrives
sub die_at
{
	my ($message, @links) = @_;
	my $session = $r->session('usa', on_error_stop => 0);

	$id += 10;
	$session->query_safe('SELECT count(*) FROM app.details');
	foreach my $link (@links)
	{
		$r->relay->trap($link, 'out', $message eq 'decided' ? ('hold', 'COMMIT PREPARED') : ('hold_back', 'PREPARE TRANSACTION'));
		$trapped{$link}++;
	}
	$session->query_until(qr/started/, "\\echo started\nSELECT app.add($id, 'gbr', 'one'), app.add($id + 1, 'aus', 'two');\n");
	$r->relay->wait_sprung($_, $trapped{$_}) foreach @links;
	sleep(0.2);
	$r->kill9('usa');
	eval { $session->quit };
	foreach (@links) { $r->relay->cut($_); $r->relay->back($_); }
	return;
}

# where the two people of the last transaction are, as the regions that are up see it
sub outcome
{
	my (@regions) = @_;
	return join(' ', map { $r->psql($_, "SELECT count(*) FROM app.identity WHERE id IN ($id, $id + 1)") } @regions)
	  . ' ' . join(' ', map { $r->psql($_->[0], "SELECT count(*) FROM $_->[0].details WHERE id = $_->[1]") } [ 'gbr', $id ], [ 'aus', $id + 1 ]);
}

# Test: within ten seconds nothing is prepared in these regions, and no record is left if all are meant.
sub soon_clean
{
	my ($name, @regions) = @_;
	my $what = @regions ? '(SELECT count(*) FROM pg_prepared_xacts)' : '(SELECT count(*) FROM pg_prepared_xacts) + (SELECT count(*) FROM residency.transaction)';
	my $end = time + 10;
	my $left;

	@regions = $r->regions unless @regions;
	do
	{
		$left = join(' ', map { $r->psql($_, "SELECT $what") } @regions);
		sleep(0.1) if $left =~ /[^0 ]/;
	} while $left =~ /[^0 ]/ && time < $end;
	is($left, join(' ', map { 0 } @regions), "$name: nothing is left within 10 s");
	return;
}

sub gid { my ($region) = @_; return $r->psql($region, 'SELECT gid FROM pg_prepared_xacts'); }
sub up { $r->start('usa'); return; }

# --- one participant has committed ------------------------------------------------------------
die_at('decided', 'usa>gbr');
is($r->psql('aus', "SELECT count(*) FROM aus.details WHERE id = $id + 1"), 1, 'aus has committed');
soon_clean('a participant knows', 'gbr', 'aus');
is(outcome('gbr', 'aus'), '2 2 1 1', 'gbr learned it from aus while usa is down');
like(slurp_file($r->node('gbr')->logfile, $log_start), qr/resolver: committed "[^"]*" in region "gbr"\n.*region "aus" has committed its part/, 'the log says from whom');
is($r->psql('gbr', q{SELECT origin, resolver FROM residency.transactions WHERE state = 'finished'}), 'usa|gbr: committed', 'and residency.transactions');
up();
soon_clean('usa is back');
is(outcome('usa', 'gbr', 'aus'), '2 2 2 1 1', 'committed everywhere');

# --- nobody knows: the operator decides in one region, the other follows -------------------------
die_at('decided', 'usa>gbr', 'usa>aus');
sleep(3);
is($r->prepared('gbr') + $r->prepared('aus'), 2, 'what nobody knows is left alone');
$r->psql('gbr', 'CREATE ROLE joe LOGIN');
$r->fails('gbr', "SET ROLE joe; SELECT residency.decide('x', true)", '42501', qr/decide/, 'decide() is not for everybody');
$r->fails('gbr', "SELECT residency.decide('residency:0123456789abcdef:1:0:00000000', true)", '42704', qr/no part/, 'nor for what is not prepared');
my ($at_gbr, $at_aus) = (gid('gbr'), gid('aus'));
isnt($at_gbr, $at_aus, 'two gids');
is($r->psql('gbr', "SELECT residency.transaction_key('$at_gbr') = residency.transaction_key('$at_aus')"), 't', 'of one transaction');
my $other = $r->session('aus', on_error_stop => 0);
$other->query("BEGIN; SELECT residency.decide('$at_aus', false)");
$r->fails('gbr', "SELECT residency.decide('$at_gbr', true)", '55000', qr/is being decided otherwise in region "aus".*HINT/s, 'of two who decide at once one gives way');
$other->query('ROLLBACK');
$other->quit;
$r->psql('aus', "BEGIN; SELECT residency.decide('$at_aus', true); ROLLBACK");
is($r->prepared('gbr') + $r->prepared('aus'), 2, 'and nothing is decided yet');
$r->psql('gbr', "BEGIN; SELECT residency.decide('$at_gbr', true); ROLLBACK");
sleep(1.5);
is($r->prepared('gbr'), 1, 'a decision that is rolled back is none');
$r->psql('gbr', "SELECT residency.decide('$at_gbr', true)");
soon_clean('decided at gbr', 'gbr', 'aus');
is(outcome('gbr', 'aus'), '2 2 1 1', 'committed in both');
is($r->psql('gbr', q{SELECT origin, resolver FROM residency.transactions WHERE state = 'operator'}), 'usa|commit', 'what the operator said is recorded');
up();
soon_clean('usa is back');
is(outcome('usa', 'gbr', 'aus'), '2 2 2 1 1', 'usa had decided the same');

# --- the same for a rollback; a second word that says otherwise -------------------------------------
die_at('prepared', 'usa>gbr', 'usa>aus');
is($r->prepared('gbr') + $r->prepared('aus'), 2, 'both are prepared');
$r->conf('aus', "residency.workers = off\n");
ok($r->poll('aus', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'residency resolver'}), 'aus has no resolver now');
($at_gbr, $at_aus) = (gid('gbr'), gid('aus'));
$r->psql('gbr', "SELECT residency.decide('$at_gbr', false)");
soon_clean('decided at gbr', 'gbr');
$r->fails('aus', "SELECT residency.decide('$at_aus', true)", '55000', qr/decided otherwise in region "gbr"/, 'the second word cannot be another one');
my (undef, undef, $err) = $r->try('aus', "SELECT residency.decide('$at_aus', false)");
like($err, qr/WARNING.*workers.*switched off.*ROLLBACK PREPARED/s, 'the same word again is fine; without workers it says what to do');
$r->conf('aus', "residency.workers = on\n");
soon_clean('aus follows', 'aus');
is(outcome('gbr', 'aus'), '0 0 0 0', 'rolled back in both');
up();
soon_clean('usa is back');
is(outcome('usa', 'gbr', 'aus'), '0 0 0 0 0', 'rolled back everywhere');

# --- what was nearly decided about a part that is gone ---------------------------------------------------
die_at('prepared', 'usa>gbr', 'usa>aus');
($at_gbr, $at_aus) = (gid('gbr'), gid('aus'));
$r->psql('aus', "BEGIN; SELECT residency.decide('$at_aus', true); ROLLBACK");
$r->fails('gbr', "SELECT residency.decide('$at_gbr', false)", '55000', qr/is being decided otherwise in region "aus"/, 'what is nearly decided counts while its part is there');
$r->psql('aus', "ROLLBACK PREPARED '$at_aus'");
is($r->psql('gbr', "SELECT residency.decide('$at_gbr', false)"), '', 'and not any more when it is gone');
soon_clean('decided at gbr', 'gbr', 'aus');
up();
soon_clean('usa is back');
is(outcome('usa', 'gbr', 'aus'), '0 0 0 0 0', 'rolled back everywhere');

# --- a word against a part that is committed, or against an origin that answers ------------------------
$r->conf('gbr', "residency.workers = off\n");
ok($r->poll('gbr', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'residency resolver'}), 'gbr has no resolver now');
die_at('decided', 'usa>gbr');
$at_gbr = gid('gbr');
$r->fails('gbr', "SELECT residency.decide('$at_gbr', false)", '55000', qr/region "aus" has committed its part/, 'a word against what a participant has done is refused');
$r->node('usa')->append_conf('postgresql.conf', "residency.workers = off\n");
up();
$r->fails('gbr', "SELECT residency.decide('$at_gbr', true)", '55000', qr/region "usa".*answers and knows.*residency\.resolve\(\)/s, 'any word is refused while the origin answers');

# --- usa was restored from a backup: it is not the same any more, but what it had decided counts --------
$r->psql('usa', 'SELECT residency.renew()');
is($r->psql('usa', q{SELECT count(*) FROM residency.resolve() WHERE action NOT LIKE 'not reached%'}), 0, 'after renew() its resolver leaves the part alone');
is($r->prepared('gbr'), 1, 'it is still prepared');
$r->conf('gbr', "residency.workers = on\n");
$r->conf('usa', "residency.workers = on\n");
soon_clean('participants finish what belongs to the old incarnation', 'gbr');
is(outcome('usa', 'gbr', 'aus'), '2 2 2 1 1', 'committed everywhere');
soon_clean('records of the old incarnation go as well');

done_testing();
