//! The value of `replication_gcs`: which engine, where this server listens, where to look for others.

use std::fmt;

/// What a right value looks like, for errors.
pub const EXAMPLE: &str = "egcs:listen=127.0.0.1:7001;seeds=127.0.0.1:7002,127.0.0.1:7003";

/// Where the group secret lies if nothing is said: in the data directory.
pub const DEFAULT_SECRET: &str = "pg_group.secret";

/// Engines that the design has a name for, and that are not built in.
const LATER: [&str; 5] = ["corosync", "spread", "ensemble", "appia", "sim"];

/// A value that was understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where this server listens, as the others reach it.
    pub listen: Address,
    /// Where to look for members, in the order given.
    pub seeds: Vec<Address>,
    /// File of the group secret; a relative path begins in the data directory.
    pub secret: String,
}

/// A host and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// Name or number; an IPv6 number without brackets.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

impl Address {
    /// Whether it certainly stays on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self
                .host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
    }

    fn parse(text: &str) -> Result<Address, OptionsError> {
        let wrong = |why: &str| OptionsError(format!("address \"{text}\" {why}"));
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest
                    .strip_suffix(']')
                    .ok_or_else(|| wrong("has an opening bracket only"))?;
                inner
                    .parse::<std::net::Ipv6Addr>()
                    .map_err(|_| wrong("has no IPv6 address in its brackets"))?;
                inner
            }
            None if host.contains(':') => {
                return Err(wrong("needs brackets round its IPv6 address"));
            }
            None => host,
        };
        let known = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        if host.is_empty() || !host.chars().all(known) {
            return Err(wrong("has no host name or number before its port"));
        }
        let port = port
            .parse()
            .ok()
            .filter(|p| *p != 0)
            .ok_or_else(|| wrong("has no port between 1 and 65535"))?;
        Ok(Address {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What is wrong with a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OptionsError(String);

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OptionsError {}

/// Reads a value; `None` for the empty one: this server takes part in no group.
pub fn parse(value: &str) -> Result<Option<Options>, OptionsError> {
    let value = value.trim();
    if value.is_empty() {
        return Ok(None);
    }
    let (engine, rest) = value.split_once(':').ok_or_else(|| {
        OptionsError("it names no engine: the part before the first colon".to_owned())
    })?;
    if LATER.contains(&engine) {
        return Err(OptionsError(format!(
            "engine \"{engine}\" is not built in yet"
        )));
    }
    if engine != "egcs" {
        return Err(OptionsError(format!(
            "there is no engine \"{engine}\"; known is egcs"
        )));
    }
    let (mut listen, mut seeds, mut secret) = (None, None, None);
    for option in rest.split(';').map(str::trim).filter(|o| !o.is_empty()) {
        let (name, text) = option
            .split_once('=')
            .ok_or_else(|| OptionsError(format!("option \"{option}\" has no value")))?;
        let twice = || OptionsError(format!("option \"{name}\" is given twice"));
        match name.trim() {
            "listen" => {
                if listen.replace(Address::parse(text.trim())?).is_some() {
                    return Err(twice());
                }
            }
            "seeds" => {
                let all = text
                    .split(',')
                    .map(|s| Address::parse(s.trim()))
                    .collect::<Result<Vec<_>, _>>()?;
                if seeds.replace(all).is_some() {
                    return Err(twice());
                }
            }
            "secret" => {
                let file = text.trim();
                if file.is_empty() || file.contains('\0') {
                    return Err(OptionsError("option \"secret\" names no file".to_owned()));
                }
                if secret.replace(file.to_owned()).is_some() {
                    return Err(twice());
                }
            }
            other => {
                return Err(OptionsError(format!(
                    "there is no option \"{other}\"; known are listen, seeds, secret"
                )));
            }
        }
    }
    let listen = listen.ok_or_else(|| OptionsError("option \"listen\" is missing".to_owned()))?;
    Ok(Some(Options {
        listen,
        seeds: seeds.unwrap_or_default(),
        secret: secret.unwrap_or_else(|| DEFAULT_SECRET.to_owned()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_values_are_understood() {
        assert_eq!(parse(" "), Ok(None));
        let o = parse(EXAMPLE).expect("right").expect("some");
        assert_eq!(o.listen.to_string(), "127.0.0.1:7001");
        assert_eq!(
            o.seeds.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["127.0.0.1:7002", "127.0.0.1:7003"]
        );
        assert_eq!(o.secret, DEFAULT_SECRET);
        assert!(o.listen.is_loopback());
        let o = parse("egcs: listen=[::1]:7001 ; secret=/etc/pg/secret;")
            .expect("right")
            .expect("some");
        assert_eq!(
            (o.listen.to_string().as_str(), o.secret.as_str()),
            ("[::1]:7001", "/etc/pg/secret")
        );
        assert!(o.listen.is_loopback());
        assert!(
            !parse("egcs:listen=db-1.example:7001")
                .expect("right")
                .expect("some")
                .listen
                .is_loopback()
        );
    }

    #[test]
    fn wrong_values_are_told_what_is_wrong() {
        for (value, what) in [
            ("127.0.0.1", "names no engine"),
            ("corosync:", "not built in yet"),
            ("galera:listen=a:1", "no engine \"galera\""),
            ("egcs:", "\"listen\" is missing"),
            ("egcs:listen", "has no value"),
            ("egcs:listen=nowhere", "has no port"),
            ("egcs:listen=a:0", "between 1 and 65535"),
            ("egcs:listen=a:65536", "between 1 and 65535"),
            ("egcs:listen=:7001", "no host name"),
            ("egcs:listen=a b:7001", "no host name"),
            ("egcs:listen=::1:7001", "needs brackets"),
            ("egcs:listen=[::1:7001", "bracket"),
            ("egcs:listen=[x]:7001", "no IPv6 address"),
            ("egcs:listen=a:1;listen=b:1", "given twice"),
            ("egcs:listen=a:1;seeds=", "has no port"),
            ("egcs:listen=a:1;secret=", "names no file"),
            ("egcs:listen=a:1;color=red", "no option \"color\""),
        ] {
            let error = parse(value).expect_err(value).to_string();
            assert!(error.contains(what), "{value}: {error}");
        }
    }
}
