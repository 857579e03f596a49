# Benchmarks, on servers of their own behind the test bed's relay:
#
#   test/run bench                                   bench/measures.pl
#   test/run bench ARGS='--only upsert --pairs 3'    with arguments
#
# Lines of the test bed's own, which begin with "#", are left out.

BENCH ?= bench/measures.pl

.PHONY: bench
bench: relay
	@mkdir -p tmp_check/log
	@set -o pipefail; $(TEST_ENV) perl $(BENCH) $(ARGS) | grep -v '^#'

# pipefail is not in every sh
bench: SHELL = /bin/bash
