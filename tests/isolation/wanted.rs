//! Which of a suite's tests are to run.

/// Those whose names have one of the command line's words in them, all without any. Options of the
/// usual harness mean nothing here.
pub fn names() -> impl Fn(&str) -> bool {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    move |name| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()))
}
