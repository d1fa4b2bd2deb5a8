# Shared by the tests of the tooling: each reports "ok - name" or "not ok - name".
# shellcheck shell=bash
. "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/lib.sh"

work=$(mktemp -d)
chmod 755 "$work"
failures=0
at_exit=()
finish() {
	local command
	for command in "${at_exit[@]}"; do $command; done
	rm -rf "$work"
	[ "$failures" -eq 0 ] || exit 1
}
trap finish EXIT

# Is the condition (a command) true? What went wrong is in $work/log.
check() { # name, command…
	local name=$1
	shift
	if "$@"; then
		echo "ok - $name"
	else
		echo "not ok - $name"
		failures=$((failures + 1))
		if [ -e "$work/log" ]; then sed 's/^/# /' "$work/log"; fi
	fi
}

# A command that must fail, and say so: a regular expression in its output.
refused() { # expression, command…
	local expression=$1
	shift
	if "$@" >"$work/log" 2>&1; then
		echo "it was not refused" >>"$work/log"
		return 1
	fi
	grep -qE -- "$expression" "$work/log"
}

# A copy of what the scripts need, to be changed.
checkout() { # folder
	mkdir -p "$1"
	cp -r "$top/scripts" "$top/pg-patches" "$1"
}
