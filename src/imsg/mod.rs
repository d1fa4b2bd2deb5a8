//! imessages.
