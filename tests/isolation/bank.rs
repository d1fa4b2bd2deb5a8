//! A bank: tellers on all members move money in the three ways that are right on one server, while
//! auditors compare the balances with the list of transfers.

use crate::support::{PATIENCE, Stop, TestGroup, until_committed};
use postgres::{Client, Error, IsolationLevel, Transaction};
use std::sync::atomic::{AtomicBool, Ordering};

const ACCOUNTS: i32 = 8;
const OPENING: i32 = 100;
/// Two a member.
const TELLERS: i32 = 6;
/// Of each teller.
const TRANSFERS: i32 = 30;

/// How a teller makes sure of the balances that it writes.
#[derive(Clone, Copy)]
enum Way {
    /// READ COMMITTED, and the server adds.
    Server,
    /// READ COMMITTED; the rows are locked before they are read.
    Locks,
    /// REPEATABLE READ.
    Snapshot,
}

impl Way {
    fn of(teller: i32) -> Way {
        [Way::Server, Way::Locks, Way::Snapshot][teller as usize % 3]
    }

    fn level(self) -> &'static str {
        match self {
            Way::Server | Way::Locks => "read committed",
            Way::Snapshot => "repeatable read",
        }
    }
}

/// What one teller moves next.
struct Order {
    debit: i32,
    credit: i32,
    amount: i32,
}

/// The number of transactions, those tried again included; or what went wrong.
pub fn test(group: &TestGroup) -> Result<usize, String> {
    group.execute(
        1,
        &format!("INSERT INTO account SELECT i, {OPENING} FROM generate_series(1, {ACCOUNTS}) i"),
    );
    group.wait_in_step(PATIENCE).map_err(|e| e.to_string())?;
    let closed = AtomicBool::new(false);
    let tries = std::thread::scope(|scope| {
        let auditors: Vec<_> = (1..=3)
            .map(|member| {
                scope.spawn({
                    let closed = &closed;
                    move || audits(group, member, closed)
                })
            })
            .collect();
        let closing = Stop(&closed);
        let tellers: Vec<_> = (0..TELLERS)
            .map(|teller| scope.spawn(move || serve(group, teller)))
            .collect();
        let tries = tellers
            .into_iter()
            .map(|t| t.join().map_err(|_| "a teller panicked".to_owned())?)
            .sum::<Result<u32, String>>();
        drop(closing);
        for auditor in auditors {
            auditor
                .join()
                .map_err(|_| "an auditor panicked".to_owned())??;
        }
        tries
    })?;
    let wanted = TELLERS * TRANSFERS;
    if tries == wanted as u32 {
        return Err("the tellers did not compete".into());
    }
    group.assert_identical();
    // All that was acknowledged is there, on every member.
    for member in 1..=3 {
        let found = audit(&mut group.client(member)).map_err(|e| format!("{e:?}"))??;
        if found != i64::from(wanted) {
            return Err(format!("member {member}: {found} transfers, of {wanted}"));
        }
    }
    group.execute(1, "DELETE FROM transfer; DELETE FROM account");
    Ok(tries as usize)
}

/// Makes a teller's transfers; the tries that they took.
fn serve(group: &TestGroup, teller: i32) -> Result<u32, String> {
    let way = Way::of(teller);
    let mut client = group.client((teller % 3 + 1) as usize);
    let told = |e: Error| format!("teller {teller}: {e:?}");
    let level = format!("SET default_transaction_isolation = '{}'", way.level());
    client.batch_execute(&level).map_err(told)?;
    let mut tries = 0;
    for number in 0..TRANSFERS {
        let order = Order::of(teller, number);
        tries += 1 + until_committed(&mut client, |t| {
            order.carry_out(t, way)?;
            let sql = "INSERT INTO transfer VALUES ($1, $2, $3, $4, $5)";
            let Order {
                debit,
                credit,
                amount,
            } = &order;
            t.execute(sql, &[&teller, &number, debit, credit, amount])
                .map(drop)
        })
        .map_err(told)?;
    }
    Ok(tries)
}

impl Order {
    /// Any would do, but so that no balance ever gets below zero.
    fn of(teller: i32, number: i32) -> Order {
        let mix = (teller * TRANSFERS + number).wrapping_mul(0x9e37_79b1_u32 as i32);
        let debit = (mix >> 8).rem_euclid(ACCOUNTS);
        let credit = (debit + 1 + (mix >> 16).rem_euclid(ACCOUNTS - 1)) % ACCOUNTS;
        Order {
            debit: debit + 1,
            credit: credit + 1,
            amount: 1 + (mix >> 24).rem_euclid(2),
        }
    }

    /// The lower account first, so that tellers of one member never wait for each other in a circle.
    fn carry_out(&self, t: &mut Transaction<'_>, way: Way) -> Result<(), Error> {
        let mut moves = [(self.debit, -self.amount), (self.credit, self.amount)];
        moves.sort_unstable();
        if matches!(way, Way::Server) {
            let sql = "UPDATE account SET balance = balance + $2 WHERE id = $1";
            return moves
                .iter()
                .try_for_each(|(id, amount)| t.execute(sql, &[id, amount]).map(drop));
        }
        let look = match way {
            Way::Locks => "SELECT balance FROM account WHERE id = $1 FOR UPDATE",
            _ => "SELECT balance FROM account WHERE id = $1",
        };
        for (id, amount) in &moves {
            let balance: i32 = t.query_one(look, &[id])?.get(0);
            let sql = "UPDATE account SET balance = $2 WHERE id = $1";
            t.execute(sql, &[id, &(balance + amount)])?;
        }
        Ok(())
    }
}

/// Audits a member until the bank closes.
fn audits(group: &TestGroup, member: usize, closed: &AtomicBool) -> Result<(), String> {
    let mut client = group.client(member);
    let mut last = 0;
    while !closed.load(Ordering::Relaxed) {
        let found = audit(&mut client)
            .map_err(|e| format!("{e:?}"))
            .and_then(|books| books)
            .map_err(|e| format!("auditor of member {member}: {e}"))?;
        if found < last {
            return Err(format!("member {member}: {last} transfers, then {found}"));
        }
        last = found;
    }
    Ok(())
}

/// Holds every balance against the transfers, in one snapshot over several statements; the number
/// of transfers, or what does not match.
fn audit(client: &mut Client) -> Result<Result<i64, String>, Error> {
    let mut snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()?;
    let found = snapshot
        .query_one("SELECT count(*) FROM transfer", &[])?
        .get(0);
    for id in 1..=ACCOUNTS {
        let balance: i32 = snapshot
            .query_one("SELECT balance FROM account WHERE id = $1", &[&id])?
            .get(0);
        let sql = "SELECT coalesce(sum(CASE WHEN credit = $1 THEN amount ELSE -amount END), 0)::int4 FROM transfer WHERE $1 IN (debit, credit)";
        let moved: i32 = snapshot.query_one(sql, &[&id])?.get(0);
        if balance != OPENING + moved {
            return Ok(Err(format!(
                "account {id} has {balance}, and {moved} was moved to it"
            )));
        }
    }
    let sql = "SELECT sum(balance)::int4 FROM account";
    let sum: i32 = snapshot.query_one(sql, &[])?.get(0);
    if sum != ACCOUNTS * OPENING {
        return Ok(Err(format!("the bank has {sum}")));
    }
    Ok(Ok(found))
}
