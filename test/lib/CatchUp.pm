# Regions whose workers run, that lose each other and come back, with writers at work meanwhile:
# the ground of the tests of the catch-up worker.
#
#   my $c = CatchUp->new(regions => [qw(usa aus)], delay => 40);
#   $c->cut('usa', 'aus');          # both know when it returns
#   $c->start_writers('usa', 4, 0.05, 'UPDATE app.mail SET note = note WHERE id = 1;');
#   $c->mend('usa', 'aus');
#   ok($c->until(20, sub { $c->is_now('usa', 'aus', 'up') }), '...');
#   $c->stop_writers;
#
# There are two global tables, app.item (id, region, note) and app.mail with a second unique key,
# address.  Options are those of Regions; tables => SQL makes further tables.
package CatchUp;

use strict;
use warnings;

use Carp;
use Test::More ();
use Time::HiRes qw(time sleep);

use Regions;

sub new
{
	my ($class, %o) = @_;
	my $conf = "residency.workers = on\nresidency.away_after = '1s'\n" . ($o{conf} // '');
	my $r = Regions->new(delay => 2, %o, relay => 1, conf => $conf);
	my $self = bless { r => $r, writers => [] }, $class;
	my ($first) = $r->regions;

	$r->psql($first, 'SELECT residency.run_everywhere($$
		CREATE SCHEMA app;
		CREATE TABLE app.item (id bigint PRIMARY KEY, region text NOT NULL, note text);
		CREATE TABLE app.mail (id int PRIMARY KEY, region text NOT NULL, address text UNIQUE, note text);
		' . ($o{tables} // '') . '$$)');
	$r->psql($first, "SELECT residency.make_global('$_', 'region')") foreach 'app.item', 'app.mail', ($o{tables} // '') =~ /CREATE TABLE (\S+)/g;
	$self->until(60, sub { $self->all_up }) or croak 'not all regions are up';
	return $self;
}

sub r { my ($self) = @_; return $self->{r}; }

# Waits that many seconds at most until the test is true; is it?
sub until
{
	my ($self, $seconds, $test) = @_;
	my $end = time + $seconds;

	until ($test->()) { return 0 if time > $end; sleep(0.1); }
	return 1;
}

# Does one region count another one so?
sub is_now
{
	my ($self, $here, $there, $state) = @_;
	return $self->r->psql($here, "SELECT count(*) FROM residency.catch_up WHERE region = '$there' AND state = '$state'") == 1;
}

# Do all count all others as up, with nothing noted?
sub all_up
{
	my ($self) = @_;
	return !grep { $self->r->psql($_, q{SELECT bool_and(state = 'up' AND notes = 0) FROM residency.catch_up}) ne 't' } $self->r->regions;
}

# Cuts the lines between one region and others (all others), and waits until both ends know.
sub cut
{
	my ($self, $one, @others) = @_;

	@others = grep { $_ ne $one } $self->r->regions unless @others;
	foreach my $other (@others) { $self->r->relay->away($_) foreach "$one>$other", "$other>$one"; }
	$self->until(30, sub { !grep { !$self->is_now($one, $_, 'away') || !$self->is_now($_, $one, 'away') } @others })
	  or croak "$one and @others still see each other";
	return;
}

# Mends them.
sub mend
{
	my ($self, $one, @others) = @_;

	@others = grep { $_ ne $one } $self->r->regions unless @others;
	foreach my $other (@others) { $self->r->relay->back($_) foreach "$one>$other", "$other>$one"; }
	return;
}

# Starts sessions of a gateway that insert rows with their home at the first region, and do
# something else, with a pause in s after each, until they are told to stop.
sub start_writers
{
	my ($self, $gateway, $n, $pause, $else) = @_;
	my $r = $self->r;
	my ($home) = $r->regions;

	$self->{gateway} = $gateway;
	$r->psql($gateway, q{SET client_min_messages = error; DROP TABLE IF EXISTS public.stop; CREATE TABLE public.stop (); CREATE SEQUENCE IF NOT EXISTS public.numbers});
	$r->psql($gateway, "CREATE OR REPLACE PROCEDURE public.go() LANGUAGE plpgsql AS \$\$ BEGIN
		WHILE NOT EXISTS (SELECT FROM public.stop) LOOP
			BEGIN
				INSERT INTO app.item VALUES (1000000 + nextval('public.numbers'), '$home', 'w');
			EXCEPTION WHEN OTHERS THEN PERFORM pg_sleep(0.1);
			END;
			BEGIN
				" . ($else // 'NULL;') . "
			EXCEPTION WHEN OTHERS THEN NULL;
			END;
			COMMIT;
			PERFORM pg_sleep($pause);
		END LOOP;
	END \$\$");
	foreach (1 .. $n)
	{
		my $session = $r->session($gateway, on_error_stop => 0);

		$session->query_until(qr/go/, "\\echo go\nSET statement_timeout = 0; CALL public.go();\n");
		push @{ $self->{writers} }, $session;
	}
	return;
}

# Test: they write.
sub at_work
{
	my ($self, $name) = @_;
	my $count = sub { $self->r->psql($self->{gateway}, 'SELECT count(*) FROM app.item') };
	my $before = $count->();
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return Test::More::ok($self->until(15, sub { $count->() > $before + 5 }), $name);
}

# Stops them.
sub stop_writers
{
	my ($self) = @_;

	$self->r->psql($self->{gateway}, 'INSERT INTO public.stop DEFAULT VALUES');
	$_->query_safe('SELECT 1') foreach @{ $self->{writers} };
	$_->quit foreach @{ $self->{writers} };
	$self->{writers} = [];
	return;
}

# Test: a table has the same rows everywhere.
sub same
{
	my ($self, $table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return $self->r->all_equal("SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY id)) FROM $table t", $name);
}

1;
