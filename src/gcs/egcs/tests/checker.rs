//! What is demanded of the events of every member: one history, without gaps, without doubles, in
//! order of each origin, and states that belong to their positions.

use super::cluster::Cluster;
use crate::gcs::{Event, Gcs};
use crate::ids::{Gid, MemberId, MessageId};
use bytes::Bytes;

fn mix(hash: u64, m: MessageId, payload: &[u8]) -> u64 {
    let mut h = blake3::Hasher::new();
    h.update(&hash.to_le_bytes());
    h.update(m.to_string().as_bytes());
    h.update(payload);
    u64::from_le_bytes(h.finalize().as_bytes()[..8].try_into().unwrap())
}

pub fn state(seq: u64, hash: u64) -> Bytes {
    [seq.to_le_bytes(), hash.to_le_bytes()].concat().into()
}

impl Cluster {
    pub fn event(&mut self, id: MemberId, event: Event) {
        let (every, state_bytes) = (self.checkpoint_every, self.state_bytes);
        let s = self.servers.get_mut(&id).unwrap();
        let app = &mut s.app;
        match event {
            Event::Restore { seq, gid, state } => {
                if gid.0 > app.flushed.max(s.base.0) {
                    // A copy can wait so long for its number that no leader reaches back to it;
                    // it has to be taken again. To a member that must not happen here.
                    assert!(!s.was_level, "{id}: a state of the future");
                    self.removals.insert(id);
                    return;
                }
                let hash = match seq {
                    0 => 0,
                    _ => self.history[seq as usize - 1].1,
                };
                assert!(
                    state.starts_with(&self::state(seq, hash)),
                    "{id}: another state at {seq}"
                );
                (app.seq, app.hash) = (seq, hash);
            }
            Event::Deliver(d) => {
                assert_eq!(d.seq, app.seq + 1, "{id}: no gaps");
                let hash = mix(app.hash, d.id, &d.payload);
                (app.seq, app.hash) = (d.seq, hash);
                app.index = app.index.max(d.index);
                if d.seq as usize > self.history.len() {
                    assert!(self.seen.insert(d.id), "{} twice", d.id);
                    let expected = match self.last.get(&d.id.member) {
                        Some(&(life, n)) if life == d.id.incarnation => n + 1,
                        Some(&(life, _)) => {
                            assert!(life < d.id.incarnation, "an old life");
                            1
                        }
                        None => 1,
                    };
                    assert_eq!(d.id.number, expected, "in order of {}", d.id);
                    let last = (d.id.incarnation, d.id.number);
                    self.last.insert(d.id.member, last);
                    self.history.push((d.id, hash));
                }
                assert_eq!(
                    self.history[d.seq as usize - 1],
                    (d.id, hash),
                    "{id}: another order at {}",
                    d.seq
                );
                if (d.id.member, d.id.incarnation.0) == (id, s.incarnation) {
                    self.acknowledged += 1;
                }
                if d.seq.is_multiple_of(every) {
                    let node = s.node.as_mut().unwrap();
                    let mut state = state(d.seq, hash).to_vec();
                    state.resize(state.len().max(state_bytes), 0);
                    node.checkpoint(d.seq, Gid(d.seq), state.into());
                    app.flushed = app.flushed.max(d.seq.saturating_sub(every / 2));
                    let own = Gid(app.flushed);
                    let all = self.servers.values().map(|s| s.app.flushed).min();
                    let node = self.servers.get_mut(&id).unwrap().node.as_mut().unwrap();
                    node.stable(own, Gid(all.unwrap()));
                }
            }
            Event::View(view) => app.view = view,
            Event::Primary(primary) => app.primary = primary,
            Event::CaughtUp => {
                app.caught_up = true;
                s.was_level = true;
            }
            Event::Removed => app.removed = true,
            Event::Fatal(why) => app.fatal = Some(why),
        }
    }
}
