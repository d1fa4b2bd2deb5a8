# Shared by the scripts here: places, messages, the account that runs servers.
# shellcheck shell=bash

set -euo pipefail
# What root builds, the account must be able to read.
umask 022
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$top/build
JOBS=${JOBS:-$(nproc)}
CARGO=${CARGO:-cargo}
# One for all: crates that the server, pgr and tests share are compiled once a profile.
export CARGO_TARGET_DIR=$build/target
# PostgreSQL's Makefiles make the generated headers only at the top level of make.
unset MAKELEVEL MAKEFLAGS MFLAGS MAKEOVERRIDES

say() { printf '\033[1m%s\033[0m\n' "== $*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# shellcheck source=../pg-patches/UPSTREAM
. "$top/pg-patches/UPSTREAM"

# Identifies series and release; a server links only a library with the same.
patchset() {
	(cd "$top/pg-patches" && { cat UPSTREAM series; while read -r p; do cat "$p"; done <series; }) |
		sha256sum | cut -c1-16
}

# PostgreSQL refuses to run as root: who runs it then.
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

# The folder of the source and object trees: build/, unless the checkout lies below a folder that is
# closed to the account (root's home), which runs PostgreSQL's suites in them.
tree_folder() {
	mkdir -p "$build"
	if as_account test -x "$build"; then echo "$build"; return; fi
	local folder
	folder=/var/tmp/postgres-r-$(sha256sum <<<"$top" | cut -c1-12)
	mkdir -p "$folder"
	# Anybody may make folders there: take only our own.
	[ -O "$folder" ] && [ ! -L "$folder" ] || die "$folder belongs to somebody else"
	echo "$folder"
}
trees=$(tree_folder)

# The prefix of an installation that the account can use; `test` and `tests/build` make it.
temp_install() { echo "$trees/obj-$1/tmp_install$build/$1"; }
