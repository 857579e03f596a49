# pg_residency: build, install and test with PGXS.
#
#   make && make install      the extension
#   make FAULTS=1             the same with fault points (src/fault.h), to play with crashes
#   make check-regress        pg_regress, one temporary server
#   make check-tap            TAP, several regions (test/t)
EXTENSION   = residency
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(EXTENSION).control)
MODULE_big  = $(EXTENSION)
OBJS        = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
SQL_PARTS   = $(sort $(wildcard sql/[0-9][0-9]_*.sql))
DATA        = $(wildcard sql/$(EXTENSION)--*--*.sql)
DATA_built  = sql/$(EXTENSION)--$(EXTVERSION).sql
PG_CPPFLAGS = -I$(libpq_srcdir) -Isrc -DRESIDENCY_VERSION='"$(EXTVERSION)"' $(if $(FAULTS),-DRESIDENCY_FAULTS)
PG_CFLAGS   = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers \
              -Wno-clobbered $(if $(WERROR),-Werror)
SHLIB_LINK  = $(libpq) -Wl,-Bsymbolic-functions
EXTRA_CLEAN = sql/$(EXTENSION)--$(EXTVERSION).sql tmp_check test/lib/relay test/lib/same_answer test/lib/full.so test/lib/network.so

# No JIT bitcode: it needs clang, and nothing of ours is worth inlining into a query.
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(wildcard src/*.h)

sql/$(EXTENSION)--$(EXTVERSION).sql: $(SQL_PARTS)
	{ printf '%s\n' '\echo Use "CREATE EXTENSION residency" to load this file. \quit'; cat $(SQL_PARTS); } > $@

include test/test.mk
-include bench/bench.mk
