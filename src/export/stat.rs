//! The functions behind the statistics views.

use crate::pg::guard::boundary;
use crate::pg::{stat, sys};

#[unsafe(no_mangle)]
extern "C" fn pg_stat_get_replication_group(call: sys::FunctionCallInfo) -> sys::Datum {
    boundary(|| stat::group(call))
}

#[unsafe(no_mangle)]
extern "C" fn pg_stat_get_replication_members(call: sys::FunctionCallInfo) -> sys::Datum {
    boundary(|| stat::members(call))
}
