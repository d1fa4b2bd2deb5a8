//! A bank: tellers on all members move money in the three ways that are right on one server, while
//! auditors compare the balances with the list of transfers.

use super::{Session, Storm, Tally};
use postgres::error::SqlState;
use postgres::{Error, IsolationLevel, Transaction};

const ACCOUNTS: i32 = 8;
const OPENING: i64 = 1_000_000;

pub struct Bank;

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

/// What one teller moves next.
struct Order {
    debit: i32,
    credit: i32,
    amount: i64,
}

impl Storm for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    fn tables(&self) -> &'static str {
        "CREATE TABLE account (id int4 PRIMARY KEY, balance int8 NOT NULL);
         CREATE TABLE transfer (teller int4, number int8, debit int4 NOT NULL, credit int4 NOT NULL, amount int8 NOT NULL, PRIMARY KEY (teller, number));"
    }

    fn rows(&self) -> String {
        format!("INSERT INTO account SELECT i, {OPENING} FROM generate_series(1, {ACCOUNTS}) i")
    }

    fn expected(&self) -> &'static [SqlState] {
        &[SqlState::T_R_DEADLOCK_DETECTED]
    }

    fn transact(&self, session: &mut Session) -> Result<bool, Error> {
        let order = Order::next(session);
        // Both tellers of a member in a way that the other one does not go, too.
        let way =
            [Way::Server, Way::Locks, Way::Snapshot][(session.number + session.number / 3) % 3];
        let level = match way {
            Way::Server | Way::Locks => IsolationLevel::ReadCommitted,
            Way::Snapshot => IsolationLevel::RepeatableRead,
        };
        let (teller, number) = (session.number as i32, session.commits as i64);
        let mut t = session
            .client
            .build_transaction()
            .isolation_level(level)
            .start()?;
        order.carry_out(&mut t, way)?;
        // Its number is that of the one before, should that have come to nothing.
        let sql = "INSERT INTO transfer VALUES ($1, $2, $3, $4, $5)";
        let Order {
            debit,
            credit,
            amount,
        } = &order;
        t.execute(sql, &[&teller, &number, debit, credit, amount])?;
        t.commit()?;
        Ok(true)
    }

    /// Holds every balance against the transfers, over several statements.
    fn violation(&self, snapshot: &mut Transaction<'_>) -> Result<Option<String>, Error> {
        let sql = "SELECT balance, coalesce((SELECT sum(CASE WHEN credit = id THEN amount ELSE -amount END) FROM transfer WHERE id IN (debit, credit)), 0)::int8 FROM account WHERE id = $1";
        let mut sum = 0;
        for id in 1..=ACCOUNTS {
            let row = snapshot.query_one(sql, &[&id])?;
            let (balance, moved): (i64, i64) = (row.get(0), row.get(1));
            if balance != OPENING + moved {
                return Ok(Some(format!(
                    "account {id} has {balance}, and {moved} was moved to it"
                )));
            }
            sum += balance;
        }
        let all: i64 = snapshot
            .query_one("SELECT sum(balance)::int8 FROM account", &[])?
            .get(0);
        let wanted = i64::from(ACCOUNTS) * OPENING;
        Ok((sum != wanted || all != wanted).then(|| format!("the bank has {sum}, or {all}")))
    }

    fn progress(&self, snapshot: &mut Transaction<'_>) -> Result<i64, Error> {
        let row = snapshot.query_one("SELECT count(*) FROM transfer", &[])?;
        Ok(row.get(0))
    }

    fn loss(&self, snapshot: &mut Transaction<'_>, tally: &Tally) -> Result<Option<String>, Error> {
        let (found, wanted) = (self.progress(snapshot)?, tally.committed as i64);
        Ok((found != wanted).then(|| format!("{found} transfers, and {wanted} were acknowledged")))
    }
}

impl Order {
    fn next(session: &mut Session) -> Order {
        let debit = session.below(ACCOUNTS);
        let credit = (debit + 1 + session.below(ACCOUNTS - 1)) % ACCOUNTS;
        Order {
            debit: debit + 1,
            credit: credit + 1,
            amount: i64::from(1 + session.below(3)),
        }
    }

    fn carry_out(&self, t: &mut Transaction<'_>, way: Way) -> Result<(), Error> {
        let mut moves = [(self.debit, -self.amount), (self.credit, self.amount)];
        if matches!(way, Way::Server) {
            // In any order: tellers of one member wait for each other in a circle now and then.
            let sql = "UPDATE account SET balance = balance + $2 WHERE id = $1";
            return moves
                .iter()
                .try_for_each(|(id, amount)| t.execute(sql, &[id, amount]).map(drop));
        }
        moves.sort_unstable();
        let look = match way {
            Way::Locks => "SELECT balance FROM account WHERE id = $1 FOR UPDATE",
            _ => "SELECT balance FROM account WHERE id = $1",
        };
        for (id, amount) in &moves {
            let balance: i64 = t.query_one(look, &[id])?.get(0);
            let sql = "UPDATE account SET balance = $2 WHERE id = $1";
            t.execute(sql, &[id, &(balance + amount)])?;
        }
        Ok(())
    }
}
