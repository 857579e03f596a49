# A lookup costs what the way to the regions was measured to be, and a full scan is chosen where it
# is cheaper; a long key side takes no more memory than a few batches.
use strict;
use warnings;

use People;
use Regions;
use Test::More;

my $r = Regions->new(relay => 1, conf => 'residency.workers = on');

People::make($r);
$r->psql('usa', q{
	INSERT INTO app.identity SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'n' || i FROM generate_series(1, 9000) i;
	INSERT INTO app.details SELECT i, (ARRAY['usa', 'gbr', 'aus'])[1 + i % 3], 'person ' || i FROM generate_series(1, 9000) i;
	CREATE TABLE public.many (id int, pad text);
	INSERT INTO many SELECT i * 7 % 120000, repeat('x', 50) FROM generate_series(1, 120000) i;
	CREATE TABLE public.few AS SELECT i * 300 AS id FROM generate_series(1, 20) i;
	ANALYZE;
	ANALYZE app.details;
});

# the cost of asking for one key
sub cost { return ($r->psql('usa', 'EXPLAIN SELECT * FROM app.details WHERE id = 4') =~ /Region Lookup.*cost=[\d.]+\.\.([\d.]+)/)[0] // 0; }

# polls until the cost is within limits; returns it
sub cost_within
{
	my ($low, $high) = @_;
	my $cost;

	foreach (1 .. 300)
	{
		$cost = cost();
		last if $cost > $low && $cost < $high;
		select(undef, undef, undef, 0.1);
	}
	return $cost;
}
# either choice, near and far
my $few = 'EXPLAIN SELECT d.name FROM few JOIN app.details d USING (id)';
my $all = 'EXPLAIN SELECT i.note, d.name FROM app.identity i JOIN app.details d USING (id)';
cmp_ok(cost_within(0, 400), '<', 400, 'near regions cost little');
like($r->psql('usa', $few), qr/Region Lookup/, 'near: few keys are looked up');
unlike($r->psql('usa', $all), qr/Region Lookup/, 'near: all keys are not');
$r->delay(60);
cmp_ok(cost_within(1500, 1e9), '>', 1500, 'far ones cost more');
like($r->psql('usa', $few), qr/Region Lookup/, 'far: few keys are looked up');
unlike($r->psql('usa', $all), qr/Region Lookup/, 'far: all keys are not');
$r->delay(0);

# memory: anonymous pages of the backend before and after
my $session = $r->session('usa');
my $pid = $session->query('SELECT pg_backend_pid()');

sub anonymous
{
	open(my $status, '<', "/proc/$pid/status") or return 0;
	return (join('', readline($status)) =~ /RssAnon:\s+(\d+)/)[0];
}
$session->query('SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_nestloop = off; SET jit = off');
my $long = 'SELECT count(*), count(d.name), sum(length(m.pad)) FROM %s m LEFT JOIN app.details d USING (id)';
$session->query(sprintf($long, '(SELECT * FROM many LIMIT 30000)'));
my $before = anonymous();
like($session->query('EXPLAIN ' . sprintf($long, 'many')), qr/Region Lookup/, 'a long key side is looked up');
is($session->query(sprintf($long, 'many')), '120000|9000|6000000', 'a long key side: the answer');
SKIP:
{
	skip 'no /proc', 1 if !$before;
	cmp_ok(anonymous() - $before, '<', 20_000, 'four times the keys take no more memory (kB)');
}

# keys of a scan that is run again for each outer row, 16 kB each time; the memory is read before the query ends
my $again = 'WITH x AS MATERIALIZED (SELECT count(*) AS n FROM generate_series(1, 3000) o (n), LATERAL (SELECT d.name FROM app.details d WHERE d.id = ANY (array_fill(o.n, ARRAY[2000])) OFFSET 0) x)'
	. " SELECT n, (SELECT sum(total_bytes) / 1024 < 20000 FROM pg_backend_memory_contexts) FROM x";
$session->query('RESET enable_nestloop');
like($session->query("EXPLAIN $again"), qr/Region Lookup/, 'a scan run again and again is a lookup');
is($session->query($again), '3000|t', 'its keys use the same memory again');

done_testing();
