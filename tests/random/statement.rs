//! Random transactions.

use crate::rng::Rng;
use crate::schema::Table;

/// Ids are below.
const IDS: u64 = 30;

/// Statements of one session; the first and the last may be BEGIN and COMMIT.
pub struct Work {
    /// Which member it is for, from 0.
    pub member: usize,
    pub statements: Vec<String>,
}

/// The next transaction.
pub fn work(rng: &mut Rng, tables: &[Table]) -> Work {
    let member = rng.below(3) as usize;
    if rng.per_mille(500) {
        return Work {
            member,
            statements: vec![statement(rng, tables)],
        };
    }
    let level = rng.pick(&[
        "READ COMMITTED",
        "READ COMMITTED",
        "REPEATABLE READ",
        "SERIALIZABLE",
    ]);
    let mut statements = vec![format!("BEGIN ISOLATION LEVEL {level}")];
    let mut savepoint = false;
    for _ in 0..rng.between(1, 5) {
        match rng.below(10) {
            0 if !savepoint => {
                statements.push("SAVEPOINT s".into());
                savepoint = true;
            }
            1 | 2 if savepoint => {
                statements.push(rng.pick(&["ROLLBACK TO s", "RELEASE s"]).into());
                savepoint = !statements.last().is_some_and(|s| s.starts_with("RELEASE"));
            }
            _ => statements.push(statement(rng, tables)),
        }
    }
    statements.push(
        if rng.per_mille(80) {
            "ROLLBACK"
        } else {
            "COMMIT"
        }
        .into(),
    );
    Work { member, statements }
}

fn statement(rng: &mut Rng, tables: &[Table]) -> String {
    let table = &tables[rng.below(tables.len() as u64) as usize];
    let t = &table.name;
    let id = rng.below(IDS);
    match rng.below(20) {
        0..=4 => insert(rng, table, 1),
        5 => {
            let rows = rng.between(2, 12);
            insert(rng, table, rows)
        }
        6 => format!("{} ON CONFLICT DO NOTHING", insert(rng, table, 2)),
        7 | 8 => format!(
            "{} ON CONFLICT ({}) DO UPDATE SET {}",
            insert(rng, table, 1),
            table.key,
            assignment(rng, table)
        ),
        9..=11 => format!("UPDATE {t} SET {} WHERE id = {id}", assignment(rng, table)),
        12 => format!(
            "UPDATE {t} SET {} WHERE id BETWEEN {id} AND {}",
            assignment(rng, table),
            id + rng.below(8)
        ),
        13 => format!("UPDATE {t} SET id = {} WHERE id = {id}", rng.below(IDS)),
        14 => format!("UPDATE {t} SET n = {} WHERE id = {id}", rng.below(8)),
        15 => format!("DELETE FROM {t} WHERE id = {id}"),
        16 => format!(
            "DELETE FROM {t} WHERE id BETWEEN {id} AND {}",
            id + rng.below(5)
        ),
        17 => format!(
            "MERGE INTO {t} USING generate_series({id}, {}) s (i) ON id = i WHEN MATCHED AND i % 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET {} WHEN NOT MATCHED THEN INSERT (id, n) VALUES (i, i % 7)",
            id + 4,
            assignment(rng, table)
        ),
        18 => format!(
            "WITH d AS (DELETE FROM {t} WHERE id = {id} RETURNING id, n) INSERT INTO {t} (id, n) SELECT (id + 1) % {IDS}, n FROM d"
        ),
        _ => match rng.below(7) {
            0 => format!("SELECT count(*) FROM {t} WHERE id = {id}"),
            1 => format!(
                "SELECT id FROM {t} WHERE id BETWEEN {id} AND {} ORDER BY id FOR {}",
                id + 3,
                rng.pick(&["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"])
            ),
            2 => format!(
                "LOCK TABLE {t} IN {} MODE",
                rng.pick(&["SHARE", "ROW EXCLUSIVE", "EXCLUSIVE"])
            ),
            3 => "SET CONSTRAINTS ALL IMMEDIATE".into(),
            4 => format!(
                "DO $$ BEGIN UPDATE {t} SET n = n + 1 WHERE id < {id}; RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN UPDATE {t} SET n = 1 WHERE id = {id}; END $$"
            ),
            5 => format!("UPDATE {t} SET n = n WHERE id < {id}"),
            _ => format!("VACUUM (ANALYZE) {t}"),
        },
    }
}

fn insert(rng: &mut Rng, table: &Table, rows: u64) -> String {
    let mut names = vec!["id", "n"];
    names.extend(table.columns.iter().map(|c| c.name.as_str()));
    if table.parent {
        names.push("p");
    }
    let rows: Vec<String> = (0..rows)
        .map(|_| {
            let mut values = vec![rng.below(IDS).to_string(), rng.below(8).to_string()];
            values.extend(table.columns.iter().map(|c| c.value(rng).to_owned()));
            if table.parent {
                values.push(if rng.per_mille(400) {
                    "NULL".into()
                } else {
                    rng.below(IDS).to_string()
                });
            }
            format!("({})", values.join(", "))
        })
        .collect();
    format!(
        "INSERT INTO {} ({}) VALUES {}",
        table.name,
        names.join(", "),
        rows.join(", ")
    )
}

/// What an UPDATE sets.
fn assignment(rng: &mut Rng, table: &Table) -> String {
    let column = &table.columns[rng.below(table.columns.len() as u64) as usize];
    let value = column.value(rng);
    match rng.below(4) {
        0 => format!("n = {}.n + 1", table.name),
        1 => format!("{} = {value}, n = {}", column.name, rng.below(8)),
        _ => format!("{} = {value}", column.name),
    }
}
