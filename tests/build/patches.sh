#!/usr/bin/env bash
# Keeping the series: what is written back is what was committed, and only with a reason.
. "$(dirname "$0")/lib/tap.sh"
checkout "$work/checkout"
scripts=$work/checkout/scripts
series=$work/checkout/pg-patches
edit=$work/checkout/build/edit
commit() { git -C "$edit" -c user.name=Test -c user.email=test@localhost commit -q -a "$@" >>"$work/log" 2>&1; }
logged() { "$@" >"$work/log" 2>&1; }

check "the series opens" logged "$scripts/patches" edit
check "one commit a patch" test "$(git -C "$edit" rev-list --count upstream..HEAD)" = "$(wc -l <"$series/series")"
check "an open series is not opened again" refused "there already" "$scripts/patches" edit

check "it is written back" logged "$scripts/patches" refresh
check "unchanged" logged diff -r "$top/pg-patches" "$series"

echo "one more line" >>"$edit/HISTORY"
check "what is not committed is not written back" refused "not committed" "$scripts/patches" refresh
commit -m "Say more in HISTORY"
check "a patch without its reasons is not written back" refused "no line that starts with" "$scripts/patches" refresh
check "and the series stays as it was" logged diff -r "$top/pg-patches" "$series"

commit --amend -m "Say more in HISTORY, in a subject longer than any file's name should be

What: a line.

Why no existing hook serves: this is a test.

How to get rid of it: at once."
before=$(. "$scripts/lib.sh" && patchset)
check "one with them is" logged "$scripts/patches" refresh
check "as the last" test "$(tail -n 1 "$series/series")" = say-more-in-history-in-a-subject-longer-than-any.patch
check "and makes another patch set" test "$before" != "$(. "$scripts/lib.sh" && patchset)"
check "a round trip of it changes nothing" logged "$scripts/patches" check

echo "trailing" >>"$series/$(tail -n 1 "$series/series")"
check "a patch that was changed by hand is found" refused "round trip changes" "$scripts/patches" check
