//! A list of buffers that goes out piece by piece.

use bytes::Bytes;

/// Most buffers that one system call takes (IOV_MAX is 1024).
pub const PIECES_MAX: usize = 256;

/// What of a list of buffers is still to be written.
#[derive(Debug, Default)]
pub struct Gather {
    bufs: Vec<Bytes>,
    /// The first one with something left.
    first: usize,
    /// Bytes of it that are done.
    skip: usize,
    /// Bytes left in all.
    left: usize,
}

impl Gather {
    pub fn new(bufs: Vec<Bytes>) -> Gather {
        let left = bufs.iter().map(Bytes::len).sum();
        let mut gather = Gather {
            bufs,
            first: 0,
            skip: 0,
            left,
        };
        gather.skip_empty();
        gather
    }

    pub fn left(&self) -> usize {
        self.left
    }

    /// The next pieces, none of them empty, at most [`PIECES_MAX`].
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let skip = self.skip;
        self.bufs[self.first..]
            .iter()
            .enumerate()
            .map(move |(i, b)| if i == 0 { &b[skip..] } else { &b[..] })
            .filter(|b| !b.is_empty())
            .take(PIECES_MAX)
    }

    /// Whether [`Gather::pieces`] is all that is left.
    pub fn fits_one_call(&self) -> bool {
        self.bufs.len() - self.first <= PIECES_MAX
    }

    /// `n` bytes more are done.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.left, "more was written than there was");
        self.left -= n;
        self.skip += n;
        while self.first < self.bufs.len() && self.skip >= self.bufs[self.first].len() {
            self.skip -= self.bufs[self.first].len();
            // Let the memory go as it is written: a list can be long.
            self.bufs[self.first] = Bytes::new();
            self.first += 1;
        }
    }

    fn skip_empty(&mut self) {
        self.advance(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_writes_the_same_bytes() {
        let parts: Vec<Bytes> = ["", "abc", "", "d", "efgh", ""]
            .iter()
            .map(|s| Bytes::from_static(s.as_bytes()))
            .collect();
        for step in 1..=8 {
            let mut g = Gather::new(parts.clone());
            let mut seen = Vec::new();
            while g.left() > 0 {
                let flat: Vec<u8> = g.pieces().flatten().copied().collect();
                assert_eq!(flat.len(), g.left());
                assert!(g.fits_one_call());
                let n = step.min(flat.len());
                seen.extend_from_slice(&flat[..n]);
                g.advance(n);
            }
            assert_eq!(seen, b"abcdefgh");
            assert_eq!(g.pieces().count(), 0);
        }
    }

    #[test]
    fn long_lists_go_out_in_several_calls() {
        let mut g = Gather::new(vec![Bytes::from_static(b"x"); PIECES_MAX + 1]);
        assert!(!g.fits_one_call());
        let n: usize = g.pieces().map(<[u8]>::len).sum();
        assert_eq!(n, PIECES_MAX);
        g.advance(n);
        assert!(g.fits_one_call());
        assert_eq!(g.left(), 1);
    }
}
