# Random writes of resident and global tables, in transactions with savepoints, with RETURNING.
#
#   my $w = QueryWrites->new(seed => 1, settings => [...]);    # options as for Queries
#   my @lines = $w->unit(17);
#
# Every unit begins with the same rows: what it committed is put back, so each can be run alone.  Three kinds:
# a block that is rolled back, after whole tables were compared in it; a block that commits, and
# statements that commit alone, after which tables are compared at every gateway.
#
# One server checks the reference to the directory when the transaction commits, a region when the
# statement ends, so no statement here breaks it; nor does one change a row that another one decides on.
package QueryWrites;

use strict;
use warnings;

use parent -norequire, 'Queries';

use Queries;
use QueryTables;

# where no unit may look for the same error on both sides
my @NOT_FOR_WRITES = qr/read_only/;

sub new
{
	my ($class, %o) = @_;
	my $self = Queries::new($class, %o);

	$self->{settings} = [ grep { my $s = $_; !grep { $s =~ $_ } @NOT_FOR_WRITES } @{ $self->{settings} } ];
	return $self;
}

# The lines of a unit that writes.
sub unit
{
	my ($self, $number) = @_;
	my $g = $self->begin('write', $number);
	my $r = $self->{random};
	my $what = $r->below(100);
	my @lines = ("U0 $number", "S$g RESET ALL", "S$g DEALLOCATE ALL");

	$self->{serial} = 1000;
	$self->{touched} = {};
	$self->{deleted} = 0;
	push @lines, map { "G$g SET $_" } $r->some(1 + $r->below(2), @{ $self->{settings} }) if $r->chance(0.35);
	return (@lines, "S$g " . $r->pick('BEGIN', 'BEGIN', 'BEGIN ISOLATION LEVEL REPEATABLE READ'), $self->steps($g, 2 + $r->below(5)), $self->compare($g), "S$g ROLLBACK") if $what < 65;

	# what is put back must not meet what keeps a unit's plans interesting
	my @all = 0 .. $self->{gateways} - 1;
	my @steps = $what < 82 ? ("S$g BEGIN", $self->steps($g, 1 + $r->below(4)), $r->chance(0.3) ? $self->compare($g) : (), "S$g COMMIT") : map { $self->statement($g) } 1 .. 1 + $r->below(2);
	return (@lines, @steps, (map { $self->compare($_) } @all), $self->put_back($g));
}

# Statements of a block, some inside savepoints
sub steps
{
	my ($self, $g, $n) = @_;
	my $r = $self->{random};
	my @lines;

	foreach my $i (1 .. $n)
	{
		if ($r->chance(0.45))
		{
			push @lines, "S$g SAVEPOINT s$i", $self->statement($g);
			push @lines, $self->statement($g) if $r->chance(0.25);
			push @lines, "S$g " . $r->pick("ROLLBACK TO s$i", "ROLLBACK TO s$i", "RELEASE s$i");
		}
		else { push @lines, $self->statement($g); }
		push @lines, $self->reading($g) if $r->chance(0.25);
	}
	return @lines;
}

# A query between writes, which must see them
sub reading
{
	my ($self, $g) = @_;
	my ($sql, $ordered) = $self->query;
	return ($ordered ? 'O' : 'S') . "$g $sql";
}

# Whole tables that were written
sub compare
{
	my ($self, $g) = @_;
	return map { "S$g " . $self->{tables}->whole($_) } sort keys %{ $self->{touched} };
}

# Every row of the written tables, and of those that refer to them, as it was
sub put_back
{
	my ($self, $g) = @_;
	my %touched = %{ $self->{touched} };
	my @order = grep { $QueryTables::TABLES{$_}{kind} ne 'local' } $self->{tables}->names;

	return unless %touched;
	$touched{$_} = 1 foreach grep { $touched{ $QueryTables::TABLES{$_}{directory} // '' } } @order;
	@order = grep { $touched{$_} } @order;
	return map { "R$g $_" } 'RESET ALL', 'BEGIN', (map { "DELETE FROM g.$_" } reverse @order), (map { $self->{tables}->insert($_) } @order), 'COMMIT';
}

# One write: a line, or several that belong together
sub statement
{
	my ($self, $g) = @_;
	my $r = $self->{random};
	my $what = $r->below(100);

	return "S$g " . $self->update if $what < 22;
	return "S$g " . $self->update_from if $what < 32;
	return "S$g " . $self->delete if $what < 42;
	return "S$g " . $self->insert_rows if $what < 56;
	return "S$g " . $self->insert_select if $what < 65;
	return "S$g " . $self->upsert if $what < 74;
	return "S$g " . $self->with_write if $what < 81;
	return "S$g " . $self->merge if $what < 84;
	return "S$g " . $self->block if $what < 90;
	return $self->prepared_write($g) if $what < 95;
	return "S$g " . $self->lock if $what < 98;
	return "S$g " . $self->refused;
}

# A table to write: (name, its description); noted as written
sub target
{
	my ($self, @names) = @_;
	my $name = $self->{random}->pick(@names ? @names : qw(detail detail detail event event event wide wide balance balance person account kind));

	$self->{touched}{$name} = 1;
	return ($name, $QueryTables::TABLES{$name});
}

# A new value for a column, of a length that fits
sub value_for
{
	my ($self, $column, $scope, $depth) = @_;
	my ($name, $type, $class) = @$column;
	my $sql = $self->{expr}->expr($class, $scope, $depth);

	return "($sql)::$type" if $type =~ /^(?:var)?char/;
	return "round(least($sql, 4000), 2)" if $class eq 'num';
	return $sql;
}

# SET list of some columns that are no keys and no region
sub set_list
{
	my ($self, $t, $scope) = @_;
	my $r = $self->{random};
	my %fixed = map { $_ => 1 } 'region', @{ $t->{key} };
	my @columns = $r->some($r->pick(1, 1, 2, 3), grep { !$fixed{ $_->[0] } } @{ $t->{columns} });

	return join(', ', map { "$_->[0] = " . ($r->chance(0.04) ? 'DEFAULT' : $self->value_for($_, $scope, $r->pick(0, 1, 1))) } @columns);
}

# RETURNING of a table under an alias, or nothing.  Without subqueries: what they see of other
# regions that their own statement has written is in the limits.
sub returning
{
	my ($self, $scope) = @_;
	my $r = $self->{random};

	return '' if $r->chance(0.45);
	my ($out) = $self->targets($scope, 1 + $r->below(3));
	@$out = grep { !/\bSELECT\b/ } @$out;
	return @$out ? ' RETURNING ' . join(', ', $self->named(@$out)) : '';
}

# A condition that few rows pass: a key in half of the cases
sub few
{
	my ($self, $scope) = @_;
	my $r = $self->{random};
	my $key = $r->chance(0.6) ? $self->{expr}->key_condition($scope) : undef;
	my $more = !$key || $r->chance(0.4) ? $self->{expr}->condition($scope, $r->pick(0, 1, 1, 2)) : undef;

	return ' WHERE ' . join(' AND ', grep { defined } $key, $more);
}

sub update
{
	my ($self) = @_;
	my ($name, $t) = $self->target;
	my $alias = $self->alias;
	my $scope = Queries::scope_of($alias, $t->{columns});

	return "UPDATE g.$name $alias SET " . $self->set_list($t, $scope) . $self->few($scope) . $self->returning($scope);
}

# A source with one row for each number: { sql, scope, number }
sub unique_source
{
	my ($self) = @_;
	my $r = $self->{random};
	my $alias = $self->alias;
	my $name = $r->pick(qw(person detail wide here values));

	if ($name eq 'here')
	{
		return { sql => "(SELECT person AS n, max(tag) AS s FROM g.here GROUP BY person) $alias", number => "$alias.n",
			scope => [ { sql => "$alias.n", class => 'int', domain => 'person' }, { sql => "$alias.s", class => 'txt' } ] };
	}
	if ($name eq 'values')
	{
		my @numbers = $r->some(2 + $r->below(5), 1 .. 95);
		return { sql => '(VALUES ' . join(', ', map { "($_, " . $self->{tables}->literal('txt') . ')' } @numbers) . ") $alias (n, s)", number => "$alias.n",
			scope => [ { sql => "$alias.n", class => 'int', domain => 'person' }, { sql => "$alias.s", class => 'txt' } ] };
	}
	return { sql => "g.$name $alias", number => "$alias.id", scope => Queries::scope_of($alias, $QueryTables::TABLES{$name}{columns}) };
}

# A column of the target that joins it with numbers
sub number_of
{
	my ($self, $scope) = @_;
	my @columns = grep { ($_->{domain} // '') eq 'person' } @$scope;
	return $self->{random}->pick(@columns)->{sql};
}

sub update_from
{
	my ($self) = @_;
	my $r = $self->{random};
	my ($name, $t) = $self->target;
	my $alias = $self->alias;
	my $scope = Queries::scope_of($alias, $t->{columns});
	my $source = $self->unique_source;
	my $number = $self->number_of($scope);

	return "UPDATE g.$name $alias SET " . $self->set_list($t, [ @$scope, @{ $source->{scope} } ]) . " FROM $source->{sql} WHERE $number = $source->{number}"
	  . ($r->chance(0.6) ? ' AND ' . $self->{expr}->condition([ @$scope, @{ $source->{scope} } ], 1) : '') . $self->returning([ @$scope, @{ $source->{scope} } ]);
}

# Directory rows are deleted only where nothing refers to them, and then nothing new may for the rest of the unit.
sub delete
{
	my ($self) = @_;
	my $r = $self->{random};
	my ($name, $t) = $self->target(qw(detail detail event event wide balance person account kind));
	my $alias = $self->alias;
	my $scope = Queries::scope_of($alias, $t->{columns});

	if ($name eq 'person' || $name eq 'account')
	{
		$self->{deleted} = 1;
		my $free = join(' AND ', map { my $child = $_; "NOT EXISTS (SELECT FROM g.$child x WHERE " . join(' AND ', map { "x.$_ = $alias.$_" } @{ $t->{key} }) . ')' } $name eq 'person' ? qw(detail event) : 'balance');
		return "DELETE FROM g.$name $alias WHERE $free AND " . $self->{expr}->condition($scope, 0) . $self->returning($scope);
	}
	return "DELETE FROM g.$name $alias" . $self->few($scope) . $self->returning($scope) if $r->chance(0.65);
	my $source = $self->unique_source;
	my $number = $self->number_of($scope);
	return "DELETE FROM g.$name $alias USING $source->{sql} WHERE $number = $source->{number}" . ($r->chance(0.5) ? ' AND ' . $self->{expr}->condition([ @$scope, @{ $source->{scope} } ], 1) : '')
	  . $self->returning([ @$scope, @{ $source->{scope} } ]);
}

# A row for INSERT, as a hash; a resident one belongs to a row of its directory
sub new_row
{
	my ($self, $name, $t) = @_;
	my $r = $self->{random};
	my %row;

	if ($t->{directory})
	{
		my $of = $r->pick(@{ $self->{tables}{rows}{ $t->{directory} } });
		$row{$_} = $of->{$_} foreach 'region', @{ $t->{owner} };
	}
	$row{no} = $self->{serial}++ if $name eq 'event' && $r->chance(0.8);
	foreach my $c (@{ $t->{columns} })
	{
		my ($column, $type, $class, $domain) = @$c;
		my $is_key = grep { $_ eq $column } @{ $t->{key} };

		next if defined $row{$column};
		$row{$column} = $column eq 'region' ? "'" . $r->pick(@QueryTables::REGIONS) . "'" : $is_key && $class eq 'int' && $column ne 'bank' ? ($r->chance(0.9) ? $self->{serial}++ : 1 + $r->below(60))
		  : $is_key ? $self->{tables}->_value($class, $domain) : $r->chance(0.15) ? 'NULL' : $r->chance(0.05) ? 'DEFAULT' : $self->{tables}->_value($class, $domain);
	}
	# a region cannot see that a number is taken in another one, where there is no directory
	if ($name eq 'wide' && $row{id} <= 60) { ($row{region}) = map { $_->{region} } grep { $_->{id} == $row{id} } @{ $self->{tables}{rows}{wide} }; }
	$row{kind} = "'k" . $self->{serial}++ . "'" if $name eq 'kind' && $r->chance(0.8);
	return \%row;
}

# INSERT of values
sub insert_rows
{
	my ($self) = @_;
	my $r = $self->{random};
	my ($name, $t) = $self->target($self->{deleted} ? qw(wide person kind) : ());
	my %fixed = map { $_ => 1 } 'region', @{ $t->{key} };
	my @columns = grep { $fixed{$_} || $r->chance(0.8) } map { $_->[0] } @{ $t->{columns} };
	my @rows = map { $self->new_row($name, $t) } 1 .. $r->pick(1, 1, 2, 5, 20);
	my $scope = Queries::scope_of($name, $t->{columns});

	return "INSERT INTO g.$name (" . join(', ', @columns) . ') VALUES ' . join(', ', map { my $row = $_; '(' . join(', ', map { $row->{$_} } @columns) . ')' } @rows)
	  . ($r->chance(0.3) ? ' ON CONFLICT DO NOTHING' : '') . $self->returning($scope);
}

# INSERT of what a query finds; numbers of rows are new ones
sub insert_select
{
	my ($self) = @_;
	my $r = $self->{random};
	my ($name, $t) = $self->target($self->{deleted} ? qw(wide) : qw(event event detail wide balance));
	my $directory = $t->{directory} // 'person';
	my $alias = $self->alias;
	my $scope = Queries::scope_of($alias, $QueryTables::TABLES{$directory}{columns});
	my @fill = $r->some(2, grep { my $c = $_->[0]; $c ne 'region' && !grep { $_ eq $c } @{ $t->{key} } } @{ $t->{columns} });
	my $serial = $self->{serial} += 200;
	my @key = $name eq 'event' ? ("$alias.id", $serial) : $name eq 'wide' ? ("$alias.id + $serial") : map { "$alias.$_" } @{ $t->{key} };
	my $more = $r->chance(0.3) ? ' LEFT JOIN g.wide w ON w.id = ' . ($directory eq 'person' ? "$alias.id" : "$alias.no") : '';

	return "INSERT INTO g.$name (" . join(', ', @{ $t->{key} }, 'region', map { $_->[0] } @fill) . ') SELECT ' . join(', ', @key, "$alias.region", map { $self->value_for($_, $scope, 1) } @fill)
	  . " FROM g.$directory $alias$more" . $self->few($scope) . ' ON CONFLICT DO NOTHING' . $self->returning(Queries::scope_of($name, $t->{columns}));
}

# ON CONFLICT DO UPDATE of global tables
sub upsert
{
	my ($self) = @_;
	my $r = $self->{random};
	my ($name, $t) = $self->target(qw(person person kind account));
	my (%seen, @rows);

	foreach (1 .. $r->pick(1, 2, 4))
	{
		my $row = $self->new_row($name, $t);

		# an existing row keeps its region, and each comes once
		if ($r->chance(0.7))
		{
			my $old = $r->pick(@{ $self->{tables}{rows}{$name} });
			$row->{$_} = $old->{$_} foreach 'region', @{ $t->{key} };
		}
		push @rows, $row unless $seen{ join(' ', map { $row->{$_} } @{ $t->{key} }) }++;
	}
	my @columns = map { $_->[0] } @{ $t->{columns} };
	my $scope = [ @{ Queries::scope_of($name, $t->{columns}) }, @{ Queries::scope_of('excluded', $t->{columns}) } ];

	return "INSERT INTO g.$name (" . join(', ', @columns) . ') VALUES ' . join(', ', map { my $row = $_; '(' . join(', ', map { $row->{$_} } @columns) . ')' } @rows)
	  . ' ON CONFLICT (' . join(', ', @{ $t->{key} }) . ') DO UPDATE SET ' . $self->set_list($t, $scope) . ($r->chance(0.4) ? ' WHERE ' . $self->{expr}->comparison($scope, 0) : '')
	  . $self->returning(Queries::scope_of($name, $t->{columns}));
}

# WITH: what one part writes is the source of the other
sub with_write
{
	my ($self) = @_;
	my $r = $self->{random};

	if ($r->chance(0.35) && !$self->{deleted})
	{
		my $id = $self->{serial}++;
		my $region = $r->pick(@QueryTables::REGIONS);

		$self->target('person');
		$self->target('detail');
		return "WITH i AS (INSERT INTO g.person (id, region, note) VALUES ($id, '$region', 'new') RETURNING id, region, note) INSERT INTO g.detail (id, region, name) SELECT id, region, note FROM i RETURNING id, name";
	}
	my ($name, $t) = $self->target(qw(detail event wide balance));
	my $alias = $self->alias;
	my $scope = Queries::scope_of($alias, $t->{columns});
	my $write = $r->chance(0.5) ? "DELETE FROM g.$name $alias" . $self->few($scope) : "UPDATE g.$name $alias SET " . $self->set_list($t, $scope) . $self->few($scope);
	my $w = $self->alias;
	my $seen = Queries::scope_of($w, $t->{columns});
	my ($out) = $self->targets($seen, 2);
	my $tail = $r->pick("SELECT " . join(', ', $self->named(@$out)) . " FROM $w", "SELECT count(*) AS n FROM $w", "SELECT count(*) AS n, (SELECT count(*) FROM g.$name) AS before FROM $w",
		"SELECT p.id, p.note FROM $w JOIN g.person p ON p.id = " . ($name eq 'balance' ? "$w.no" : "$w.id"), "SELECT $w.region, count(*) FROM $w LEFT JOIN g.$name again USING (region) GROUP BY 1");

	return "WITH $w AS ($write RETURNING $alias.*) $tail";
}

# MERGE into a global table, or into a resident one without INSERT
sub merge
{
	my ($self) = @_;
	my $r = $self->{random};
	my ($name, $t) = $self->target(qw(person person kind detail));
	my $alias = $self->alias;
	my $scope = Queries::scope_of($alias, $t->{columns});
	my $source = $self->unique_source;
	my $both = [ @$scope, @{ $source->{scope} } ];
	my $number = $name eq 'kind' ? "$alias.weight" : "$alias.id";
	my @actions = ('WHEN MATCHED AND ' . $self->{expr}->comparison($both, 0) . ' THEN UPDATE SET ' . $self->set_list($t, $both));

	push @actions, 'WHEN MATCHED THEN ' . $r->pick('DO NOTHING', 'UPDATE SET ' . $self->set_list($t, $both), $name eq 'kind' ? 'DELETE' : 'DO NOTHING');
	push @actions, "WHEN NOT MATCHED AND $source->{number} > 0 THEN INSERT (id, region, note) VALUES ($source->{number} + " . ($self->{serial} += 200) . ", '" . $r->pick(@QueryTables::REGIONS) . "', 'merged')"
	  if $name eq 'person' && $r->chance(0.5);
	return "MERGE INTO g.$name $alias USING $source->{sql} ON $number = $source->{number} " . join(' ', @actions);
}

# A DO block: loops, and errors that it catches
sub block
{
	my ($self) = @_;
	my $r = $self->{random};
	my ($name, $t) = $self->target(qw(detail event wide));
	my $inner = $r->pick("UPDATE g.$name SET " . $self->set_list($t, Queries::scope_of($name, $t->{columns})) . ' WHERE id = x.id',
		"DELETE FROM g.$name WHERE id = x.id AND " . $self->{expr}->comparison(Queries::scope_of($name, $t->{columns}), 0));
	my $alias = $self->alias;
	my $loop = "FOR x IN SELECT $alias.id, $alias.region FROM g.person $alias" . $self->few(Queries::scope_of($alias, $QueryTables::TABLES{person}{columns})) . " ORDER BY $alias.id LIMIT 6 LOOP $inner; END LOOP;";
	my $caught = $r->pick("INSERT INTO g.$name (id, region) SELECT id, region FROM g.$name ORDER BY id LIMIT 1;", "UPDATE g.detail SET score = 1e9;", "PERFORM 1 / (id - id) FROM g.$name;",
		"DELETE FROM g.$name WHERE id < 20; RAISE unique_violation;", "DELETE FROM g.$name WHERE id < 20; PERFORM 'x'::int;");

	$caught =~ s/INSERT INTO g.event .*?;/INSERT INTO g.event (id, region, no) SELECT id, region, no FROM g.event LIMIT 1;/;
	$self->{touched}{detail} = 1;
	return "DO \$do\$ DECLARE x record; BEGIN $loop END \$do\$" if $r->chance(0.4);
	return "DO \$do\$ DECLARE x record; BEGIN $loop BEGIN $caught EXCEPTION WHEN others THEN NULL; END; $loop END \$do\$";
}

# A write that is prepared and runs three times
sub prepared_write
{
	my ($self, $g) = @_;
	my $r = $self->{random};

	$self->{expr}{params} = [];
	my $sql = $r->pick($self->update, $self->delete, $self->update_from);
	my @params = @{ delete $self->{expr}{params} };
	my $types = @params ? $self->{expr}->parameter_types(@params) : '';
	my $name = 'w' . $self->{serial}++;

	# parameters are counted over all that were drawn, and all are declared
	return ("S$g PREPARE $name$types AS $sql", (map { "S$g EXECUTE $name" . (@params ? $self->{expr}->parameter_values(@params) : '') } 1 .. 3), "S$g DEALLOCATE $name");
}

# SELECT with row locks
sub lock
{
	my ($self) = @_;
	my $r = $self->{random};
	my $item = $self->item(keyed => 1);
	my ($out) = $self->targets($item->{scope}, 2);

	return 'SELECT ' . join(', ', $self->named(@$out)) . " FROM $item->{sql}" . $self->few($item->{scope}) . $r->pick(' FOR UPDATE', ' FOR SHARE', ' FOR NO KEY UPDATE', ' FOR KEY SHARE');
}

# What the limits refuse, and errors of constraints
sub refused
{
	my ($self) = @_;
	my $r = $self->{random};
	my ($name) = $self->target(qw(detail wide));

	$self->target($_) foreach qw(detail wide);
	return $r->pick("UPDATE g.$name SET region = 'gbr' WHERE id < 9", "INSERT INTO g.wide (id, region, dom) VALUES (5000, 'gbr', 5000)",
		"INSERT INTO g.wide (id, region, vc) VALUES (5000, 'aus', 'far too long for this')", "UPDATE g.detail SET score = 6000 WHERE id < 30", "UPDATE g.$name SET id = NULL WHERE id = 5",
		"INSERT INTO g.$name (id, nothing) VALUES (1, 2)", "UPDATE g.wide SET i2 = 100000 WHERE id IN (1, 2, 3)", "DELETE FROM g.detail WHERE 1 / (id - id) = 1", "TRUNCATE g.wide");
}

1;
