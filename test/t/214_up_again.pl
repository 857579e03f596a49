# A region that comes back is brought up to date by the workers of all homes, while writes go
# on, and counts as up when it has everything: no transaction that left it out is forgotten.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use Regions;

my $r = Regions->new(relay => 1, delay => 5, conf => "residency.workers = on\n");
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE SCHEMA app;
	CREATE TABLE app.item (id int PRIMARY KEY, region text NOT NULL, note text);
$$)});
$r->psql('usa', q{SELECT residency.make_global('app.item', 'region')});
$r->psql('usa', q{INSERT INTO app.item SELECT n, (ARRAY['usa', 'gbr'])[n % 2 + 1], 'old' FROM generate_series(1, 100) n});

# The link between aus and the others is cut, and they know; or mended, and they know.
sub gone
{
	$r->away('aus');
	$r->psql($_, q{SELECT residency.set_region_state('aus', 'away')}) foreach qw(usa gbr);
	$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'away')}) foreach qw(usa gbr);
	return;
}
sub returned
{
	$r->back('aus');
	$r->psql($_, q{SELECT residency.set_region_state('aus', 'catching up')}) foreach @_ ? @_ : qw(usa gbr);
	$r->psql('aus', qq{SELECT residency.set_region_state('$_', 'catching up')}) foreach qw(usa gbr);
	return;
}
sub up
{
	my ($region) = @_;
	return $r->poll($region, q{SELECT state = 'up' AND notes = 0 FROM residency.catch_up WHERE region = 'aus'});
}
sub same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $r->all_equal(q{SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY id)) FROM app.item t}, $name);
}

# --- away, and back ------------------------------------------------------------------------------
gone();
$r->psql('usa', q{UPDATE app.item SET note = 'missed'});
$r->psql('aus', q{INSERT INTO app.item VALUES (1000, 'aus', 'made alone')});
is($r->psql('usa', q{SELECT state || notes FROM residency.catch_up WHERE region = 'aus'}), 'away50', 'what is missing can be seen');
returned();
ok(up($_), "$_: the region is up again, and no note is left") foreach qw(usa gbr);
ok($r->poll('aus', q{SELECT bool_and(state = 'up' AND notes = 0) FROM residency.catch_up}), 'what it wrote meanwhile is delivered too');
same('all copies are equal');
like($r->psql('usa', q{SELECT shipped || ' ' || (since IS NOT NULL) || ' ' || coalesce(last_error, 'fine') FROM residency.catch_up WHERE region = 'aus'}),
	qr/^(50|51) true fine$/, 'progress is told');
cmp_ok($r->psql('usa', q{SELECT coalesce(rate, 0) FROM residency.catch_up WHERE region = 'aus'}), '>', 0, 'with how fast it went, also after a single batch');

# --- while writes go on ------------------------------------------------------------------------------
gone();
$r->delay(20);
$r->psql('usa', q{INSERT INTO app.item SELECT n, 'usa', 'missed' FROM generate_series(10001, 14000) n});
my @writers = map { $r->session($_, on_error_stop => 0) } qw(usa gbr);
$writers[$_]->query_safe("CREATE TABLE public.stop (); CREATE PROCEDURE public.go() LANGUAGE plpgsql AS \$\$
	DECLARE n int := 0; BEGIN
		WHILE NOT EXISTS (SELECT FROM public.stop) LOOP
			n := n + 1;
			BEGIN
				INSERT INTO app.item VALUES (100000 + 100000 * $_ + n, (ARRAY['usa', 'gbr'])[n % 2 + 1], 'w') ON CONFLICT DO NOTHING;
				UPDATE app.item SET note = note || 'x' WHERE id = 10001 + n * 7 OR id = 1 + $_;
			EXCEPTION WHEN serialization_failure OR deadlock_detected THEN NULL;
			END;
			COMMIT;
		END LOOP;
	END \$\$") foreach 0, 1;
$writers[$_]->query_until(qr/go/, "\\echo go\nCALL public.go();\n") foreach 0, 1;
sleep(0.5);
returned();
ok($r->poll($_, q{SELECT state = 'up' FROM residency.catch_up WHERE region = 'aus'}), "$_: up") foreach qw(usa gbr);
is(join('', map { $r->psql($_, q{SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ '^CALL public.go'}) } qw(usa gbr)), '11', 'while writers are at work');
ok($r->poll('aus', 'SELECT count(*) > 20 FROM app.item WHERE id > 100000'), 'whose rows arrive');
$r->psql($_, 'INSERT INTO public.stop DEFAULT VALUES') foreach qw(usa gbr);
$_->query_safe('SELECT 1') foreach @writers;
ok($r->poll('usa', q{SELECT notes = 0 FROM residency.catch_up WHERE region = 'aus'}), 'and nothing is left when they stop');
same('all copies are equal');
$_->quit foreach @writers;

# --- a doubt outlasts the flip -------------------------------------------------------------------------
# The gateway usa dies between note (at gbr) and decision; gbr must not call aus up before.
gone();
$r->delay(5);
my $writer = $r->session('usa', on_error_stop => 0);
$writer->query_safe('SELECT 1');
# gbr is silent for the gateway meanwhile, which shall not take it for away
$r->conf('usa', "residency.away_after = 60s\n");
$r->relay->trap('usa>gbr', 'out', 'hold_back', 'PREPARE TRANSACTION');
$writer->query_until(qr/go/, "\\echo go\nUPDATE app.item SET note = 'doubt' WHERE id = 1;\n");
$r->relay->wait_sprung('usa>gbr');
$r->poll('gbr', 'SELECT count(*) = 1 FROM pg_prepared_xacts');
returned('gbr');
sleep(1.5);
is($r->psql('gbr', q{SELECT state || notes FROM residency.catch_up WHERE region = 'aus'}), 'catching up0', 'nothing is noted, but a doubt keeps the region from being up');
is($r->psql('aus', 'SELECT note FROM app.item WHERE id = 1') eq 'doubt', '', 'and it has not got the row');
$r->relay->resume('usa>gbr');
$writer->query_safe('SELECT 1');
$r->conf('usa', "residency.away_after = 5s\n");
ok(up('gbr'), 'when the doubt is over it gets the row, and is up');
$r->psql('usa', q{SELECT residency.set_region_state('aus', 'catching up')});
ok(up('usa'), 'the gateway follows');
is(same('all copies are equal'), $r->psql('usa', q{SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY id)) FROM app.item t}), 'with the row');
is($r->psql('aus', 'SELECT note FROM app.item WHERE id = 1'), 'doubt', 'that was in doubt');
$writer->quit;

# --- either side crashes in the middle -------------------------------------------------------------------
my $traps = 0;
foreach my $victim (qw(usa aus))
{
	gone();
	$r->psql('usa', "UPDATE app.item SET note = 'crash of $victim' WHERE id BETWEEN 10001 AND 14000");
	$r->relay->trap('usa>aus', 'out', 'hold_back', 'PREPARE TRANSACTION');
	returned();
	$r->relay->wait_sprung('usa>aus', ++$traps);
	$r->kill9($victim);
	$r->relay->back('usa>aus');
	$r->start($victim);
	$r->psql('usa', q{SELECT residency.set_region_state('aus', 'catching up')});
	ok(up('usa'), "$victim crashes while a batch is prepared: the region is up in the end");
	same('all copies are equal');
	ok($r->poll('aus', q{SELECT count(*) = 0 FROM pg_prepared_xacts}), 'nothing is left prepared');
}
$r->teardown;
done_testing();
