//! Sequences, as sequence.c uses them.

use crate::pg::guard::boundary;
use crate::pg::relation::Handle;
use crate::pg::sys;
use crate::sequence::range::State;
use crate::sequence::session;

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_nextval(rel: sys::Relation) -> i64 {
    // SAFETY: open as long as this call lasts.
    let rel = unsafe { Handle::from_raw(rel) };
    boundary(|| session::nextval(rel))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_setval(rel: sys::Relation, last: i64, called: bool) {
    // SAFETY: open as long as this call lasts.
    let rel = unsafe { Handle::from_raw(rel) };
    boundary(|| session::setval(rel, State { last, called }));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pgr_do_sequence_replaced(rel: sys::Relation) {
    // SAFETY: open as long as this call lasts.
    let rel = unsafe { Handle::from_raw(rel) };
    boundary(|| session::restarted(rel));
}
