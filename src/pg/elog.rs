//! PostgreSQL's log, for what is logged here and for `tracing`.

use super::{guard, sys};
use std::ffi::{CString, c_char, c_int};
use std::fmt::Write as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

unsafe extern "C" {
    fn pgr_shim_log(level: c_int, message: *const c_char, edata: *mut *mut sys::ErrorData)
    -> c_int;
}

/// Writes a message below ERROR. An error while logging is dropped: there is no better place for it.
pub fn log(level: u32, message: &str) {
    assert!(level < sys::ERROR, "errors are returned, not logged");
    let text = CString::new(message.replace('\0', "?")).expect("no NUL is left");
    // SAFETY: `text` is a C string that outlives the call, the level is below ERROR.
    let _ = guard::call0(|e| unsafe { pgr_shim_log(level as c_int, text.as_ptr(), e) });
}

/// Sends `tracing` events of this process to PostgreSQL's log. Only in processes with one thread.
pub fn install_tracing() {
    // Set already after a restart of the coordinator's main loop: it stays.
    let _ = tracing::subscriber::set_global_default(ToLog);
}

/// The subscriber behind [`install_tracing`].
pub(super) struct ToLog;

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

impl Subscriber for ToLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            Level::ERROR | Level::WARN => sys::WARNING,
            Level::INFO => sys::LOG,
            _ => sys::DEBUG1,
        };
        let mut text = Text("postgres_r: ".to_owned());
        event.record(&mut text);
        log(level, &text.0);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
