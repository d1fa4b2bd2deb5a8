//! A job queue: workers on all members take jobs with SKIP LOCKED, and none is done twice.

use crate::support::{TestGroup, until_committed};
use std::collections::BTreeSet;

const JOBS: i64 = 120;
/// Two a member.
const WORKERS: usize = 6;

/// Takes the next job and closes it, by one of the two usual ways.
const TAKE: [&str; 2] = [
    "DELETE FROM job WHERE id = (SELECT id FROM job WHERE state = 'new' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id",
    "UPDATE job SET state = 'done', runs = runs + 1 WHERE id = (SELECT id FROM job WHERE state = 'new' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id",
];

/// The number of transactions, those tried again included; or what went wrong.
pub fn test(group: &TestGroup) -> Result<usize, String> {
    group.execute(
        1,
        &format!("INSERT INTO job SELECT i FROM generate_series(1, {JOBS}) i"),
    );
    group
        .wait_in_step(crate::support::PATIENCE)
        .map_err(|e| e.to_string())?;
    let results: Vec<(Vec<i32>, u32)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| scope.spawn(move || work(group, worker)))
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().map_err(|_| "a worker panicked".to_owned())?)
            .collect::<Result<_, String>>()
    })?;
    let acknowledged: Vec<i32> = results.iter().flat_map(|(jobs, _)| jobs.clone()).collect();
    let distinct: BTreeSet<i32> = acknowledged.iter().copied().collect();
    if acknowledged.len() as i64 != JOBS || distinct.len() as i64 != JOBS {
        return Err(format!(
            "{} commits of {} jobs, of {JOBS}",
            acknowledged.len(),
            distinct.len()
        ));
    }
    let tries: u32 = results.iter().map(|(_, tries)| tries).sum();
    let retries = i64::from(tries) - JOBS;
    if retries == 0 {
        return Err("the members did not compete".into());
    }
    group.assert_identical();
    for member in 1..=3 {
        let row = group
            .client(member)
            .query_one(
                "SELECT (SELECT count(*) FROM done), (SELECT count(DISTINCT job) FROM done), (SELECT count(*) FROM job WHERE state = 'new' OR runs <> 1)",
                &[],
            )
            .map_err(|e| format!("{e:?}"))?;
        let counts = (
            row.get::<_, i64>(0),
            row.get::<_, i64>(1),
            row.get::<_, i64>(2),
        );
        if counts != (JOBS, JOBS, 0) {
            return Err(format!("member {member}: {counts:?}"));
        }
    }
    group.execute(1, "DELETE FROM done; DELETE FROM job");
    Ok(tries as usize)
}

/// Takes jobs until there is none; those whose commit was acknowledged, and the tries it took.
fn work(group: &TestGroup, worker: usize) -> Result<(Vec<i32>, u32), String> {
    let member = worker % 3 + 1;
    let mut client = group.client(member);
    let (mut jobs, mut tries) = (Vec::new(), 0);
    loop {
        let mut taken = None;
        let retries = until_committed(&mut client, |t| {
            let row = t.query_opt(TAKE[jobs.len() % 2], &[])?;
            taken = row.map(|row| row.get::<_, i32>(0));
            if let Some(job) = taken {
                let sql = "INSERT INTO done VALUES ($1, $2, $3)";
                t.execute(sql, &[&job, &(member as i32), &(worker as i32)])?;
            }
            Ok(())
        })
        .map_err(|e| format!("worker {worker}: {e:?}"))?;
        tries += retries;
        match taken {
            Some(job) => {
                tries += 1;
                jobs.push(job);
            }
            // What others have locked may come back.
            None => {
                let left = client.query_one("SELECT count(*) FROM job WHERE state = 'new'", &[]);
                let left: i64 = left.map_err(|e| format!("{e:?}"))?.get(0);
                if left == 0 {
                    return Ok((jobs, tries));
                }
            }
        }
    }
}
