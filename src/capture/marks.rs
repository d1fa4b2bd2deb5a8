//! Which part of the changeset belongs to which open subtransaction.
//!
//! A mark is set when a subtransaction first captures something, so one that writes nothing costs
//! nothing, and a loop of 100,000 that each write a row keeps at most one per nesting level.

/// The top-level transaction's number, as PostgreSQL's `TopSubTransactionId`. Sub-transactions
/// have higher ones, children higher than their parents.
pub const TOP: u32 = 1;

/// Marks of the open subtransactions, outermost first.
#[derive(Debug)]
pub struct Marks<M> {
    stack: Vec<(u32, M)>,
}

impl<M: Copy> Marks<M> {
    /// No subtransaction.
    #[must_use]
    pub const fn new() -> Marks<M> {
        Marks { stack: Vec::new() }
    }

    /// Subtransaction `current` is about to capture something; `mark` says where the changeset ends.
    pub fn before_capture(&mut self, current: u32, mark: impl FnOnce() -> M) {
        if current != TOP && self.stack.last().is_none_or(|top| top.0 != current) {
            self.stack.push((current, mark()));
        }
    }

    /// Subtransaction `ended` was released into `parent`: what it captured is now the parent's.
    pub fn released(&mut self, ended: u32, parent: u32) {
        if let Some((_, mark)) = self.pop_from(ended) {
            self.before_capture(parent, || mark);
        }
    }

    /// Subtransaction `ended` was rolled back: where the changeset must be cut, if it captured
    /// anything.
    pub fn rolled_back(&mut self, ended: u32) -> Option<M> {
        self.pop_from(ended).map(|(_, mark)| mark)
    }

    /// Of all of them, outermost first.
    pub fn open(&self) -> impl Iterator<Item = M> {
        self.stack.iter().map(|(_, mark)| *mark)
    }

    /// The transaction is over.
    pub fn clear(&mut self) {
        self.stack.clear();
    }

    /// Takes off the marks of `ended` and all below it, and returns the outermost of them.
    fn pop_from(&mut self, ended: u32) -> Option<(u32, M)> {
        let mut last = None;
        while self.stack.last().is_some_and(|top| top.0 >= ended) {
            last = self.stack.pop();
        }
        last
    }
}

impl<M: Copy> Default for Marks<M> {
    fn default() -> Self {
        Self::new()
    }
}

/// Cuts that are told apart.
const CUTS_MAX: usize = 32;

/// Which keys of the changeset are still there, by when and where they were appended: what was said
/// before a savepoint need not be said again after its rollback.
#[derive(Debug)]
pub struct Cuts {
    /// Counts changesets and cuts.
    number: u64,
    /// When the current changeset began.
    begun: u64,
    /// When it was cut, and to how many keys. Both ascend: what a later cut took away makes no
    /// difference to an earlier one that left more.
    cuts: Vec<(u64, u32)>,
}

/// When and where a key was appended; the default is nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    number: u64,
    /// Keys up to it.
    keys: u32,
}

impl Cuts {
    /// Of no changeset.
    #[must_use]
    pub const fn new() -> Cuts {
        Cuts {
            number: 1,
            begun: 1,
            cuts: Vec::new(),
        }
    }

    /// Another changeset begins.
    pub fn begin(&mut self) {
        self.number += 1;
        self.begun = self.number;
        self.cuts.clear();
    }

    /// So many keys are left after a rollback.
    pub fn cut(&mut self, keys: u32) {
        self.number += 1;
        while self.cuts.last().is_some_and(|last| last.1 >= keys) {
            self.cuts.pop();
        }
        self.cuts.push((self.number, keys));
        if self.cuts.len() > CUTS_MAX {
            // One cut as late as the second and as deep as the first: some key may be taken for gone
            // that is not.
            let (_, deepest) = self.cuts.remove(0);
            self.cuts[0].1 = deepest;
        }
    }

    /// That of a key that was just appended as the last of so many, or said to be among them.
    #[must_use]
    pub fn place(&self, keys: u32) -> Place {
        let number = self.number;
        Place { number, keys }
    }

    /// Whether a key is still there.
    #[must_use]
    pub fn keeps(&self, place: Place) -> bool {
        let first = self.cuts.iter().find(|cut| cut.0 > place.number);
        place.number >= self.begun && first.is_none_or(|cut| place.keys <= cut.1)
    }
}

impl Default for Cuts {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A changeset that is only its length.
    struct Model {
        marks: Marks<usize>,
        entries: Vec<u32>,
    }

    impl Model {
        fn new() -> Model {
            Model {
                marks: Marks::new(),
                entries: Vec::new(),
            }
        }
        fn capture(&mut self, sub: u32, what: u32) {
            let len = self.entries.len();
            self.marks.before_capture(sub, || len);
            self.entries.push(what);
        }
        fn rollback(&mut self, sub: u32) {
            if let Some(len) = self.marks.rolled_back(sub) {
                self.entries.truncate(len);
            }
        }
    }

    #[test]
    fn a_rollback_removes_exactly_what_the_subtransaction_and_its_children_did() {
        let mut m = Model::new();
        m.capture(TOP, 10);
        m.capture(2, 20);
        m.capture(3, 30);
        m.marks.released(3, 2);
        m.capture(4, 40);
        m.rollback(4);
        assert_eq!(m.entries, [10, 20, 30]);
        m.rollback(2);
        assert_eq!(m.entries, [10]);
    }

    #[test]
    fn a_child_released_into_a_parent_without_captures_goes_with_the_parent() {
        let mut m = Model::new();
        m.capture(TOP, 10);
        m.capture(3, 30); // 2 is its parent and captured nothing
        m.marks.released(3, 2);
        m.capture(2, 20);
        m.rollback(2);
        assert_eq!(m.entries, [10]);
    }

    #[test]
    fn released_into_the_top_level_it_stays() {
        let mut m = Model::new();
        m.capture(2, 20);
        m.marks.released(2, TOP);
        m.capture(3, 30);
        m.rollback(3);
        assert_eq!(m.entries, [20]);
    }

    #[test]
    fn a_rollback_of_one_that_captured_nothing_removes_nothing() {
        let mut m = Model::new();
        m.capture(2, 20);
        m.rollback(3);
        assert_eq!(m.entries, [20]);
    }

    #[test]
    fn a_loop_of_many_keeps_one_mark() {
        let mut m = Model::new();
        for sub in 3..100_000 {
            m.capture(sub, sub);
            m.marks.released(sub, 2);
            assert!(m.marks.stack.len() <= 1);
        }
        m.rollback(2);
        assert!(m.entries.is_empty());
    }

    #[test]
    fn a_loop_of_many_says_once_what_was_said_before_it() {
        let mut cuts = Cuts::new();
        let said = cuts.place(1);
        for keys in 1..100_000 {
            cuts.cut(keys);
            assert!(cuts.keeps(said));
            assert!(cuts.cuts.len() <= CUTS_MAX);
        }
        cuts.cut(0);
        assert!(!cuts.keeps(said));
    }

    proptest! {
        /// A changeset that is only the numbers of its keys: some are appended, or it is cut, or
        /// another begins.
        #[test]
        fn a_key_is_there_or_counts_as_gone(steps in prop::collection::vec((0..8u8, 0..20usize), 1..200)) {
            let mut cuts = Cuts::new();
            let (mut keys, mut places) = (Vec::new(), Vec::new());
            let mut rollbacks = 0;
            for (step, at) in steps {
                match step {
                    0 => {
                        keys.clear();
                        cuts.begin();
                        rollbacks = 0;
                    }
                    1 | 2 => {
                        keys.truncate(at);
                        cuts.cut(keys.len() as u32);
                        rollbacks += 1;
                    }
                    _ => {
                        keys.push(places.len());
                        places.push(cuts.place(keys.len() as u32));
                    }
                }
                for (key, place) in places.iter().enumerate() {
                    let there = keys.contains(&key);
                    prop_assert!(there || !cuts.keeps(*place), "key {} counts as there", key);
                    prop_assert!(!there || cuts.keeps(*place) || rollbacks > CUTS_MAX, "key {}", key);
                }
            }
            prop_assert!(!cuts.keeps(Place::default()));
        }
    }
}
