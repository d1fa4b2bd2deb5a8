//! Where the bytes of a changeset grow.

use std::ops::Range;

/// There is no room for what was to be appended. What was appended before is whole, and nothing
/// was added to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Where bytes go: a `Vec` in tests, blocks of the imessage pool in the server.
pub trait Sink {
    /// Appends all of it or nothing.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Full>;
    /// Bytes so far.
    fn len(&self) -> usize;
    /// Nothing so far.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Cuts off what lies beyond `len`, which was a length before.
    fn truncate(&mut self, len: usize);
    /// Has these bytes in the place of all that it has, which are no fewer; so there is room.
    fn replace(&mut self, bytes: &[u8]);
    /// Visits the bytes in order, in pieces.
    fn each(&self, visit: &mut dyn FnMut(&[u8]));
    /// Visits those bytes in order, in pieces.
    fn each_of(&self, range: Range<usize>, visit: &mut dyn FnMut(&[u8])) {
        let mut at = 0;
        self.each(&mut |piece| {
            let end = at + piece.len();
            let wanted = range.start.clamp(at, end) - at..range.end.clamp(at, end) - at;
            at = end;
            if !wanted.is_empty() {
                visit(&piece[wanted]);
            }
        });
    }
}

impl Sink for Vec<u8> {
    fn append(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.extend_from_slice(bytes);
        Ok(())
    }
    fn len(&self) -> usize {
        Vec::len(self)
    }
    fn truncate(&mut self, len: usize) {
        Vec::truncate(self, len);
    }
    fn replace(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= Vec::len(self), "only shorter");
        self.clear();
        self.extend_from_slice(bytes);
    }
    fn each(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(self);
    }
}

/// Appends what lies behind so many bytes to another sink, which is empty; all or nothing.
pub(super) fn copy_from<S: Sink>(sink: &S, from: usize, to: &mut S) -> Result<(), Full> {
    let mut result = Ok(());
    sink.each_of(from..sink.len(), &mut |piece| {
        result = result.and_then(|()| to.append(piece));
    });
    if result.is_err() {
        to.truncate(0);
    }
    result
}
