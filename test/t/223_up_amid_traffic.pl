# Steady traffic of clients with a region that comes back does not keep it from being up, though there
# are always some of their transactions prepared there: only what was shipped has to be applied.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

use CatchUp;

my $c = CatchUp->new(regions => [qw(usa aus)], delay => 100);
my $r = $c->r;
$r->psql('usa', q{SELECT residency.run_everywhere('CREATE TABLE app.person (id bigint NOT NULL, region text NOT NULL)')});
$r->psql('usa', q{SELECT residency.make_resident('app.person', 'region', key => '{id}')});

# nothing is written that aus would miss, and yet each transaction is prepared there for a round trip
$c->cut('usa', 'aus');
$r->psql('usa', q{CREATE TABLE public.stop (); CREATE TABLE public.done (n bigint); CREATE SEQUENCE public.numbers});
$r->psql('usa', q{CREATE PROCEDURE public.register() LANGUAGE plpgsql AS $$ DECLARE n bigint; BEGIN
	WHILE NOT EXISTS (SELECT FROM public.stop) LOOP
		BEGIN
			n := nextval('public.numbers');
			INSERT INTO app.person VALUES (2 * n, 'usa'), (2 * n + 1, 'aus');
			INSERT INTO public.done VALUES (n);
		EXCEPTION WHEN OTHERS THEN PERFORM pg_sleep(0.1);
		END;
		COMMIT;
		PERFORM pg_sleep(random() * 0.1);
	END LOOP;
END $$});
my @clients;
foreach (1 .. 25)
{
	push @clients, $r->session('usa', on_error_stop => 0);
	$clients[-1]->query_until(qr/go/, "\\echo go\nSET statement_timeout = 0; CALL public.register();\n");
}
# a transaction that leaves aus out keeps it from being up until all clients are at work
my $open = $r->session('usa');
$open->query_safe(q{BEGIN; INSERT INTO app.item VALUES (1, 'usa', 'not over')});
$c->mend('usa', 'aus');
ok($c->until(30, sub { $r->psql('usa', 'SELECT count(*) FROM public.done') > 100 }), 'clients register residents of aus') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
cmp_ok(scalar(grep { sleep(0.1); $r->prepared('aus') == 0 } 1 .. 20), '<', 6, 'some of their transactions are nearly always prepared there');
ok($c->is_now('usa', 'aus', 'catching up'), 'and it is not up yet');
$open->query_safe('ROLLBACK');
my $start = time;
my $up = $c->until(25, sub { $c->is_now('usa', 'aus', 'up') });
ok($up, 'aus is up meanwhile') or diag $r->psql('usa', 'SELECT * FROM residency.catch_up');
note(sprintf('up at the latest %.1f s after nobody leaves it out any more', time - $start));
$r->psql('usa', 'INSERT INTO public.stop DEFAULT VALUES');
$_->query('SELECT 1') foreach @clients;
$_->quit foreach @clients, $open;
ok($c->until(30, sub { $c->all_up && $r->prepared == 0 }), 'nothing is left when they have stopped');

# --- what was shipped and is not applied yet counts, whichever process has shipped it --------------------
# the number in its gid tells a batch from a client's part; the resolver leaves it while its xid is running
$open = $r->session('usa');
my $xid = $open->query_safe('BEGIN; SELECT pg_current_xact_id()');
my $inc = $r->psql('usa', q{SELECT lpad(to_hex(incarnation), 16, '0') FROM residency.self});
sub prepare
{
	my ($number) = @_;
	my $aus = $r->node('aus');

	$aus->safe_psql('app', "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'residency:$inc:$xid:$number:00000001'", connstr => $aus->connstr('app') . ' user=residency_usa');
	return;
}
$c->cut('usa', 'aus');
prepare(0);
prepare(100);
$c->mend('usa', 'aus');
ok($c->until(20, sub { $c->is_now('usa', 'aus', 'catching up') }), 'aus is back once more, where a batch is still prepared');
ok(!$c->until(8, sub { $c->is_now('usa', 'aus', 'up') }), 'and is not up');
$r->psql('aus', "ROLLBACK PREPARED 'residency:$inc:$xid:100:00000001'");
ok($c->until(20, sub { $c->is_now('usa', 'aus', 'up') }), 'until the batch has ended');
is($r->prepared('aus'), 1, 'whatever clients have prepared there');
$open->query_safe('ROLLBACK');
ok($c->until(20, sub { $r->prepared == 0 }), 'which is for the resolver');
$open->quit;

$r->teardown;
done_testing();
