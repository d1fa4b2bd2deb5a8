//! What the processes say to each other: one enum a conversation, packed into a ring's words.

use super::pool::Chain;
use super::queue::Words;
use crate::ids::{Gid, MemberId};
use crate::limits::RESERVED_RELATIONS_MAX;

/// Words that are no message of this conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadMessage;

/// To the coordinator, from a worker or a helper; the queue tells from whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToCoordinator {
    /// A transaction's changeset. The chain is the coordinator's from here on.
    Multicast {
        /// Which of the worker's transactions.
        ticket: u64,
        /// Header, writeset and entries.
        changeset: Chain,
    },
    /// Entries of a transaction, ahead of its changeset. The chain is the coordinator's from here on.
    Fragment {
        /// Which of the worker's transactions.
        ticket: u64,
        /// As [`crate::changeset::fragment`] has it.
        fragment: Chain,
    },
    /// No changeset follows the fragments of this transaction.
    DropFragments {
        /// Which of the worker's transactions.
        ticket: u64,
    },
    /// A helper wants a fragment of what it applies.
    FragmentWanted {
        /// Of this.
        gid: Gid,
        /// From 0, among those that count.
        nth: u32,
    },
    /// A helper wants a fragment of what it has begun early.
    EarlyWanted {
        /// Of the transaction whose first fragment has this position in the order.
        first: u64,
        /// From 0, among those that count.
        nth: u32,
    },
    /// A helper can't go on for now with what it has begun early, or not before its turn.
    EarlyWaits {
        /// As in [`ToCoordinator::EarlyWanted`].
        first: u64,
    },
    /// A helper has rolled back what it had begun early.
    EarlyEnded {
        /// As in [`ToCoordinator::EarlyWanted`].
        first: u64,
    },
    /// The worker no longer waits for this transaction and has rolled it back: if the group orders
    /// and certifies it all the same, a helper applies it.
    Abandon {
        /// Which of the worker's transactions.
        ticket: u64,
    },
    /// A reader wants everything that the group has acknowledged.
    AwaitOrder {
        /// Names the wait; no transaction has this number.
        ticket: u64,
    },
    /// A writer wants all members to show what it committed.
    AwaitShown {
        /// Names the wait; no transaction has this number.
        ticket: u64,
        /// What it committed.
        gid: Gid,
    },
    /// A session wants its member to reserve relations: answered as `AwaitOrder` is.
    Reserve {
        /// Names the wait; no transaction has this number.
        ticket: u64,
        /// Which; 0 is none.
        relations: [u32; RESERVED_RELATIONS_MAX],
    },
    /// What it wanted them for is over, and was not multicast.
    Release,
    /// A session wants to go on when no other member has the relation reserved: answered as
    /// `AwaitOrder` is.
    AwaitFree {
        /// Names the wait; no transaction has this number.
        ticket: u64,
        /// Which.
        relation: u32,
    },
    /// A helper has connected and wants work.
    HelperReady {
        /// The number under which it was started.
        helper: u32,
    },
    /// A helper has committed a changeset.
    Applied {
        /// Which.
        gid: Gid,
    },
    /// A helper could not apply a changeset and has rolled it back.
    HelperFailed {
        /// Which.
        gid: Gid,
        /// SQLSTATE, as `MAKE_SQLSTATE` packs it.
        sqlstate: u32,
    },
    /// A helper ends.
    HelperGone,
    /// START REPLICATION: form a group of one; name, id and database are in `Control`.
    StartGroup,
    /// STOP REPLICATION: leave the group.
    StopGroup,
}

/// To a worker, from the coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToWorker {
    /// Certified: it commits at its turn.
    Pass {
        /// Which of the worker's transactions.
        ticket: u64,
        /// Its position.
        gid: Gid,
    },
    /// Lost against a transaction that was ordered before.
    Conflict {
        /// Which of the worker's transactions.
        ticket: u64,
        /// Relation of the key.
        relation: u32,
        /// The winner.
        gid: Gid,
        /// Where the winner came from.
        origin: MemberId,
    },
    /// Another member has reserved what it writes.
    Reserved {
        /// Which of the worker's transactions.
        ticket: u64,
        /// What is reserved.
        relation: u32,
        /// Who has it.
        member: MemberId,
    },
    /// Its window reached below what the certifier retains.
    BelowFloor {
        /// Which of the worker's transactions.
        ticket: u64,
    },
    /// Not sent: there is no majority.
    NotPrimary {
        /// Which of the worker's transactions.
        ticket: u64,
    },
    /// Not sent: too much is under way.
    Busy {
        /// Which of the worker's transactions.
        ticket: u64,
    },
    /// A fragment has its place in the order, or will have none.
    Fragment {
        /// Which of the worker's transactions.
        ticket: u64,
        /// The group keeps it.
        kept: bool,
    },
    /// The group did not keep the transaction's fragments.
    FragmentsLost {
        /// Which of the worker's transactions.
        ticket: u64,
    },
    /// What was awaited: all that was acknowledged has at most this GID, or all members show it.
    Reached {
        /// Names the wait.
        ticket: u64,
        /// See there.
        gid: Gid,
    },
    /// START or STOP is done.
    Done,
    /// START or STOP has failed; the reason is in `Control::failure`.
    Failed,
}

/// A changeset to apply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job {
    /// Its position.
    pub gid: Gid,
    /// It may begin once this is committed.
    pub depends_on: Gid,
    /// Where it came from.
    pub origin: MemberId,
    /// Header, writeset and entries; the helper's to free.
    pub changeset: Chain,
}

/// To a helper, from the coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToHelper {
    /// Apply and commit this at its turn. The chain is the helper's from here on.
    Apply(Job),
    /// A fragment that the helper asked for. The chain is the helper's from here on.
    Fragment {
        /// Of this.
        gid: Gid,
        /// Which.
        nth: u32,
        /// As [`crate::changeset::fragment`] has it.
        fragment: Chain,
    },
    /// Apply a transaction whose changeset is not here yet, as its fragments come.
    EarlyBegin {
        /// As in [`ToCoordinator::EarlyWanted`].
        first: u64,
        /// Where it comes from.
        origin: MemberId,
    },
    /// A fragment of it that the helper asked for. The chain is the helper's from here on.
    EarlyFragment {
        /// As in [`ToCoordinator::EarlyWanted`].
        first: u64,
        /// Which.
        nth: u32,
        /// Bytes of its entries that count.
        bytes: u32,
        /// To be visible before it is applied.
        base: Gid,
        /// As [`crate::changeset::fragment`] has it.
        fragment: Chain,
    },
    /// It does not commit, or not with all that was given: roll back.
    EarlyEnd {
        /// As in [`ToCoordinator::EarlyWanted`].
        first: u64,
    },
}

fn chain_words(c: Chain) -> [u64; 3] {
    [
        u64::from(c.head) | u64::from(c.tail) << 32,
        u64::from(c.len) | u64::from(c.blocks) << 32,
        c.owner,
    ]
}

fn chain_of([a, b, owner]: [u64; 3]) -> Chain {
    Chain {
        head: a as u32,
        tail: (a >> 32) as u32,
        len: b as u32,
        blocks: (b >> 32) as u32,
        owner,
    }
}

const RELATION_WORDS: usize = RESERVED_RELATIONS_MAX / 2;

fn relation_words(relations: [u32; RESERVED_RELATIONS_MAX]) -> [u64; RELATION_WORDS] {
    std::array::from_fn(|i| u64::from(relations[2 * i]) | u64::from(relations[2 * i + 1]) << 32)
}

fn relations_of(words: [u64; RELATION_WORDS]) -> [u32; RESERVED_RELATIONS_MAX] {
    std::array::from_fn(|i| (words[i / 2] >> (32 * (i % 2))) as u32)
}

macro_rules! words {
    ($($word:expr),* $(,)?) => {{
        let mut words: Words = [0; 7];
        let mut at = 0;
        $( words[at] = $word; at += 1; )*
        let _ = at;
        words
    }};
}

impl From<ToCoordinator> for Words {
    fn from(message: ToCoordinator) -> Words {
        match message {
            ToCoordinator::Multicast { ticket, changeset } => {
                let [a, b, c] = chain_words(changeset);
                words![1, ticket, a, b, c]
            }
            ToCoordinator::Abandon { ticket } => words![2, ticket],
            ToCoordinator::HelperReady { helper } => words![3, helper.into()],
            ToCoordinator::Applied { gid } => words![4, gid.0],
            ToCoordinator::HelperFailed { gid, sqlstate } => words![5, gid.0, sqlstate.into()],
            ToCoordinator::HelperGone => words![6],
            ToCoordinator::StartGroup => words![7],
            ToCoordinator::StopGroup => words![8],
            ToCoordinator::AwaitOrder { ticket } => words![9, ticket],
            ToCoordinator::AwaitShown { ticket, gid } => words![10, ticket, gid.0],
            ToCoordinator::Reserve { ticket, relations } => {
                let [a, b, c, d] = relation_words(relations);
                words![11, ticket, a, b, c, d]
            }
            ToCoordinator::Release => words![12],
            ToCoordinator::AwaitFree { ticket, relation } => words![13, ticket, relation.into()],
            ToCoordinator::Fragment { ticket, fragment } => {
                let [a, b, c] = chain_words(fragment);
                words![14, ticket, a, b, c]
            }
            ToCoordinator::DropFragments { ticket } => words![15, ticket],
            ToCoordinator::FragmentWanted { gid, nth } => words![16, gid.0, nth.into()],
            ToCoordinator::EarlyWanted { first, nth } => words![17, first, nth.into()],
            ToCoordinator::EarlyEnded { first } => words![18, first],
            ToCoordinator::EarlyWaits { first } => words![19, first],
        }
    }
}

impl TryFrom<Words> for ToCoordinator {
    type Error = BadMessage;
    fn try_from(w: Words) -> Result<Self, BadMessage> {
        Ok(match w[0] {
            1 => Self::Multicast {
                ticket: w[1],
                changeset: chain_of([w[2], w[3], w[4]]),
            },
            2 => Self::Abandon { ticket: w[1] },
            3 => Self::HelperReady {
                helper: w[1] as u32,
            },
            4 => Self::Applied { gid: Gid(w[1]) },
            5 => Self::HelperFailed {
                gid: Gid(w[1]),
                sqlstate: w[2] as u32,
            },
            6 => Self::HelperGone,
            7 => Self::StartGroup,
            8 => Self::StopGroup,
            9 => Self::AwaitOrder { ticket: w[1] },
            10 => Self::AwaitShown {
                ticket: w[1],
                gid: Gid(w[2]),
            },
            11 => Self::Reserve {
                ticket: w[1],
                relations: relations_of([w[2], w[3], w[4], w[5]]),
            },
            12 => Self::Release,
            13 => Self::AwaitFree {
                ticket: w[1],
                relation: w[2] as u32,
            },
            14 => Self::Fragment {
                ticket: w[1],
                fragment: chain_of([w[2], w[3], w[4]]),
            },
            15 => Self::DropFragments { ticket: w[1] },
            16 => Self::FragmentWanted {
                gid: Gid(w[1]),
                nth: w[2] as u32,
            },
            17 => Self::EarlyWanted {
                first: w[1],
                nth: w[2] as u32,
            },
            18 => Self::EarlyEnded { first: w[1] },
            19 => Self::EarlyWaits { first: w[1] },
            _ => return Err(BadMessage),
        })
    }
}

impl From<ToWorker> for Words {
    fn from(message: ToWorker) -> Words {
        match message {
            ToWorker::Pass { ticket, gid } => words![1, ticket, gid.0],
            ToWorker::Conflict {
                ticket,
                relation,
                gid,
                origin,
            } => {
                words![
                    2,
                    ticket,
                    gid.0,
                    u64::from(relation) | u64::from(origin.0) << 32
                ]
            }
            ToWorker::BelowFloor { ticket } => words![3, ticket],
            ToWorker::NotPrimary { ticket } => words![4, ticket],
            ToWorker::Busy { ticket } => words![5, ticket],
            ToWorker::Done => words![6],
            ToWorker::Failed => words![7],
            ToWorker::Reached { ticket, gid } => words![8, ticket, gid.0],
            ToWorker::Reserved {
                ticket,
                relation,
                member,
            } => words![9, ticket, relation.into(), member.0.into()],
            ToWorker::Fragment { ticket, kept } => words![10, ticket, kept.into()],
            ToWorker::FragmentsLost { ticket } => words![11, ticket],
        }
    }
}

impl TryFrom<Words> for ToWorker {
    type Error = BadMessage;
    fn try_from(w: Words) -> Result<Self, BadMessage> {
        let ticket = w[1];
        Ok(match w[0] {
            1 => Self::Pass {
                ticket,
                gid: Gid(w[2]),
            },
            2 => Self::Conflict {
                ticket,
                relation: w[3] as u32,
                gid: Gid(w[2]),
                origin: MemberId((w[3] >> 32) as u16),
            },
            3 => Self::BelowFloor { ticket },
            4 => Self::NotPrimary { ticket },
            5 => Self::Busy { ticket },
            6 => Self::Done,
            7 => Self::Failed,
            8 => Self::Reached {
                ticket,
                gid: Gid(w[2]),
            },
            9 => Self::Reserved {
                ticket,
                relation: w[2] as u32,
                member: MemberId(w[3] as u16),
            },
            10 => Self::Fragment {
                ticket,
                kept: w[2] != 0,
            },
            11 => Self::FragmentsLost { ticket },
            _ => return Err(BadMessage),
        })
    }
}

impl From<ToHelper> for Words {
    fn from(message: ToHelper) -> Words {
        match message {
            ToHelper::Apply(job) => {
                let [a, b, c] = chain_words(job.changeset);
                words![1, job.gid.0, job.depends_on.0, job.origin.0.into(), a, b, c]
            }
            ToHelper::Fragment { gid, nth, fragment } => {
                let [a, b, c] = chain_words(fragment);
                words![2, gid.0, nth.into(), a, b, c]
            }
            ToHelper::EarlyBegin { first, origin } => words![3, first, origin.0.into()],
            ToHelper::EarlyFragment {
                first,
                nth,
                bytes,
                base,
                fragment,
            } => {
                let [a, b, c] = chain_words(fragment);
                let which = u64::from(bytes) << 32 | u64::from(nth);
                words![4, first, which, base.0, a, b, c]
            }
            ToHelper::EarlyEnd { first } => words![5, first],
        }
    }
}

impl TryFrom<Words> for ToHelper {
    type Error = BadMessage;
    fn try_from(w: Words) -> Result<Self, BadMessage> {
        Ok(match w[0] {
            1 => Self::Apply(Job {
                gid: Gid(w[1]),
                depends_on: Gid(w[2]),
                origin: MemberId(w[3] as u16),
                changeset: chain_of([w[4], w[5], w[6]]),
            }),
            2 => Self::Fragment {
                gid: Gid(w[1]),
                nth: w[2] as u32,
                fragment: chain_of([w[3], w[4], w[5]]),
            },
            3 => Self::EarlyBegin {
                first: w[1],
                origin: MemberId(w[2] as u16),
            },
            4 => Self::EarlyFragment {
                first: w[1],
                nth: w[2] as u32,
                bytes: (w[2] >> 32) as u32,
                base: Gid(w[3]),
                fragment: chain_of([w[4], w[5], w[6]]),
            },
            5 => Self::EarlyEnd { first: w[1] },
            _ => return Err(BadMessage),
        })
    }
}

#[cfg(all(test, not(pgr_loom)))]
mod tests {
    use super::*;
    use std::fmt::Debug;

    fn survives<M>(messages: &[M])
    where
        M: Copy + PartialEq + Debug + Into<Words> + TryFrom<Words, Error = BadMessage>,
    {
        for m in messages {
            assert_eq!(M::try_from((*m).into()), Ok(*m));
        }
        assert!(M::try_from([99; 7]).is_err());
        assert!(M::try_from([0; 7]).is_err());
    }

    #[test]
    fn every_message_survives_its_words() {
        let changeset = Chain {
            head: 1,
            tail: u32::MAX,
            len: 3,
            blocks: 4,
            owner: u64::MAX - 2,
        };
        let (ticket, gid) = (u64::MAX, Gid(u64::MAX - 1));
        survives(&[
            ToCoordinator::Multicast { ticket, changeset },
            ToCoordinator::Abandon { ticket },
            ToCoordinator::HelperReady { helper: 64 },
            ToCoordinator::Applied { gid },
            ToCoordinator::HelperFailed {
                gid,
                sqlstate: u32::MAX,
            },
            ToCoordinator::HelperGone,
            ToCoordinator::StartGroup,
            ToCoordinator::StopGroup,
            ToCoordinator::AwaitOrder { ticket },
            ToCoordinator::AwaitShown { ticket, gid },
            ToCoordinator::Reserve {
                ticket,
                relations: [1, 2, 3, 4, 5, 6, 7, u32::MAX],
            },
            ToCoordinator::Release,
            ToCoordinator::AwaitFree {
                ticket,
                relation: u32::MAX,
            },
            ToCoordinator::Fragment {
                ticket,
                fragment: changeset,
            },
            ToCoordinator::DropFragments { ticket },
            ToCoordinator::FragmentWanted { gid, nth: u32::MAX },
            ToCoordinator::EarlyWanted {
                first: ticket,
                nth: u32::MAX,
            },
            ToCoordinator::EarlyEnded { first: ticket },
            ToCoordinator::EarlyWaits { first: ticket },
        ]);
        survives(&[
            ToWorker::Pass { ticket, gid },
            ToWorker::Conflict {
                ticket,
                relation: u32::MAX,
                gid,
                origin: MemberId(u16::MAX),
            },
            ToWorker::BelowFloor { ticket },
            ToWorker::NotPrimary { ticket },
            ToWorker::Busy { ticket },
            ToWorker::Done,
            ToWorker::Failed,
            ToWorker::Reached { ticket, gid },
            ToWorker::Reserved {
                ticket,
                relation: u32::MAX,
                member: MemberId(u16::MAX),
            },
            ToWorker::Fragment { ticket, kept: true },
            ToWorker::FragmentsLost { ticket },
        ]);
        survives(&[
            ToHelper::Fragment {
                gid,
                nth: u32::MAX,
                fragment: changeset,
            },
            ToHelper::Apply(Job {
                gid,
                depends_on: Gid(1),
                origin: MemberId(9),
                changeset,
            }),
            ToHelper::EarlyBegin {
                first: ticket,
                origin: MemberId(u16::MAX),
            },
            ToHelper::EarlyFragment {
                first: ticket,
                nth: u32::MAX,
                bytes: u32::MAX - 1,
                base: gid,
                fragment: changeset,
            },
            ToHelper::EarlyEnd { first: ticket },
        ]);
    }
}
