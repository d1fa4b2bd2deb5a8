//! The beginning of a specification: what is set up before each permutation and torn down after it.

/// See the head of the file.
pub struct Head {
    /// SQL of the `setup` blocks before the first session.
    pub setups: Vec<String>,
    teardown: Option<String>,
    /// From the first session on.
    rest: String,
}

impl Head {
    /// Takes a specification apart.
    pub fn parse(text: &str) -> Head {
        let mut head = Head {
            setups: Vec::new(),
            teardown: None,
            rest: String::new(),
        };
        let mut left = text;
        loop {
            left = left.trim_start();
            if let Some(comment) = left.strip_prefix('#') {
                left = comment.split_once('\n').map_or("", |(_, rest)| rest);
                continue;
            }
            let word = left
                .split(|c: char| !c.is_ascii_alphabetic())
                .next()
                .unwrap_or_default();
            if !matches!(word, "setup" | "teardown") {
                left.clone_into(&mut head.rest);
                return head;
            }
            // The tester's blocks do not nest.
            let (_, block) = left.split_once('{').expect("a block");
            let (sql, after) = block.split_once('}').expect("its end");
            match word {
                "setup" => head.setups.push(sql.to_owned()),
                _ => head.teardown = Some(sql.to_owned()),
            }
            left = after;
        }
    }

    /// SQL that has the specification's database replicated.
    pub fn start(&self) -> String {
        "ALTER DATABASE spec START REPLICATION IN GROUP spec".to_owned()
    }

    /// The same specification for a database that was set up and is replicated: each permutation
    /// begins with what the one before it left to do.
    pub fn replicated(&self) -> String {
        let stop = "ALTER DATABASE spec STOP REPLICATION".to_owned();
        let blocks = std::iter::once(stop)
            .chain(self.teardown.clone())
            .chain(self.setups.iter().cloned())
            .chain([self.start()]);
        let blocks: String = blocks.map(|sql| format!("setup {{ {sql} }}\n")).collect();
        blocks + &self.rest
    }
}
