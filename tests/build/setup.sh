#!/usr/bin/env bash
# Who can't install packages is told which are missing.
. "$(dirname "$0")/lib/tap.sh"
checkout "$work/checkout"
mkdir "$work/bin"
printf '#!/bin/sh\nexit 1\n' >"$work/bin/dpkg-query"
cp "$work/bin/dpkg-query" "$work/bin/sudo"
cat >"$work/bin/id" <<'X'
#!/bin/sh
if [ "$1" = -u ]; then echo 4711; else echo somebody; fi
X
cat >"$work/bin/apt-get" <<'X'
#!/bin/sh
echo "apt-get was called"
X
chmod +x "$work"/bin/*
setup() { PATH=$work/bin:$PATH "$work/checkout/scripts/setup"; }

check "an ordinary user is told what is missing" refused "missing.* bison .* libclang-dev " setup
silent() { ! grep -q "apt-get was called" "$work/log"; }
check "and nothing is installed" silent

printf '#!/bin/sh\nif [ "$1" = -n ]; then shift; fi\necho "sudo $*"\n' >"$work/bin/sudo"
asks() { setup >"$work/log" 2>&1 && grep -q "^sudo apt-get update" "$work/log"; }
check "who has sudo has them installed" asks
