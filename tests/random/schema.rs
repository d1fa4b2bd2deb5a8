//! Random tables.

use crate::rng::Rng;
use std::fmt::Write as _;

/// What a column can hold, and expressions for it; few values, so that keys meet.
const TYPES: &[(&str, &[&str])] = &[
    ("int4", &["0", "1", "2", "-5", "2147483647"]),
    ("int8", &["0", "7", "-9223372036854775808"]),
    ("int2", &["1", "2", "3"]),
    ("bool", &["true", "false"]),
    (
        "text",
        &[
            "''",
            "'a'",
            "'B'",
            "repeat('wide ', 600)",
            "(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 200) g)",
        ],
    ),
    ("varchar(30)", &["'x'", "'yy'", "repeat('z', 30)"]),
    (
        "numeric",
        &["1", "1.00", "'NaN'", "-2.5e10", "99999999999999999999.9"],
    ),
    ("float8", &["0", "'-0'", "'NaN'", "'Infinity'", "0.1"]),
    ("date", &["'2000-01-01'", "'infinity'", "'2024-02-29'"]),
    ("timestamptz", &["'2000-01-01+00'", "'-infinity'"]),
    ("interval", &["'1 mon'", "'30 days'", "'720 hours'"]),
    (
        "uuid",
        &[
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
            "'00000000-0000-0000-0000-000000000000'",
        ],
    ),
    (
        "bytea",
        &["'\\x00ff'", "''", "decode(repeat('ab', 3000), 'hex')"],
    ),
    (
        "jsonb",
        &[
            "'{}'",
            "'[1, null]'",
            "jsonb_build_object('k', repeat('v', 3000))",
        ],
    ),
    ("inet", &["'10.0.0.1/8'", "'::1'"]),
    ("int4[]", &["'{}'", "'{1,NULL}'", "'{{1,2},{3,4}}'"]),
    ("text[]", &["'{a,b}'", "'{}'"]),
    ("int4range", &["'empty'", "'[1,5)'", "'[5,)'"]),
    ("mood", &["'sad'", "'happy'"]),
    ("pair", &["ROW(1, 'a')", "ROW(NULL, 'b')"]),
    ("varbit", &["B'1'", "B'0101'"]),
];

/// Made before the tables.
pub const BEGIN: &str = "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (a int4, b text);
    CREATE EXTENSION btree_gist; CREATE EXTENSION amcheck;
    CREATE TABLE audit (tab text, op text, id int4, n int4, PRIMARY KEY (tab, op, id));
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit AS a VALUES (TG_TABLE_NAME, TG_OP, CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END, 1)
        ON CONFLICT (tab, op, id) DO UPDATE SET n = a.n + 1; RETURN NULL; END $$;
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.n := coalesce(NEW.n, 0) + 1; RETURN NEW; END $$;";

/// A column besides `id` and `n`.
pub struct Column {
    pub name: String,
    values: &'static [&'static str],
}

impl Column {
    /// An expression for it.
    pub fn value(&self, rng: &mut Rng) -> &'static str {
        if rng.per_mille(120) {
            "NULL"
        } else {
            rng.pick(self.values)
        }
    }
}

/// A table; each has an `id` that is unique, alone or with the rest of its key, and a number `n`.
pub struct Table {
    pub name: String,
    pub columns: Vec<Column>,
    /// What ON CONFLICT names.
    pub key: &'static str,
    /// Refers to a table by this column.
    pub parent: bool,
}

/// Tables, and the SQL that makes them.
pub fn tables(rng: &mut Rng, count: u64) -> (Vec<Table>, String) {
    let mut tables: Vec<Table> = Vec::new();
    let mut sql = BEGIN.to_owned();
    for number in 0..count {
        let table = table(rng, number, &tables, &mut sql);
        tables.push(table);
    }
    (tables, sql)
}

fn table(rng: &mut Rng, number: u64, others: &[Table], sql: &mut String) -> Table {
    let name = format!("t{number}");
    let mut table = Table {
        name: name.clone(),
        columns: Vec::new(),
        key: "id",
        parent: false,
    };
    let mut lines = vec!["id int4 NOT NULL".to_owned()];
    if rng.per_mille(300) {
        lines.insert(rng.below(2) as usize, "gone text DEFAULT 'gone'".into());
    }
    lines.push("n int4".into());
    let mut types = Vec::new();
    for c in 0..rng.between(1, 6) {
        let (typ, values) = rng.pick(TYPES);
        let column = format!("c{c}");
        lines.push(format!("{column} {typ}"));
        types.push(typ);
        table.columns.push(Column {
            name: column,
            values,
        });
    }
    match rng.below(5) {
        0 => lines.push("g int4 GENERATED ALWAYS AS (n * 2) STORED".into()),
        1 => lines.push("g int4 GENERATED ALWAYS AS (n * 2)".into()),
        _ => {}
    }
    if rng.per_mille(200) {
        lines.push("CHECK (n < 40)".into());
    }
    let partitioned = rng.per_mille(350);
    // A key that others can refer to, or one of its parts is what partitions are told apart by.
    let (key, by) = match (partitioned, rng.below(3)) {
        (true, 0) => ("id", " PARTITION BY HASH (id)"),
        (true, 1) => ("id, n", " PARTITION BY RANGE (n)"),
        (true, _) => ("id", " PARTITION BY LIST (id)"),
        (false, 0) => ("n, id", ""),
        (false, _) => ("id", ""),
    };
    table.key = key;
    let own_identity = !partitioned && key == "id" && rng.per_mille(250);
    if !own_identity {
        lines.push(format!("PRIMARY KEY ({key})"));
    }
    let parents: Vec<&Table> = others.iter().filter(|t| t.key == "id").collect();
    if !parents.is_empty() && rng.per_mille(400) {
        let parent = &parents[rng.below(parents.len() as u64) as usize].name;
        let action = rng.pick(&["CASCADE", "SET NULL", "NO ACTION", "RESTRICT"]);
        let when = rng.pick(&["", " DEFERRABLE INITIALLY DEFERRED"]);
        lines.push(format!(
            "p int4 REFERENCES {parent} (id) ON DELETE {action} ON UPDATE {}{when}",
            rng.pick(&["CASCADE", "NO ACTION"])
        ));
        table.parent = true;
    }
    let _ = writeln!(sql, "CREATE TABLE {name} ({}){by};", lines.join(", "));
    match by {
        "" => {}
        " PARTITION BY HASH (id)" => {
            for r in 0..3 {
                let _ = writeln!(
                    sql,
                    "CREATE TABLE {name}_{r} PARTITION OF {name} FOR VALUES WITH (MODULUS 3, REMAINDER {r});"
                );
            }
        }
        " PARTITION BY RANGE (n)" => {
            let _ = writeln!(
                sql,
                "CREATE TABLE {name}_0 PARTITION OF {name} FOR VALUES FROM (MINVALUE) TO (3); CREATE TABLE {name}_1 PARTITION OF {name} DEFAULT;"
            );
        }
        _ => {
            let _ = writeln!(
                sql,
                "CREATE TABLE {name}_0 PARTITION OF {name} FOR VALUES IN (1, 2, 3, 4, 5, 6, 7); CREATE TABLE {name}_1 PARTITION OF {name} DEFAULT;"
            );
        }
    }
    if own_identity {
        // Foreign keys name a unique index as well.
        let _ = writeln!(
            sql,
            "CREATE UNIQUE INDEX {name}_id ON {name} (id); ALTER TABLE {name} REPLICA IDENTITY USING INDEX {name}_id;"
        );
    }
    for (i, (column, typ)) in table.columns.iter().zip(&types).enumerate() {
        index(rng, &name, i, &column.name, typ, partitioned, sql);
    }
    if lines.iter().any(|l| l.starts_with("gone")) {
        let _ = writeln!(sql, "ALTER TABLE {name} DROP COLUMN gone;");
    }
    if rng.per_mille(250) {
        let _ = writeln!(
            sql,
            "ALTER TABLE {name} ADD COLUMN fast text DEFAULT 'fast';"
        );
    }
    if rng.per_mille(250) {
        let _ = writeln!(
            sql,
            "CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION audit();"
        );
    }
    // A BEFORE trigger may not move a row to another partition.
    if rng.per_mille(200) && key != "id, n" {
        let _ = writeln!(
            sql,
            "CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON {name} FOR EACH ROW EXECUTE FUNCTION touch();"
        );
    }
    table
}

/// Perhaps an index on a column.
fn index(
    rng: &mut Rng,
    table: &str,
    number: usize,
    column: &str,
    typ: &str,
    partitioned: bool,
    sql: &mut String,
) {
    let unique = !partitioned && rng.per_mille(300);
    let definition = match rng.below(8) {
        0 if unique && typ != "varbit" => format!("UNIQUE NULLS NOT DISTINCT ({column}, n)"),
        1 if unique => format!("UNIQUE ({column}, n) DEFERRABLE INITIALLY DEFERRED"),
        2 if unique && typ == "int4range" => {
            format!("EXCLUDE USING gist ({column} WITH &&, n WITH =)")
        }
        3 if unique => {
            let _ = writeln!(
                sql,
                "CREATE UNIQUE INDEX ON {table} ((n + 1), {column}) WHERE n < 20;"
            );
            return;
        }
        4 => {
            let _ = writeln!(sql, "CREATE INDEX ON {table} (n) INCLUDE ({column});");
            return;
        }
        5 if typ.ends_with("[]") || typ == "jsonb" => {
            let _ = writeln!(sql, "CREATE INDEX ON {table} USING gin ({column});");
            return;
        }
        6 => {
            let method =
                if ["pair", "bool", "mood"].contains(&typ) || typ.ends_with("[]") || typ == "jsonb"
                {
                    "btree"
                } else {
                    rng.pick(&["brin", "btree"])
                };
            let _ = writeln!(sql, "CREATE INDEX ON {table} USING {method} ({column});");
            return;
        }
        _ => return,
    };
    let _ = writeln!(
        sql,
        "ALTER TABLE {table} ADD CONSTRAINT {table}_u{number} {definition};"
    );
}
