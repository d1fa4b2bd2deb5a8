//! The manual's list of what is refused.

use crate::report::Report;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

/// Compares `docs/refused.md` with what was refused; `UPDATE=1` writes it.
pub fn text(report: &Report) -> Result<(), String> {
    let mut text = String::from(
        "# What a replicated database refuses\n\n\
         Refused at the origin, before anything is changed. This list is made by `tests/matrix`, which tries all of it.\n\n\
         | what | SQLSTATE | what the server says to do |\n|---|---|---|\n",
    );
    // Several lines may be about one thing.
    let mut things: Vec<(&str, &str, BTreeSet<&str>)> = Vec::new();
    for (n, line) in report.expectations.refused.iter().enumerate() {
        let hints = report.hints.get(&n).into_iter().flatten();
        let hints = hints.map(String::as_str);
        match things.iter_mut().find(|t| t.0 == line.what) {
            Some(thing) => thing.2.extend(hints),
            None => things.push((&line.what, &line.code, hints.collect())),
        }
    }
    for (what, code, hints) in things {
        let hints: Vec<&str> = hints.into_iter().collect();
        let _ = writeln!(text, "| {what} | {code} | {} |", hints.join("<br>"));
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/refused.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(file.parent().expect("docs")).map_err(|e| e.to_string())?;
        return std::fs::write(&file, text).map_err(|e| e.to_string());
    }
    let there = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    if there == text {
        Ok(())
    } else {
        Err("docs/refused.md is not what was found; UPDATE=1 writes it anew".into())
    }
}
