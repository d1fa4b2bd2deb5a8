//! Damage to segments.
