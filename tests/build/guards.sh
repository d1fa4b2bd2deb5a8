#!/usr/bin/env bash
# Errors and panics at the border between Rust and PostgreSQL, on a running server.
. "$(dirname "$0")/lib/tap.sh"
installed=$(temp_install check)
[ -x "$installed/bin/postgres" ] || die "there is no server in $installed: run \`make test\`"
data=$work/data
mkdir "$data"
[ "$(id -u)" -ne 0 ] || chown "$(account)" "$data"
run() { (cd "$data" && as_account env -u PGDATABASE -u PGOPTIONS LC_ALL=C.UTF-8 LD_LIBRARY_PATH="$installed/lib" "$installed/bin/$1" "${@:2}"); }

run initdb -D "$data/pg" -U postgres --auth trust --no-sync >"$work/log" 2>&1 || { cat "$work/log"; die "initdb failed"; }
# A crash restart is part of the test, and only a socket is needed.
cat >>"$data/pg/postgresql.conf" <<X
listen_addresses = ''
unix_socket_directories = '$data'
fsync = off
restart_after_crash = on
X
run pg_ctl -D "$data/pg" -l "$data/server.log" -w start >"$work/log" 2>&1 || { cat "$data/server.log"; die "the server does not start"; }
at_exit+=("stop_server")
stop_server() { run pg_ctl -D "$data/pg" -m immediate stop >/dev/null 2>&1; }

# Statements in one session; errors are shown in full, and the session goes on. What was said counts.
session() {
	run psql -X -A -t -q -h "$data" -U "${USER_NAME:-postgres}" -d postgres -v VERBOSITY=verbose "$@" >"$work/log" 2>&1 || true
}
said() { grep -qE -- "$1" "$work/log"; }
guard() { echo "SELECT postgres_r_test_guard('$1');"; }
# A session that plants something, and then must still work with nothing left alive.
plant() { session -c "$(guard "$1")" -c "$(guard alive)" -c "SELECT 'the session goes on'"; }
survived() { said '^0$' && said '^the session goes on$'; }

session -c "SELECT postgres_r_version()"
check "the version names release, patch set and server" said "^Postgres-R [0-9.]+, patch set $(patchset), PostgreSQL $UPSTREAM_VERSION\$"

plant panic
check "a panic is an ERROR in the client" said 'ERROR:  XX000: postgres_r panicked: planted panic'
check "and the session goes on, every destructor run" survived
plant error
check "an error of Rust's reaches the client" said 'ERROR:  22023: planted error'
check "with its detail" said 'DETAIL:  planted detail$'
check "and its hint" said 'HINT:  planted hint'
check "and the session goes on, every destructor run" survived
plant caught
check "an error of PostgreSQL's comes back as a Result" said '^caught planted division by zero \(22012\)$'
check "and the session goes on, every destructor run" survived
plant "raised again"
check "and can be raised again as it was" said 'ERROR:  22012: planted division by zero'
check "with its detail" said 'DETAIL:  planted detail of the server'
check "and its place in the source" said 'LOCATION:  pgr_shim_test_raise'
check "and the session goes on, every destructor run" survived
plant nested
check "a panic below C below Rust comes through both guards" said 'ERROR:  XX000: postgres_r panicked: planted inner panic'
check "and the session goes on, every destructor run" survived

session -c "BEGIN; CREATE TABLE t (i int); INSERT INTO t VALUES (1)" -c "SAVEPOINT s" -c "INSERT INTO t VALUES (2)" \
	-c "$(guard panic)" -c "ROLLBACK TO s" -c "INSERT INTO t VALUES (3)" -c "COMMIT" -c "SELECT array_agg(i ORDER BY i) FROM t"
check "a panic undoes what an error does, and no more" said '^\{1,3\}$'

for _ in $(seq 1000); do guard panic; guard caught; done >"$data/many.sql"
session -f "$data/many.sql" -c "$(guard alive)"
check "a thousand of each leave nothing behind" said '^0$'

session -c "$(guard log)"
check "an event of tracing is in the server's log" grep -q 'LOG:  postgres_r: planted event number=42' "$data/server.log"

session -c "CREATE ROLE mortal LOGIN"
USER_NAME=mortal session -c "$(guard alive)"
check "only superusers may plant" said '42501: permission denied for function postgres_r_test_guard'
USER_NAME=mortal session -c "SELECT postgres_r_version()"
check "everybody may ask for the version" said '^Postgres-R '

# The server restarts by itself: wait until its log says so once more.
starts() { grep -c 'database system is ready to accept connections' "$data/server.log"; }
restarted() { # starts before
	local i
	for ((i = 0; i < 600; i++)); do
		if [ "$(starts)" -gt "$1" ]; then return 0; fi
		sleep 0.1
	done
	return 1
}
crashes() { # what, expression in the log
	local before
	before=$(starts)
	session -c "$(guard "$1")" -c "SELECT 'the session goes on'"
	! said '^the session goes on$' && restarted "$before" && grep -q "$2" "$data/server.log" &&
		session -c "SELECT 'the server is back'" && said '^the server is back$'
}
check "a panic in a critical section is a PANIC of the server" \
	crashes "critical section" 'PANIC:  postgres_r panicked: planted panic in a critical section'
check "a panic after the commit point ends in a crash restart" \
	crashes "after the commit point" 'PANIC:  postgres_r: planted panic after the commit point'
