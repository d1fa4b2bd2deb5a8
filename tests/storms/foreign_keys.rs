//! Children come on all members while their parents go and change their keys: there is never an orphan.

use super::{Session, Storm};
use postgres::error::SqlState;
use postgres::{Error, Transaction};

const PARENTS: i32 = 16;

pub struct ForeignKeys;

impl Storm for ForeignKeys {
    fn name(&self) -> &'static str {
        "foreign-keys"
    }

    fn tables(&self) -> &'static str {
        "CREATE TABLE fk_parent (id int4 PRIMARY KEY, v int4 NOT NULL DEFAULT 0);
         CREATE TABLE fk_child (id int8 PRIMARY KEY, parent int4 NOT NULL REFERENCES fk_parent);
         CREATE TABLE fk_follower (id int8 PRIMARY KEY, parent int4 NOT NULL REFERENCES fk_parent ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TABLE fk_loose (id int8 PRIMARY KEY, parent int4 REFERENCES fk_parent ON DELETE SET NULL ON UPDATE CASCADE);
         CREATE TABLE fk_late (id int8 PRIMARY KEY, parent int4 NOT NULL REFERENCES fk_parent DEFERRABLE INITIALLY DEFERRED);
         CREATE INDEX ON fk_child (parent); CREATE INDEX ON fk_follower (parent); CREATE INDEX ON fk_loose (parent); CREATE INDEX ON fk_late (parent);"
    }

    fn rows(&self) -> String {
        format!("INSERT INTO fk_parent SELECT generate_series(0, {PARENTS} - 1, 2)")
    }

    fn expected(&self) -> &'static [SqlState] {
        &[
            SqlState::FOREIGN_KEY_VIOLATION,
            SqlState::UNIQUE_VIOLATION,
            SqlState::T_R_DEADLOCK_DETECTED,
        ]
    }

    fn transact(&self, session: &mut Session) -> Result<bool, Error> {
        let (key, other) = (session.below(PARENTS), session.below(PARENTS));
        let id = session.rng.next() as i64;
        let kind = session.below(12);
        let client = &mut session.client;
        let changed = match kind {
            0 | 1 => client.execute(
                "INSERT INTO fk_parent VALUES ($1) ON CONFLICT DO NOTHING",
                &[&key],
            )?,
            2 => client.execute("DELETE FROM fk_parent WHERE id = $1", &[&key])?,
            3 => client.execute("UPDATE fk_parent SET v = v + 1 WHERE id = $1", &[&key])?,
            4 => client.execute(
                "UPDATE fk_parent SET id = $2 WHERE id = $1",
                &[&key, &other],
            )?,
            5 => client.execute("INSERT INTO fk_follower VALUES ($1, $2)", &[&id, &key])?,
            6 => client.execute("INSERT INTO fk_loose VALUES ($1, $2)", &[&id, &key])?,
            7 => client.execute("INSERT INTO fk_child VALUES ($1, $2)", &[&id, &key])?,
            8 => client.execute(
                "UPDATE fk_child SET parent = $2 WHERE parent = $1",
                &[&key, &other],
            )?,
            9 => client.execute("DELETE FROM fk_child WHERE parent = $1", &[&key])?,
            10 => client.execute("DELETE FROM fk_loose WHERE parent IS NULL", &[])?,
            _ => {
                // The child is there before the parent, and sees another one's children off.
                let mut t = client.transaction()?;
                let gone = t.execute("DELETE FROM fk_late WHERE parent = $1", &[&other])?;
                let come = t.execute("INSERT INTO fk_late VALUES ($1, $2)", &[&id, &key])?;
                t.execute(
                    "INSERT INTO fk_parent VALUES ($1) ON CONFLICT DO NOTHING",
                    &[&key],
                )?;
                t.commit()?;
                gone + come
            }
        };
        Ok(changed > 0)
    }

    fn violation(&self, snapshot: &mut Transaction<'_>) -> Result<Option<String>, Error> {
        for table in ["fk_child", "fk_follower", "fk_loose", "fk_late"] {
            let sql = format!(
                "SELECT count(*) FROM {table} c WHERE parent IS NOT NULL AND NOT EXISTS (SELECT FROM fk_parent p WHERE p.id = c.parent)"
            );
            let orphans: i64 = snapshot.query_one(&sql, &[])?.get(0);
            if orphans != 0 {
                return Ok(Some(format!("{orphans} orphans in {table}")));
            }
        }
        Ok(None)
    }
}
