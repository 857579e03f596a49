# A region is restored from a backup of yesterday: with a new incarnation it touches nothing
# of its former self, its copies of global tables are filled anew from another region, and
# what it alone had after the backup is told.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;

use People;
use Regions;

my $r = Regions->new;

People::make($r);
$r->psql('usa', q{SELECT residency.run_everywhere($$ CREATE TABLE app.tag (id serial PRIMARY KEY, region text NOT NULL, t text) $$);
	SELECT residency.make_global('app.tag', 'region')});
$r->psql('usa', join('; ', map { People::add($_->[0], $_->[1], 'old') } [ 1, 'usa' ], [ 2, 'gbr' ], [ 3, 'gbr' ], [ 4, 'aus' ]));
$r->psql('gbr', q{INSERT INTO app.tag (region, t) VALUES ('gbr', 'before')});

# yesterday's backup, and what came after it
my $gbr = $r->node('gbr');
$gbr->stop;
PostgreSQL::Test::RecursiveCopy::copypath($gbr->data_dir, $gbr->data_dir . '_yesterday');
$gbr->start;
$r->psql('usa', People::add(5, 'gbr', 'later') . q{; UPDATE app.identity SET note = 'changed' WHERE id IN (1, 2, 4);
	DELETE FROM app.details WHERE id = 3; DELETE FROM app.identity WHERE id = 3});
$r->psql('gbr', q{INSERT INTO app.tag (region, t) VALUES ('gbr', 'after'), ('gbr', 'also after')});
my $now = $r->all_equal('SELECT * FROM app.identity ORDER BY id');

# the disk is lost
$gbr->stop('immediate');
rename($gbr->data_dir, $gbr->data_dir . '_lost') or die $!;
rename($gbr->data_dir . '_yesterday', $gbr->data_dir) or die $!;
chmod 0700, $gbr->data_dir;
$gbr->start;
isnt($r->psql('gbr', 'SELECT * FROM app.identity ORDER BY id'), $now, 'the restored region is behind');
$r->psql('gbr', "CREATE USER MAPPING FOR CURRENT_USER SERVER $_ OPTIONS (user '$r->{user}')") foreach 'usa', 'aus';
$r->psql('gbr', 'SELECT residency.renew()');
is($r->all_equal(q{SELECT incarnation FROM residency.region WHERE name = 'gbr'}, 'all regions know its new incarnation'),
	$r->psql('gbr', 'SELECT incarnation FROM residency.self'), '... which is its own');

$r->fails('usa', q{SELECT residency.refill('usa')}, '22023', qr/must be another region.*HINT/s, 'a region does not refill itself');
$r->fails('usa', q{SET ROLE residency_operator; SELECT residency.refill('gbr')}, '42501', qr/refill/, 'superusers only');
{
	my ($code, $out, $err) = $r->try('usa', q{SELECT residency.refill('gbr')});

	is($code, 0, 'refilled') or diag($err);
	like($err, qr/WARNING.* 1 rows of table gbr\.details in region "gbr" have no row in their directory.*HINT: .*(DELETE FROM gbr\.details [^;]*);/s,
		'what was deleted since the backup is told, with what to type');
	unlike($err, qr/old|later/, '... without its values');
	my ($statement) = $err =~ /(DELETE FROM gbr\.details [^;]*);/;
	$r->psql('gbr', $statement);
}
is($r->all_equal('SELECT * FROM app.identity ORDER BY id', 'copies are equal again'), $now, '... and nothing of them is lost');
$r->all_equal('SELECT * FROM app.tag ORDER BY id', 'all of them');
is($r->psql('usa', 'SELECT id FROM app.details ORDER BY id'), "1\n2\n4", 'details that only the lost disk had are gone, all others are there');

# it takes part again, as home and as gateway, and captures what it changes
$r->psql('gbr', q{UPDATE app.identity SET note = note || '!'});
$r->psql('aus', q{UPDATE app.identity SET note = note || '?' WHERE region = 'gbr'; INSERT INTO app.details VALUES (5, 'gbr', 'again')});
$r->psql('gbr', q{INSERT INTO app.tag (region, t) VALUES ('gbr', 'new')});
like($r->all_equal('SELECT id, note FROM app.identity ORDER BY id', 'writes of the restored region arrive'), qr/^2\|changed!\?$/m, '... and of others at it');
is($r->all_equal('SELECT count(*), count(DISTINCT id) FROM app.tag'), '4|4', 'its sequences give out nothing twice');
$r->fails('gbr', q{BEGIN; TRUNCATE app.tag; INSERT INTO app.tag (id, region) VALUES (1, 'xyz'); COMMIT}, '\w{5}', qr/xyz|region/, 'its triggers are as before');
is($r->all_equal('SELECT count(*) FROM app.tag'), 4, '... nothing of that stays');
is($r->prepared, 0, 'no prepared transaction is left');

$r->teardown;
done_testing();
