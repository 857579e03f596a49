# A copy of a gateway's whole server, started with its workers on while the original is at work, is
# kept out by the other regions; a server that takes the original's place is let in.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use People;
use Regions;

my $r = Regions->new(faults => 1, conf => "residency.resolve_interval = '500ms'\nwal_level = replica\nmax_wal_senders = 10\nresidency.workers = on\n");
People::make($r);
People::make_function($r);
$r->psql('usa', "SELECT app.add(1, 'gbr', 'one'), app.add(2, 'aus', 'two')");

my $original = $r->node('usa');
$original->append_conf('pg_hba.conf', 'local replication all trust');
$original->reload;
$original->backup('copy');
my $copy = PostgreSQL::Test::Cluster->new('usa_copy', install_path => $ENV{RESIDENCY_FAULTS});
$copy->init_from_backup($original, 'copy');
$copy->append_conf('postgresql.auto.conf', "residency.fault = ''\n");

# --- a transaction of the original is prepared when the copy starts -------------------------------------
my $session = $r->session('usa', on_error_stop => 0);
$session->query_safe('SELECT count(*) FROM app.details');
$r->arm('usa', 'prepared:hold');
$session->query_until(qr/started/, "\\echo started\nSELECT app.add(10, 'gbr', 'three'), app.add(11, 'aus', 'four');\n");
$r->wait_fired('usa');
is($r->prepared('gbr', 'aus'), 2, 'the original has prepared');
$copy->start;
ok($copy->poll_query_until('app', q{SELECT count(*) = 2 FROM residency.regions WHERE state = 'away' AND problem ~ 'another server acts for gateway "usa"'}), 'the copy is kept out, and says why');
is($r->prepared('gbr', 'aus'), 2, 'it has not touched what the original prepared');
my ($out, $err);
$copy->psql('app', "UPDATE app.details SET name = 'copied' WHERE id = 1", stdout => \$out, stderr => \$err);
like($err, qr/ERROR:.*(another server acts|away)/, 'its clients are kept out as well');
$r->disarm('usa');
$session->{stderr} = '';
$session->query('SELECT 1');
is($session->{stderr}, '', 'the original commits');
is($r->psql($_, 'SELECT count(*) FROM app.identity'), 4, "in $_") foreach $r->regions;
$session->query_safe("UPDATE app.details SET name = 'again' WHERE id = 1");
$session->quit;

# --- the original is gone: whoever has its place acts for the gateway --------------------------------------
$r->kill9('usa');
$copy->stop('immediate');
$copy->start;
ok($copy->poll_query_until('app', q{SELECT count(*) = 3 FROM residency.regions WHERE state = 'up'}), 'when the original is gone the other one is let in');
is($copy->safe_psql('app', "UPDATE app.details SET name = 'moved' WHERE id = 1 RETURNING name"), 'moved', 'and its clients');
is($r->psql('gbr', 'SELECT name FROM gbr.details WHERE id = 1'), 'moved', 'as if it were the one before');
$copy->stop('immediate');
$r->{nodes}{usa} = $copy;
delete $r->{nodes}{usa};

done_testing();
