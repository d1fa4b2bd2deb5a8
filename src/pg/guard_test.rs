//! Plants errors and panics on both sides of the border, for `tests/build/guards.sh`.
//!
//! The SQL function in front of this, `postgres_r_test_guard(text)`, is in the catalog of every
//! build, so that a data directory can move between a build with assertions and one without. Only
//! superusers may call it, since it can take the server down, and only builds with assertions do
//! what it is asked for.

use super::guard::{PgError, Result};

/// Does what `what` names; see the cases below.
pub fn run(what: &str) -> Result<String> {
    if cfg!(debug_assertions) {
        planted::run(what)
    } else {
        Err(PgError::new(
            "0A000",
            "the guards can be tested only in a build with assertions",
        ))
    }
}

mod planted {
    use super::super::guard::{self, PgError, Result};
    use super::super::sys;
    use std::ffi::{c_int, c_void};
    use std::ptr;
    use std::sync::atomic::{AtomicU32, Ordering};

    unsafe extern "C" {
        fn pgr_shim_call(
            function: extern "C" fn(*mut c_void),
            argument: *mut c_void,
            edata: *mut *mut sys::ErrorData,
        ) -> c_int;
        fn pgr_shim_test_raise(edata: *mut *mut sys::ErrorData) -> c_int;
    }

    /// Values with a destructor that are alive in this process; 0 between two calls.
    static ALIVE: AtomicU32 = AtomicU32::new(0);

    struct Alive;

    impl Alive {
        fn new() -> Alive {
            ALIVE.fetch_add(1, Ordering::Relaxed);
            Alive
        }
    }

    impl Drop for Alive {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub fn run(what: &str) -> Result<String> {
        if what == "alive" {
            return Ok(ALIVE.load(Ordering::Relaxed).to_string());
        }
        let _alive = Alive::new();
        match what {
            "panic" => panic!("planted panic"),
            "error" => Err(PgError::new("22023", "planted error")
                .detail("planted detail")
                .hint("planted hint")),
            // Swallowing the error is sound only because raising it is all that the shim does.
            "caught" => match raise() {
                Err(error) => Ok(format!("caught {error}")),
                Ok(()) => Ok("nothing was raised".to_owned()),
            },
            "raised again" => raise().map(|()| "nothing was raised".to_owned()),
            // Rust, C, Rust that panics: it comes back through both guards.
            "nested" => {
                // SAFETY: the function owns nothing; its boundary raises in C.
                guard::call0(|e| unsafe { pgr_shim_call(panics, ptr::null_mut(), e) })
                    .map(|()| "nothing was raised".to_owned())
            }
            "log" => {
                tracing::subscriber::with_default(super::super::elog::ToLog, || {
                    tracing::info!(number = 42, "planted event");
                });
                Ok("logged".to_owned())
            }
            "critical section" => {
                // SAFETY: a variable of this process; what follows ends it.
                unsafe { sys::CritSectionCount += 1 };
                panic!("planted panic in a critical section")
            }
            "after the commit point" => {
                guard::boundary_nofail::<()>(|| panic!("planted panic after the commit point"));
                Ok("it went on".to_owned())
            }
            other => Err(PgError::new(
                "22023",
                format!("nothing to do for \"{other}\""),
            )),
        }
    }

    fn raise() -> Result<()> {
        let _alive = Alive::new();
        // SAFETY: the shim raises and catches, and touches nothing else.
        guard::call0(|e| unsafe { pgr_shim_test_raise(e) })
    }

    extern "C" fn panics(_: *mut c_void) {
        guard::boundary(|| -> Result<()> {
            let _alive = Alive::new();
            panic!("planted inner panic")
        });
    }
}
