# Many regions: one transaction writes in all of them, and all agree; another one fails in one
# region, and none has anything of it.  RESIDENCY_REGIONS=64 for as many as there may be (two
# minutes, most of them spent on joining).
use strict;
use warnings;

use Regions;
use Test::More;

my $n = $ENV{RESIDENCY_REGIONS} // 16;
my @names = map { sprintf 'r%02d', $_ } 1 .. $n;
my $r = Regions->new(regions => \@names, one_server => 1, conf => "max_connections = 300\nmax_prepared_transactions = 300\n");
my ($first, $last) = @names[ 0, -1 ];
my $array = "ARRAY['" . join("', '", @names) . "']";

is($r->psql($last, 'SELECT count(*) FROM residency.regions'), $n, "$n regions");
$r->fails($first, q{SELECT residency.add_region('r65', 'host=nowhere')}, '54000', qr/at most 64 regions/, 'and not one more') if $n == 64;
$r->psql($first, "SELECT residency.run_everywhere('CREATE TABLE public.who (id int PRIMARY KEY, region text NOT NULL);
	CREATE TABLE public.person (id int PRIMARY KEY, region text NOT NULL, name text)')");
$r->psql($first, q{SELECT residency.make_global('who', 'region'), residency.make_resident('person', 'region', key => '{id}', directory => 'who')});

is($r->psql($first, "WITH w AS (INSERT INTO who SELECT i, ($array)[i] FROM generate_series(1, $n) i)
	INSERT INTO person SELECT i, ($array)[i], 'person ' || i FROM generate_series(1, $n) i"), '', 'a write in all regions');
$r->all_equal('SELECT count(*), sum(id) FROM who', 'all have the global rows');
is(join(' ', grep { $r->psql($_, "SELECT count(*) FROM $_.person") ne '1' } @names), '', 'and each its own resident');

$r->psql($last, "ALTER TABLE $last.person ADD CONSTRAINT none_but_one CHECK (id = $n)");
$r->fails($first, "WITH w AS (INSERT INTO who SELECT i + $n, ($array)[i] FROM generate_series(1, $n) i)
	INSERT INTO person SELECT i + $n, ($array)[i], 'other' FROM generate_series(1, $n) i", '23514', qr/region "$last"/, 'one of them refuses');
is($r->all_equal('SELECT count(*) FROM who', 'all agree again'), $n, 'and nothing is left in any');
is($r->psql($first, 'SELECT count(*) FROM person'), $n, 'no resident either');
is($r->prepared($first), 0, 'no prepared transaction');

done_testing();
