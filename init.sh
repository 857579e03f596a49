#!/usr/bin/env bash
#
# Three PostgreSQL servers on this machine, one for each region of the example,
# joined by pg_residency.
#
#   ./init.sh migrate             set everything up; run again, it finishes or changes nothing
#   ./init.sh status              what runs, on which port; exit code 1 if something is missing
#   ./init.sh stop | start        the three servers
#   ./init.sh psql REGION [...]   psql as the example's owner; further arguments go to psql
#   ./init.sh destroy             stop the servers and remove all their data
#
# Settings, from the environment:
#   RESIDENCY_DATA    where the servers keep their data; default /var/lib/pg_residency
#                     as root, ~/.local/share/pg_residency otherwise
#   RESIDENCY_PORTS   ports of usa, gbr and aus; default 5501,5502,5503
#   PG_CONFIG         pg_config of the PostgreSQL 15 to use; default Debian's
#
# Every step looks first whether it is done.  What takes several commands becomes
# visible in the last of them (a data directory by its rename, an extension by
# its fingerprint), so a run that was cut short leaves nothing half made.
set -euo pipefail

REGIONS=(usa gbr aus)
DATABASE=identity
OWNER=identity
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHANGED=0
STEP=

say() { printf '%s\n' "$@"; }
die() { printf 'init.sh: %s\n' "$1" >&2; shift; [ $# -eq 0 ] || printf '  %s\n' "$@" >&2; exit 1; }

# A step that changes something announces itself; if it fails, the last words name it.
step() { STEP=$1; CHANGED=1; say "$1"; }
at_exit() {
	local code=$?
	[ -z "${SCRATCH:-}" ] || rm -rf "$SCRATCH"
	if [ "$code" -ne 0 ] && [ -n "$STEP" ]; then
		say "init.sh: stopped at: $STEP" >&2
		say "  What was done before is kept. Correct the cause, then run ./init.sh migrate again." >&2
	fi
}
trap at_exit EXIT

# ------------------------------------------------------------------ places

if [ "$(id -u)" -eq 0 ]; then
	DATA=${RESIDENCY_DATA:-/var/lib/pg_residency}
else
	DATA=${RESIDENCY_DATA:-${XDG_DATA_HOME:-${HOME:-$ROOT/.data}/.local/share}/pg_residency}
fi
case $DATA in /*) ;; *) DATA=$PWD/$DATA ;; esac
SOCKETS=$DATA/socket
PASSFILE=$DATA/pgpass
MARK=$DATA/made-by-init.sh

# Runs a command as the user who owns the servers: PostgreSQL refuses root.
as_server() {
	if [ "$(id -u)" -eq 0 ]; then
		(cd / && exec runuser -u postgres -- "$@")
	else
		(cd / && exec "$@")
	fi
}

is_region() {
	local region
	for region in "${REGIONS[@]}"; do [ "$region" != "$1" ] || return 0; done
	return 1
}

# Port of a region: the one it was set up with, else the one asked for.
port_of() {
	local i ports
	if [ -f "$DATA/$1/residency.conf" ]; then
		sed -n 's/^port = //p' "$DATA/$1/residency.conf"
		return
	fi
	IFS=, read -r -a ports <<<"${RESIDENCY_PORTS:-5501,5502,5503}"
	for i in "${!REGIONS[@]}"; do
		[ "${REGIONS[$i]}" != "$1" ] || printf '%s\n' "${ports[$i]:-}"
	done
}

# A directory that is not ours is never touched, least of all by destroy.
check_data() {
	if [ -e "$DATA" ] && [ ! -e "$MARK" ] && [ -n "$(ls -A "$DATA" 2>/dev/null || echo unreadable)" ]; then
		die "$DATA exists and was not made by init.sh, or this user may not read it" \
			"Choose another place: RESIDENCY_DATA=/some/directory ./init.sh $COMMAND" \
			"If root set it up, run this as root too."
	fi
}

need_setup() {
	check_data
	[ -e "$MARK" ] || die "nothing is set up in $DATA" "Set it up: ./init.sh migrate"
	find_postgres || die "PostgreSQL 15's programs are missing" "Install them: ./init.sh migrate"
}

# ---------------------------------------------------------------- packages

# Sets BINDIR and PGCONFIG.  A private copy (see build) comes first: it has the extension.
find_postgres() {
	PGCONFIG=${PG_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}
	if [ -z "${PG_CONFIG:-}" ] && [ -x "$DATA/postgresql/usr/lib/postgresql/15/bin/pg_config" ]; then
		PGCONFIG=$DATA/postgresql/usr/lib/postgresql/15/bin/pg_config
	fi
	BINDIR=$("$PGCONFIG" --bindir 2>/dev/null) || return 1
	[ -x "$BINDIR/postgres" ]
}

missing_packages() {
	local package
	for package in gcc libc6-dev make postgresql-15 postgresql-server-dev-15; do
		dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
			printf '%s ' "$package"
	done
}

install_packages() {
	local missing apt=() lines
	if [ -n "${PG_CONFIG:-}" ]; then
		find_postgres || die "PG_CONFIG=$PG_CONFIG is not the pg_config of a PostgreSQL server"
		[ -f "$("$PGCONFIG" --pgxs)" ] || die "$PGCONFIG has no PGXS" \
			"Install the server's development files, or unset PG_CONFIG to use Debian's."
		return
	fi
	command -v dpkg-query >/dev/null || die "this is not a Debian system" \
		"Install PostgreSQL 15 with its development files, gcc and make, then run" \
		"PG_CONFIG=/path/to/pg_config ./init.sh migrate"
	missing=$(missing_packages)
	[ -n "$missing" ] || return 0
	if [ "$(id -u)" -ne 0 ]; then
		if ! sudo -n true 2>/dev/null; then
			die "packages are missing: $missing" "Install them first: sudo apt-get install $missing"
		fi
		apt=(sudo -n)
	fi
	step "installing packages: $missing"
	lines=$(mktemp)
	# Debian's package would start a server of its own, which nobody asked for.
	"${apt[@]}" mkdir -p /etc/postgresql-common/createcluster.d
	echo 'create_main_cluster = false' |
		"${apt[@]}" tee /etc/postgresql-common/createcluster.d/pg_residency.conf >/dev/null
	# shellcheck disable=SC2086  # a list of words
	if ! { "${apt[@]}" apt-get update && "${apt[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends $missing; } >"$lines" 2>&1; then
		"${apt[@]}" rm -f /etc/postgresql-common/createcluster.d/pg_residency.conf
		tail -n 15 "$lines" >&2
		rm -f "$lines"
		die "apt-get could not install: $missing" "Its last words are above."
	fi
	"${apt[@]}" rm -f /etc/postgresql-common/createcluster.d/pg_residency.conf
	rm -f "$lines"
	find_postgres || die "PostgreSQL 15 is not where Debian puts it: /usr/lib/postgresql/15"
}

# --------------------------------------------------------------- extension

fingerprint() {
	(cd "$ROOT" && cat Makefile residency.control src/*.c src/*.h sql/[0-9]*.sql && "$PGCONFIG" --version) |
		sha256sum | cut -d' ' -f1
}

# Builds in a scratch directory, so that a checkout of somebody else stays as it is.
# Who may not write into PostgreSQL's directories gets a private copy of them:
# the programs find their files relative to where they are.
build() {
	local wanted lines version
	find_postgres || die "PostgreSQL 15 was not found" "Set PG_CONFIG to its pg_config."
	wanted=$(fingerprint)
	if [ "$(cat "$DATA/built" 2>/dev/null)" = "$wanted $PGCONFIG" ] &&
		[ -f "$("$PGCONFIG" --pkglibdir)/residency.so" ] &&
		[ -f "$("$PGCONFIG" --sharedir)/extension/residency.control" ]; then
		return
	fi
	step "building and installing the extension"
	if [ ! -w "$("$PGCONFIG" --pkglibdir)" ]; then
		[ -z "${PG_CONFIG:-}" ] || die "$("$PGCONFIG" --pkglibdir) is not writable" \
			"Run this as root, or unset PG_CONFIG to work with a private copy of Debian's PostgreSQL."
		rm -rf "$DATA/postgresql.new"
		mkdir -p "$DATA"/postgresql.new/usr/{lib,share}/postgresql "$DATA/postgresql.new/usr/include"
		cp -R /usr/lib/postgresql/15 "$DATA/postgresql.new/usr/lib/postgresql/"
		cp -R /usr/share/postgresql/15 "$DATA/postgresql.new/usr/share/postgresql/"
		cp -R /usr/include/postgresql "$DATA/postgresql.new/usr/include/"
		mv "$DATA/postgresql.new" "$DATA/postgresql"
		find_postgres
		wanted=$(fingerprint)
	fi
	SCRATCH=$(mktemp -d)
	# without what an earlier make left in the checkout
	version=$(sed -n "s/^default_version *= *'\(.*\)'/\1/p" "$ROOT/residency.control")
	(cd "$ROOT" && tar -cf - --exclude='*.o' --exclude='*.so' --exclude="residency--$version.sql" \
		Makefile residency.control src sql test/test.mk) |
		tar -xf - -C "$SCRATCH"
	lines=$SCRATCH/make.log
	if ! make -s -C "$SCRATCH" -j2 PG_CONFIG="$PGCONFIG" all install >"$lines" 2>&1; then
		grep -v 'warning:' "$lines" | tail -n 15 | cut -c1-160 >&2
		die "the extension could not be built" "The compiler's last words are above."
	fi
	rm -rf "$SCRATCH"
	SCRATCH=
	printf '%s\n' "$wanted $PGCONFIG" >"$DATA/built"
	# Servers have the library loaded: a new one takes a new start.
	local region
	for region in "${REGIONS[@]}"; do
		if [ -d "$DATA/$region" ] && running "$region"; then stop_region "$region"; fi
	done
}

# ----------------------------------------------------------------- servers

running() { as_server "$BINDIR/pg_ctl" -D "$DATA/$1" status >/dev/null 2>&1; }

port_taken() { (exec 3<>"/dev/tcp/localhost/$1") 2>/dev/null; }

# Looks at all ports before anything is started.
check_ports() {
	local region port wanted seen=,
	for region in "${REGIONS[@]}"; do
		port=$(port_of "$region")
		[[ $port =~ ^[1-9][0-9]{3,4}$ && $port -le 65535 ]] ||
			die "RESIDENCY_PORTS must be three port numbers, such as 5501,5502,5503"
		case $seen in *,$port,*) die "port $port is asked for twice in RESIDENCY_PORTS" ;; esac
		seen=$seen$port,
		if [ ! -d "$DATA/$region" ] || ! running "$region"; then
			! port_taken "$port" || die "port $port, wanted for $region, is in use by another program" \
				"Stop that program, or choose other ports: RESIDENCY_PORTS=5601,5602,5603 ./init.sh migrate"
		fi
	done
	if [ -n "${RESIDENCY_PORTS:-}" ]; then
		wanted=,$RESIDENCY_PORTS,
		[ "$wanted" = "$seen" ] || die "the regions are set up on ports${seen//,/ }already" \
			"Unset RESIDENCY_PORTS, or start anew: ./init.sh destroy"
	fi
}

random_password() { od -An -N18 -tx1 /dev/urandom | tr -d ' \n'; }

# Directory, mark and passwords.  The directory admits the servers' user and root only,
# which is what makes the trust on its sockets sound.
make_data() {
	if [ ! -e "$MARK" ]; then
		step "making $DATA"
		mkdir -p "$DATA" "$SOCKETS" "$DATA/log"
		chmod 700 "$DATA"
		: >"$MARK"
	fi
	mkdir -p "$SOCKETS" "$DATA/log"
	if [ ! -s "$PASSFILE" ]; then
		(umask 077 && printf '%s\n' "*:*:*:postgres:${RESIDENCY_PASSWORD:-$(random_password)}" \
			"*:*:*:$OWNER:${RESIDENCY_PASSWORD:-$(random_password)}" >"$PASSFILE.new")
		mv "$PASSFILE.new" "$PASSFILE"
	fi
	[ "$(id -u)" -ne 0 ] || chown postgres: "$DATA" "$SOCKETS" "$DATA/log" "$PASSFILE" "$MARK"
	[ "$(printf '%s' "$SOCKETS/.s.PGSQL.65535" | wc -c)" -le 107 ] ||
		die "$DATA is too long for the sockets in it" "Choose a shorter one: RESIDENCY_DATA=/some/directory"
}

password_of() { sed -n "s/^\*:\*:\*:$1://p" "$PASSFILE"; }

server_settings() {
	cat <<-CONF
		# written by init.sh
		cluster_name = '$1'
		port = $2
		listen_addresses = '${RESIDENCY_LISTEN:-localhost}'
		unix_socket_directories = '$SOCKETS'

		# what the extension needs
		shared_preload_libraries = 'residency'
		max_prepared_transactions = 300

		# a failing statement's text can hold personal data: keep it out of the log
		log_min_error_statement = panic
		log_parameter_max_length_on_error = 0
		log_line_prefix = '%m [%p] %q%u@%d '
	CONF
}

client_rules() {
	cat <<-HBA
		# written by init.sh
		# TYPE DATABASE USER ADDRESS METHOD
		# The sockets are in a directory that only the servers' user and root may enter.
		local  all  all                trust
		# Clients, and the other regions, which log in as their gateway role here.
		host   all  all  127.0.0.1/32  scram-sha-256
		host   all  all  ::1/128       scram-sha-256
		${RESIDENCY_HBA:-}
	HBA
}

make_cluster() {
	local region=$1 port new=$DATA/$1.new lines
	[ ! -d "$DATA/$region" ] || return 0
	port=$(port_of "$region")
	step "$region: making a server on port $port"
	rm -rf "$new"
	lines=$DATA/log/initdb.log
	(umask 077 && password_of postgres >"$DATA/pw.new")
	[ "$(id -u)" -ne 0 ] || chown postgres: "$DATA/pw.new"
	if ! as_server "$BINDIR/initdb" -D "$new" -U postgres --pwfile="$DATA/pw.new" -E UTF8 --locale=C.UTF-8 \
		--auth=scram-sha-256 >"$lines" 2>&1; then
		tail -n 15 "$lines" >&2
		rm -rf "$new" "$DATA/pw.new"
		die "initdb failed for region $region" "Its last words are above."
	fi
	rm -f "$DATA/pw.new"
	server_settings "$region" "$port" >"$new/residency.conf"
	client_rules >"$new/pg_hba.conf"
	echo "include 'residency.conf'" >>"$new/postgresql.conf"
	[ "$(id -u)" -ne 0 ] || chown postgres: "$new/residency.conf"
	mv "$new" "$DATA/$region"
}

start_region() {
	local region=$1
	! running "$region" || return 0
	step "$region: starting"
	# fd 9 is init.sh's lock, which the server must not keep
	if ! as_server "$BINDIR/pg_ctl" -D "$DATA/$region" -l "$DATA/log/$region.log" -w -t 120 start \
		>/dev/null 2>&1 </dev/null 9>&-; then
		tail -n 10 "$DATA/log/$region.log" >&2 || true
		die "region $region did not start" "The end of $DATA/log/$region.log is above."
	fi
}

stop_region() {
	running "$1" || return 0
	step "$1: stopping"
	as_server "$BINDIR/pg_ctl" -D "$DATA/$1" -m fast -w -t 120 stop >/dev/null ||
		die "region $1 did not stop" "See $DATA/log/$1.log."
}

# ---------------------------------------------------------------- contents

# "host=... port=..." of a region.  RESIDENCY_HOSTS, a list like RESIDENCY_PORTS, is
# set where the regions are other machines: in docker-compose.yml.
host_of() {
	local i hosts
	if [ -z "${RESIDENCY_HOSTS:-}" ]; then
		printf 'host=localhost port=%s' "$(port_of "$1")"
		return
	fi
	IFS=, read -r -a hosts <<<"$RESIDENCY_HOSTS"
	for i in "${!REGIONS[@]}"; do
		[ "${REGIONS[$i]}" != "$1" ] || printf 'host=%s port=%s' "${hosts[$i]%:*}" "${hosts[$i]##*:}"
	done
}

# How the other regions reach a region's database.
address_of() { printf '%s dbname=%s' "$(host_of "$1")" "$DATABASE"; }

# psql as the superuser of one region.
admin() {
	local region=$1 database=$2
	shift 2
	if [ -n "${RESIDENCY_HOSTS:-}" ]; then
		PGPASSFILE=$PASSFILE "$BINDIR/psql" -X -q -v ON_ERROR_STOP=1 \
			"$(host_of "$region") user=postgres dbname=$database" "$@"
	else
		as_server "$BINDIR/psql" -X -q -v ON_ERROR_STOP=1 -h "$SOCKETS" -p "$(port_of "$region")" \
			-U postgres -d "$database" "$@"
	fi
}

ask() { admin "$1" "$2" -A -t -c "$3"; }

make_database() {
	local region=$1
	if [ -z "$(ask "$region" postgres "SELECT 1 FROM pg_roles WHERE rolname = '$OWNER'")" ]; then
		step "$region: making role $OWNER"
		admin "$region" postgres <<<"CREATE ROLE $OWNER LOGIN PASSWORD '$(password_of "$OWNER")'"
	fi
	if [ -z "$(ask "$region" postgres "SELECT 1 FROM pg_database WHERE datname = '$DATABASE'")" ]; then
		step "$region: making database $DATABASE"
		ask "$region" postgres "CREATE DATABASE $DATABASE OWNER $OWNER"
	fi
	if [ -z "$(ask "$region" "$DATABASE" "SELECT 1 FROM pg_extension WHERE extname = 'residency'")" ]; then
		step "$region: making the extension"
		ask "$region" "$DATABASE" "CREATE EXTENSION residency"
	fi
}

join_regions() {
	local first=${REGIONS[0]} region
	if [ -z "$(ask "$first" "$DATABASE" "SELECT 1 FROM residency.self")" ]; then
		step "$first: becoming a region"
		ask "$first" "$DATABASE" "SELECT residency.init('$first', '$(address_of "$first")')" >/dev/null
	fi
	for region in "${REGIONS[@]:1}"; do
		if [ -z "$(ask "$first" "$DATABASE" "SELECT 1 FROM residency.regions WHERE name = '$region'")" ]; then
			step "$region: joining"
			ask "$first" "$DATABASE" \
				"SELECT residency.add_region('$region', '$(address_of "$region") user=postgres passfile=$PASSFILE')" \
				>/dev/null
		fi
	done
}

apply_example() {
	local first=${REGIONS[0]}
	if [ "$(ask "$first" "$DATABASE" "SELECT to_regproc('util.create_manager_tree') IS NOT NULL")" != t ]; then
		step "applying examples/identity"
		admin "$first" "$DATABASE" -f - <"$ROOT/examples/identity/schema.sql" >/dev/null
	fi
}

# ---------------------------------------------------------------- commands

migrate() {
	local region
	check_data
	install_packages
	if find_postgres; then check_ports; fi
	make_data
	exec 9>"$DATA/lock"
	flock -n 9 || die "another init.sh is at work in $DATA" "Wait for it to end."
	build
	check_ports
	for region in "${REGIONS[@]}"; do make_cluster "$region"; done
	for region in "${REGIONS[@]}"; do start_region "$region"; done
	for region in "${REGIONS[@]}"; do make_database "$region"; done
	join_regions
	apply_example
	STEP=
	[ "$CHANGED" -eq 1 ] || say "Everything is in place; nothing was changed."
	say "" "Connect as the example's owner, $OWNER:"
	for region in "${REGIONS[@]}"; do say "  ./init.sh psql $region"; done
	say "or with any client, the password being the last field of $PASSFILE's line for $OWNER:"
	for region in "${REGIONS[@]}"; do say "  $(address_of "$region") user=$OWNER"; done
}

status() {
	local region line missing=0 state
	check_data
	if [ ! -e "$MARK" ] || ! find_postgres; then
		say "Nothing is set up in $DATA. Set it up: ./init.sh migrate"
		return 1
	fi
	printf '%-7s %-6s %-9s %s\n' region port server state
	for region in "${REGIONS[@]}"; do
		if [ ! -d "$DATA/$region" ]; then
			line=absent state="run ./init.sh migrate"
		elif ! running "$region"; then
			line=stopped state="run ./init.sh start"
		else
			line=running
			state=$(ask "$region" "$DATABASE" "SELECT 'knows ' || string_agg(name, ', ' ORDER BY number)
				FROM residency.regions" 2>/dev/null) || state=
			[ -n "$state" ] || state="not joined; run ./init.sh migrate"
		fi
		case $state in knows*) ;; *) missing=1 ;; esac
		printf '%-7s %-6s %-9s %s\n' "$region" "$(port_of "$region")" "$line" "$state"
	done
	return "$missing"
}

start() {
	local region
	need_setup
	check_ports
	for region in "${REGIONS[@]}"; do
		[ -d "$DATA/$region" ] || die "region $region was never made" "Run ./init.sh migrate."
		start_region "$region"
	done
	STEP=
	[ "$CHANGED" -eq 1 ] || say "All three servers are running already."
}

stop() {
	local region
	need_setup
	for region in "${REGIONS[@]}"; do
		if [ -d "$DATA/$region" ]; then stop_region "$region"; fi
	done
	STEP=
	[ "$CHANGED" -eq 1 ] || say "No server is running."
}

destroy() {
	local region
	check_data
	[ -e "$MARK" ] || die "nothing is set up in $DATA"
	if find_postgres; then
		for region in "${REGIONS[@]}"; do
			if [ -d "$DATA/$region" ]; then stop_region "$region"; fi
		done
	fi
	step "removing $DATA"
	rm -rf "$DATA"
	STEP=
}

client() {
	local region=${1:-}
	[ -n "$region" ] || die "psql of which region?" "Usage: ./init.sh psql REGION [ARGUMENT ...], REGION one of: ${REGIONS[*]}"
	is_region "$region" || die "there is no region \"$region\"" "Regions: ${REGIONS[*]}"
	shift
	need_setup
	[ -d "$DATA/$region" ] || die "region $region was never made" "Run ./init.sh migrate."
	running "$region" || die "region $region is not running" "Run ./init.sh start."
	exec "$BINDIR/psql" -h "$SOCKETS" -p "$(port_of "$region")" -U "$OWNER" -d "$DATABASE" "$@"
}

# The two halves of migrate for docker-compose.yml, where each server is a container
# of its own: one region's server in the foreground, and what joins them all.
serve() {
	is_region "${1:-}" || die "serve which region?" "Regions: ${REGIONS[*]}"
	find_postgres || die "PostgreSQL 15 was not found"
	make_data
	make_cluster "$1"
	exec "$BINDIR/postgres" -D "$DATA/$1"
}

join() {
	local region tries
	find_postgres || die "PostgreSQL 15 was not found"
	make_data
	for region in "${REGIONS[@]}"; do
		STEP="waiting for $region"
		for ((tries = 0; ; tries++)); do
			! ask "$region" postgres 'SELECT 1' >/dev/null 2>&1 || break
			[ "$tries" -lt 60 ] || die "region $region does not answer" "$(ask "$region" postgres 'SELECT 1' 2>&1)"
			sleep 1
		done
	done
	CHANGED=0
	for region in "${REGIONS[@]}"; do make_database "$region"; done
	join_regions
	apply_example
	STEP=
	[ "$CHANGED" -eq 1 ] || say "Everything is in place; nothing was changed."
}

usage() { sed -n '3,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

COMMAND=${1:-help}
shift || true
case $COMMAND in
migrate | status | start | stop | destroy)
	[ $# -eq 0 ] || die "$COMMAND takes no argument"
	"$COMMAND" ;;
psql) client "$@" ;;
serve | join) "$COMMAND" "$@" ;;
help | -h | --help) usage ;;
*)
	printf 'init.sh: unknown command "%s"\n\n' "$COMMAND" >&2
	usage >&2
	exit 3 ;;
esac
