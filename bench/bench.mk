# Benchmarks, on servers of their own behind the test bed's relay:
#
#   test/run bench                                   bench/measures.pl
#   test/run bench ARGS='--only upsert --pairs 3'    with arguments

BENCH ?= bench/measures.pl

.PHONY: bench
bench: relay
	@rm -rf tmp_check/t_*
	@mkdir -p tmp_check/log
	@$(TEST_ENV) perl $(BENCH) $(ARGS)
