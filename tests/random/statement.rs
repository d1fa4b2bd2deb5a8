//! Random transactions.

use crate::rng::Rng;
use crate::schema::{Schema, Table};

/// Ids are below.
const IDS: u64 = 30;

/// Statements of one session; the first and the last may be BEGIN and COMMIT.
pub struct Work {
    /// Which member it is for, from 0.
    pub member: usize,
    pub statements: Vec<String>,
}

/// The next transaction.
pub fn work(rng: &mut Rng, schema: &Schema) -> Work {
    let member = rng.below(3) as usize;
    if rng.per_mille(500) {
        return Work {
            member,
            statements: vec![statement(rng, schema)],
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
            _ => statements.push(statement(rng, schema)),
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

fn statement(rng: &mut Rng, schema: &Schema) -> String {
    let number = rng.below(schema.tables.len() as u64) as usize;
    let table = &schema.tables[number];
    if rng.per_mille(7) {
        return truncate(rng, schema, number);
    }
    if rng.per_mille(90) {
        return of_sequence(rng, schema, table);
    }
    if table.whole && rng.per_mille(250) {
        return of_equal_rows(rng, table);
    }
    let t = &table.name;
    let id = rng.below(IDS);
    match rng.below(20) {
        0..=4 => insert(rng, table, 1) + &returning(table),
        5 => {
            let rows = rng.between(2, 12);
            insert(rng, table, rows) + &returning(table)
        }
        6 => format!("{} ON CONFLICT DO NOTHING", insert(rng, table, 2)),
        7 | 8 if table.key.is_empty() => {
            format!("{} ON CONFLICT DO NOTHING", insert(rng, table, 3))
        }
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

/// The values that an INSERT takes of a sequence, by its name.
fn returning(table: &Table) -> String {
    let names = table.sequence.iter().map(|s| &s.name);
    names.map(|s| format!(" RETURNING s AS {s}")).collect()
}

fn truncate(rng: &mut Rng, schema: &Schema, number: usize) -> String {
    let table = &schema.tables[number];
    let t = &table.name;
    let taken_from = |n: &usize| schema.tables[*n].sequence.as_ref().is_some_and(|s| s.once);
    let restart = |tables: &[usize]| {
        if tables.iter().any(taken_from) {
            ""
        } else {
            " RESTART IDENTITY"
        }
    };
    let reached = schema.reached(number);
    match rng.below(8) {
        0 => format!("TRUNCATE {t}"),
        1 if !table.partitions.is_empty() => format!("TRUNCATE {}", table.partitions[0]),
        1 => format!("TRUNCATE ONLY {t}"),
        2 => format!("TRUNCATE {t}{}", restart(&[number])),
        3 => format!("TRUNCATE {t}{} CASCADE", restart(&reached)),
        4 => {
            let other = &schema.tables[rng.below(schema.tables.len() as u64) as usize].name;
            format!("TRUNCATE {t}, {other} CASCADE")
        }
        5 => {
            let names: Vec<&str> = reached
                .iter()
                .map(|n| schema.tables[*n].name.as_str())
                .collect();
            format!("TRUNCATE {}{}", names.join(", "), restart(&reached))
        }
        _ => format!("TRUNCATE {t} CASCADE"),
    }
}

fn of_sequence(rng: &mut Rng, schema: &Schema, table: &Table) -> String {
    let (t, id) = (&table.name, rng.below(IDS));
    let Some(sequence) = &table.sequence else {
        let number = rng.below(schema.sequences.len() as u64) as usize;
        return schema.sequences[number].statement(rng, None);
    };
    match rng.below(4) {
        0 => format!("UPDATE {t} SET s = DEFAULT WHERE id = {id}"),
        1 if !sequence.once => format!(
            "INSERT INTO {t} (id, n, s) OVERRIDING SYSTEM VALUE VALUES ({id}, {}, {})",
            rng.below(8),
            sequence.value(rng)
        ),
        _ => sequence.statement(rng, table.identity_column().as_deref()),
    }
}

/// Rows that there may be several of, all of them or one.
fn of_equal_rows(rng: &mut Rng, table: &Table) -> String {
    let (t, id) = (&table.name, rng.below(IDS));
    let one = format!("ctid = (SELECT min(ctid) FROM {t} WHERE id = {id})");
    match rng.below(6) {
        0 => format!("DELETE FROM {t} WHERE {one}"),
        1 => format!("UPDATE {t} SET {} WHERE {one}", assignment(rng, table)),
        2 => format!("UPDATE {t} SET id = {} WHERE {one}", rng.below(IDS)),
        3 => format!("UPDATE {t} SET id = NULL WHERE id = {id}"),
        4 => format!("DELETE FROM {t} WHERE id IS NULL AND n = {}", rng.below(8)),
        _ => {
            let once = insert(rng, table, 1);
            let (head, row) = once.split_once(" VALUES ").expect("an INSERT");
            let rows = vec![row; rng.between(2, 4) as usize];
            format!("{head} VALUES {}", rows.join(", "))
        }
    }
}

fn insert(rng: &mut Rng, table: &Table, rows: u64) -> String {
    let mut names = vec!["id", "n"];
    names.extend(table.columns.iter().map(|c| c.name.as_str()));
    if table.parent.is_some() {
        names.push("p");
    }
    let rows: Vec<String> = (0..rows)
        .map(|_| {
            let mut values = vec![rng.below(IDS).to_string(), rng.below(8).to_string()];
            values.extend(table.columns.iter().map(|c| c.value(rng).to_owned()));
            if table.parent.is_some() {
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
