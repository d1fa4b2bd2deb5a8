//! Medians, ranges and ratios as a table, JSON and a plot.

use crate::capture::Capture;
use crate::curves;
use crate::instructions::Instructions;
use crate::measure::{Run, Script};
use crate::setups::Setups;
use std::fmt::Write as _;
use std::path::Path;

/// Medians of the rounds of one case.
pub struct Row<'a> {
    pub script: Script,
    pub clients: u32,
    pub setup: &'a str,
    /// The least, the median, the most.
    pub tps: [f64; 3],
    latency_ms: f64,
    /// Attempts that failed, a transaction.
    pub aborts: f64,
    cpu: f64,
    wire: f64,
    wal: f64,
    changesets: f64,
    /// Median of the rounds' ratios against stock and against the standbys with `on`.
    pub against_stock: f64,
    against_standby: f64,
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let values = sorted(values);
    let n = values.len();
    if n == 0 {
        f64::NAN
    } else {
        (values[(n - 1) / 2] + values[n / 2]) / 2.0
    }
}

/// Interval of the mean of the logarithms of ratios, two standard errors wide to each side.
fn interval(ratios: &[f64]) -> (f64, f64) {
    let n = ratios.len() as f64;
    let logs: Vec<f64> = ratios.iter().map(|r| r.ln()).collect();
    let mean = logs.iter().sum::<f64>() / n;
    let variance = logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / f64::max(n - 1.0, 1.0);
    let width = 2.0 * (variance / n).sqrt();
    ((mean - width).exp(), (mean + width).exp())
}

fn rows<'a>(setups: &'a Setups, runs: &[Run]) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    let mut cases: Vec<(Script, u32)> = Vec::new();
    for run in runs {
        if !cases.contains(&(run.script, run.clients)) {
            cases.push((run.script, run.clients));
        }
    }
    for (script, clients) in cases {
        let of = |name: &str| {
            runs.iter()
                .filter(|r| r.script == script && r.clients == clients && r.setup == name)
                .collect::<Vec<_>>()
        };
        let ratio = |a: &[&Run], b: &[&Run]| median(a.iter().zip(b).map(|(a, b)| a.tps / b.tps));
        for setup in &setups.all {
            let runs = of(setup.name);
            let tps = sorted(runs.iter().map(|r| r.tps));
            rows.push(Row {
                script,
                clients,
                setup: setup.name,
                tps: [tps[0], median(tps.iter().copied()), tps[tps.len() - 1]],
                latency_ms: median(runs.iter().map(|r| r.latency_ms)),
                aborts: median(runs.iter().map(|r| r.aborts)),
                cpu: median(runs.iter().map(|r| r.cpu_s_per_1000)),
                wire: median(runs.iter().map(|r| r.wire_bytes)),
                wal: median(runs.iter().map(|r| r.wal_bytes)),
                changesets: median(runs.iter().map(|r| r.changeset_bytes)),
                against_stock: ratio(&runs, &of("stock")),
                against_standby: ratio(&runs, &of("standby on")),
            });
        }
    }
    rows
}

/// Writes report.txt, report.json and report.svg, and prints the table.
pub fn write(
    out: &Path,
    setups: &Setups,
    runs: &[Run],
    (instructions, captured): (Option<&Instructions>, Option<&Capture>),
    equal: &Result<String, String>,
) {
    let rows = rows(setups, runs);
    let mut text = String::new();
    for setup in &setups.all {
        let _ = writeln!(text, "{:<14} {}", setup.name, setup.title);
    }
    let _ = writeln!(
        text,
        "\n{:<12} {:>7} {:<14} {:>8} {:>17} {:>9} {:>9} {:>11} {:>8} {:>8} {:>8} {:>8} {:>10}",
        "script",
        "clients",
        "set-up",
        "tps",
        "min–max",
        "ms",
        "aborts/tx",
        "CPU s/1000",
        "wire B",
        "WAL B",
        "chg B",
        "/ stock",
        "/ standby"
    );
    for r in &rows {
        let _ = writeln!(
            text,
            "{:<12} {:>7} {:<14} {:>8.0} {:>17} {:>9.2} {:>9.4} {:>11.3} {:>8.0} {:>8.0} {:>8.0} {:>8.2} {:>10.2}",
            r.script.name(),
            r.clients,
            r.setup,
            r.tps[1],
            format!("{:.0}–{:.0}", r.tps[0], r.tps[2]),
            r.latency_ms,
            r.aborts,
            r.cpu,
            r.wire,
            r.wal,
            r.changesets,
            r.against_stock,
            r.against_standby
        );
    }
    text.push_str(&curves::table(&rows));
    let pairs: Vec<f64> = runs
        .iter()
        .filter(|r| r.setup == "off")
        .zip(runs.iter().filter(|r| r.setup == "stock"))
        .map(|(off, stock)| off.tps / stock.tps)
        .collect();
    let (low, high) = interval(&pairs);
    if !pairs.is_empty() {
        let _ = writeln!(
            text,
            "\nreplication off against stock, tps: 95 % interval {low:.3} to {high:.3} over {} pairs",
            pairs.len()
        );
    }
    if let Some(i) = instructions {
        let _ = writeln!(
            text,
            "replication off against stock, instructions a transaction: {:.0} / {:.0} = {:.4}",
            i.off,
            i.stock,
            i.off / i.stock
        );
    }
    if let Some(c) = captured {
        let _ = writeln!(
            text,
            "capture and commit in a group, of the instructions of a transaction: {:.0} / {:.0} = {:.4}",
            c.library,
            c.all,
            c.library / c.all
        );
    }
    let _ = writeln!(text, "afterwards: {}", equal.as_ref().unwrap_or_else(|e| e));
    println!("\n{text}");
    let save = |name: &str, content: &str| {
        std::fs::write(out.join(name), content).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    save("report.txt", &text);
    save(
        "report.json",
        &json(&rows, (low, high), instructions, captured),
    );
    save("report.svg", &plot(&rows));
    println!("results: {}", out.display());
}

fn json(
    rows: &[Row<'_>],
    (low, high): (f64, f64),
    instructions: Option<&Instructions>,
    captured: Option<&Capture>,
) -> String {
    // Of a set-up that was left out there is none.
    let ratio = |r: f64| {
        if r.is_finite() {
            format!("{r:.4}")
        } else {
            "null".to_owned()
        }
    };
    let (low, high) = (ratio(low), ratio(high));
    let lines: Vec<String> = rows
        .iter()
        .map(|r| {
            format!(
                "{{\"script\": \"{}\", \"clients\": {}, \"setup\": \"{}\", \"tps\": {:.1}, \"tps_min\": {:.1}, \"tps_max\": {:.1}, \"latency_ms\": {:.3}, \"aborts_per_tx\": {:.5}, \"cpu_s_per_1000_tx\": {:.4}, \"wire_bytes_per_tx\": {:.1}, \"wal_bytes_per_tx\": {:.1}, \"changeset_bytes_per_tx\": {:.1}, \"ratio_to_stock\": {}, \"ratio_to_standby_on\": {}}}",
                r.script.name(), r.clients, r.setup, r.tps[1], r.tps[0], r.tps[2], r.latency_ms, r.aborts, r.cpu, r.wire, r.wal, r.changesets, ratio(r.against_stock), ratio(r.against_standby)
            )
        })
        .collect();
    let instructions = instructions.map_or("null".into(), |i| {
        format!(
            "{{\"stock\": {:.0}, \"off\": {:.0}, \"ratio\": {:.5}}}",
            i.stock,
            i.off,
            i.off / i.stock
        )
    });
    let captured = captured.map_or("null".into(), |c| {
        format!(
            "{{\"all\": {:.0}, \"library\": {:.0}, \"ratio\": {:.5}}}",
            c.all,
            c.library,
            c.library / c.all
        )
    });
    format!(
        "{{\"off_to_stock_tps_interval\": [{low}, {high}], \"instructions_per_tx\": {instructions}, \"captured_per_tx\": {captured}, \"rows\": [\n{}\n]}}\n",
        lines.join(",\n")
    )
}

/// Of the set-ups.
pub const COLOURS: [&str; 6] = [
    "#555555", "#999999", "#1f77b4", "#9ecae1", "#d62728", "#ff9896",
];

/// Bars of median tps, whiskers from the least to the most; one panel a script. Contention has curves.
fn plot(rows: &[Row<'_>]) -> String {
    let mut scripts: Vec<Script> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for r in rows {
        if !matches!(r.script, Script::Hot(_)) && !scripts.contains(&r.script) {
            scripts.push(r.script);
        }
        if !names.contains(&r.setup) {
            names.push(r.setup);
        }
    }
    let (width, height, left) = (760.0, 300.0, 70.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        height * scripts.len() as f64 + 40.0 + curves::height(rows)
    );
    for (i, name) in names.iter().enumerate() {
        let x = left + i as f64 * 112.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"20\">{name}</text>",
            COLOURS[i % COLOURS.len()],
            x + 16.0
        );
    }
    for (panel, script) in scripts.iter().enumerate() {
        let cases: Vec<&Row<'_>> = rows.iter().filter(|r| r.script == *script).collect();
        let most = cases.iter().map(|r| r.tps[2]).fold(1.0, f64::max);
        let (top, bottom) = (
            40.0 + panel as f64 * height + 20.0,
            40.0 + (panel + 1) as f64 * height - 30.0,
        );
        let y = |tps: f64| bottom - tps / most * (bottom - top);
        let _ = writeln!(
            svg,
            "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}, transactions a second</text>",
            top - 6.0,
            script.name()
        );
        for step in 0..=4 {
            let value = most * f64::from(step) / 4.0;
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/><text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{value:.0}</text>",
                width - 10.0,
                y(value),
                left - 6.0,
                y(value) + 4.0
            );
        }
        let slot = (width - left - 20.0) / cases.len() as f64;
        for (i, r) in cases.iter().enumerate() {
            let colour =
                COLOURS[names.iter().position(|n| *n == r.setup).unwrap_or(0) % COLOURS.len()];
            let x = left + 4.0 + i as f64 * slot;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                y(r.tps[1]),
                slot * 0.8,
                bottom - y(r.tps[1])
            );
            let _ = writeln!(
                svg,
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{2:.1}\" stroke=\"black\"/>",
                x + slot * 0.4,
                y(r.tps[0]),
                y(r.tps[2])
            );
            if i % names.len() == names.len() / 2 {
                let _ = writeln!(
                    svg,
                    "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} clients</text>",
                    bottom + 18.0,
                    r.clients
                );
            }
        }
    }
    let below = 40.0 + height * scripts.len() as f64;
    curves::plot(&mut svg, rows, &names, below, width);
    svg.push_str("</svg>\n");
    svg
}
