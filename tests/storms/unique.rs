//! The same few values from all members, under unique indexes of several kinds: each is taken once.

use super::{Session, Storm};
use postgres::error::SqlState;
use postgres::{Error, Transaction};

const ROWS: i32 = 32;
const VALUES: i32 = 16;

pub struct Unique;

impl Storm for Unique {
    fn name(&self) -> &'static str {
        "unique-keys"
    }

    fn tables(&self) -> &'static str {
        "CREATE TABLE u (id int4 PRIMARY KEY, email text UNIQUE, low text, n int4 UNIQUE DEFERRABLE INITIALLY DEFERRED, one int4, UNIQUE NULLS NOT DISTINCT (one));
         CREATE UNIQUE INDEX ON u (lower(low)); CREATE UNIQUE INDEX ON u (email) WHERE id % 2 = 0;"
    }

    fn rows(&self) -> String {
        format!(
            "INSERT INTO u SELECT i, 'v' || i, 'V' || i, i, i FROM generate_series(0, {VALUES} - 1, 2) i"
        )
    }

    fn expected(&self) -> &'static [SqlState] {
        &[SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED]
    }

    fn transact(&self, session: &mut Session) -> Result<bool, Error> {
        let (id, other) = (session.below(ROWS), session.below(ROWS));
        let (n, kind) = (session.below(VALUES), session.below(9));
        let value = format!("v{n}");
        let one = (n % 3 != 0).then_some(n);
        let client = &mut session.client;
        let changed = match kind {
            0 => client.execute("DELETE FROM u WHERE id = $1", &[&id])?,
            1 => client.execute("UPDATE u SET email = $2 WHERE id = $1", &[&id, &value])?,
            2 => client.execute("UPDATE u SET id = $1 WHERE email = $2", &[&id, &value])?,
            3 => client.execute("UPDATE u SET n = $2, one = $3 WHERE id = $1", &[&id, &n, &one])?,
            4 => client.execute(
                "INSERT INTO u VALUES ($1, $2, upper($2)) ON CONFLICT (email) DO UPDATE SET low = $2",
                &[&id, &value],
            )?,
            5 => {
                // Two values change places: for a while both rows have the same.
                let mut t = client.transaction()?;
                let read = "SELECT n FROM u WHERE id = $1 FOR UPDATE";
                let of = |t: &mut Transaction<'_>, id: i32| {
                    Ok::<Option<i32>, Error>(t.query_opt(read, &[&id])?.and_then(|row| row.get(0)))
                };
                let (here, there) = (of(&mut t, id)?, of(&mut t, other)?);
                let write = "UPDATE u SET n = $2 WHERE id = $1";
                let changed = t.execute(write, &[&id, &there])? + t.execute(write, &[&other, &here])?;
                t.commit()?;
                changed
            }
            _ => client.execute(
                "INSERT INTO u VALUES ($1, $2, upper($2), $3, $4)",
                &[&id, &value, &n, &one],
            )?,
        };
        Ok(changed > 0)
    }

    fn violation(&self, snapshot: &mut Transaction<'_>) -> Result<Option<String>, Error> {
        let sql = "SELECT count(*) - count(DISTINCT id), count(email) - count(DISTINCT email), count(low) - count(DISTINCT lower(low)), \
                   count(n) - count(DISTINCT n), count(*) - count(DISTINCT coalesce(one, -1)) FROM u";
        let row = snapshot.query_one(sql, &[])?;
        let twice: [i64; 5] = std::array::from_fn(|i| row.get(i));
        Ok((twice != [0; 5]).then(|| format!("duplicates of id, email, low, n, one: {twice:?}")))
    }
}
