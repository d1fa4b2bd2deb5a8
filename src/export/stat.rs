//! The functions behind the statistics views.

use crate::pg::guard::boundary;
use crate::pg::{stat, sys};

#[unsafe(no_mangle)]
unsafe extern "C" fn pg_stat_get_replication_group(call: sys::FunctionCallInfo) -> sys::Datum {
    // SAFETY: as PostgreSQL called it.
    boundary(|| unsafe { stat::group(call) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pg_stat_get_replication_members(call: sys::FunctionCallInfo) -> sys::Datum {
    // SAFETY: as PostgreSQL called it.
    boundary(|| unsafe { stat::members(call) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pg_stat_get_replication_open_transactions(
    call: sys::FunctionCallInfo,
) -> sys::Datum {
    // SAFETY: as PostgreSQL called it.
    boundary(|| unsafe { stat::open_transactions(call) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pg_stat_get_replication_conflicts(call: sys::FunctionCallInfo) -> sys::Datum {
    // SAFETY: as PostgreSQL called it.
    boundary(|| unsafe { stat::conflicts(call) })
}
