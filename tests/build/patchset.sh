#!/usr/bin/env bash
# A library of another patch set must not be linked.
. "$(dirname "$0")/lib/tap.sh"
objects=$trees/obj-check
archive=$objects/src/backend/libpostgres_r.a
set=$(patchset)

# Links the server with an archive, beside the one of the tree.
linked() { # archive
	rm -f "$objects/src/backend/postgres"
	make -s -C "$objects/src/backend" PGR_LIB="$1" postgres
}
kept=$work/postgres
cp -p "$objects/src/backend/postgres" "$kept"
at_exit+=("cp -p $kept $objects/src/backend/postgres")

carries() { nm "$archive" 2>/dev/null | grep " pgr_patchset_$set\$" >"$work/log"; }
check "the library carries the patch set" carries

mkdir "$work/same" "$work/other"
cp "$archive" "$work/same/libpostgres_r.a"
links() { linked "$work/same/libpostgres_r.a" >"$work/log" 2>&1; }
check "a copy of the library is linked" links

objcopy --redefine-sym "pgr_patchset_$set=pgr_patchset_0123456789abcdef" "$archive" "$work/other/libpostgres_r.a"
check "a library of another patch set is not linked" \
	refused "pgr_patchset_$set" linked "$work/other/libpostgres_r.a"
