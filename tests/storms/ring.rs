//! Rings of three at SERIALIZABLE: each place raises its flag unless it finds the next one's up, so
//! the last to rise would have found one, and no ring ever has all three up. Under snapshot isolation
//! each may look before the next one acts.

use super::{Session, Storm};
use postgres::error::SqlState;
use postgres::{Error, IsolationLevel, Transaction};

const RINGS: i32 = 2;

pub struct Ring;

impl Storm for Ring {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn tables(&self) -> &'static str {
        "CREATE TABLE flag (ring int4, place int4, up bool NOT NULL, PRIMARY KEY (ring, place));"
    }

    fn rows(&self) -> String {
        format!(
            "INSERT INTO flag SELECT r, p, false FROM generate_series(1, {RINGS}) r, generate_series(0, 2) p"
        )
    }

    fn expected(&self) -> &'static [SqlState] {
        &[SqlState::T_R_DEADLOCK_DETECTED]
    }

    fn transact(&self, session: &mut Session) -> Result<bool, Error> {
        let (ring, place) = (1 + session.below(RINGS), session.below(3));
        let next = (place + 1) % 3;
        let lowers = session.below(3) == 0;
        let mut t = session
            .client
            .build_transaction()
            .isolation_level(IsolationLevel::Serializable)
            .start()?;
        let changed = if lowers {
            t.execute("UPDATE flag SET up = false WHERE ring = $1", &[&ring])?
        } else {
            let sql = "UPDATE flag SET up = true WHERE ring = $1 AND place = $2 AND NOT up AND NOT (SELECT up FROM flag WHERE ring = $1 AND place = $3)";
            t.execute(sql, &[&ring, &place, &next])?
        };
        t.commit()?;
        Ok(changed > 0)
    }

    fn violation(&self, snapshot: &mut Transaction<'_>) -> Result<Option<String>, Error> {
        let sql = "SELECT count(*) FROM (SELECT FROM flag GROUP BY ring HAVING bool_and(up)) r";
        let broken: i64 = snapshot.query_one(sql, &[])?.get(0);
        Ok((broken != 0).then(|| format!("{broken} rings have all flags up")))
    }
}
