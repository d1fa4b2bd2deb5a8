//! A job queue: workers on all members take jobs with SKIP LOCKED, file new ones, and none is done twice.

use super::{Session, Storm, Tally};
use postgres::{Error, Transaction};
use std::collections::BTreeSet;
use std::sync::Mutex;

/// In the queue at any time: few, so that workers meet.
const JOBS: i64 = 12;

/// Takes the next job and closes it, by one of the two usual ways.
const TAKE: [&str; 2] = [
    "DELETE FROM job WHERE id = (SELECT id FROM job WHERE state = 'new' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id",
    "UPDATE job SET state = 'done', runs = runs + 1 WHERE id = (SELECT id FROM job WHERE state = 'new' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id",
];

#[derive(Default)]
pub struct Jobs {
    /// Taken by transactions whose COMMIT was answered.
    taken: Mutex<Vec<i64>>,
}

impl Storm for Jobs {
    fn name(&self) -> &'static str {
        "job-queue"
    }

    fn tables(&self) -> &'static str {
        "CREATE TABLE job (id int8 PRIMARY KEY, state text NOT NULL DEFAULT 'new', runs int4 NOT NULL DEFAULT 0);
         CREATE INDEX ON job (id) WHERE state = 'new';
         CREATE TABLE done (job int8, member int4, worker int4, PRIMARY KEY (job, member, worker));"
    }

    fn rows(&self) -> String {
        format!("INSERT INTO job SELECT -i FROM generate_series(1, {JOBS}) i")
    }

    fn transact(&self, session: &mut Session) -> Result<bool, Error> {
        // A new one is behind those that are there.
        let next = session.commits as i64 * 64 + session.number as i64;
        let (member, worker) = (session.member as i32, session.number as i32);
        let take = TAKE[session.below(2) as usize];
        let mut t = session.client.transaction()?;
        let taken = t.query_opt(take, &[])?.map(|row| row.get::<_, i64>(0));
        if let Some(job) = taken {
            t.execute(
                "INSERT INTO done VALUES ($1, $2, $3)",
                &[&job, &member, &worker],
            )?;
            t.execute("INSERT INTO job VALUES ($1)", &[&next])?;
        }
        t.commit()?;
        self.taken.lock().expect("no worker panics").extend(taken);
        Ok(taken.is_some())
    }

    fn violation(&self, snapshot: &mut Transaction<'_>) -> Result<Option<String>, Error> {
        let sql = "SELECT (SELECT count(*) FROM job WHERE state = 'new'), (SELECT count(*) - count(DISTINCT job) FROM done), \
                   (SELECT count(*) FROM job WHERE runs > 1 OR (state = 'new') <> (runs = 0)), \
                   (SELECT count(*) FROM job JOIN done ON job = id WHERE state = 'new')";
        let row = snapshot.query_one(sql, &[])?;
        let counts: [i64; 4] = std::array::from_fn(|i| row.get(i));
        Ok((counts != [JOBS, 0, 0, 0]).then(|| {
            let [new, twice, odd, both] = counts;
            format!("{new} jobs are new, of {JOBS}; {twice} were done twice, {odd} ran oddly, {both} are new and done")
        }))
    }

    fn progress(&self, snapshot: &mut Transaction<'_>) -> Result<i64, Error> {
        let row = snapshot.query_one("SELECT count(*) FROM done", &[])?;
        Ok(row.get(0))
    }

    fn loss(
        &self,
        snapshot: &mut Transaction<'_>,
        _tally: &Tally,
    ) -> Result<Option<String>, Error> {
        let rows = snapshot.query("SELECT job FROM done", &[])?;
        let done: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        let taken = self.taken.lock().expect("no worker panics");
        let distinct: BTreeSet<i64> = taken.iter().copied().collect();
        Ok(
            (distinct.len() != taken.len() || distinct != done).then(|| {
                format!(
                    "{} commits took {} jobs, and {} are done",
                    taken.len(),
                    distinct.len(),
                    done.len()
                )
            }),
        )
    }
}
