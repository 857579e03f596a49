# The schema that most tests use: identities (global) and their details (resident).
#
#   People::make($r);                        # app.identity, app.details in all regions
#   $r->psql('usa', People::add('gbr', 'Name'));
package People;

use strict;
use warnings;

# Declares both tables; further columns or triggers are the test's own business.
sub make
{
	my ($r) = @_;
	my ($first) = $r->regions;

	$r->psql($first, q{SELECT residency.run_everywhere($$
		CREATE SCHEMA app;
		CREATE TABLE app.identity (
			id int PRIMARY KEY,
			region text NOT NULL,
			note text);
		CREATE TABLE app.details (
			id int PRIMARY KEY,
			region text NOT NULL,
			name text);
	$$)});
	$r->psql($first, q{SELECT residency.make_global('app.identity', 'region')});
	$r->psql($first, q{SELECT residency.make_resident('app.details', 'region', key => '{id}', directory => 'app.identity')});
	return;
}

# SQL that adds one person: identity and details.
sub add
{
	my ($id, $region, $name) = @_;
	return "INSERT INTO app.identity VALUES ($id, '$region', 'n$id'); "
	  . "INSERT INTO app.details VALUES ($id, '$region', '$name')";
}

# SQL function app.add(id, region, name): the same as one statement; made in all regions.
sub make_function
{
	my ($r) = @_;
	my ($first) = $r->regions;

	$r->psql($first, q{SELECT residency.run_everywhere($$
		CREATE FUNCTION app.add(int, text, text) RETURNS void LANGUAGE plpgsql AS $f$
		BEGIN
			INSERT INTO app.identity VALUES ($1, $2, 'n' || $1);
			INSERT INTO app.details VALUES ($1, $2, $3);
		END $f$;
	$$)});
	return;
}

1;
