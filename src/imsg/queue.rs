//! A bounded queue in shared memory from one process to another.

use super::sync::{AtomicU32, Ordering, UnsafeCell, cell_read, cell_write};

/// A message as it lies in a queue; `message.rs` gives the words a meaning.
pub type Words = [u64; 7];

/// The queue has no room; the receiver is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueFull;

/// A cursor on a cache line of its own, so that sender and receiver don't share one.
#[repr(C, align(64))]
#[derive(Debug)]
struct Cursor(AtomicU32);

/// Ring of `N` messages, one sender, one receiver. `N` is a power of two.
///
/// Cursors count messages, wrapping; a slot is the sender's from `head + N` messages behind until
/// `tail` has passed it, then the receiver's. A slot's index is always taken modulo `N`, so not
/// even a damaged cursor leads outside.
#[repr(C)]
#[derive(Debug)]
pub struct Ring<const N: usize> {
    /// Messages taken. Written by the receiver (release), read by the sender (acquire).
    head: Cursor,
    /// Messages put. Written by the sender (release), read by the receiver (acquire).
    tail: Cursor,
    slots: [UnsafeCell<Words>; N],
}

// SAFETY: a slot is written only by the sender before it moves `tail`, and read only by the
// receiver after it saw that and before it moves `head` (see the type's comment).
unsafe impl<const N: usize> Sync for Ring<N> {}
// SAFETY: it owns plain memory only.
unsafe impl<const N: usize> Send for Ring<N> {}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Ring<N> {
    const POWER_OF_TWO: () = assert!(N.is_power_of_two() && N < 1 << 31);

    /// An empty ring.
    #[must_use]
    pub fn new() -> Self {
        let () = Self::POWER_OF_TWO;
        Self {
            head: Cursor(AtomicU32::new(0)),
            tail: Cursor(AtomicU32::new(0)),
            slots: std::array::from_fn(|_| UnsafeCell::new([0; 7])),
        }
    }

    /// Puts a message. Only the one sender calls this.
    pub fn push(&self, message: Words) -> Result<(), QueueFull> {
        let tail = self.tail.0.load(Ordering::Relaxed);
        // Acquire: the receiver has read the slot before it is written again.
        let head = self.head.0.load(Ordering::Acquire);
        if tail.wrapping_sub(head) as usize >= N {
            return Err(QueueFull);
        }
        // SAFETY: fewer than N messages are under way, so the receiver is done with this slot, and
        // there is one sender.
        unsafe { cell_write(&self.slots[tail as usize % N], message) };
        self.tail.0.store(tail.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    /// Takes the oldest message. Only the one receiver calls this.
    pub fn pop(&self) -> Option<Words> {
        let head = self.head.0.load(Ordering::Relaxed);
        // Acquire: the message was written before `tail` moved.
        let tail = self.tail.0.load(Ordering::Acquire);
        if head == tail {
            return None;
        }
        // SAFETY: the slot lies between head and tail, so the sender leaves it alone until `head`
        // moves, and there is one receiver.
        let message = unsafe { cell_read(&self.slots[head as usize % N]) };
        self.head.0.store(head.wrapping_add(1), Ordering::Release);
        Some(message)
    }

    /// Forgets all messages. Only while neither side uses the ring (a slot changes its owner).
    pub fn reset(&self) {
        self.head.0.store(0, Ordering::Release);
        self.tail.0.store(0, Ordering::Release);
    }
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_in_order_and_a_full_ring_says_so() {
        let ring = Ring::<4>::new();
        for round in 0..10u64 {
            for i in 0..4 {
                ring.push([round * 4 + i; 7]).expect("room");
            }
            assert_eq!(ring.push([9; 7]), Err(QueueFull));
            for i in 0..4 {
                assert_eq!(ring.pop(), Some([round * 4 + i; 7]));
            }
            assert_eq!(ring.pop(), None);
        }
    }

    #[test]
    fn two_threads_lose_and_tear_nothing() {
        let ring = Ring::<8>::new();
        let count = if cfg!(miri) { 50 } else { 20_000 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..count {
                    while ring.push([i; 7]).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            for i in 0..count {
                let message = loop {
                    match ring.pop() {
                        Some(m) => break m,
                        None => std::thread::yield_now(),
                    }
                };
                assert_eq!(message, [i; 7]);
            }
        });
    }
}

#[cfg(all(test, pgr_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn a_message_is_whole_when_it_is_seen() {
        loom::model(|| {
            let ring = Arc::new(Ring::<2>::new());
            let sender = {
                let ring = Arc::clone(&ring);
                loom::thread::spawn(move || {
                    (0..3u64).filter(|i| ring.push([*i; 7]).is_ok()).count()
                })
            };
            let mut seen = 0;
            while let Some(m) = ring.pop() {
                assert!(m.iter().all(|w| *w == m[0]));
                seen += 1;
            }
            let sent = sender.join().unwrap();
            while ring.pop().is_some() {
                seen += 1;
            }
            assert_eq!(seen, sent);
        });
    }
}
