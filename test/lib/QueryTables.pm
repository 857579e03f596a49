# Tables for random queries: what their columns are good for, and rows full of NULLs and duplicates.
#
#   my $tables = QueryTables->new($random);       # rows come from the random numbers alone
#   $tables->make_regions($r);                    # in all regions, declared and filled
#   $tables->make_plain(sub { ... });             # the same on one server; takes a function that runs SQL
#
# A column has a class, which is a type as far as expressions are concerned.  Of most classes, values
# that are equal print alike; DISTINCT, GROUP BY and the like may pick any of
# several equal values, so columns of other classes (loose: lnum, chr, ci) are kept away from them.
# Columns of one domain of numbers can be joined; keys tell the rows of a table apart.
package QueryTables;

use strict;
use warnings;

our @REGIONS = qw(usa gbr aus);

# class => [type for parameters and casts, may rows be sorted and grouped by it]
our %CLASSES = (
	int => [ 'int', 1 ], big => [ 'bigint', 1 ], num => [ 'numeric', 1 ], lnum => [ 'numeric', 0 ], flt => [ 'float8', 1 ], chr => [ 'bpchar', 0 ], ci => [ 'text', 0 ],
	txt => [ 'text', 1 ], ctxt => [ 'text', 1 ], bool => [ 'bool', 1 ], date => [ 'date', 1 ], ts => [ 'timestamp', 1 ],
	tstz => [ 'timestamptz', 1 ], iv => [ 'interval', 1 ], mood => [ 'g.mood', 1 ], uuid => [ 'uuid', 1 ], bytea => [ 'bytea', 1 ],
	time => [ 'time', 1 ], json => [ 'jsonb', 1 ], iarr => [ 'int[]', 1 ], tarr => [ 'text[]', 1 ]);

# name => kind, key columns, [column, type, class, domain of joinable values]
our %TABLES = (
	person => {
		kind => 'global', key => ['id'], rows => 80,
		columns => [ [qw(id int int person)], [ 'region', 'text NOT NULL', 'txt', 'region' ], [qw(boss int int person)], [qw(note text txt)],
			[qw(since date date)] ] },
	account => {
		kind => 'global', key => [qw(bank no)], rows => 40,
		columns => [ [qw(bank smallint int bank)], [qw(no int int person)], [ 'region', 'text NOT NULL', 'txt', 'region' ], [qw(opened date date)] ] },
	kind => {
		kind => 'global', key => ['kind'], rows => 8,
		columns => [ [qw(kind varchar(10) txt kind)], [ 'region', 'text NOT NULL', 'txt', 'region' ], [ 'label', 'text COLLATE "en-x-icu"', 'ctxt' ],
			[qw(weight int int person)] ] },
	detail => {
		kind => 'resident', key => ['id'], directory => 'person', owner => ['id'], rows => 70,
		columns => [ [qw(id int int person)], [ 'region', 'text NOT NULL', 'txt', 'region' ], [qw(name text txt)],
			[ 'cname', 'text COLLATE "en-x-icu"', 'ctxt' ], [ 'score', 'numeric(8,2)', 'num' ], [ 'alias', 'text COLLATE g.ci', 'ci' ], [qw(f float8 flt)], [qw(born date date)],
			[qw(mood g.mood mood)], [qw(ok bool bool)], [qw(boss int int person)] ] },
	event => {
		kind => 'resident', key => [qw(id no)], directory => 'person', owner => ['id'], rows => 160,
		columns => [ [qw(id int int person)], [ 'region', 'text NOT NULL', 'txt', 'region' ], [qw(no int int)], [qw(kind varchar(10) txt kind)],
			[qw(at timestamptz tstz)], [qw(amount bigint big)], [qw(tags text[] tarr)], [qw(payload jsonb json)] ] },
	balance => {
		kind => 'resident', key => [qw(bank no)], directory => 'account', owner => [qw(bank no)], rows => 34,
		columns => [ [qw(bank smallint int bank)], [qw(no int int person)], [ 'region', 'text NOT NULL', 'txt', 'region' ], [qw(cents bigint big)],
			[qw(rate numeric lnum)], [ 'cur', 'char(4)', 'chr' ] ] },
	wide => {
		kind => 'resident', key => ['id'], owner => ['id'], rows => 60,
		columns => [ [qw(id int int person)], [ 'region', 'text NOT NULL', 'txt', 'region' ], [qw(i2 smallint int)], [qw(i8 bigint big)], [qw(n numeric lnum)],
			[qw(f4 real flt)], [qw(vc varchar(12) txt)], [ 'ch', 'char(5)', 'chr' ], [qw(b bool bool)], [qw(ts timestamp ts)], [qw(tz timestamptz tstz)],
			[qw(iv interval iv)], [qw(u uuid uuid)], [qw(by bytea bytea)], [qw(j jsonb json)], [qw(ia int[] iarr)], [qw(ta text[] tarr)],
			[qw(m g.mood mood)], [qw(dom g.small int)], [qw(dt date date)], [qw(tm time time)] ] },
	here => {
		kind => 'local', rows => 40,
		columns => [ [qw(k bigint big person)], [qw(person int int person)], [qw(bank smallint int bank)], [qw(kind varchar(10) txt kind)], [ 'x', 'numeric(6,2)', 'num' ],
			[qw(tag text txt)], [qw(region text txt region)] ] },
);
my @order = qw(person account kind detail event balance wide here);

# Things that are read like tables; no keys.
our %VIEWS = (
	v_people => { columns => [ [qw(id int int person)], [qw(region text txt region)], [qw(note text txt)], [qw(name text txt)], [qw(score numeric num)], [qw(mood g.mood mood)] ] },
	v_sums => { columns => [ [qw(region text txt region)], [qw(n bigint big person)], [qw(total numeric big)], [qw(last timestamptz tstz)] ] },
	v_all => { columns => [ [qw(id int int person)], [qw(region text txt region)], [qw(what text txt kind)] ] },
	v_top => { columns => [ [qw(id int int person)], [qw(name text txt)], [qw(score numeric num)] ] },
);

my $types = q{
	CREATE SCHEMA g;
	CREATE TYPE g.mood AS ENUM ('sad', 'ok', 'happy');
	CREATE DOMAIN g.small AS int CHECK (VALUE BETWEEN -1000 AND 1000);
	CREATE COLLATION g.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
	CREATE FUNCTION g.keep() RETURNS trigger LANGUAGE plpgsql AS $f$
		BEGIN
			IF NEW.cents BETWEEN 40 AND 43 THEN RETURN NULL; END IF;
			NEW.cents := greatest(NEW.cents, 0);
			RETURN NEW;
		END $f$;
};
my $checks = q{
	ALTER TABLE g.detail ADD CONSTRAINT detail_score CHECK (score < 5000);
	ALTER TABLE g.detail DROP COLUMN gone;
	ALTER TABLE g.wide DROP COLUMN gone;
	ALTER TABLE g.person DROP COLUMN gone;
	CREATE TRIGGER keep BEFORE INSERT OR UPDATE ON g.balance FOR EACH ROW EXECUTE FUNCTION g.keep();
	ALTER TABLE g.event ALTER amount SET DEFAULT 7, ALTER kind SET DEFAULT 'mail';
};
my $objects = q{
	CREATE VIEW g.v_people AS SELECT p.id, p.region, p.note, d.name, d.score, d.mood FROM g.person p LEFT JOIN g.detail d ON d.id = p.id;
	CREATE VIEW g.v_sums AS SELECT region, count(*) AS n, sum(amount) AS total, max(at) AS last FROM g.event GROUP BY region;
	CREATE VIEW g.v_all AS SELECT id, region, name AS what FROM g.detail UNION ALL SELECT id, region, kind FROM g.event;
	CREATE VIEW g.v_top AS SELECT id, name, score::numeric AS score FROM g.detail WHERE ok ORDER BY score DESC NULLS LAST, id LIMIT 9;
	CREATE FUNCTION g.twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';
	CREATE FUNCTION g.half(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 / 2; END';
	CREATE FUNCTION g.score_of(int) RETURNS numeric STABLE LANGUAGE plpgsql AS $f$ BEGIN RETURN (SELECT score FROM g.detail WHERE id = $1); END $f$;
	CREATE FUNCTION g.events_of(person int) RETURNS TABLE (no int, amount bigint, kind text) STABLE LANGUAGE plpgsql AS $f$
		BEGIN RETURN QUERY SELECT e.no, e.amount, e.kind::text FROM g.event e WHERE e.id = $1; END $f$;
	CREATE FUNCTION g.people_of(text) RETURNS TABLE (id int, name text) STABLE LANGUAGE sql AS 'SELECT id, name FROM g.detail WHERE region = $1';
};

# The rows are made at once, so that nothing drawn later can change them.
sub new
{
	my ($class, $random) = @_;
	my $self = bless { random => $random, rows => {} }, $class;

	$self->_fill($_) foreach @order;
	return $self;
}

# A literal of a class, with its type.  Few different values, so that they meet; NULL sometimes.
sub literal
{
	my ($self, $class, $null) = @_;
	my $r = $self->{random};
	my $type = $CLASSES{$class}[0];

	return "NULL::$type" if $r->chance($null // 0.06);
	return $self->_value($class) =~ s/^(-.*)/($1)/r if $class eq 'int' && $r->chance(0.7);
	return "'" . ($self->_value($class) =~ s/^'|'$//gr) . "'::$type";
}

# A value as it is written into INSERT; text and the like quoted.
sub _value
{
	my ($self, $class, $domain) = @_;
	my $r = $self->{random};

	return "'" . $r->pick(@REGIONS) . "'" if ($domain // '') eq 'region';
	return "'" . $r->pick(qw(mail call visit gift fine loan none other)) . "'" if ($domain // '') eq 'kind';
	return 1 + $r->below(3) if ($domain // '') eq 'bank';
	return 1 + $r->below(95) if ($domain // '') eq 'person';
	return $r->pick(-3 .. 12, 40, 100) if $class eq 'int';
	return $r->pick(-2 .. 90, 1000000000000) if $class eq 'big';
	return sprintf('%.2f', $r->pick(-4 .. 12) * 0.25 + $r->pick(0, 0, 0, 0.01, 100)) if $class eq 'num';
	return $r->pick(qw(1 1.0 1.00 2.5 2.50 -3 0.125 1e3 100.10)) if $class eq 'lnum';
	return $r->pick(qw(0 0.25 0.5 -1.75 2 3.5 100 1024.125), $r->chance(0.3) ? qw('NaN' 'Infinity' '-Infinity') : ()) if $class eq 'flt';
	return "'" . $r->pick('', 'a', 'A', 'b', 'ab', 'aB', 'Zed', 'zed', 'ä', 'x_y', '10%', 'mail', 'usa', 'a b', "it''s") . "'" if $class =~ /^(?:txt|ctxt|chr|ci)$/;
	return $r->pick(qw(true false)) if $class eq 'bool';
	return sprintf("'2024-%02d-%02d'", $r->pick(1, 2, 3, 12), $r->pick(1, 28, 29, 15)) if $class eq 'date' && $r->chance(0.95);
	return $r->pick("'infinity'", "'1999-12-31'") if $class eq 'date';
	return sprintf("'2024-%02d-%02d %02d:30:00%s'", $r->pick(1, 3, 10), $r->pick(1, 27, 31), $r->pick(0, 1, 2, 23), $class eq 'tstz' ? '+00' : '') if $class eq 'ts' || $class eq 'tstz';
	return "'" . $r->pick('1 day', '2 days 03:00:00', '1 mon', '-1 day', '00:00:07') . "'" if $class eq 'iv';
	return "'" . $r->pick(qw(sad ok happy)) . "'" if $class eq 'mood';
	return sprintf("'%08d-0000-4000-8000-000000000000'", $r->below(9)) if $class eq 'uuid';
	return "'" . $r->pick('\x', '\x00', '\x00ff', '\x6162', '\xdeadbeef') . "'" if $class eq 'bytea';
	return "'" . $r->pick('00:00:00', '12:34:56', '23:59:59.5') . "'" if $class eq 'time';
	return "'" . $r->pick('{"a": 1}', '{"a": 2, "b": "x"}', '{"b": null}', '[1, 2, 3]', '{"a": {"c": [1, "y"]}}', '"s"', 'null', '{}') . "'" if $class eq 'json';
	return "'" . $r->pick('{}', '{1}', '{1,2}', '{2,NULL,1}', '{7,7}') . "'" if $class eq 'iarr';
	return "'" . $r->pick('{}', '{a}', '{a,b}', '{b,NULL}', '{"a b","c,d"}', '{mail}') . "'" if $class eq 'tarr';
	die "no values of class $class";
}

# Draws the rows of one table.  A resident row's home is what its directory says.
sub _fill
{
	my ($self, $name) = @_;
	my $t = $TABLES{$name};
	my $r = $self->{random};
	my $directory = $t->{directory} && $self->{rows}{ $t->{directory} };
	my %seen;

	foreach my $n (1 .. $t->{rows})
	{
		my %row;

		if ($directory)
		{
			my $of = $directory->[ $r->below(scalar @$directory) ];
			$row{$_} = $of->{$_} foreach 'region', @{ $t->{owner} };
		}
		foreach my $c (@{ $t->{columns} })
		{
			my ($column, $type, $class, $domain) = @$c;
			my $is_key = grep { $_ eq $column } @{ $t->{key} // [] };

			next if defined $row{$column};
			$row{$column} = $is_key || $type =~ /NOT NULL/ || !$r->chance(0.17) ? $self->_value($class, $domain) : 'NULL';
			$row{$column} = $n if $is_key && $column eq 'id';
			$row{$column} = $r->below(6) if $is_key && $name eq 'event' && $column eq 'no';
		}
		next if $t->{key} && $seen{ join(' ', map { $row{$_} } @{ $t->{key} }) }++;
		push @{ $self->{rows}{$name} }, \%row;
	}
	return;
}

# INSERT of all rows of a table
sub insert
{
	my ($self, $name) = @_;
	my @columns = map { $_->[0] } @{ $TABLES{$name}{columns} };

	return "INSERT INTO g.$name (" . join(', ', @columns) . ') VALUES '
	  . join(', ', map { my $row = $_; '(' . join(', ', map { $row->{$_} } @columns) . ')' } @{ $self->{rows}{$name} });
}

# What is written by some unit is put back: SQL statements, directories last and first.
sub restore
{
	my ($self) = @_;
	my @declared = grep { $TABLES{$_}{kind} ne 'local' } @order;

	return ((map { "DELETE FROM g.$_" } reverse @declared), map { $self->insert($_) } @declared);
}

# A whole table, its columns by name
sub whole
{
	my ($self, $name) = @_;
	return 'SELECT ' . join(', ', map { $_->[0] } @{ $TABLES{$name}{columns} }) . " FROM g.$name";
}

sub names { return @order; }

# CREATE TABLE with the primary key
sub _create
{
	my ($name) = @_;
	my $t = $TABLES{$name};
	my @columns = map { "$_->[0] $_->[1]" } @{ $t->{columns} };

	# a column that is dropped before the table is declared: numbers of columns differ then
	splice(@columns, 2, 0, 'gone int') if $name =~ /^(?:detail|wide|person)$/;
	return "CREATE TABLE g.$name (" . join(', ', @columns, $t->{key} ? 'PRIMARY KEY (' . join(', ', @{ $t->{key} }) . ')' : ()) . ');';
}

# Makes the tables in all regions; each region has the same rows in its local table.
sub make_regions
{
	my ($self, $r) = @_;
	my ($first) = $r->regions;
	my @declared = grep { $TABLES{$_}{kind} ne 'local' } @order;

	$r->psql($first, 'SELECT residency.run_everywhere($ddl$' . $types . join('', map { _create($_) } @order) . $checks . '$ddl$)');
	foreach my $name (@declared)
	{
		my $t = $TABLES{$name};
		my $directory = $t->{directory} ? ", directory => 'g.$t->{directory}'" : '';

		$r->psql($first, $t->{kind} eq 'global' ? "SELECT residency.make_global('g.$name', 'region')"
			: "SELECT residency.make_resident('g.$name', 'region', key => '{" . join(',', @{ $t->{owner} }) . "}'$directory)");
	}
	$r->psql($first, 'SELECT residency.run_everywhere($ddl$' . $objects . '$ddl$)');
	$r->psql($first, join(";\n", 'BEGIN', (map { $self->insert($_) } @declared), 'COMMIT'));
	foreach my $region ($r->regions)
	{
		$r->psql($region, $self->insert('here'));
		$r->psql($region, 'ANALYZE');
	}
	return;
}

# Makes the tables on one plain server.
sub make_plain
{
	my ($self, $run) = @_;
	my @directories = grep { $TABLES{$_}{directory} } @order;

	$run->($types . join('', map { _create($_) } @order) . $checks);
	$run->(join('', map { 'ALTER TABLE g.' . $_ . ' ADD UNIQUE (' . join(', ', @{ $TABLES{$_}{key} }) . ', region);' } qw(person account)));
	foreach my $name (@directories)
	{
		my $key = join(', ', @{ $TABLES{$name}{owner} }, 'region');
		$run->("ALTER TABLE g.$name ADD FOREIGN KEY ($key) REFERENCES g.$TABLES{$name}{directory} ($key) DEFERRABLE INITIALLY DEFERRED");
	}
	$run->($objects);
	$run->(join(";\n", (map { $self->insert($_) } @order), 'ANALYZE'));
	return;
}

1;
