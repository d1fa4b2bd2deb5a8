#!/usr/bin/env bash
# Where the source comes from: the order, and that nothing wrong is taken.
. "$(dirname "$0")/lib/tap.sh"
export XDG_CACHE_HOME=$work/cache
cache=$XDG_CACHE_HOME/postgres-r
name=postgresql-$UPSTREAM_VERSION.tar.bz2
checkout "$work/checkout"
into=$work/tree

# A small tarball stands for PostgreSQL's, so that each way can be tested without a network.
mkdir "$work/pristine"
echo content >"$work/pristine/COPYRIGHT"
tar -cjf "$work/$name" -C "$work" pristine
right=$(sha256sum <"$work/$name" | cut -d ' ' -f 1)
sed -i "s/^UPSTREAM_SHA256=.*/UPSTREAM_SHA256=$right/" "$work/checkout/pg-patches/UPSTREAM"
echo wrong >"$work/wrong"

# Commands that stand for the network's: they say that they were called, and give $ANSWER.
mkdir "$work/bin"
cat >"$work/bin/curl" <<'X'
#!/bin/sh
echo "curl was called"
while [ "$1" != -o ]; do shift; done
[ -n "$ANSWER" ] && cp "$ANSWER" "$2"
X
cat >"$work/bin/apt-get" <<'X'
#!/bin/sh
case "$*" in
indextargets*) echo http://mirror.invalid/debian ;;
*" source -qq "*) echo "apt-get was called"; if [ -n "$DEBIAN" ]; then cp "$DEBIAN" ./postgresql_"$VERSION".orig.tar.bz2; fi ;;
esac
X
cat >"$work/bin/apt-cache" <<'X'
#!/bin/sh
echo "postgresql | $VERSION-1 | http://mirror.invalid/debian sid/main Sources"
X
chmod +x "$work"/bin/*
fetch() { # VARIABLE=value…
	rm -rf "$into"
	env PATH="$work/bin:$PATH" POSTGRES_TARBALL= ANSWER= DEBIAN= VERSION="$UPSTREAM_VERSION" "$@" \
		"$work/checkout/scripts/fetch-pg" "$into" >"$work/log" 2>&1
}
fetched() { fetch "$@" && [ "$(cat "$into/COPYRIGHT")" = content ]; }
fails() { # expression, VARIABLE=value…
	local expression=$1
	shift
	! fetch "$@" && grep -qE -- "$expression" "$work/log" && [ ! -e "$into" ]
}
without() { ! grep -q "$1 was called" "$work/log"; }

check "POSTGRES_TARBALL is taken" fetched POSTGRES_TARBALL="$work/$name"
check "and nothing is asked then" without curl
check "a wrong POSTGRES_TARBALL is an error" fails SHA-256 POSTGRES_TARBALL="$work/wrong"
check "a POSTGRES_TARBALL that is not there is an error" fails "there is no" POSTGRES_TARBALL="$work/none"
check "a wrong download is an error" fails SHA-256 ANSWER="$work/wrong"
check "a download that fails leaves Debian's source" fetched DEBIAN="$work/$name"
check "it is in the cache then" test -e "$cache/$name"
check "the cache is taken" fetched
check "and nothing is asked then" without curl
echo wrong >"$cache/$name"
check "a damaged cache is an error" fails "SHA-256.*remove it"
rm "$cache/$name"
check "a download is taken" fetched ANSWER="$work/$name"
check "and Debian is not asked then" without apt-get
rm "$cache/$name"
check "a wrong source of Debian's is an error" fails SHA-256 DEBIAN="$work/wrong"
check "no source at all names POSTGRES_TARBALL" fails "set POSTGRES_TARBALL"
check "nothing half done stays in the cache" test -z "$(ls -A "$cache")"
