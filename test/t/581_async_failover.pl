# A region whose standby is asynchronous fails over, and the last moments are gone: after renew() and
# refill(), as docs/operations.md has it, copies are equal, what was to be forgotten is told, and the region
# takes part again.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new(conf => "residency.workers = on\nresidency.resolve_interval = 1s\nresidency.away_after = 1s\nwal_level = replica\nmax_wal_senders = 10\n");
People::make($r);
People::make_function($r);
$r->psql('usa', q{SELECT app.add(1, 'usa', 'a'), app.add(2, 'gbr', 'b'), app.add(3, 'gbr', 'c'), app.add(4, 'aus', 'd')});

my $primary = $r->node('gbr');
my $standby = PostgreSQL::Test::Cluster->new('gbr_standby');
$primary->append_conf('pg_hba.conf', 'local replication all trust');
$primary->reload;
$primary->backup('base');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$r->psql($_, sprintf("ALTER SERVER gbr OPTIONS (SET host '127.0.0.1,127.0.0.1', SET port '%d,%d', ADD target_session_attrs 'read-write')", $primary->port, $standby->port))
  foreach qw(usa aus);
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

# the last moments, which the standby does not get
$standby->stop('immediate');
ok($r->poll('usa', q{SELECT count(*) = 0 FROM residency.regions WHERE state <> 'up'}), 'all are up');
$r->psql('usa', q{SELECT app.add(5, 'gbr', 'e'); UPDATE app.identity SET note = 'changed' WHERE id IN (1, 2)});
$r->psql('gbr', q{SELECT app.add(6, 'gbr', 'f'); DELETE FROM app.details WHERE id = 3; DELETE FROM app.identity WHERE id = 3});
my $identities = $r->all_equal('SELECT * FROM app.identity ORDER BY id');
$r->kill9('gbr');

# the failover
$standby->append_conf('postgresql.conf', "residency.workers = off\n");
$standby->start;
$standby->promote;
$r->{nodes}{gbr} = $standby;
isnt($r->psql('gbr', 'SELECT * FROM app.identity ORDER BY id'), $identities, 'gbr has lost something');
ok($r->poll($_, q{SELECT count(*) = 1 FROM residency.regions WHERE name = 'gbr' AND state = 'up'}), "it answers $_ again") foreach qw(usa aus);

# as after a restore
$r->psql('gbr', "CREATE USER MAPPING FOR CURRENT_USER SERVER $_ OPTIONS (user '$r->{user}')") foreach qw(usa aus);
$r->psql('gbr', 'SELECT residency.renew()');
my (undef, undef, $err) = $r->try('usa', q{SELECT residency.refill('gbr')});
my ($statement) = $err =~ /WARNING.* 1 rows of table gbr\.details .*(DELETE FROM gbr\.details [^;]*);/s;
ok(defined $statement, 'who was to be forgotten is told') or BAIL_OUT($err);
$r->psql('gbr', $statement);
$standby->append_conf('postgresql.conf', "residency.workers = on\n");
$standby->reload;
is($r->all_equal('SELECT * FROM app.identity ORDER BY id', 'copies are equal again'), $identities, 'and nothing of them is lost');
is($r->all_equal('SELECT id, name FROM app.details ORDER BY id'), "1|a\n2|b\n4|d", 'details are as the standby had them');

# it is home and gateway again
$r->psql($_->[1], "INSERT INTO app.details VALUES ($_->[0], 'gbr', 'again')") foreach [ 5, 'gbr' ], [ 6, 'aus' ];
my $n = 10;
$r->psql($_, sprintf(q{SELECT app.add(%d, 'usa', 'x'), app.add(%d, 'gbr', 'y'), app.add(%d, 'aus', 'z')}, $n++, $n++, $n++)) foreach $r->regions;
ok($r->poll($_, q{SELECT count(*) = 0 FROM residency.regions WHERE state <> 'up'}), "$_ sees all up") foreach $r->regions;
ok($r->poll($_, 'SELECT (SELECT count(*) FROM pg_prepared_xacts) + (SELECT count(*) FROM residency.backlog) = 0'), "nothing is left in $_") foreach $r->regions;
is($r->all_equal('SELECT count(*) FROM app.identity'), 14, 'everybody writes everywhere');
is($r->all_equal('SELECT count(*) FROM app.details'), 14, 'also residents');

done_testing();
