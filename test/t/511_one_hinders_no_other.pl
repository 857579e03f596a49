# What one region, or one part, lacks keeps the resolver from finishing no other: a region that cannot be
# logged in to, and many parts that nobody knows the outcome of.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new(faults => 1,
	conf => "max_prepared_transactions = 700\nresidency.resolve_interval = '1s'\nresidency.doubt_timeout = '500ms'\nresidency.away_after = '60s'\n");
People::make($r);
People::make_function($r);

# --- no way to log in to aus ----------------------------------------------------------------------------
my $session = $r->session('usa', on_error_stop => 0);
$session->query_safe(q{SELECT app.add(1, 'gbr', 'warm'), app.add(2, 'aus', 'warm')});
$r->arm('usa', 'decided:crash_backend');
eval { $session->query(q{SELECT app.add(10, 'gbr', 'one'), app.add(11, 'aus', 'two')}) };
$r->revive('usa');
$r->disarm('usa');
is($r->prepared('gbr') + $r->prepared('aus'), 2, 'decided, and nobody is told');
my $part = $r->psql('aus', 'SELECT gid FROM pg_prepared_xacts');
my $options = $r->psql('usa', q{SELECT string_agg(format('%I %L', option_name, option_value), ', ') FROM pg_user_mappings m CROSS JOIN LATERAL pg_options_to_table(m.umoptions)
	WHERE m.srvname = 'aus' AND m.usename = 'public'});
$r->psql('usa', 'DROP USER MAPPING FOR PUBLIC SERVER aus');
$r->conf('usa', "residency.workers = on\n");
ok($r->poll('gbr', 'SELECT count(*) = 0 FROM pg_prepared_xacts'), 'gbr is finished, though nobody can log in to aus');
is($r->prepared('aus'), 1, 'aus is not');
is($r->psql('usa', q{SELECT count(*) FROM residency.transaction WHERE '} . $part . q{' = ANY (gids)}), 1, 'its decision is kept');
$r->psql('usa', "CREATE USER MAPPING FOR PUBLIC SERVER aus OPTIONS ($options)");
ok($r->poll('aus', 'SELECT count(*) = 0 FROM pg_prepared_xacts'), 'until it can be told');
is(join(' ', map { $r->psql($_, 'SELECT count(*) FROM app.identity WHERE id IN (10, 11)') } $r->regions), '2 2 2', 'committed everywhere');

# --- many parts of an origin that is no more, and behind them one that usa knows about ----------------------
my $role = $r->psql('gbr', q{SELECT role FROM residency.region WHERE name = 'aus'});
my $gid = 'residency:0123456789abcdef:%d:0:0000000a';
$r->psql('gbr', join("\n", "SET SESSION AUTHORIZATION $role;", map { "BEGIN; PREPARE TRANSACTION '" . sprintf($gid, $_) . "';" } 1 .. 601));
$r->psql('usa', sprintf(q{INSERT INTO residency.transaction (origin, incarnation, xid, gids, regions) VALUES ('aus', x'0123456789abcdef'::int8, '601', ARRAY['%s'], ARRAY['usa', 'gbr'])}, sprintf($gid, 601)));
$r->conf('gbr', "residency.workers = on\n");
ok($r->poll('gbr', sprintf(q{SELECT count(*) = 0 FROM pg_prepared_xacts WHERE gid = '%s'}, sprintf($gid, 601))), 'the one part that somebody knows about is finished');
is($r->prepared('gbr'), 600, 'all others wait');

done_testing();
