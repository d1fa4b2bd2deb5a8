# Shared by the scripts here: places, messages, the unprivileged account, counting of tests.

set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$top/build
JOBS=${JOBS:-$(nproc)}
CARGO=${CARGO:-cargo}

say() { printf '\033[1m%s\033[0m\n' "== $*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# shellcheck disable=SC1091
. "$top/pg-patches/UPSTREAM"

# Identifies series and release; the library and the server are linked only if theirs are equal.
patchset() {
	(cd "$top/pg-patches" && { cat UPSTREAM series; while read -r p; do cat "$p"; done <series; }) |
		sha256sum | cut -c1-16
}

# Runs a command as somebody who may run PostgreSQL.
account() {
	if [ "$(id -u)" -ne 0 ]; then id -un; return; fi
	if [ -n "${PGR_USER:-}" ]; then echo "$PGR_USER"; return; fi
	if id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}
as_account() {
	if [ "$(id -u)" -eq 0 ]; then
		setpriv --reuid "$(account)" --regid "$(id -g "$(account)")" --clear-groups "$@"
	else
		"$@"
	fi
}
