# Tests.  The extension must be installed in the PostgreSQL that PG_CONFIG names, and
# PostgreSQL does not run as root: test/run takes care of both, from nothing.
#
#   make check-style      tools/check_style.sh: promises about the sources
#   make check-regress    pg_regress, one temporary server
#   make check-isolation  isolation tester, one temporary server
#   make check-tap        several servers, test/t; TAP=test/t/001_relay.pl runs just these
#   make check-all        all of them, whatever fails, and one line at the end
#
# pg_regress and the isolation tester are called directly: PGXS's targets want a running
# server, or know nothing of where our tests lie; and "check" is a name of theirs.

RESULTS    = tmp_check/results
TEST_JOBS ?= 2
TAP       ?= $(sort $(wildcard test/t/*.pl))

REGRESS_TESTS   = $(patsubst test/sql/%.sql,%,$(sort $(wildcard test/sql/*.sql)))
ISOLATION_TESTS = $(patsubst test/specs/%.spec,%,$(sort $(wildcard test/specs/*.spec)))

PGXS_TOP  = $(abspath $(dir $(PGXS))/../..)
TEST_TOOL = $(PGXS_TOP)/src/test
TEST_CONF = --encoding=UTF8 --no-locale --temp-config=test/residency.conf --bindir=$(shell $(PG_CONFIG) --bindir)

# a name that the tests do not see: they must not depend on who runs them
TEST_ENV = LC_ALL=C.UTF-8 env -u PGHOST -u PGPORT -u PGUSER -u PGDATABASE -u PGSERVICE -u PGOPTIONS -u PGPASSFILE \
	PATH="$(shell $(PG_CONFIG) --bindir):$$PATH" TESTDIR="$(CURDIR)" top_builddir="$(CURDIR)" \
	PG_REGRESS=$(TEST_TOOL)/regress/pg_regress \
	PERL5LIB="$(TEST_TOOL)/perl:$(CURDIR)/test/lib" PG_TEST_TIMEOUT_DEFAULT=90 \
	RESIDENCY_RELAY="$(CURDIR)/test/lib/relay"

.PHONY: relay check-all check-style check-regress check-isolation check-tap check-fresh

relay: test/lib/relay

test/lib/relay: $(wildcard test/lib/relay*.c) $(wildcard test/lib/relay*.h)
	$(CC) -std=gnu99 -O2 -g -Wall -Wextra $(if $(WERROR),-Werror) -o $@ $(filter %.c,$^)

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

check-tap: relay
	@rm -rf tmp_check/t_*
	@$(TEST_ENV) perl test/lib/run_tap.pl $(RESULTS) $(TEST_JOBS) $(TAP)

check-all: check-fresh
	@for suite in style regress isolation tap; do \
		echo "== $$suite"; \
		$(MAKE) --no-print-directory check-$$suite || echo "$$suite 0 0 failed" >> $(RESULTS); \
	done
	@awk '{ passed += $$2; failed += $$3; seen[$$1] = 1; if ($$4) broken[$$1] = 1 } $$2 + $$3 > 0 { said[$$1] = 1 } \
		END { for (s in broken) if (!said[s]) failed++; \
			printf "%d passed, %d failed\n", passed, failed; exit failed > 0 }' $(RESULTS)
