# The queries of docs/operations.md, "when to worry": they run as they stand there, find nothing in a
# healthy deployment, and find what is wrong with one that is not.
use strict;
use warnings;

use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my ($table) = slurp_file(dirname(__FILE__) . '/../../docs/operations.md') =~ /^\| query \| worry \|\n\|[-|]+\|\n((?:\|.*\n)+)/m;
my @queries = $table =~ /^\| `(SELECT [^`]*)` \|/mg;
my $r = Regions->new(faults => 1, conf => "residency.workers = on\nresidency.resolve_interval = 1s\nresidency.away_after = 1s\nresidency.commit_timeout = 1s\n");

# the answers of one region to those queries that count, or list, something
sub answers
{
	my ($region) = @_;
	return join(' / ', map { $r->psql($region, $_) =~ s/\n/ /gr } @queries);
}

People::make($r);
People::make_function($r);
$r->psql('usa', q{SELECT app.add(1, 'gbr', 'a'), app.add(2, 'aus', 'b')});
is(scalar(@queries), 6, 'six of them');
foreach my $region ($r->regions)
{
	ok($r->poll($region, q{SELECT count(*) = 0 FROM residency.regions WHERE state <> 'up'}), "$region sees all up");
	ok($r->poll($region, q{SELECT count(*) = 0 FROM residency.transactions WHERE state <> 'finished'}), "and knows of nothing in doubt");
	is(answers($region), ' / 0| / 0 /  / 0 / 0', "nothing to worry about in $region");
}

# usa decides, and aus does not hear of it
my $session = $r->session('usa', on_error_stop => 0);
$r->arm('aus', 'part_applies:crash_server', 'residency');
$session->query(q{SELECT app.add(10, 'gbr', 'c'), app.add(11, 'aus', 'd')});
$r->wait_fired('aus');
ok($r->poll('usa', q{SELECT count(*) = 1 FROM residency.regions WHERE name = 'aus' AND state = 'away'}), 'aus is away');
$r->psql('usa', q{UPDATE app.identity SET note = 'missed' WHERE id = 1});
$r->psql('gbr', q{INSERT INTO residency.conflict (relation, key, region, kind, home) VALUES ('app.identity'::regclass, residency.key_text(ARRAY['1']), 'aus', 'unique', 'gbr')});
like(answers('usa'), qr{^aus\|\S.* / [1-9]\|\d{4}-.* / 0 /  / 0 / 0$}, 'usa says who is away and why, and that something is in doubt');
like(answers('gbr'), qr{^aus\|\S.* / \d+\|.* / 1 /  / 1 / 0$}, 'gbr, that it has something to ship, and to decide');
$r->psql('gbr', 'DELETE FROM residency.conflict');
$r->disarm('aus');
$r->revive('aus');
foreach my $region ($r->regions)
{
	ok($r->poll($region, q{SELECT count(*) = 0 FROM residency.regions WHERE state <> 'up'}), "$region sees all up");
	ok($r->poll($region, q{SELECT count(*) = 0 FROM residency.transactions WHERE state <> 'finished'}), "and knows of nothing in doubt");
	is(answers($region), ' / 0| / 0 /  / 0 / 0', "nothing to worry about in $region");
}

done_testing();
