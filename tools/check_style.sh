#!/bin/bash
# Keeps the promises that the sources make about themselves.
#
#   tools/check_style.sh [RESULTS]
#
# Each rule prints what breaks it; a rule that nothing breaks passes.  With RESULTS the
# numbers are added to that file, as test/test.mk wants them.  Run after make: one rule
# looks at the library.
cd "$(dirname "$0")/.." || exit 1
passed=0
failed=0

# runs a rule; whatever it prints is a fault
rule()
{
	local faults

	faults=$("$2" 2>&1)
	if [ -z "$faults" ]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAILED   $1"
		echo "$faults" | sed 's/^/  | /' | head -n 40
	fi
}

c_files() { ls src/*.c test/lib/*.c 2>/dev/null; }
h_files() { ls src/*.h test/lib/*.h 2>/dev/null; }
sql_files() { ls sql/[0-9][0-9]_*.sql 2>/dev/null; }
our_files()
{
	find . -path ./.git -prune -o -path ./tmp_check -prune -o -type f \
		\( -name '*.[ch]' -o -name '*.sql' -o -name '*.p[lm]' -o -name '*.sh' -o -name '*.mk' -o -name '*.spec' \
		-o -name '*.md' -o -name '*.yml' -o -name 'Makefile' -o -name Dockerfile -o -path ./.ci/run -o -path ./test/run \) -print |
		grep -v -e '--[0-9.]*\.sql$' -e '/SEED\.md$' | sed 's|^\./||' | sort
}

short_files()
{
	c_files | xargs wc -l | awk '$2 != "total" && $1 > 600 { print $2 ": " $1 " lines, more than 600" }'
	h_files | xargs wc -l | awk '$2 != "total" && $1 > 250 { print $2 ": " $1 " lines, more than 250" }'
}

opening_comment()
{
	our_files | grep -v -e '\.md$' | while read -r f; do
		perl -e '
			my ($f) = @ARGV;
			open(my $in, "<", $f) or die;
			my $line = readline($in) // "";
			$line = readline($in) // "" if $line =~ /^#!/;
			my $ok = $f =~ /\.[ch]$/ ? $line =~ m{^/\*} : $f =~ /\.(sql|spec)$/ ? $line =~ m{^(--|/\*|#)} : $line =~ /^#/;
			print "$f: does not open with a comment that says what it is for\n" unless $ok;' "$f"
	done
}

# a C function starts with its name at the line's start, its body with "{" there
function_comments()
{
	c_files | xargs perl -e '
		foreach my $f (@ARGV)
		{
			open(my $in, "<", $f) or die;
			my @l = readline($in);
			for (my $i = 1; $i < @l; $i++)
			{
				next unless $l[$i - 1] =~ /^\w[\w \*]*$/ && $l[$i] =~ /^(\w+)\(/;
				my ($name, $open) = ($1, $i);
				$open++ while $open < @l && $l[$open] !~ /^[{]/ && $l[$open] !~ /;\s*$/;
				next unless $open < @l && $l[$open] =~ /^[{]/;
				my $close = $open;
				$close++ while $close < @l && $l[$close] !~ /^[}]/;
				my $above = $l[$i - 2] // "";
				print "$f:", $i + 1, ": $name has no comment above it\n" unless $above =~ m{\*/\s*$};
				print "$f:", $i + 1, ": $name has ", $close - $open - 1, " lines, more than 100\n" if $close - $open > 101;
			}
		}'
}

version_checks() { grep -n PG_VERSION_NUM $(c_files) $(h_files) | grep -v '^src/compat\.h:'; }

exported_symbols()
{
	[ -f residency.so ] || { echo "residency.so is not there: run make"; return; }
	nm -D --defined-only residency.so | awk '{ print $3 }' |
		grep -v -x -E 'residency_\w+|pg_finfo_residency_\w+|_PG_init|Pg_magic_func|_init|_fini' |
		sed 's/$/: exported, but its name does not start with residency_/'
}

no_fault_points()
{
	nm residency.so 2>/dev/null | grep -w -E 'residency_fault(_init)?' | sed 's/$/: fault points are for tests (make FAULTS=1)/'
}

settings_sorted()
{
	perl -ne 'push @names, $1 if /^\s*"(residency\.\w+)"/ || /DefineCustom\w+Variable\("(residency\.\w+)"/;
		END { foreach (1 .. $#names) { print "src/settings.c: $names[$_] comes after $names[$_ - 1]\n" if $names[$_] lt $names[$_ - 1] } }' src/settings.c
}

settings_documented()
{
	grep -o '"residency\.[a-z_]*"' src/settings.c | tr -d '"' | sort -u | while read -r s; do
		grep -q -F "$s" docs/settings.md || echo "docs/settings.md: $s is missing"
	done
}

functions_documented()
{
	sql_files | xargs grep -h -o -E 'CREATE (OR REPLACE )?(FUNCTION|PROCEDURE|VIEW) residency\.\w+' | grep -o 'residency\..*' | sort -u |
		while read -r f; do
			grep -q -F "$f" docs/sql.md || echo "docs/sql.md: $f is missing"
		done
}

sql_objects()
{
	sql_files | xargs perl -0777 -e '
		my $all = "";
		foreach my $f (@ARGV) { open(my $in, "<", $f) or die; $all .= readline($in) . "\n"; }
		my $bare = $all;
		$bare =~ s/--[^\n]*//g;
		my %comment;
		$comment{"$1 $2"} = 1 while $bare =~ /COMMENT ON (FUNCTION|PROCEDURE|VIEW|TABLE|TYPE) (residency\.\w+)/g;
		$bare =~ s/\$(\w*)\$.*?\$\1\$/ /gs;
		$bare =~ s/\x27(?:[^\x27]|\x27\x27)*\x27/\x27\x27/g;
		foreach my $s (split /;/, $bare)
		{
			next unless $s =~ /^\s*CREATE (?:OR REPLACE )?(FUNCTION|PROCEDURE|VIEW|TABLE|TYPE) (residency\.\w+)/;
			my ($kind, $name) = ($1, $2);
			print "$name: no COMMENT ON $kind\n" unless $comment{"$kind $name"};
			print "$name: SECURITY DEFINER without SET search_path = pg_catalog, pg_temp\n"
			  if $s =~ /SECURITY DEFINER/ && $s !~ /SET search_path = pg_catalog, pg_temp/;
			next if $kind ne "FUNCTION" || $s =~ /RETURNS (pg_catalog\.)?(trigger|event_trigger|fdw_handler)\b/;
			print "$name: volatility is not said\n" unless $s =~ /\b(IMMUTABLE|STABLE|VOLATILE)\b/;
			print "$name: PARALLEL is not said\n" unless $s =~ /\bPARALLEL (SAFE|UNSAFE|RESTRICTED)\b/;
			print "$name: STRICT or CALLED ON NULL INPUT is not said\n"
			  unless $s =~ /\b(STRICT|CALLED ON NULL INPUT|RETURNS NULL ON NULL INPUT)\b/ || $s =~ /FUNCTION residency\.\w+\(\s*\)/;
		}'
}

expected_files()
{
	local t

	for t in test/sql/*.sql; do
		[ -e "$t" ] || continue
		[ -f "test/expected/$(basename "$t" .sql).out" ] || echo "$t: no expected file"
	done
	for t in test/specs/*.spec; do
		[ -e "$t" ] || continue
		[ -f "test/expected/$(basename "$t" .spec).out" ] || echo "$t: no expected file"
	done
	ls test/expected/*_[0-9].out 2>/dev/null | sed 's/$/: a second answer to one test/'
}

error_codes()
{
	ls src/*.c | xargs perl -0777 -e '
		foreach my $f (@ARGV)
		{
			open(my $in, "<", $f) or die;
			my $c = readline($in);
			while ($c =~ /\bereport\s*(\((?:[^()"]|"(?:[^"\\]|\\.)*"|(?1))*\))/gs)
			{
				my $report = $1;
				my $line = 1 + (substr($c, 0, $-[0]) =~ tr/\n//);
				next unless $report =~ /^\(\s*(ERROR|FATAL|PANIC)\b/;
				print "$f:$line: an error without errcode\n" unless $report =~ /errcode\(|errcode_for_/;
				print "$f:$line: message starts with a capital\n" if $report =~ /errmsg\("[A-Z][a-z]/;
				print "$f:$line: message ends with a full stop\n" if $report =~ /errmsg\("(?:[^"\\]|\\.)*\."/;
				print "$f:$line: detail or hint does not end with a full stop\n"
				  if $report =~ /err(?:detail|hint)\("(?:[^"\\]|\\.)*(?<!%s)(?<![.?])"\s*[,)]/;
			}
		}'
}

trailing_blanks() { our_files | grep -v '\.md$' | xargs grep -n -E '[[:blank:]]+$' | cut -c 1-100; }

unfinished() { our_files | grep -v tools/check_style.sh | xargs grep -n -w -E 'TODO|FIXME|XXX|HACK'; }

no_machine_paths()
{
	our_files | grep -v tools/check_style.sh | xargs grep -n -E '/(work/(main|shared)|tmp/(b_|pg_)[a-z]+)\b'
}

perl_compiles()
{
	local inc

	inc=$(dirname "$(dirname "$(${PG_CONFIG:-pg_config} --pgxs)")")/test/perl
	for f in test/lib/*.p[lm] test/t/*.pl bench/*.p[lm]; do
		[ -e "$f" ] || continue
		perl -I"$inc" -Itest/lib -Ibench -wc "$f" 2>&1 | grep -v 'syntax OK'
	done
}

shell_compiles()
{
	for f in test/run .ci/run init.sh tools/*.sh test/lib/*.sh bench/run; do
		[ -e "$f" ] && bash -n "$f"
	done
}

rule 'no .c file over 600 lines, no .h file over 250' short_files
rule 'every file opens with a comment' opening_comment
rule 'every function has a comment above it and is not too long' function_comments
rule 'only src/compat.h looks at PG_VERSION_NUM' version_checks
rule 'exported symbols carry the prefix' exported_symbols
rule 'what users get has no fault points' no_fault_points
rule 'settings are sorted' settings_sorted
rule 'every setting is in docs/settings.md' settings_documented
rule 'every SQL function and view is in docs/sql.md' functions_documented
rule 'SQL objects are commented, functions say what they are' sql_objects
rule 'every test has one expected answer' expected_files
rule 'every error has a code, messages have the right form' error_codes
rule 'no trailing blanks' trailing_blanks
rule 'nothing is left for later' unfinished
rule 'no path of somebody'"'"'s machine' no_machine_paths
rule 'Perl compiles' perl_compiles
rule 'shell scripts parse' shell_compiles

[ -n "${1:-}" ] && echo "style $passed $failed" >>"$1"
echo "style: $passed kept, $failed broken"
[ "$failed" -eq 0 ]
