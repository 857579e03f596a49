# A connection is begun with the first write and is made while the statement goes on
# here; a statement that is busy for longer than residency.connect_timeout is no reason
# to give the region up, but a region that does not answer is.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use People;
use Regions;

my $r = Regions->new(relay => 1);
People::make($r);
$r->psql('usa', q{SELECT residency.run_everywhere($$
	CREATE FUNCTION app.add_and_work(int, text, float8) RETURNS void LANGUAGE plpgsql AS $f$
	BEGIN
		INSERT INTO app.identity VALUES ($1, $2);
		INSERT INTO app.details VALUES ($1, $2, 'x');
		PERFORM pg_sleep($3);
	END $f$ $$)});
is($r->psql('usa', q{SET residency.connect_timeout = '1s'; SELECT app.add_and_work(1, 'gbr', 2.5); SELECT count(*) FROM app.details}),
	"\n1", 'a busy statement does not use up the time to connect');

$r->relay->hold('usa>gbr');
my $start = time;
$r->fails('usa', q{SET residency.connect_timeout = '1s'; SELECT count(*) FROM app.details}, '08001', qr/"gbr".*time-out/s,
	'a region that does not answer is given up');
cmp_ok(time - $start, '<', 5, 'in time');

done_testing();
