//! Codecs on garbage.
