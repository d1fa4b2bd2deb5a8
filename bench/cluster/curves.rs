//! Curves of contention: what comes of throughput, and how many attempts fail, as all clients update
//! fewer and fewer rows.

use crate::measure::Script;
use crate::report::{COLOURS, Row};
use std::fmt::Write as _;

/// One set-up with so many clients, from the fewest rows to the most.
struct Curve<'a> {
    setup: &'a str,
    clients: u32,
    points: Vec<Point>,
}

struct Point {
    rows: u32,
    tps: f64,
    against_stock: f64,
    /// Of all attempts, from 0 to 1.
    failed: f64,
}

fn curves<'a>(rows: &[Row<'a>]) -> Vec<Curve<'a>> {
    let mut curves: Vec<Curve<'a>> = Vec::new();
    for row in rows {
        let Script::Hot(hot) = row.script else {
            continue;
        };
        let point = Point {
            rows: hot,
            tps: row.tps[1],
            against_stock: row.against_stock,
            failed: row.aborts / (1.0 + row.aborts),
        };
        let same = |c: &&mut Curve<'a>| c.setup == row.setup && c.clients == row.clients;
        match curves.iter_mut().find(same) {
            Some(curve) => curve.points.push(point),
            None => curves.push(Curve {
                setup: row.setup,
                clients: row.clients,
                points: vec![point],
            }),
        }
    }
    for curve in &mut curves {
        curve.points.sort_by_key(|p| p.rows);
    }
    curves
}

/// A line a curve; empty if there are none.
pub fn table(rows: &[Row<'_>]) -> String {
    let curves = curves(rows);
    let mut text = String::new();
    let Some(first) = curves.first() else {
        return text;
    };
    text.push_str("\ncontention: tps, of stock, attempts that failed\n");
    let _ = write!(text, "{:<14} {:>7}", "rows updated", "clients");
    for point in &first.points {
        let _ = write!(text, " {:>23}", point.rows);
    }
    for curve in &curves {
        let _ = write!(text, "\n{:<14} {:>7}", curve.setup, curve.clients);
        for p in &curve.points {
            let cell = format!(
                "{:.0} {:.2} {:.1} %",
                p.tps,
                p.against_stock,
                100.0 * p.failed
            );
            let _ = write!(text, " {cell:>23}");
        }
    }
    text.push('\n');
    text
}

/// Height of what [`plot`] draws.
pub fn height(rows: &[Row<'_>]) -> f64 {
    if curves(rows).is_empty() {
        0.0
    } else {
        2.0 * PANEL
    }
}

const PANEL: f64 = 260.0;
const LEFT: f64 = 70.0;

/// Two panels below each other from `top` on, `width` wide; each set-up in its colour.
pub fn plot(svg: &mut String, rows: &[Row<'_>], names: &[&str], top: f64, width: f64) {
    let curves = curves(rows);
    if curves.is_empty() {
        return;
    }
    type Value = fn(&Point) -> f64;
    let panels: [(&str, Value); 2] = [
        ("transactions a second", |p| p.tps),
        ("attempts that failed, per cent", |p| 100.0 * p.failed),
    ];
    for (i, (title, value)) in panels.into_iter().enumerate() {
        let all = curves.iter().flat_map(|c| &c.points);
        let most = all.map(value).fold(1.0, f64::max);
        let (top, bottom) = (
            top + i as f64 * PANEL + 30.0,
            top + (i + 1) as f64 * PANEL - 30.0,
        );
        let y = |v: f64| bottom - v / most * (bottom - top);
        let places = curves[0].points.len().max(2) as f64 - 1.0;
        let x = |place: usize| LEFT + 20.0 + place as f64 * (width - LEFT - 60.0) / places;
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"bold\">contention, {title}</text>",
            top - 8.0
        );
        for step in 0..=4 {
            let v = most * f64::from(step) / 4.0;
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/><text x=\"{2:.1}\" y=\"{3:.1}\" text-anchor=\"end\">{v:.0}</text>",
                width - 10.0,
                y(v),
                LEFT - 6.0,
                y(v) + 4.0
            );
        }
        for (place, point) in curves[0].points.iter().enumerate() {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} rows</text>",
                x(place),
                bottom + 18.0,
                point.rows
            );
        }
        for curve in &curves {
            let at = names.iter().position(|n| *n == curve.setup).unwrap_or(0);
            let colour = COLOURS[at % COLOURS.len()];
            let points = curve.points.iter().enumerate();
            let line: Vec<String> = points
                .map(|(place, p)| format!("{:.1},{:.1}", x(place), y(value(p))))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                line.join(" ")
            );
            if let Some(last) = curve.points.last() {
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    x(curve.points.len() - 1) + 6.0,
                    y(value(last)) + 4.0,
                    curve.clients
                );
            }
        }
    }
}
