//! The border between Rust and PostgreSQL's errors, in both directions.
//!
//! PostgreSQL raises errors with longjmp, which must never cross a Rust frame; Rust panics, which
//! must never unwind into C. So a call *into* PostgreSQL that can raise goes through a function of
//! the shim and comes back as a [`Result`] ([`call`]), and every function that PostgreSQL calls is
//! wrapped in [`boundary`], which raises only after all that Rust owned is gone.

use super::sys;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

/// An error on its way to the client.
#[derive(Debug)]
pub enum PgError {
    /// PostgreSQL's own, caught by the shim and raised again as it was. It lies in the memory
    /// context that was current at the call.
    Caught(Caught),
    /// Made here.
    Raised(Box<Raised>),
}

/// A copy of an `ErrorData`.
pub struct Caught(*mut sys::ErrorData);

/// An error made in Rust.
#[derive(Debug, Clone)]
pub struct Raised {
    /// Five characters.
    pub sqlstate: &'static str,
    /// What failed, on which object.
    pub message: String,
    /// The objects by name.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// What may fail with an error of PostgreSQL's or ours.
pub type Result<T> = std::result::Result<T, PgError>;

unsafe extern "C" {
    fn pgr_shim_throw(
        sqlstate: *const c_char,
        message: *const c_char,
        detail: *const c_char,
        hint: *const c_char,
    ) -> !;
    fn pgr_shim_rethrow(edata: *mut sys::ErrorData) -> !;
    fn pgr_shim_check_interrupts(edata: *mut *mut sys::ErrorData) -> c_int;
}

impl PgError {
    /// One that the shim has caught and dealt with.
    ///
    /// # Safety
    /// An `ErrorData` that lives as long as this is used.
    pub(super) unsafe fn caught(edata: *mut sys::ErrorData) -> PgError {
        PgError::Caught(Caught(edata))
    }

    /// An error with a message only.
    #[must_use]
    pub fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        assert!(sqlstate.len() == 5, "an SQLSTATE has five characters");
        PgError::Raised(Box::new(Raised {
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
        }))
    }

    /// Adds a DETAIL to an error of ours.
    #[must_use]
    pub fn detail(mut self, text: impl Into<String>) -> Self {
        if let PgError::Raised(raised) = &mut self {
            raised.detail = Some(text.into());
        }
        self
    }

    /// Adds a HINT to an error of ours.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        if let PgError::Raised(raised) = &mut self {
            raised.hint = Some(text.into());
        }
        self
    }

    /// The SQLSTATE.
    #[must_use]
    pub fn sqlstate(&self) -> String {
        match self {
            PgError::Raised(raised) => raised.sqlstate.to_owned(),
            PgError::Caught(caught) => {
                // SAFETY: the shim filled it in, and it lives as long as its memory context, in
                // which the caller still is.
                let mut code = unsafe { (*caught.0).sqlerrcode };
                (0..5)
                    .map(|_| {
                        // MAKE_SQLSTATE: six bits a character, from '0' (elog.h).
                        let c = char::from((code & 0x3f) as u8 + b'0');
                        code >>= 6;
                        c
                    })
                    .collect()
            }
        }
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            PgError::Raised(raised) => raised.message.clone(),
            PgError::Caught(caught) => {
                // SAFETY: as in `sqlstate`; the message is a C string or null.
                let message = unsafe { (*caught.0).message };
                if message.is_null() {
                    return String::new();
                }
                // SAFETY: not null, see above.
                unsafe { CStr::from_ptr(message) }
                    .to_string_lossy()
                    .into_owned()
            }
        }
    }
}

impl fmt::Display for PgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message(), self.sqlstate())
    }
}

impl fmt::Debug for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caught")
    }
}

/// Calls a shim function, which returns 0 and leaves its answer in `out`, or else leaves an error.
///
/// `init` is the answer's place; only what is `Copy` crosses the border.
pub fn call<T: Copy>(
    init: T,
    shim: impl FnOnce(*mut T, *mut *mut sys::ErrorData) -> c_int,
) -> Result<T> {
    let mut out = init;
    let mut edata: *mut sys::ErrorData = ptr::null_mut();
    if shim(&raw mut out, &raw mut edata) == 0 {
        Ok(out)
    } else {
        Err(PgError::Caught(Caught(edata)))
    }
}

/// Calls a shim function that has no answer.
pub fn call0(shim: impl FnOnce(*mut *mut sys::ErrorData) -> c_int) -> Result<()> {
    call((), |_, edata| shim(edata))
}

/// CHECK_FOR_INTERRUPTS: cancel, termination and whatever else wants this process.
pub fn check_interrupts() -> Result<()> {
    // SAFETY: the shim has no other precondition than running in a process of the server.
    call0(|e| unsafe { pgr_shim_check_interrupts(e) })
}

/// Body of a function that PostgreSQL calls. An error or a panic of `body` is raised as an error
/// (in a critical section PostgreSQL makes that a PANIC) once nothing of Rust is left on the stack.
pub fn boundary<T: Copy>(body: impl FnOnce() -> Result<T>) -> T {
    match run(body) {
        Outcome::Done(value) => value,
        // From here only Copy data is alive.
        // SAFETY: the pointers were made by `run` for this, once.
        Outcome::Throw(c) => unsafe { pgr_shim_throw(c.sqlstate, c.message, c.detail, c.hint) },
        // SAFETY: the shim's guard made the ErrorData.
        Outcome::Rethrow(edata) => unsafe { pgr_shim_rethrow(edata) },
    }
}

/// The same where PostgreSQL can't bear an error: after the commit point. What fails there ends in
/// a crash restart, from which recovery brings the server back to the group's history.
pub fn boundary_nofail<T: Copy>(body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(panic) => {
            eprintln!("PANIC:  postgres_r: {}", panic_text(panic.as_ref()));
            std::process::abort()
        }
    }
}

#[derive(Clone, Copy)]
struct Throw {
    sqlstate: *const c_char,
    message: *const c_char,
    detail: *const c_char,
    hint: *const c_char,
}

#[derive(Clone, Copy)]
enum Outcome<T: Copy> {
    Done(T),
    Throw(Throw),
    Rethrow(*mut sys::ErrorData),
}

#[inline(never)]
fn run<T: Copy>(body: impl FnOnce() -> Result<T>) -> Outcome<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => Outcome::Done(value),
        Ok(Err(PgError::Caught(caught))) => Outcome::Rethrow(caught.0),
        Ok(Err(PgError::Raised(raised))) => Outcome::Throw(into_c(*raised)),
        Err(panic) => Outcome::Throw(into_c(Raised {
            sqlstate: "XX000",
            message: format!("postgres_r panicked: {}", panic_text(panic.as_ref())),
            detail: None,
            hint: None,
        })),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".to_owned())
}

/// Strings for `pgr_shim_throw`, which frees them: made by malloc, as C wants.
fn into_c(raised: Raised) -> Throw {
    fn text(s: &str) -> *const c_char {
        let c = CString::new(s.replace('\0', "?")).expect("no NUL is left");
        // SAFETY: strdup copies a valid C string; null (out of memory) is an answer that the shim
        // takes for "none", but for the SQLSTATE and the message.
        let copy = unsafe { libc::strdup(c.as_ptr()) };
        assert!(!copy.is_null(), "out of memory");
        copy
    }
    Throw {
        sqlstate: text(raised.sqlstate),
        message: text(&raised.message),
        detail: raised.detail.as_deref().map_or(ptr::null(), text),
        hint: raised.hint.as_deref().map_or(ptr::null(), text),
    }
}

/// An SQLSTATE as `MAKE_SQLSTATE` packs it.
#[must_use]
pub const fn pack_sqlstate(sqlstate: &str) -> u32 {
    let (bytes, mut packed) = (sqlstate.as_bytes(), 0);
    let mut at = bytes.len();
    while at > 0 {
        at -= 1;
        packed = packed << 6 | (bytes[at].wrapping_sub(b'0') & 0x3f) as u32;
    }
    packed
}

/// Panics are reported by [`boundary`]; the default hook's symbolised backtrace costs 0.2 s each.
/// Call once a process.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        if let Some(at) = info.location() {
            eprintln!("postgres_r: panic at {at}");
        }
    }));
}
