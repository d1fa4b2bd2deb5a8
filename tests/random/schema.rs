//! Random tables.

use crate::rng::Rng;
use crate::sequence::Sequence;
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
        INSERT INTO audit AS a VALUES (TG_TABLE_NAME, TG_OP, coalesce(CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END, -1), 1)
        ON CONFLICT (tab, op, id) DO UPDATE SET n = a.n + 1; RETURN NULL; END $$;
    CREATE FUNCTION audit_all() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit AS a VALUES (TG_TABLE_NAME, TG_OP, 0, 1) ON CONFLICT (tab, op, id) DO UPDATE SET n = a.n + 1; RETURN NULL; END $$;
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

/// A table; each has an `id` and a number `n`, and most have a key.
pub struct Table {
    pub name: String,
    pub columns: Vec<Column>,
    /// What ON CONFLICT names; empty if there is nothing.
    pub key: &'static str,
    /// A row is named by nothing but all that it holds.
    pub whole: bool,
    /// The number of the table that its column `p` refers to.
    pub parent: Option<usize>,
    /// Names of its partitions.
    pub partitions: Vec<String>,
    /// Of its column `s`.
    pub sequence: Option<Sequence>,
    /// That is an identity column.
    pub identity: bool,
}

impl Table {
    /// As a column in ALTER TABLE.
    pub fn identity_column(&self) -> Option<String> {
        self.identity.then(|| format!("{} ALTER s", self.name))
    }
}

/// All that there is.
pub struct Schema {
    pub tables: Vec<Table>,
    /// Those that are of no table.
    pub sequences: Vec<Sequence>,
}

impl Schema {
    /// Tables that TRUNCATE … CASCADE of one of them empties.
    pub fn reached(&self, table: usize) -> Vec<usize> {
        let mut all = vec![table];
        // Who refers to a table comes after it.
        for (n, other) in self.tables.iter().enumerate() {
            if other.parent.is_some_and(|p| all.contains(&p)) {
                all.push(n);
            }
        }
        all
    }

    /// The sequence of a name.
    pub fn sequence(&self, name: &str) -> Option<&Sequence> {
        let columns = self.tables.iter().filter_map(|t| t.sequence.as_ref());
        columns.chain(&self.sequences).find(|s| s.name == name)
    }

    /// A query for rows that refer to none.
    pub fn orphans(&self) -> String {
        let of = |t: &Table| {
            let parent = &self.tables[t.parent?].name;
            Some(format!(
                "SELECT '{0}' FROM {0} c WHERE p IS NOT NULL AND NOT EXISTS (SELECT FROM {parent} WHERE id = c.p)",
                t.name
            ))
        };
        let all: Vec<String> = self.tables.iter().filter_map(of).collect();
        if all.is_empty() {
            "SELECT 1 WHERE false".into()
        } else {
            all.join(" UNION ALL ")
        }
    }
}

/// Tables and sequences, and the SQL that makes them.
pub fn make(rng: &mut Rng, count: u64) -> (Schema, String) {
    let mut tables: Vec<Table> = Vec::new();
    let mut sql = BEGIN.to_owned();
    for number in 0..count {
        let table = table(rng, number, &tables, &mut sql);
        tables.push(table);
    }
    let sequences: Vec<Sequence> = (0..4).map(|n| Sequence::alone(rng, n)).collect();
    for s in &sequences {
        let options = s.options(rng);
        let _ = writeln!(sql, "CREATE SEQUENCE {} AS {} {options};", s.name, s.typ());
    }
    (Schema { tables, sequences }, sql)
}

fn table(rng: &mut Rng, number: u64, others: &[Table], sql: &mut String) -> Table {
    let name = format!("t{number}");
    let mut table = Table {
        name: name.clone(),
        columns: Vec::new(),
        key: "id",
        whole: false,
        parent: None,
        partitions: Vec::new(),
        sequence: None,
        identity: false,
    };
    let whole = rng.per_mille(300).then(|| rng.below(4));
    table.whole = whole.is_some();
    let null = if table.whole { "" } else { " NOT NULL" };
    let mut lines = vec![format!("id int4{null}")];
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
    if rng.per_mille(350) {
        table.identity = rng.per_mille(700);
        let sequence = if table.identity {
            let sequence = Sequence::of_column(rng, &name);
            lines.push(format!(
                "s {} GENERATED {} AS IDENTITY ({})",
                rng.pick(&["int4", "int8"]),
                rng.pick(&["ALWAYS", "BY DEFAULT"]),
                sequence.options(rng)
            ));
            sequence
        } else {
            lines.push("s serial".into());
            Sequence::serial(rng, &name)
        };
        table.sequence = Some(sequence);
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
    let own_identity = !table.whole && !partitioned && key == "id" && rng.per_mille(250);
    // A unique key names no row if it may be null, or be there twice for a while.
    match whole {
        None if own_identity => {}
        None => lines.push(format!("PRIMARY KEY ({key})")),
        Some(0) => lines.push(format!("UNIQUE ({key})")),
        Some(1) => {
            lines.push(format!("PRIMARY KEY ({key}) DEFERRABLE INITIALLY DEFERRED"));
            table.key = "";
        }
        Some(_) => table.key = "",
    }
    let parents = others.iter().enumerate().filter(|(_, t)| t.key == "id");
    let parents: Vec<usize> = parents.map(|(n, _)| n).collect();
    if !parents.is_empty() && rng.per_mille(400) {
        let number = rng.pick(&parents);
        let parent = &others[number].name;
        let action = rng.pick(&["CASCADE", "SET NULL", "NO ACTION", "RESTRICT"]);
        let when = rng.pick(&["", " DEFERRABLE INITIALLY DEFERRED"]);
        lines.push(format!(
            "p int4 REFERENCES {parent} (id) ON DELETE {action} ON UPDATE {}{when}",
            rng.pick(&["CASCADE", "NO ACTION"])
        ));
        table.parent = Some(number);
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
    table.partitions = match by {
        "" => Vec::new(),
        " PARTITION BY HASH (id)" => (0..3).map(|r| format!("{name}_{r}")).collect(),
        _ => (0..2).map(|r| format!("{name}_{r}")).collect(),
    };
    if own_identity {
        // Foreign keys name a unique index as well.
        let _ = writeln!(
            sql,
            "CREATE UNIQUE INDEX {name}_id ON {name} (id); ALTER TABLE {name} REPLICA IDENTITY USING INDEX {name}_id;"
        );
    }
    if !own_identity && (table.whole || rng.per_mille(200)) {
        let identity = rng.pick(&["DEFAULT", "FULL", "NOTHING"]);
        let heaps = if by.is_empty() {
            std::slice::from_ref(&name)
        } else {
            &table.partitions
        };
        for heap in heaps {
            let _ = writeln!(sql, "ALTER TABLE {heap} REPLICA IDENTITY {identity};");
        }
    }
    if table.whole {
        let index = match rng.below(6) {
            0 => "(id)",
            1 => "(n, id)",
            2 => "USING hash (id)",
            3 => "((id % 4)) WHERE n < 5",
            _ => "",
        };
        if !index.is_empty() {
            let _ = writeln!(sql, "CREATE INDEX ON {name} {index};");
        }
    }
    if table.sequence.is_some() && by.is_empty() && rng.per_mille(400) {
        let _ = writeln!(sql, "CREATE UNIQUE INDEX ON {name} (s);");
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
            "CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION audit();
             CREATE TRIGGER audit_all {} TRUNCATE ON {name} EXECUTE FUNCTION audit_all();",
            rng.pick(&["BEFORE", "AFTER"])
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
