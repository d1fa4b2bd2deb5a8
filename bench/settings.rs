//! Settings of a benchmark, from the environment.

/// A value, or its default.
pub fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().map_or(default, |v| {
        v.parse()
            .unwrap_or_else(|_| panic!("{name}={v} is no such value"))
    })
}

/// Values with commas between them.
pub fn list<T: std::str::FromStr>(name: &str, default: &str) -> Vec<T> {
    let text: String = setting(name, default.to_owned());
    text.split(',')
        .map(|v| v.trim().parse().unwrap_or_else(|_| panic!("{name}: {v}")))
        .collect()
}
