# Benchmarks, on servers of their own behind the test bed's relay:
#
#   test/run bench                                  all parts; results in bench/results
#   test/run bench PARTS='contenders clients'       some of them
#   test/run bench PARTS=measures BENCH_MEASURES='--only upsert --pairs 3'
#
# A part's arguments are in BENCH_<PART>, see the head of its file.

PARTS ?=
export BENCH_MEASURES BENCH_CONTENDERS BENCH_CLIENTS BENCH_HOME BENCH_GROWTH

.PHONY: bench
bench: relay
	@rm -rf tmp_check/t_* tmp_check/bench
	@mkdir -p tmp_check/log
	@$(TEST_ENV) bench/run tmp_check/bench $(PARTS)
