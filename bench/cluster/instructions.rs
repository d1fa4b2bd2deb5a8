//! Instructions of a TPC-B-like transaction, stock against patched with replication off, counted by
//! callgrind in a single-user server: repeatable to a fraction of a percent where seconds are not.

use crate::setups::Setups;
use postgres_r::cluster::Server;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

/// Instructions a transaction.
pub struct Instructions {
    /// Stock PostgreSQL.
    pub stock: f64,
    /// Patched, replication off.
    pub off: f64,
}

const SHORT: u32 = 100;
const LONG: u32 = 500;

/// Counts, or says why not.
pub fn compare(setups: &Setups) -> Option<Instructions> {
    let stock = count(setups.server("stock")?)?;
    let off = count(setups.server("off")?)?;
    Some(Instructions { stock, off })
}

/// The difference of a long and a short run is free of start and end.
fn count(like: &Server) -> Option<f64> {
    let server = Server {
        data: like.data.with_extension("single"),
        log: like.log.with_extension("single.log"),
        ..like.clone()
    };
    server.initdb().unwrap_or_else(|e| panic!("{e}"));
    let mut tables =
        String::from("CREATE TABLE a (aid int PRIMARY KEY, abalance int, filler char(84));\n");
    tables.push_str("CREATE TABLE t (tid int PRIMARY KEY, tbalance int, filler char(84));\nCREATE TABLE h (tid int, aid int, delta int, mtime timestamp, filler char(22));\n");
    tables.push_str("INSERT INTO a SELECT i, 0, '' FROM generate_series(1, 5000) i;\nINSERT INTO t SELECT i, 0, '' FROM generate_series(1, 10) i;\nVACUUM ANALYZE;\n");
    single(&server, &[], &tables)?;
    let short = callgrind(&server, SHORT)?;
    let long = callgrind(&server, LONG)?;
    let _ = std::fs::remove_dir_all(&server.data);
    Some((long - short) / f64::from(LONG - SHORT))
}

fn callgrind(server: &Server, transactions: u32) -> Option<f64> {
    let mut script = String::new();
    for i in 0..transactions {
        let (aid, tid) = (i * 7 % 5000 + 1, i % 10 + 1);
        let _ = writeln!(
            script,
            "BEGIN;\nUPDATE a SET abalance = abalance + 5 WHERE aid = {aid};\nSELECT abalance FROM a WHERE aid = {aid};"
        );
        let _ = writeln!(
            script,
            "UPDATE t SET tbalance = tbalance + 5 WHERE tid = {tid};\nINSERT INTO h VALUES ({tid}, {aid}, 5, now());\nEND;"
        );
    }
    let errors = single(
        server,
        &[
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
        ],
        &script,
    )?;
    let line = errors.lines().find(|l| l.contains("Collected"))?;
    line.rsplit(' ').next()?.trim().parse().ok()
}

/// Runs a script in a single-user server, below a tool if one is given; returns its errors' stream.
fn single(server: &Server, below: &[&str], script: &str) -> Option<String> {
    let postgres = server.bin.join("postgres");
    let data = server.data.display().to_string();
    let mut command = match below.split_first() {
        None => server.account.command(&postgres, &server.data),
        Some((tool, arguments)) => {
            let mut command = server.account.command(tool, &server.data);
            command.args(arguments).arg(&postgres);
            command
        }
    };
    let spawned = command
        .args(["--single", "-D", &data, "-c", "autovacuum=off", "postgres"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            println!("instructions are not counted: {error}");
            return None;
        }
    };
    let mut input = child.stdin.take()?;
    let text = script.to_owned();
    let feeder = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().ok()?;
    feeder.join().ok()?.ok()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "single-user server: {errors}");
    Some(errors)
}
