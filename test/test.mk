# Tests.  The extension must be installed in the PostgreSQL that PG_CONFIG names, and
# PostgreSQL does not run as root: test/run takes care of both, from nothing.
#
#   make check-style      tools/check_style.sh: promises about the sources
#   make check-regress    pg_regress, one temporary server
#   make check-isolation  isolation tester, one temporary server
#   make check-tap        several servers, test/t; TAP=test/t/001_relay.pl runs just these
#   make torture SEED=1 MINUTES=10 CLIENTS=8      test/t/540_torture.pl for longer
#   make torture-plan SEED=1 MINUTES=10 CLIENTS=8 prints what it would do
#   make check-all        all of them, whatever fails, and one line at the end
#
# pg_regress and the isolation tester are called directly: PGXS's targets want a running
# server, or know nothing of where our tests lie; and "check" is a name of theirs.

RESULTS    = tmp_check/results
TEST_JOBS ?= 3
TAP       ?= $(sort $(wildcard test/t/*.pl))

REGRESS_TESTS   = $(patsubst test/sql/%.sql,%,$(sort $(wildcard test/sql/*.sql)))
ISOLATION_TESTS = $(patsubst test/specs/%.spec,%,$(sort $(wildcard test/specs/*.spec)))

PGXS_TOP  = $(abspath $(dir $(PGXS))/../..)
TEST_TOOL = $(PGXS_TOP)/src/test
TEST_CONF = --encoding=UTF8 --no-locale --temp-config=test/residency.conf --bindir=$(shell $(PG_CONFIG) --bindir)

# Tests of crashes want a library with fault points (src/fault.h).  All others run what
# users get, so there is a second PostgreSQL, made of links to the first but for that
# library: a server finds its files by their place relative to its program.
FAULT_ROOT    = $(CURDIR)/tmp_check/faults
FAULT_INSTALL = $(FAULT_ROOT)$(patsubst %/,%,$(dir $(shell $(PG_CONFIG) --bindir)))
FAULT_LIBDIR  = $(FAULT_ROOT)$(shell $(PG_CONFIG) --pkglibdir)
FAULT_SOURCES = $(shell grep -l '"fault.h"' src/*.c)
FAULT_OBJS    = $(FAULT_SOURCES:src/%.c=$(FAULT_ROOT)/obj/%.o)

# a name that the tests do not see: they must not depend on who runs them
TEST_ENV = LC_ALL=C.UTF-8 env -u PGHOST -u PGPORT -u PGUSER -u PGDATABASE -u PGSERVICE -u PGOPTIONS -u PGPASSFILE \
	PATH="$(shell $(PG_CONFIG) --bindir):$$PATH" TESTDIR="$(CURDIR)" top_builddir="$(CURDIR)" \
	PG_REGRESS=$(TEST_TOOL)/regress/pg_regress \
	PERL5LIB="$(TEST_TOOL)/perl:$(CURDIR)/test/lib" PG_TEST_TIMEOUT_DEFAULT=90 \
	RESIDENCY_RELAY="$(CURDIR)/test/lib/relay" RESIDENCY_SAME_ANSWER="$(CURDIR)/test/lib/same_answer" \
	RESIDENCY_FAULTS="$(FAULT_INSTALL)"

.PHONY: relay faults torture torture-plan check-all check-style check-regress check-isolation check-tap check-fresh

relay: test/lib/relay test/lib/same_answer

test/lib/relay: $(wildcard test/lib/relay*.c) $(wildcard test/lib/relay*.h)
	$(CC) -std=gnu99 -O2 -g -Wall -Wextra $(if $(WERROR),-Werror) -o $@ $(filter %.c,$^)

test/lib/same_answer: test/lib/same_answer.c
	$(CC) -std=gnu99 -O2 -g -Wall -Wextra $(if $(WERROR),-Werror) -I$(shell $(PG_CONFIG) --includedir) -o $@ $< $(libpq)

faults: $(FAULT_LIBDIR)/residency.so

$(FAULT_OBJS): $(FAULT_ROOT)/obj/%.o: src/%.c $(wildcard src/*.h)
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS) $(CPPFLAGS) -DRESIDENCY_FAULTS -c -o $@ $<

$(FAULT_LIBDIR)/residency.so: $(FAULT_OBJS) $(filter-out $(FAULT_SOURCES:.c=.o),$(OBJS))
	@test/lib/link_install.sh $(PG_CONFIG) $(FAULT_ROOT)
	@rm -f $@
	@$(CC) $(CFLAGS) -shared -o $@ $^ $(LDFLAGS) $(LDFLAGS_SL) $(SHLIB_LINK)

# loaded into a server: full.c makes its disk full when a test says so, network.c answers for the resolver
test/lib/%.so: test/lib/%.c
	$(CC) -std=gnu99 -O2 -g -Wall -Wextra $(if $(WERROR),-Werror) -shared -fPIC -o $@ $< -ldl

# servers of an earlier run would be in the way
check-fresh:
	@rm -rf tmp_check
	@mkdir -p tmp_check/log

check-style:
	@mkdir -p tmp_check
	@tools/check_style.sh $(RESULTS)

check-regress:
	@rm -rf tmp_check/regress
	@mkdir -p tmp_check/regress
ifneq ($(REGRESS_TESTS),)
	@$(TEST_ENV) test/lib/run_regress.sh $(RESULTS) regress tmp_check/regress \
		$(TEST_TOOL)/regress/pg_regress --inputdir=test --outputdir=tmp_check/regress \
		--temp-instance=tmp_check/regress/pg $(TEST_CONF) --dbname=regress_residency \
		--load-extension=$(EXTENSION) $(REGRESS_TESTS)
endif

check-isolation:
	@rm -rf tmp_check/isolation
	@mkdir -p tmp_check/isolation
ifneq ($(ISOLATION_TESTS),)
	@$(TEST_ENV) test/lib/run_regress.sh $(RESULTS) isolation tmp_check/isolation \
		$(TEST_TOOL)/isolation/pg_isolation_regress --inputdir=test --outputdir=tmp_check/isolation \
		--temp-instance=tmp_check/isolation/pg $(TEST_CONF) --dbname=isolation_residency \
		--load-extension=$(EXTENSION) $(ISOLATION_TESTS)
endif

check-tap: relay test/lib/full.so test/lib/network.so faults
	@rm -rf tmp_check/t_*
	@$(TEST_ENV) perl test/lib/run_tap.pl $(RESULTS) $(TEST_JOBS) $(TAP)

SEED    ?= 1
MINUTES ?= 10
CLIENTS ?= 8

torture: relay faults
	@rm -rf tmp_check/t_540_torture_*
	@$(TEST_ENV) TORTURE_SEED=$(SEED) TORTURE_MINUTES=$(MINUTES) TORTURE_CLIENTS=$(CLIENTS) \
		PG_TEST_NOCLEAN=1 perl test/t/540_torture.pl

torture-plan:
	@perl -Itest/lib -MPlan -e 'Plan->new(seed => $(SEED), clients => $(CLIENTS), regions => [qw(usa gbr aus)])->print(60 * $(MINUTES), 20)'

check-all: check-fresh
	@for suite in style regress isolation tap; do \
		echo "== $$suite"; \
		$(MAKE) --no-print-directory check-$$suite || echo "$$suite 0 0 failed" >> $(RESULTS); \
	done
	@awk '{ passed += $$2; failed += $$3; seen[$$1] = 1; if ($$4) broken[$$1] = 1 } $$2 + $$3 > 0 { said[$$1] = 1 } \
		END { for (s in broken) if (!said[s]) failed++; \
			printf "%d passed, %d failed\n", passed, failed; exit failed > 0 }' $(RESULTS)
