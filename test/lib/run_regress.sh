#!/bin/sh
# Runs pg_regress or the isolation tester and adds its numbers to the file of results.
#
#   run_regress.sh RESULTS SUITE OUTPUTDIR COMMAND ...
#
# Prints the differences of failed tests, and the server's log if it did not start.
# A suite that ends without having said how its tests went is one failure.
results=$1 suite=$2 dir=$3
shift 3

mkdir -p "$dir"
"$@" >"$dir/output" 2>&1
status=$?
cat "$dir/output"

# "test NAME ... ok  12 ms" and, in parallel groups, "     NAME ... FAILED  12 ms"
passed=$(grep -c '\.\.\. *ok' "$dir/output")
failed=$(grep -c '\.\.\. *FAILED' "$dir/output")
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
	failed=1
	for log in "$dir"/log/*.log "$dir"/pg/log/*.log; do
		if [ -f "$log" ]; then
			echo "---- end of $log"
			tail -n 40 "$log"
		fi
	done
fi
if [ -f "$dir/regression.diffs" ]; then
	head -n 400 "$dir/regression.diffs"
fi
echo "$suite $passed $failed" >>"$results"
[ "$failed" -eq 0 ]
