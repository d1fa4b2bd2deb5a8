//! NOTIFY: what other members' listeners are told as well.

use super::transaction;
use crate::pg::guard::Result;
use std::ffi::CStr;

/// One of the notifications of the transaction, when there will be no more of them: duplicates and
/// what was rolled back are left out.
pub fn notify(channel: &CStr, payload: &CStr) -> Result<()> {
    transaction::enter()?;
    transaction::append(|builder| builder.notify(channel, payload))
}
