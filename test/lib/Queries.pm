# Random queries whose answer does not depend on the plan.
#
#   my $q = Queries->new(seed => 1, settings => ['residency.enable_lookup']);
#   my @lines = $q->unit(17);      # lines of a script for same_answer.c, always the same ones
#
# Each number draws its own random numbers, so a query can be run again alone.  What SQL leaves open is
# avoided: a LIMIT stands on a total order, frames of windows end with all peers, aggregates that
# depend on the order of rows have one, nothing can fail before a condition that excludes it.
package Queries;

use strict;
use warnings;

use QueryExpr;
use QueryTables;
use Random;

# settings that change plans; the answers must not notice
my @SETTINGS = ('enable_hashjoin = off', 'enable_mergejoin = off', 'enable_nestloop = off', 'enable_hashagg = off', 'enable_sort = off', 'enable_material = off',
	'enable_memoize = off', 'enable_partition_pruning = off', 'enable_partitionwise_join = on', 'enable_partitionwise_aggregate = on', 'enable_async_append = off',
	'enable_indexscan = off', 'enable_seqscan = off', 'enable_incremental_sort = off', 'work_mem = 64', 'join_collapse_limit = 1', 'from_collapse_limit = 1', 'cursor_tuple_fraction = 1.0',
	"default_transaction_isolation = 'repeatable read'", 'residency.fetch_size = 64', 'geqo_threshold = 2', 'plan_cache_mode = force_generic_plan',
	'parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0', 'constraint_exclusion = on', 'random_page_cost = 0.1',
	'cpu_tuple_cost = 100', 'enable_bitmapscan = off', 'hash_mem_multiplier = 1', 'default_transaction_read_only = on');

# settings that change answers, alike on both sides
my @BOTH = ("timezone = 'Europe/London'", "timezone = 'Australia/Sydney'", "datestyle = 'German'", "intervalstyle = 'iso_8601'", 'extra_float_digits = 0', "bytea_output = 'escape'", 'transform_null_equals = on');

sub new
{
	my ($class, %o) = @_;
	my $self = bless { seed => $o{seed}, gateways => $o{gateways} // 3, settings => [ @SETTINGS, map { "$_ = off" } @{ $o{settings} // [] } ] }, $class;

	$self->{tables} = QueryTables->new(Random->new($o{seed}, 'rows'));
	return $self;
}

sub tables { my ($self) = @_; return $self->{tables}; }

# Starts anew for one unit.
sub begin
{
	my ($self, @words) = @_;

	$self->{random} = $self->{tables}{random} = Random->new($self->{seed}, @words);
	$self->{expr} = QueryExpr->new(random => $self->{random}, tables => $self->{tables}, queries => $self);
	$self->{aliases} = 0;
	return $self->{random}->below($self->{gateways});
}

sub alias { my ($self) = @_; return 't' . ++$self->{aliases}; }

# The lines of a unit that reads.
sub unit
{
	my ($self, $number) = @_;
	my $g = $self->begin('query', $number);
	my $r = $self->{random};
	my $what = $r->below(100);
	my @lines = ("U0 $number", "S$g RESET ALL");

	push @lines, map { "G$g SET $_" } $r->some(1 + $r->below(3), @{ $self->{settings} }) if $r->chance(0.6);
	push @lines, 'S' . $g . ' SET ' . $r->pick(@BOTH) if $r->chance(0.08);
	return (@lines, $self->prepared($g)) if $what < 13;
	return (@lines, $self->cursor($g)) if $what < 19;
	return (@lines, $self->function($g)) if $what < 24;
	my ($sql, $ordered) = $self->query;
	push @lines, "E$g $sql", ($ordered ? 'O' : 'S') . "$g $sql";
	return @lines;
}

# PREPARE, and EXECUTE often enough that the plan becomes a generic one
sub prepared
{
	my ($self, $g) = @_;
	my $r = $self->{random};

	$self->{expr}{params} = [];
	my ($sql, $ordered) = $self->query;
	my @params = @{ delete $self->{expr}{params} };
	my @lines = ("S$g PREPARE p" . (@params ? $self->{expr}->parameter_types(@params) : '') . " AS $sql");

	push @lines, ($ordered ? 'O' : 'S') . "$g EXECUTE p" . (@params ? $self->{expr}->parameter_values(@params) : '') foreach 1 .. 7;
	push @lines, "E$g EXECUTE p" . (@params ? $self->{expr}->parameter_values(@params) : '');
	return (@lines, "X$g DEALLOCATE ALL");
}

# A cursor, read in odd pieces
sub cursor
{
	my ($self, $g) = @_;
	my $r = $self->{random};
	my $scroll = $r->pick('', 'SCROLL', 'NO SCROLL');
	my $hold = $r->chance(0.3);
	my ($sql) = $self->ordered_query;
	my @lines = ("S$g BEGIN", "S$g DECLARE c $scroll CURSOR " . ($hold ? 'WITH HOLD ' : '') . "FOR $sql");

	foreach (1 .. 2 + $r->below(4))
	{
		push @lines, "S$g SAVEPOINT s" if $r->chance(0.1);
		push @lines, "O$g " . ($scroll eq 'SCROLL' && $r->chance(0.4) ? $r->pick('FETCH BACKWARD 2 FROM c', 'FETCH FIRST FROM c', 'MOVE LAST IN c', 'FETCH ABSOLUTE 3 FROM c', 'FETCH PRIOR FROM c')
			: $r->pick('FETCH 1 FROM c', 'FETCH 3 FROM c', 'FETCH 7 FROM c', 'MOVE 2 IN c', 'FETCH 50 FROM c', 'FETCH ALL FROM c'));
		if ($r->chance(0.2))
		{
			my ($other, $ordered) = $self->query;
			push @lines, ($ordered ? 'O' : 'S') . "$g $other";
		}
	}
	return (@lines, "S$g COMMIT", $hold ? ("O$g FETCH 5 FROM c", "X$g CLOSE ALL") : ());
}

# A query inside a function, run twice: rows come out as text
sub function
{
	my ($self, $g) = @_;
	my $r = $self->{random};
	my $n = 1 + $r->below(3);

	$self->{expr}{params} = [];
	my ($sql, $ordered) = $self->query;
	my @params = @{ delete $self->{expr}{params} };
	my $arguments = $self->{expr}->parameter_types(@params);
	my $body = $r->pick(
		"BEGIN RETURN QUERY SELECT x::text FROM ($sql) x; END",
		"DECLARE x record; BEGIN FOR x IN $sql LOOP RETURN NEXT x::text; END LOOP; END",
		"DECLARE x record; BEGIN BEGIN FOR x IN $sql LOOP RETURN NEXT x::text; END LOOP; EXCEPTION WHEN division_by_zero THEN NULL; END; END");
	my @lines = ("S$g CREATE OR REPLACE FUNCTION pg_temp.f$arguments RETURNS SETOF text LANGUAGE plpgsql AS \$f\$ $body \$f\$");

	unshift @lines, "S$g SET default_transaction_read_only = off";
	push @lines, "S$g SELECT * FROM pg_temp.f" . $self->{expr}->parameter_values(@params) foreach 1 .. $n;
	return (@lines, "X$g DROP FUNCTION pg_temp.f$arguments");
}

# A query; and whether its rows come in one order only
sub query
{
	my ($self) = @_;
	my $what = $self->{random}->below(100);

	return $self->ordered_query if $what < 22;
	return ($self->cte, 0) if $what < 32;
	return ($self->set_operation, 0) if $what < 40;
	return ($self->failing, 0) if $what < 42;
	return ($self->with_ties, 0) if $what < 45;
	return ($self->select->{sql}, 0);
}

# Like query, but its rows come in one order only.
sub ordered_query
{
	my ($self) = @_;
	my $r = $self->{random};

	return ($self->top_n, 1) if $r->chance(0.5);
	my $s = $self->select(strict => 1);
	my $n = @{ $s->{classes} };
	my @order = $r->some($n, 1 .. $n);

	return ($s->{sql} . ' ORDER BY ' . join(', ', map { $_ . $self->direction } @order) . $self->limit, 1);
}

sub direction { my ($self) = @_; return $self->{random}->pick('', '', ' DESC', ' ASC NULLS FIRST', ' DESC NULLS LAST'); }

# LIMIT and OFFSET, or nothing
sub limit
{
	my ($self) = @_;
	my $r = $self->{random};

	return '' if $r->chance(0.3);
	return ' LIMIT ' . ($self->{expr}{params} ? 'abs(' . $self->{expr}->literal('int', 0) . ')' : $r->pick(0, 1, 2, 5, 10, 30)) . ($r->chance(0.35) ? ' OFFSET ' . $r->pick(0, 1, 3, 20) : '');
}

# The first rows of a table by one column, or of a join with tables that have keys
sub top_n
{
	my ($self) = @_;
	my $r = $self->{random};
	my $from = $self->from(keyed => 1, items => $r->pick(1, 1, 1, 2));
	my @columns = grep { $QueryTables::CLASSES{ $_->{class} }[1] } @{ $from->{scope} };
	my @out = (map { $_->{sql} } $r->some(1 + $r->below(4), @{ $from->{scope} }));
	my $where = $self->where($from->{scope}, 0.6);
	my @order = ((map { $_->{sql} . $self->direction } $r->some($r->pick(0, 1, 1, 2), @columns)), map { $_ . $self->direction } @{ $from->{key} });

	return 'SELECT ' . join(', ', $self->named(@out)) . " FROM $from->{from}$where ORDER BY " . join(', ', @order) . $self->limit;
}

# The first rows, and all that are equal to the last one
sub with_ties
{
	my ($self) = @_;
	my $r = $self->{random};
	my $from = $self->from(items => $r->pick(1, 1, 2));
	my @columns = grep { $QueryTables::CLASSES{ $_->{class} }[1] } @{ $from->{scope} };
	my ($out) = $self->targets($from->{scope}, 2);
	my $where = $self->where($from->{scope}, 0.5);

	return 'SELECT ' . join(', ', $self->named(@$out)) . " FROM $from->{from}$where ORDER BY " . (@columns ? $r->pick(@columns)->{sql} . $self->direction : '1')
	  . ' FETCH FIRST ' . $r->pick(1, 3, 8) . ' ROWS WITH TIES';
}

# Expressions of a target list, named
sub named { my ($self, @out) = @_; my $n = 0; return map { "$_ AS c" . ++$n } @out; }

sub where
{
	my ($self, $scope, $chance) = @_;
	return $self->{random}->chance($chance) ? ' WHERE ' . $self->{expr}->condition($scope, $self->{random}->pick(0, 1, 2, 2)) : '';
}

# A SELECT without ORDER BY on top: { sql, classes }.  With "strict" equal rows print alike.
sub select
{
	my ($self, %o) = @_;
	my $r = $self->{random};
	my $what = $r->below(100);

	return $self->aggregate(%o) if $what < 32;
	return $self->distinct(%o) if $what < 40;
	return $self->window(%o) if $what < 48;
	return $self->plain(%o);
}

# Target list: some expressions with their classes
sub targets
{
	my ($self, $scope, $n, %o) = @_;
	my $r = $self->{random};
	my (@sql, @classes);

	foreach (1 .. $n)
	{
		my $class = $r->chance(0.8) && @$scope ? $r->pick(@$scope)->{class} : $r->pick(QueryExpr::keys_of_classes());

		$class = 'int' if $o{strict} && !$QueryTables::CLASSES{$class}[1];
		if (!$o{strict} && $r->chance(0.03) && @$scope && $r->pick(@$scope)->{sql} =~ /^(t\d+)\./)
		{
			push @classes, 'txt';
			push @sql, $r->pick($1, "$1::text", "row_to_json($1)::text", "($1 IS NULL)");
			next;
		}
		push @classes, $class;
		push @sql, $self->{expr}->expr($class, $scope, $r->pick(0, 0, 1, 2));
	}
	return (\@sql, \@classes);
}

# Rows of tables, as they are
sub plain
{
	my ($self, %o) = @_;
	my $r = $self->{random};
	my $from = $self->from;
	my ($out, $classes) = $self->targets($from->{scope}, $o{columns} // 1 + $r->below(4), %o);
	my $where = $self->where($from->{scope}, 0.8);

	return { sql => 'SELECT ' . join(', ', $self->named(@$out)) . " FROM $from->{from}$where", classes => $classes };
}

# aggregates: the class that comes out; %x an argument of a class
my @AGGREGATES = (
	[ int => 'count(*)' ], [ int => 'count(*)' ], [ int => 'count(%any)' ], [ int => 'count(DISTINCT %any)' ], [ big => 'sum(%int)' ], [ big => 'sum(%big)' ], [ num => 'sum(%num)' ], [ flt => 'sum(%flt)' ],
	[ lnum => 'avg(%int)' ], [ lnum => 'avg(%big)' ], [ lnum => 'avg(%num)' ], [ flt => 'avg(%flt)' ], [ int => 'min(%int)' ], [ int => 'max(%int)' ], [ big => 'max(%big)' ], [ num => 'min(%num)' ], [ num => 'max(%num)' ],
	[ flt => 'min(%flt)' ], [ flt => 'max(%flt)' ], [ txt => 'min(%txt)' ], [ txt => 'max(%txt)' ], [ date => 'min(%date)' ], [ ts => 'max(%ts)' ], [ tstz => 'min(%tstz)' ], [ mood => 'max(%mood)' ], [ iv => 'min(%iv)' ], [ ctxt => 'max(%ctxt)' ],
	[ bool => 'bool_and(%bool)' ], [ bool => 'bool_or(%bool)' ], [ bool => 'every(%bool)' ], [ big => 'sum(DISTINCT %int)' ], [ txt => "string_agg(%txt, ',' ORDER BY %same)" ], [ txt => "string_agg(DISTINCT %txt, '+')" ],
	[ iarr => 'array_agg(%int ORDER BY %same DESC)' ], [ lnum => 'stddev(%int)' ], [ flt => 'variance(%flt)' ], [ int => 'bit_or(%int)' ], [ int => 'bit_and(%int)' ], [ num => 'sum(round(%num, 2))' ], [ int => 'count(%int) + max(%int)' ],
	[ json => 'jsonb_agg(%int ORDER BY %same)' ], [ flt => 'percentile_cont(0.5) WITHIN GROUP (ORDER BY %flt)' ], [ num => 'percentile_disc(0.5) WITHIN GROUP (ORDER BY %num)' ], [ lnum => 'sum(%lnum)' ], [ lnum => 'avg(%lnum)' ], [ big => 'sum(%int) + count(*)' ],
	[ int => 'coalesce(max(length(%txt)), -1)' ], [ lnum => 'sum(%num) / nullif(count(*), 0)' ], [ iv => 'max(%iv)' ], [ txt => 'max(%ctxt COLLATE "C")' ], [ time => 'max(%time)' ], [ lnum => 'var_pop(%num)' ], [ uuid => "min(%uuid::text)::uuid" ],
);

# One aggregate: (sql, class)
sub aggregate_call
{
	my ($self, $scope, %o) = @_;
	my $r = $self->{random};
	my $simple = $r->chance(0.6);
	my ($class, $form);

	foreach (1 .. 20)
	{
		($class, $form) = @{ $r->pick(@AGGREGATES) };
		my ($argument) = $form =~ /%([a-z]+)/;
		last if !$argument || $argument eq 'any' || $self->{expr}->columns($scope, $argument);
	}
	($class, $form) = ('int', 'count(*)') if $o{strict} && !$QueryTables::CLASSES{$class}[1];
	my $any = @$scope ? $r->pick(@$scope)->{class} : 'int';
	my $argument;

	$any = 'int' if $any eq 'lnum';
	$form =~ s/%any/%$any/;
	$form =~ s/%([a-z]+)(?=.*%same)/ $argument = $self->{expr}->expr($1, $scope, $simple ? 0 : 1) /e;
	$form =~ s/%same/$argument/;
	$form = $self->{expr}->fill($form, $scope, $simple ? 0 : 1) =~ s/count\(DISTINCT NULL::/count(NULL::/r;
	$form =~ s/^([^()]+\(.*\)(?: WITHIN GROUP .*)?)$/"$1 FILTER (WHERE " . $self->{expr}->condition($scope, 1) . ')'/e
	  if $r->chance(0.15) && $form !~ /\) [-+\/] |::uuid$|^coalesce/;
	return ($form, $class);
}

# GROUP BY, HAVING, grouping sets
sub aggregate
{
	my ($self, %o) = @_;
	my $r = $self->{random};
	my $from = $self->from(items => $r->pick(1, 1, 1, 2, 2, 3));
	my $n = $o{columns} // 1 + $r->below(4);
	my $groups = $r->pick(0, 0, 1, 1, 1, 2);
	my (@groups, @out, @classes);
	my @candidates = grep { $QueryTables::CLASSES{ $_->{class} }[1] } @{ $from->{scope} };
	my @loose = grep { !$QueryTables::CLASSES{ $_->{class} }[1] } @{ $from->{scope} };

	# equal values that print differently may be grouped by, but which one is shown is open
	push @groups, $r->pick(@loose)->{sql} if @loose && $r->chance(0.15);
	$groups = $n if $groups > $n;
	foreach my $column ($r->some($groups, (grep { ($_->{domain} // '') eq 'region' } @candidates) x ($r->chance(0.4) ? 3 : 0), @candidates))
	{
		next if grep { $_ eq $column->{sql} } @groups;
		push @groups, $r->chance(0.75) ? $column->{sql} : $self->{expr}->expr($column->{class}, [$column], 1);
		push @out, $groups[-1];
		push @classes, $column->{class};
	}
	while (@out < $n)
	{
		my ($sql, $class) = $self->aggregate_call($from->{scope}, %o);
		push @out, $sql;
		push @classes, $class;
	}
	my @names = map { /^[-(]*\d+\)?$|^\$|^\(?NULL|^'/ ? "($_)" : $_ } @groups;
	my $by = join(', ', @names);

	# a constant cannot be told from a number of an output column
	@names = @groups = () if grep { !/t\d+\./ } @groups;
	$by = $r->pick("ROLLUP ($by)", "CUBE ($by)", "GROUPING SETS (($names[0]), ())") if @names && $r->chance(0.12);
	my $having = '';
	if ($r->chance(0.25))
	{
		my ($sql, $class) = $self->aggregate_call($from->{scope});
		my $pick = $r->pick('%C IS NOT NULL', '%C >= %V', '%C <> %V', '%C IS DISTINCT FROM %V');
		$having = ' HAVING ' . ($pick =~ s/%C/$sql/r =~ s/%V/$self->{expr}->literal($class)/er);
		$having = ' HAVING count(*) > 1' if $sql =~ / FILTER / && $pick !~ /IS/;
	}
	my $where = $self->where($from->{scope}, 0.6);
	return { sql => 'SELECT ' . join(', ', $self->named(@out)) . " FROM $from->{from}$where" . (@names ? " GROUP BY $by" : '') . $having, classes => \@classes };
}

# DISTINCT, and DISTINCT ON with an order that leaves no choice
sub distinct
{
	my ($self, %o) = @_;
	my $r = $self->{random};

	if (!$o{columns} && $r->chance(0.4))
	{
		my $from = $self->from(keyed => 1, items => 1);
		my @columns = grep { $QueryTables::CLASSES{ $_->{class} }[1] } @{ $from->{scope} };
		my $on = $r->pick(@columns);
		my ($out, $classes) = $self->targets($from->{scope}, 2, strict => 1);
		my $where = $self->where($from->{scope}, 0.5);
		my $inner = "SELECT DISTINCT ON ($on->{sql}) " . join(', ', $self->named(@$out)) . " FROM $from->{from}$where ORDER BY $on->{sql}"
		  . $self->direction . join('', map { ", $_" . $self->direction } @{ $from->{key} });

		return { sql => 'SELECT * FROM (' . $inner . ') x', classes => $classes };
	}
	my $from = $self->from(items => $r->pick(1, 1, 2));
	my ($out, $classes) = $self->targets($from->{scope}, $o{columns} // 1 + $r->below(3), strict => 1);
	my $where = $self->where($from->{scope}, 0.5);
	return { sql => 'SELECT DISTINCT ' . join(', ', $self->named(@$out)) . " FROM $from->{from}$where", classes => $classes };
}

# Window functions; ties are told apart by the key, or do not matter
sub window
{
	my ($self, %o) = @_;
	my $r = $self->{random};
	my $from = $self->from(keyed => 1, items => $r->pick(1, 1, 2));
	my @columns = grep { $QueryTables::CLASSES{ $_->{class} }[1] } @{ $from->{scope} };
	my $total = join(', ', map { $_ . $self->direction } ($r->pick(@columns)->{sql}, @{ $from->{key} }));
	my $tied = $r->pick(@columns)->{sql} . $self->direction;
	my $partition = $r->chance(0.6) ? 'PARTITION BY ' . $r->pick(@columns)->{sql} . ' ' : '';
	my ($out, $classes) = $self->targets($from->{scope}, $o{columns} ? $o{columns} - 1 : 1 + $r->below(2), strict => 1);
	my $int = sub { $self->{expr}->leaf('int', $from->{scope}) };
	my $where = $self->where($from->{scope}, 0.5);
	my $call = $r->pick("row_number() OVER (${partition}ORDER BY $total)", "rank() OVER (${partition}ORDER BY $tied)", "dense_rank() OVER (${partition}ORDER BY $tied)",
		"sum(" . $int->() . ") OVER (${partition}ORDER BY $tied)", "count(*) OVER ($partition)", 'lag(' . $int->() . ") OVER (${partition}ORDER BY $total)", 'max(' . $int->() . ") OVER ($partition)",
		'sum(' . $int->() . ") OVER (${partition}ORDER BY $total ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)", 'first_value(' . $int->() . ") OVER (${partition}ORDER BY $total)", "ntile(3) OVER (ORDER BY $total)");

	return { sql => 'SELECT ' . join(', ', $self->named(@$out, $call)) . " FROM $from->{from}$where", classes => [ @$classes, 'int' ] };
}

# UNION, INTERSECT, EXCEPT of two or three
sub set_operation
{
	my ($self) = @_;
	my $r = $self->{random};
	my $n = 1 + $r->below(2);
	my @classes = map { $r->pick(qw(int int txt big date txt)) } 1 .. $n;
	my @parts;

	foreach (1 .. $r->pick(2, 2, 3))
	{
		my $from = $self->from(items => $r->pick(1, 1, 2));
		my @out = map { $self->{expr}->expr($_, $from->{scope}, $r->pick(0, 0, 1)) } @classes;

		push @parts, 'SELECT ' . join(', ', $self->named(@out)) . " FROM $from->{from}" . $self->where($from->{scope}, 0.6);
	}
	my $sql = shift @parts;
	$sql = "($sql) " . $r->pick('UNION', 'UNION ALL', 'UNION ALL', 'INTERSECT', 'EXCEPT', 'INTERSECT ALL', 'EXCEPT ALL') . " ($_)" foreach @parts;
	return $sql;
}

# WITH, also RECURSIVE
sub cte
{
	my ($self) = @_;
	my $r = $self->{random};

	return $self->recursive if $r->chance(0.3);
	my $n = 1 + $r->below(3);
	my $s = $self->select(strict => 1, columns => $n);
	my $name = $self->alias;
	my $how = $r->pick('AS', 'AS MATERIALIZED', 'AS NOT MATERIALIZED');
	my $scope = [ map { { sql => "$name.c$_", class => $s->{classes}[ $_ - 1 ], domain => $s->{classes}[ $_ - 1 ] =~ /^(?:int|big)$/ ? 'person' : undef } } 1 .. $n ];
	my $from = $self->from(first => { sql => $name, scope => $scope }, items => $r->pick(1, 2, 2, 3));
	my ($out, $classes) = $self->targets($from->{scope}, 1 + $r->below(3));

	return "WITH $name $how ($s->{sql}) SELECT " . join(', ', $self->named(@$out)) . " FROM $from->{from}" . $self->where($from->{scope}, 0.5);
}

# A walk over managers, with details on the way or at the end
sub recursive
{
	my ($self) = @_;
	my $r = $self->{random};
	my $table = $r->pick(qw(person detail));
	my $start = $r->pick('w.id = ' . (1 + $r->below(80)), 'w.boss IS NULL', 'w.id IN (1, 2, 3, 40)', "w.region = 'gbr' AND w.id < 30");
	my $step = $r->pick("JOIN g.$table w ON w.boss = tree.id", "JOIN g.$table w ON w.id = tree.boss", "JOIN g.detail w ON w.boss = tree.id AND w.id > 5");
	my $out = $r->pick('tree.id, depth', 'count(*), max(depth)', 'tree.id, d.name, d.region', 'depth, count(d.name)');
	my $join = $out =~ /d\./ ? $r->pick('JOIN', 'LEFT JOIN') . ' g.detail d ON d.id = tree.id' : '';
	my $tail = $out eq 'depth, count(d.name)' ? ' GROUP BY depth' : '';

	return "WITH RECURSIVE tree (id, boss, depth) AS (SELECT w.id, w.boss, 1 FROM g.$table w WHERE $start UNION SELECT w.id, w.boss, depth + 1 FROM tree $step WHERE depth < "
	  . (2 + $r->below(3)) . ") SELECT $out FROM tree $join$tail";
}

# Statements that fail in one way only, for any row
sub failing
{
	my ($self) = @_;
	my $r = $self->{random};
	my $table = $r->pick(qw(detail wide event));

	return $r->pick("SELECT 1 / (id - id) FROM g.$table", "SELECT ('x' || region)::int FROM g.$table", 'SELECT (SELECT id FROM g.detail) FROM g.person', "SELECT nothing FROM g.$table", "SELECT id FROM g.$table JOIN g.person ON true",
		"SELECT sum(region) FROM g.$table", "SELECT id FROM g.$table LIMIT -1", "SELECT id, count(*) FROM g.$table", "SELECT * FROM g.missing, g.$table", "SELECT max(2147483647 + id) FROM g.$table", "SELECT id FROM g.$table WHERE region",
		"SELECT id FROM g.$table WHERE id = 'x'", 'SELECT name || cname < name FROM g.detail', "SELECT region::date FROM g.$table", 'SELECT 1 / 0 FROM g.detail WHERE region = \'gbr\'', 'SELECT sqrt(-abs(id) - 1) FROM g.wide');
}

# Something to select from: { sql, scope, key }, key undef if nothing tells its rows apart
sub item
{
	my ($self, %o) = @_;
	my $r = $self->{random};
	my $alias = $self->alias;
	my $what = $r->below(100);

	if ($o{keyed} || $what < 80)
	{
		my @names = qw(detail detail detail event event wide wide balance person person account kind here here);
		@names = grep { $_ ne 'here' } @names if $o{keyed};
		my $name = $r->pick(@names);
		my $t = $QueryTables::TABLES{$name};
		return { sql => "g.$name $alias", scope => scope_of($alias, $t->{columns}), key => $t->{key} && [ map { "$alias.$_" } @{ $t->{key} } ], name => $name };
	}
	if ($what < 86)
	{
		my $name = $r->pick(sort keys %QueryTables::VIEWS);
		return { sql => "g.$name $alias", scope => scope_of($alias, $QueryTables::VIEWS{$name}{columns}) };
	}
	if ($what < 91 && !$self->{inside})
	{
		local $self->{inside} = 1;
		my $n = 1 + $r->below(3);
		my $s = $self->select(strict => 1, columns => $n);
		my $tail = $r->chance(0.25) ? ' ORDER BY ' . join(', ', 1 .. $n) . ' LIMIT 7' : $r->chance(0.15) ? ' OFFSET 0' : '';
		return { sql => "($s->{sql}$tail) $alias", scope => [ map { my $c = $s->{classes}[ $_ - 1 ]; { sql => "$alias.c$_", class => $c, domain => $c =~ /^(?:int|big)$/ ? 'person' : undef } } 1 .. $n ] };
	}
	return { sql => "g.people_of('" . $r->pick(@QueryTables::REGIONS) . "') $alias", scope => [ { sql => "$alias.id", class => 'int', domain => 'person' }, { sql => "$alias.name", class => 'txt' } ] } if $what < 93;
	return { sql => "generate_series(1, " . $r->pick(3, 20, 90) . ") $alias (n)", scope => [ { sql => "$alias.n", class => 'int', domain => 'person' } ] } if $what < 96;
	return { sql => "unnest('{1,5,5,NULL,70,33,200}'::int[]) $alias (n)", scope => [ { sql => "$alias.n", class => 'int', domain => 'person' } ] } if $what < 98;
	return { sql => '(VALUES ' . join(', ', map { '(' . $r->pick(1 .. 90, 'NULL') . '::int, ' . $self->{expr}->literal('txt') . ')' } 1 .. 3 + $r->below(4)) . ") $alias (n, s)",
		scope => [ { sql => "$alias.n", class => 'int', domain => 'person' }, { sql => "$alias.s", class => 'txt' } ] };
}

# Columns of a table or view under an alias
sub scope_of
{
	my ($alias, $columns) = @_;
	return [ map { { sql => "$alias.$_->[0]", class => $_->[2], domain => $_->[3] } } @$columns ];
}

# FROM with some items, joined; "keyed": only tables whose rows a key tells apart
sub from
{
	my ($self, %o) = @_;
	my $r = $self->{random};
	my $first = $o{first} // $self->item(%o);
	my ($sql, @scope) = ($first->{sql}, @{ $first->{scope} });
	my @key = @{ $first->{key} // [] };

	foreach (2 .. $o{items} // $r->pick(1, 1, 1, 2, 2, 2, 3))
	{
		if ($r->chance(0.06) && !$o{keyed})
		{
			($sql, @scope) = $self->lateral($sql, @scope);
			next;
		}
		my $item = $self->item(%o);
		my @on = $self->join_condition(\@scope, $item);
		my $type = $r->pick('JOIN', 'JOIN', 'JOIN', 'LEFT JOIN', 'LEFT JOIN', 'RIGHT JOIN', 'FULL JOIN');

		$type = 'JOIN' if $o{keyed};
		if ($type ne 'FULL JOIN' && $r->chance(0.2)) { push @on, $self->{expr}->condition([ @{ $item->{scope} }, @scope ], 1); }
		$sql .= " $type $item->{sql} ON " . join(' AND ', @on);
		push @scope, @{ $item->{scope} };
		push @key, @{ $item->{key} // [] };
	}
	return { from => $sql, scope => \@scope, key => \@key };
}

# What two sides are joined on: a key in most cases; equalities only
sub join_condition
{
	my ($self, $scope, $item) = @_;
	my $r = $self->{random};
	my ($a, $b) = $self->{expr}->joinable($scope, $item->{scope});
	my @on = $a ? ("$a->{sql} = $b->{sql}") : ();

	foreach my $domain (qw(region bank))
	{
		my ($x) = grep { ($_->{domain} // '') eq $domain } @$scope;
		my ($y) = grep { ($_->{domain} // '') eq $domain } @{ $item->{scope} };

		push @on, "$x->{sql} = $y->{sql}" if $x && $y && $r->chance($domain eq 'bank' ? 0.8 : 0.35);
	}
	return @on ? @on : ('true');
}

# A lateral subquery or function that depends on what stands before it
sub lateral
{
	my ($self, $before, @scope) = @_;
	my $r = $self->{random};
	my $alias = $self->alias;
	my ($number) = grep { $_->{class} eq 'int' } @scope;

	if ($number && $r->chance(0.3))
	{
		return ("$before, g.events_of($number->{sql}) $alias", @scope, { sql => "$alias.no", class => 'int' }, { sql => "$alias.kind", class => 'txt', domain => 'kind' });
	}
	my $sub = $self->subquery_source(\@scope, 1);
	my @columns = grep { $QueryTables::CLASSES{ $_->{class} }[1] } @{ $sub->{scope} };
	my ($x, $y) = $r->some(2, @columns);
	$y //= $x;
	if ($r->chance(0.35))
	{
		my ($sql, $class) = $self->aggregate_call($sub->{scope}, strict => 1);
		return ("$before " . $r->pick('LEFT JOIN', 'JOIN') . " LATERAL (SELECT count(*) AS l1, $sql AS l2 FROM $sub->{from}$sub->{where}) $alias ON true",
			@scope, { sql => "$alias.l1", class => 'big', domain => 'person' }, { sql => "$alias.l2", class => $class });
	}
	my $tail = @{ $sub->{key} } ? ' ORDER BY ' . join(', ', @{ $sub->{key} }) . ' LIMIT ' . $r->pick(1, 2, 3) : '';

	return ("$before " . $r->pick('LEFT JOIN', 'JOIN') . " LATERAL (SELECT $x->{sql} AS l1, $y->{sql} AS l2 FROM $sub->{from}$sub->{where}$tail) $alias ON true",
		@scope, { sql => "$alias.l1", class => $x->{class} }, { sql => "$alias.l2", class => $y->{class} });
}

# A table for a subquery, its condition, and if asked for a tie to the outer query
sub subquery_source
{
	my ($self, $outer, $correlated, $same) = @_;
	my $r = $self->{random};
	my $item = $same // $self->item(keyed => $r->chance(0.85));
	my @conditions;

	$item = { %$item, from => $item->{sql} // $item->{from} };
	if ($correlated)
	{
		my ($a, $b) = $self->{expr}->joinable($outer, $item->{scope});
		push @conditions, "$b->{sql} = $a->{sql}" if $a;
	}
	push @conditions, $self->{expr}->comparison([ @{ $item->{scope} }, $r->chance(0.2) ? @$outer : () ], 0) if $r->chance(0.5);
	return { from => $item->{from}, scope => $item->{scope}, key => $item->{key} // [], where => @conditions ? ' WHERE ' . join(' AND ', @conditions) : '' };
}

1;
