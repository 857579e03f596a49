# Random expressions and conditions over the columns in scope.
#
# A scope is a list of columns { sql, class, domain }; inner ones come first.  No expression can fail,
# since the order in which conditions are checked is the planner's business; errors have
# statements of their own.  Numbers stay small, and floats are sums of powers of two, exact in any order.
#
# Inside a prepared statement some literals become parameters: then "params" is a list of them, each
# with the class and the domain of its values.
package QueryExpr;

use strict;
use warnings;

use QueryTables;

sub new
{
	my ($class, %o) = @_;
	return bless {%o}, $class;
}

# A literal of a class or a parameter that stands for one
sub literal
{
	my ($self, $class, $null) = @_;
	return $self->parameter($class) // $self->{tables}->literal($class, $null);
}

# A new parameter, if this is a prepared statement, in about half of the cases
sub parameter
{
	my ($self, $class, $domain) = @_;

	return unless $self->{params} && @{ $self->{params} } < 6 && $self->{random}->chance(0.55);
	push @{ $self->{params} }, { class => $class, domain => $domain };
	return '$' . scalar @{ $self->{params} };
}

# Types of parameters, and values for them, in parentheses
sub parameter_types
{
	my ($self, @params) = @_;
	return '(' . join(', ', map { $QueryTables::CLASSES{ $_->{class} }[0] } @params) . ')';
}

sub parameter_values
{
	my ($self, @params) = @_;
	my $r = $self->{random};

	return '(' . join(', ', map {
		my $p = $_;
		!$p->{domain} ? $self->{tables}->literal($p->{class}, 0.1)
		  : $p->{class} eq 'iarr' ? "'{" . join(',', map { $r->pick(1 .. 95, 'NULL') } 1 .. $r->below(6)) . "}'::int[]"
		  : $r->chance(0.1) ? "NULL::$QueryTables::CLASSES{ $p->{class} }[0]" : $self->{tables}->_value($p->{class}, $p->{domain});
	} @params) . ')';
}

# Columns in scope of these classes
sub columns
{
	my ($self, $scope, @classes) = @_;
	my %want = map { $_ => 1 } @classes;
	return grep { $want{ $_->{class} } } @$scope;
}

# A column of the class if there is one, else a literal
sub leaf
{
	my ($self, $class, $scope) = @_;
	my $r = $self->{random};
	my @columns = $self->columns($scope, $class);

	return $r->pick(@columns)->{sql} if @columns && $r->chance(0.8);
	return $self->literal($class);
}

# forms of expressions of a class: each a template in which %class stands for an expression
my %FORMS = (
	int => [ '(%int + %int)', '(%int - %int)', '(%int * 2)', 'abs(%int)', 'length(%txt)', '(%int % 7)', "to_char(%date, 'MM')::int", 'coalesce(array_length(%iarr, 1), 0)',
		'greatest(%int, %int)', 'least(%int, 5)', 'g.half(abs(length(%txt)))', 'ascii(%txt)', 'position(%txt IN %txt)', '(%bool)::int', 'cardinality(%tarr)',
		'octet_length(%bytea)', 'num_nulls(%txt, %int, %date)', 'sign(%num)::int', 'width_bucket(%num, 0, 10, 4)', '(%json ->> %txt IS NULL)::int', 'array_position(%iarr, 2)' ],
	big => [ '(%big + %int)', '(%big - %big)', '%int::bigint', '(%big % 1000)', 'abs(%big)', 'greatest(%big, %big)', '(SELECT count(*) FROM g.kind)' ],
	num => [ '(%num + %num)', '(%num - %num)', 'round(%num * 2, 2)', '(%int + 0.25)', 'abs(%num)', 'round(%lnum, 2)', 'greatest(%num, %num)' ],
	lnum => [ '(%lnum * %num)', '(%num / 4)', '(%lnum + %int)', 'trunc(%lnum, 1)', '(%int / 8.0)', '(%json -> %txt IS NOT NULL)::int::numeric' ],
	flt => [ '(%flt + %flt)', '(%flt * 0.5)', '%int::float8', 'abs(%flt)', 'greatest(%flt, %flt)', 'sqrt(abs(%int))', 'floor(%flt)' ],
	txt => [ '(%txt || %txt)', 'upper(%txt)', 'lower(%txt)', 'substr(%txt, 1, 2)', '%int::text', '%mood::text', 'trim(%txt)', '%chr::text', 'left(%txt, 3)', 'replace(%txt, %txt, %txt)',
		'concat(%txt, %int)', 'md5(%txt)', 'reverse(%txt)', 'lpad(%txt, 4, %txt)', "split_part(%txt, 'a', 1)", '%date::text', "to_char(%tstz, 'HH24:MI')", '(%json ->> %txt)', 'array_to_string(%tarr, %txt)',
		"concat_ws('-', %txt, %txt)", '%big::text', '(%txt || %num)', 'initcap(%txt)', 'repeat(%txt, 2)', '(%tarr)[1]', "format('%%s/%%L', %txt, %txt)", "overlay(%txt PLACING 'Q' FROM 1)" ],
	ctxt => [], chr => [], ci => [],
	bool => [],
	date => [ '(%date + %int)', '%ts::date', '%tstz::date', 'greatest(%date, %date)', '(%date - 1)' ],
	ts => [ "date_trunc('month', %ts)", "(%ts + interval '1 day')", '%date::timestamp', "(%tstz AT TIME ZONE 'UTC')" ],
	tstz => [ "date_trunc('day', %tstz)", "(%tstz - interval '2 hours')", '%ts::timestamptz', '%date::timestamptz' ],
	iv => [ "(%iv + interval '1 mon')" ],
	mood => [ 'greatest(%mood, %mood)' ],
	uuid => [],
	bytea => [ '(%bytea || %bytea)', "convert_to(%txt, 'UTF8')" ],
	time => [ "(%time + interval '1 hour')" ],
	json => [ "(%json -> 'a')", 'to_jsonb(%int)', 'jsonb_build_object(%txt || \'k\', %int)' ],
	iarr => [ '(%iarr || %int)', 'ARRAY[%int, %int]', '(%iarr)[1:2]' ],
	tarr => [ '(%tarr || %tarr)', 'ARRAY[%txt, %txt]', "string_to_array(%txt, ' ')" ],
);

# forms of any class
my @COMMON = ('coalesce(%C, %C)', 'CASE WHEN %bool THEN %C ELSE %C END', 'CASE WHEN %bool THEN %C END', 'nullif(%C, %C)', 'CASE %int WHEN 1 THEN %C WHEN %int THEN %C END');

# An expression of a class
sub expr
{
	my ($self, $class, $scope, $depth) = @_;
	my $r = $self->{random};

	return $self->condition($scope, $depth) if $class eq 'bool' && $depth > 0 && $r->chance(0.6);
	return $self->leaf($class, $scope) if $depth <= 0 || $r->chance(0.45);
	return $self->scalar_subquery($class, $scope, $depth) if $r->chance(0.07);
	my @forms = (@COMMON, (@{ $FORMS{$class} }) x 2);

	return $self->fill($r->pick(@forms) =~ s/%C/%$class/gr, $scope, $depth - 1);
}

# Puts expressions into a template
sub fill
{
	my ($self, $form, $scope, $depth) = @_;

	$form =~ s/%(%|[a-z]+)/ $1 eq '%' ? '%' : $QueryTables::CLASSES{$1} ? $self->expr($1, $scope, $depth) : "%$1" /ge;
	return $form;
}

# One value from a subquery, often about a row of the outer query
sub scalar_subquery
{
	my ($self, $class, $scope, $depth) = @_;
	my $r = $self->{random};
	my $sub = $self->{queries}->subquery_source($scope, $r->chance(0.7));
	my @columns = $self->columns($sub->{scope}, $class);
	my $max = $class =~ /^(?:int|big|num|flt|txt|date|ts|tstz|mood|iv|time)$/;

	return $self->leaf($class, $scope) unless @columns && $max;
	return '(SELECT ' . $r->pick('max', 'min') . '(' . $r->pick(@columns)->{sql} . ") FROM $sub->{from}" . $sub->{where} . ')';
}

# forms of conditions
my @COMPARISONS = ('%C = %C', '%C <> %C', '%C < %C', '%C <= %C', '%C > %C', '%C >= %C', '%C IS NULL', '%C IS NOT NULL', '%C IS DISTINCT FROM %C', '%C IS NOT DISTINCT FROM %C',
	'%C BETWEEN %C AND %C', '%C NOT BETWEEN %C AND %C', '%C IN (%L, %L, %L)', '%C NOT IN (%L, %L)', '%C = ANY (ARRAY[%L, %L, %L])', '%C <> ALL (ARRAY[%L, %L])', '%C < ANY (ARRAY[%L, %L])', '(%C = %C) IS NOT TRUE');
my @SPECIAL = ('%txt LIKE %txt', "%txt LIKE '%%a%%'", "%txt NOT LIKE 'a_'", "%txt ILIKE 'A%%'", "%txt ~ '^[a-m]'", "%txt !~* 'z'", "%txt SIMILAR TO '(a|b)%%'", '%bool', 'NOT %bool', '%bool IS TRUE', '%bool IS UNKNOWN',
	'(%bool) IS NOT FALSE', '(%int, %txt) = (%int, %txt)', '(%int, %int) < (%int, %int)', '(%int, %txt) IN ((1, %txt), (%int, \'a\'))', '%json ? \'a\'', "%json \@> '{\"a\": 1}'", "%json ->> 'b' = %txt",
	'%iarr @> ARRAY[%int]', '%iarr && %iarr', '%int = ANY (%iarr)', '%txt = ANY (%tarr)', "%txt <> ALL (%tarr)", '%int = %big', '%num > %int', '%lnum >= %num', '%flt < %int', '%ts < %date', '%tstz > %date',
	'%ts <= %tstz', 'starts_with(%txt, %txt)', "extract(month FROM %date) = 3", "%date < current_date", '%tstz < now()', 'length(%txt) > 1', 'upper(%txt) = %txt', 'num_nonnulls(%txt, %int) = 2',
	'%txt COLLATE "C" < %txt', '%ctxt COLLATE "C" > %txt', '%ctxt < \'b\'', "%chr = 'a'", "%ci = 'ab'", '%ci = %ci', "%ci IN ('a', 'zed')", '%ci COLLATE "C" = %txt', "%ci > 'aB'", '%chr < %txt', '%chr LIKE \'a%%\'', '%ctxt = %ctxt', '%ctxt LIKE \'%%e%%\'', 'g.half(%int) = 1', 'isfinite(%date)', 'coalesce(%bool, false)', 'TRUE', 'FALSE', 'NULL::bool', '%int % 2 = 0', '%bytea > %bytea',
	'%mood >= %mood', "%iv > interval '1 day'", "(%tstz AT TIME ZONE 'Europe/London')::date = %date");

# A condition
sub condition
{
	my ($self, $scope, $depth) = @_;
	my $r = $self->{random};

	if ($depth > 0)
	{
		my $what = $r->below(100);

		return '(' . join(' AND ', map { $self->condition($scope, $depth - 1) } 1 .. 2) . ')' if $what < 16;
		return '(' . join(' OR ', map { $self->condition($scope, $depth - 1) } 1 .. 2) . ')' if $what < 28;
		return '(NOT ' . $self->condition($scope, $depth - 1) . ')' if $what < 33;
		return $self->subquery_condition($scope, $depth - 1) if $what < 47;
	}
	return $self->key_condition($scope) // $self->comparison($scope, $depth) if $r->chance(0.22);
	return $self->comparison($scope, $depth);
}

# A condition without logic on top
sub comparison
{
	my ($self, $scope, $depth) = @_;
	my $r = $self->{random};

	return '(' . $self->fill($r->pick(@SPECIAL), $scope, $depth > 0 && $r->chance(0.5) ? 1 : 0) . ')' if $r->chance(0.4);
	my $column = $r->pick(@$scope);
	my $class = $column && $r->chance(0.9) ? $column->{class} : $r->pick(keys_of_classes());
	my $form = $r->pick(@COMPARISONS);

	$form =~ s/%L/ $self->literal($class, 0.12) /ge;
	$form =~ s/%C/$column->{sql}/ if $column && $class eq $column->{class};
	$form =~ s/%C/%$class/g;
	return '(' . $self->fill($form, $scope, $depth > 0 ? 1 : 0) . ')';
}

# names of classes in a fixed order
sub keys_of_classes { return sort keys %QueryTables::CLASSES; }

# A condition on a number that joins tables, or on a region
sub key_condition
{
	my ($self, $scope) = @_;
	my $r = $self->{random};
	my @columns = grep { ($_->{domain} // '') =~ /^(?:person|bank|kind|region)$/ } @$scope;
	my $column = @columns ? $r->pick(@columns) : return;
	my @values = map { $self->key_literal($column) } 1 .. 1 + $r->below(7);
	my $array = $column->{domain} eq 'person' && $r->chance(0.3) ? $self->parameter('iarr', 'person') : undef;

	return "($column->{sql} = ANY ($array))" if $array;

	return "($column->{sql} = $values[0])" if $r->chance(0.45);
	return "($column->{sql} IN (" . join(', ', @values) . '))' if $r->chance(0.4);
	return "($column->{sql} = ANY (ARRAY[" . join(', ', @values) . ']))' if $r->chance(0.6);
	return "($column->{sql} = ANY (ARRAY(SELECT x FROM generate_series(" . $r->below(50) . ', 95, ' . (1 + $r->below(20)) . ') x)))'
	  if $column->{domain} eq 'person';
	return "($column->{sql} IS NOT NULL)";
}

# A value that a column of a domain may have
sub key_literal
{
	my ($self, $column) = @_;
	my $r = $self->{random};

	return $self->parameter($column->{class}, $column->{domain}) // $self->literal($column->{class}, 0.5) if $r->chance($self->{params} ? 0.5 : 0.15);
	return 'NULL' if $r->chance(0.04);
	return 1 + $r->below(95) if $column->{domain} eq 'person';
	return 1 + $r->below(3) if $column->{domain} eq 'bank';
	return "'" . $r->pick(@QueryTables::REGIONS) . "'" if $column->{domain} eq 'region';
	return "'" . $r->pick(qw(mail call visit gift fine loan none other)) . "'";
}

# EXISTS, IN, ANY, ALL over a subquery
sub subquery_condition
{
	my ($self, $scope, $depth) = @_;
	my $r = $self->{random};
	my $correlated = $r->chance(0.75);
	my $sub = $self->{queries}->subquery_source($scope, $correlated);
	my $not = $r->chance(0.4) ? 'NOT ' : '';

	return "(${not}EXISTS (SELECT 1 FROM $sub->{from}$sub->{where}))" if $r->chance(0.45) && @$scope;
	my ($outer, $inner) = $self->joinable($scope, $sub->{scope});

	return "(${not}EXISTS (SELECT FROM $sub->{from}$sub->{where}))" unless $outer;
	$sub = $self->{queries}->subquery_source($scope, 0, $sub) if $r->chance(0.5);
	my $query = "SELECT $inner->{sql} FROM $sub->{from}$sub->{where}";

	return "($outer->{sql} ${not}IN ($query))" if $r->chance(0.7);
	return "($outer->{sql} " . $r->pick('= ANY', '> ALL', '<> ALL', '<= ANY', '< ALL') . " ($query))" if $r->chance(0.6);
	return "($outer->{sql} = (SELECT max($inner->{sql}) FROM $sub->{from}$sub->{where}))";
}

# A column of each side that can be compared: of one domain, else of one class; nothing if there is none
sub joinable
{
	my ($self, $left, $right) = @_;
	my $r = $self->{random};
	my @pairs;

	foreach my $a (grep { $_->{domain} } @$left)
	{
		push @pairs, map { [ $a, $_ ] } grep { ($_->{domain} // '') eq $a->{domain} } @$right;
	}
	my @better = grep { $_->[0]{domain} eq 'person' } @pairs;
	@pairs = @better if @better && $r->chance(0.85);
	if (!@pairs)
	{
		foreach my $a (@$left)
		{
			push @pairs, map { [ $a, $_ ] } grep { $_->{class} eq $a->{class} && $_->{class} ne 'ctxt' } @$right;
		}
	}
	return @pairs ? @{ $r->pick(@pairs) } : ();
}

1;
