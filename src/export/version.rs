//! SQL functions about the library itself.

use crate::pg::guard::boundary;
use crate::pg::{guard_test, sys, text, version};

#[unsafe(no_mangle)]
extern "C" fn postgres_r_version(_call: sys::FunctionCallInfo) -> sys::Datum {
    boundary(|| text::datum(&version::text()))
}

#[unsafe(no_mangle)]
extern "C" fn postgres_r_test_guard(call: sys::FunctionCallInfo) -> sys::Datum {
    boundary(|| {
        // SAFETY: `call` comes from PostgreSQL, as it is.
        let what = unsafe { text::argument(call, 0) }?;
        text::datum(&guard_test::run(&what)?)
    })
}
