#!/usr/bin/env bash
# A library of another patch set must not be linked.
. "$(dirname "$0")/../../scripts/lib.sh"
objects=$build/obj-check
set=$(patchset)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$build/check/bin/postgres" --version | grep -q "PostgreSQL" || die "no server in build/check"
nm "$objects/src/backend/libpostgres_r.a" 2>/dev/null | grep -q "pgr_patchset_$set" || die "the library does not carry its patch set"

objcopy --redefine-sym "pgr_patchset_$set=pgr_patchset_0123456789abcdef" "$objects/src/backend/libpostgres_r.a" "$work/libpostgres_r.a"
cp -p "$objects/src/backend/postgres" "$work/postgres"
if make -s -C "$objects/src/backend" -o "$work/libpostgres_r.a" PGR_LIB="$work/libpostgres_r.a" postgres >"$work/log" 2>&1; then
	failed=0
else
	failed=1
fi
cp -p "$work/postgres" "$objects/src/backend/postgres"
[ "$failed" -eq 1 ] || die "an archive of another patch set was linked"
grep -q "pgr_patchset_$set" "$work/log" || { cat "$work/log"; die "the link failed for another reason"; }

# A damaged or foreign source is an error.
echo no >"$work/tarball"
if POSTGRES_TARBALL=$work/tarball "$top/scripts/fetch-pg" "$work/tree" >"$work/log" 2>&1; then die "a wrong tarball was taken"; fi
grep -q SHA-256 "$work/log" || { cat "$work/log"; die "a wrong tarball was refused for another reason"; }
