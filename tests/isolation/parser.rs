//! Reads specifications. Keywords and blocks are those of PostgreSQL's isolation tester, with what
//! README.md adds.

use crate::expectation::{Condition, Expectation};
use crate::placement::Placement;
use crate::spec::{Level, Move, Permutation, Session, Spec, Step};

const KEYWORDS: &[&str] = &[
    "levels",
    "placements",
    "setup",
    "teardown",
    "final",
    "session",
    "step",
    "permutation",
    "race",
    "expect",
    "allow",
];

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    Word(String),
    /// SQL in braces.
    Block(String),
}

/// Parses a file; the error says where.
pub fn parse(name: &str, text: &str) -> Result<Spec, String> {
    let tokens = tokens(text).map_err(|e| format!("{name}: {e}"))?;
    let mut parser = Parser {
        tokens,
        at: 0,
        spec: Spec {
            name: name.to_owned(),
            ..Spec::default()
        },
        placements: Vec::new(),
    };
    while parser.at < parser.tokens.len() {
        let line = parser.line();
        parser.part().map_err(|e| format!("{name}:{line}: {e}"))?;
    }
    parser.finish().map_err(|e| format!("{name}: {e}"))
}

/// Tokens with their lines.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, String> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let start = line;
        match c {
            '\n' => line += 1,
            c if c.is_whitespace() => {}
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            '{' => {
                let mut sql = String::new();
                loop {
                    match chars.next() {
                        Some('}') => break,
                        Some(c) => sql.push(c),
                        None => return Err(format!("line {start}: a block has no end")),
                    }
                }
                line += sql.matches('\n').count();
                tokens.push((start, Token::Block(sql.trim().to_owned())));
            }
            first => {
                let (mut word, mut quoted) = (String::new(), false);
                let mut next = Some(first);
                while let Some(c) = next {
                    if c == '"' {
                        quoted = !quoted;
                    } else {
                        word.push(c);
                    }
                    next = chars.next_if(|c| {
                        *c != '\n' && (quoted || !c.is_whitespace() && *c != '{' && *c != '#')
                    });
                }
                if quoted {
                    return Err(format!("line {start}: a quotation has no end"));
                }
                tokens.push((start, Token::Word(word)));
            }
        }
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    spec: Spec,
    placements: Vec<String>,
}

impl Parser {
    fn line(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |(line, _)| *line)
    }

    fn word(&mut self, what: &str) -> Result<String, String> {
        match self.tokens.get(self.at) {
            Some((_, Token::Word(word))) => {
                self.at += 1;
                Ok(word.clone())
            }
            _ => Err(format!("{what} is missing")),
        }
    }

    fn block(&mut self, what: &str) -> Result<String, String> {
        match self.tokens.get(self.at) {
            Some((_, Token::Block(sql))) => {
                self.at += 1;
                Ok(sql.clone())
            }
            _ => Err(format!("{what} has no block")),
        }
    }

    /// Words up to the next keyword.
    fn words(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        while let Some((_, Token::Word(word))) = self.tokens.get(self.at)
            && !KEYWORDS.contains(&word.as_str())
        {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn part(&mut self) -> Result<(), String> {
        let line = self.line();
        let keyword = self.word("a keyword")?;
        match keyword.as_str() {
            "levels" => {
                for word in self.words() {
                    let level = Level::named(&word).ok_or(format!("there is no level {word}"))?;
                    self.spec.levels.push(level);
                }
            }
            "placements" => self.placements = self.words(),
            "setup" => {
                let sql = self.block("setup")?;
                match self.spec.sessions.last_mut() {
                    Some(session) => session.setup = Some(sql),
                    None => self.spec.setup.push(sql),
                }
            }
            "teardown" => {
                let sql = self.block("teardown")?;
                match self.spec.sessions.last_mut() {
                    Some(session) => session.teardown = Some(sql),
                    None => self.spec.teardown.push(sql),
                }
            }
            "final" => self.spec.last = Some(self.block("final")?),
            "session" => {
                let name = self.word("the session's name")?;
                self.spec.sessions.push(Session {
                    name,
                    ..Session::default()
                });
            }
            "step" => {
                let name = self.word("the step's name")?;
                let session = self.spec.sessions.len().checked_sub(1);
                let session = session.ok_or("a step without a session")?;
                if self.spec.step_named(&name).is_some() {
                    return Err(format!("there are two steps {name}"));
                }
                let sql = self.block("step")?;
                self.spec.steps.push(Step { name, session, sql });
            }
            "permutation" | "race" => self.permutation(line, keyword == "race")?,
            "expect" | "allow" => self.expectation(line, keyword == "expect")?,
            other => return Err(format!("{other} is no keyword")),
        }
        Ok(())
    }

    fn permutation(&mut self, line: usize, race: bool) -> Result<(), String> {
        let mut moves = Vec::new();
        for word in self.words() {
            let (name, sent) = match word.strip_suffix("(*)") {
                Some(name) => (name, true),
                None => (word.as_str(), false),
            };
            moves.push(match self.spec.step_named(name) {
                Some(step) if sent => Move::Send(step),
                Some(step) => Move::Step(step),
                None if word == "wait" => Move::Wait,
                None => return Err(format!("there is no step {name}")),
            });
        }
        let steps: Vec<usize> = moves.iter().filter_map(|m| m.step()).collect();
        if (0..steps.len()).any(|i| steps[..i].contains(&steps[i])) {
            return Err("a step comes twice".into());
        }
        self.spec.permutations.push(Permutation {
            line,
            race,
            moves,
            expectations: Vec::new(),
        });
        Ok(())
    }

    fn expectation(&mut self, line: usize, must_be_seen: bool) -> Result<(), String> {
        let mut expectation = Expectation {
            line,
            must_be_seen,
            conditions: Vec::new(),
            terms: Vec::new(),
        };
        for word in self.words() {
            match word.split_once('=') {
                Some((name, value)) => {
                    let known = ["final", "waiting"].contains(&name)
                        || self.spec.session_named(name).is_some()
                        || self.spec.step_named(name).is_some();
                    if !known {
                        return Err(format!("there is no session or step {name}"));
                    }
                    expectation.terms.push((name.into(), value.into()));
                }
                None => expectation.conditions.push(self.condition(&word)?),
            }
        }
        if expectation.terms.is_empty() {
            return Err("a line that expects nothing".into());
        }
        let permutation = self.spec.permutations.last_mut();
        permutation
            .ok_or("expected of no permutation")?
            .expectations
            .push(expectation);
        Ok(())
    }

    fn condition(&self, word: &str) -> Result<Condition, String> {
        let session = |name: &str| {
            let found = self.spec.session_named(name);
            found.ok_or_else(|| format!("there is no session {name}"))
        };
        if word == "rr" {
            return Ok(Condition::Snapshot);
        }
        if word == "si" {
            return Ok(Condition::Level(Level::RepeatableRead));
        }
        if let Some(level) = Level::named(word) {
            return Ok(Condition::Level(level));
        }
        match word {
            "one" => Ok(Condition::One),
            "apart" => Ok(Condition::Apart),
            _ => {
                if let Some((a, b)) = word.split_once('+') {
                    Ok(Condition::Together(session(a)?, session(b)?))
                } else if let Some((a, b)) = word.split_once('/') {
                    Ok(Condition::Separate(session(a)?, session(b)?))
                } else {
                    Err(format!("{word} is neither a condition nor a term"))
                }
            }
        }
    }

    fn finish(mut self) -> Result<Spec, String> {
        let sessions = self.spec.sessions.len();
        if self.spec.levels.is_empty() {
            self.spec.levels = vec![
                Level::ReadCommitted,
                Level::RepeatableRead,
                Level::Serializable,
            ];
        }
        self.spec.placements = if self.placements.is_empty() {
            Placement::usual(sessions)
        } else {
            let parsed = self.placements.iter().map(|text| {
                Placement::parse(text, sessions).ok_or(format!("{text} is no placement"))
            });
            parsed.collect::<Result<_, _>>()?
        };
        if self.spec.placements.is_empty() || self.spec.permutations.is_empty() {
            return Err("nothing to run".into());
        }
        for permutation in &self.spec.permutations {
            if permutation.expectations.is_empty() {
                return Err(format!("line {}: nothing is expected", permutation.line));
            }
        }
        for (index, step) in self.spec.steps.iter().enumerate() {
            let mut moves = self.spec.permutations.iter().flat_map(|p| &p.moves);
            if !moves.any(|m| m.step() == Some(index)) {
                return Err(format!("step {} is never used", step.name));
            }
        }
        Ok(self.spec)
    }
}
