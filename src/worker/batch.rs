//! Messages of the current query that are kept so that it can be run again: a Query, or those of a
//! batch of the extended protocol from its Bind on.
//!
//! What comes before the Bind is done once: a prepared statement outlives the transaction. From there on
//! only such messages are kept as do the same each time and leave nothing behind but by their
//! transaction. Any other spoils the batch, and so does a second statement.

use crate::limits::REPEATED_BYTES_MAX;

/// Types of messages that clients send.
mod kind {
    pub const BIND: u8 = b'B';
    pub const CLOSE: u8 = b'C';
    pub const DESCRIBE: u8 = b'D';
    pub const EXECUTE: u8 = b'E';
    pub const FLUSH: u8 = b'H';
    pub const PARSE: u8 = b'P';
    pub const QUERY: u8 = b'Q';
    pub const SYNC: u8 = b'S';
}

/// How far the batch has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// Nothing that runs.
    #[default]
    Fresh,
    /// A portal.
    Bound,
    /// It was run.
    Executed,
    /// It can't be run again.
    Spoilt,
}

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// It is before what is run again.
    No,
    /// The first of what is run again.
    First,
    /// Another of them.
    More,
    /// With it the batch can't be run again.
    Spoilt,
}

/// The messages, and which of them is read next.
#[derive(Debug, Default)]
pub struct Batch {
    stage: Stage,
    /// One behind the other: type, length of the body (4 bytes), body.
    bytes: Vec<u8>,
    /// Where in the bytes the next to be read again is.
    next: usize,
}

const HEAD_BYTES: usize = 5;
const SMALL_BYTES: usize = 8 << 10;

impl Batch {
    /// None.
    #[must_use]
    pub const fn new() -> Batch {
        Batch {
            stage: Stage::Fresh,
            bytes: Vec::new(),
            next: 0,
        }
    }

    /// Another batch begins.
    pub fn clear(&mut self) {
        self.stage = Stage::Fresh;
        self.drop_bytes();
    }

    /// This one can't be run again.
    pub fn spoil(&mut self) {
        self.stage = Stage::Spoilt;
        self.drop_bytes();
    }

    /// A message was read from the client.
    pub fn keep(&mut self, kind: u8, body: &[u8]) -> Kept {
        let Some(next) = self.after(kind, body) else {
            self.spoil();
            return Kept::Spoilt;
        };
        if next == Stage::Fresh {
            return Kept::No;
        }
        if !self.append(kind, body) {
            self.spoil();
            return Kept::Spoilt;
        }
        match std::mem::replace(&mut self.stage, next) {
            Stage::Fresh => Kept::First,
            _ => Kept::More,
        }
    }

    /// Whether there is something to run again.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        matches!(self.stage, Stage::Bound | Stage::Executed)
    }

    /// All are to be read again.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// The message that is read next: its type and body.
    #[must_use]
    pub fn next(&self) -> Option<(u8, &[u8])> {
        let (kind, rest) = self.bytes.get(self.next..)?.split_first()?;
        let (length, rest) = rest.split_first_chunk()?;
        let body = rest.get(..u32::from_ne_bytes(*length) as usize)?;
        Some((*kind, body))
    }

    /// It was read.
    pub fn advance(&mut self) {
        if let Some((_, body)) = self.next() {
            self.next += HEAD_BYTES + body.len();
        }
    }

    /// The stage behind a message; `None` if the batch can't be run again with it.
    fn after(&self, kind: u8, body: &[u8]) -> Option<Stage> {
        use Stage::{Bound, Executed, Fresh};
        match (self.stage, kind) {
            (Fresh, kind::PARSE | kind::DESCRIBE | kind::CLOSE | kind::FLUSH | kind::SYNC) => {
                Some(Fresh)
            }
            (Fresh, kind::BIND) => Some(Bound),
            (Fresh, kind::QUERY) => Some(Executed),
            (Bound, kind::EXECUTE) if self.is_portal(body) => Some(Executed),
            (Bound | Executed, kind::DESCRIBE | kind::SYNC) => Some(self.stage),
            (Bound | Executed, kind::CLOSE)
                if body.strip_prefix(b"P").is_some_and(|b| self.is_portal(b)) =>
            {
                Some(self.stage)
            }
            _ => None,
        }
    }

    /// Whether this begins with the name of the portal that the Bind makes. Another one would be a
    /// cursor that outlives transactions: it moves.
    fn is_portal(&self, body: &[u8]) -> bool {
        let name = |body: &[u8]| body.iter().position(|b| *b == 0);
        let bind = self.bytes.get(HEAD_BYTES..).unwrap_or_default();
        name(bind).is_some_and(|end| body.starts_with(&bind[..=end]))
    }

    /// False if it does not fit.
    fn append(&mut self, kind: u8, body: &[u8]) -> bool {
        let whole = HEAD_BYTES + body.len();
        let fits = self.bytes.len() + whole <= REPEATED_BYTES_MAX;
        if !fits || self.bytes.try_reserve(whole).is_err() {
            return false;
        }
        self.bytes.push(kind);
        let length = body.len() as u32;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(body);
        true
    }

    fn drop_bytes(&mut self) {
        self.next = 0;
        self.bytes.clear();
        // An idle session keeps no more.
        self.bytes.shrink_to(SMALL_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::Kept::{First, More, No, Spoilt};
    use super::*;

    fn keep(messages: &[(u8, &[u8])]) -> (Batch, Vec<Kept>) {
        let mut batch = Batch::new();
        let kept = messages.iter().map(|(kind, body)| batch.keep(*kind, body));
        let kept = kept.collect();
        (batch, kept)
    }

    fn read(batch: &mut Batch) -> Vec<(u8, Vec<u8>)> {
        let mut messages = Vec::new();
        while let Some((kind, body)) = batch.next() {
            messages.push((kind, body.to_vec()));
            batch.advance();
        }
        messages
    }

    #[test]
    fn what_was_kept_is_read_again_from_the_bind_on_and_again() {
        let (mut batch, kept) = keep(&[
            (b'C', b"Ss\0"),
            (b'P', b"s\0SELECT 1\0"),
            (b'H', b""),
            (b'B', b"p\0s\0"),
            (b'D', b"Pp\0"),
            (b'E', b"p\0\0\0\0\x07"),
            (b'C', b"Pp\0"),
            (b'S', b""),
        ]);
        assert_eq!(kept, [No, No, No, First, More, More, More, More]);
        let all = read(&mut batch);
        let kinds: Vec<u8> = all.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, *b"BDECS");
        assert_eq!(all[2].1, b"p\0\0\0\0\x07");
        assert_eq!(batch.next(), None);
        batch.rewind();
        batch.advance();
        batch.rewind();
        assert_eq!(read(&mut batch), all);
    }

    #[test]
    fn a_query_is_a_batch_by_itself() {
        let (mut batch, kept) = keep(&[(b'Q', b"SELECT 1\0")]);
        assert_eq!(kept, [First]);
        assert_eq!(read(&mut batch), [(b'Q', b"SELECT 1\0".to_vec())]);
    }

    #[test]
    fn a_batch_that_does_more_is_not_run_again() {
        let bind: (u8, &[u8]) = (b'B', b"p\0\0");
        let execute: (u8, &[u8]) = (b'E', b"p\0\0\0\0\0");
        let cases: [&[(u8, &[u8])]; 11] = [
            // Two statements, in whatever way.
            &[bind, bind],
            &[bind, execute, bind],
            &[bind, execute, execute],
            &[bind, execute, (b'Q', b"SELECT 1\0")],
            &[bind, execute, (b'F', b"")],
            // A portal that is not the batch's own.
            &[execute],
            &[bind, (b'E', b"\0\0\0\0\0")],
            &[bind, (b'C', b"Pq\0")],
            // What it needs is gone.
            &[bind, (b'C', b"Sp\0")],
            &[bind, (b'P', b"\0SELECT 1\0")],
            // Its answer has left.
            &[bind, execute, (b'H', b"")],
        ];
        for messages in cases {
            let (mut batch, kept) = keep(messages);
            assert_eq!(kept.last(), Some(&Spoilt), "{messages:?}");
            assert!(!batch.is_kept());
            assert_eq!(batch.keep(b'B', b"p\0\0"), Spoilt, "until the next batch");
            batch.clear();
            assert_eq!(batch.keep(b'B', b"p\0\0"), First);
        }
    }

    #[test]
    fn what_is_too_large_is_not_run_again_and_nothing_of_it_stays() {
        let (mut batch, _) = keep(&[(b'B', b"p\0\0")]);
        let rest = REPEATED_BYTES_MAX - 3 - 2 * HEAD_BYTES;
        assert_eq!(batch.keep(b'D', &vec![0; rest]), More);
        assert_eq!(batch.keep(b'S', b""), Spoilt);
        assert!(batch.bytes.is_empty() && batch.bytes.capacity() <= SMALL_BYTES);
    }

    #[test]
    fn bodies_that_are_no_messages_do_no_harm() {
        let (mut batch, kept) = keep(&[(b'B', b"p"), (b'E', b"p"), (b'C', b"")]);
        assert_eq!(kept, [First, Spoilt, Spoilt]);
        assert_eq!(read(&mut batch), []);
    }
}
