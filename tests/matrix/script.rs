//! SQL files in sections: lines `-- word` and `-- word: value` between the statements; `---` is a comment.

/// A statement, with the rows of a COPY FROM STDIN.
#[derive(Clone, Debug)]
pub struct Statement {
    pub sql: String,
    pub rows: Option<String>,
}

/// From a line of `begins` to the next.
#[derive(Debug)]
pub struct Section {
    /// Which of the words it began with.
    pub word: String,
    pub name: String,
    /// The other lines with words.
    pub marks: Vec<(String, String)>,
    /// Statements, by the last mark without a value before them.
    pub statements: Vec<(String, Statement)>,
}

impl Section {
    /// The values of a mark.
    pub fn values(&self, word: &str) -> impl Iterator<Item = &str> {
        let marks = self.marks.iter();
        marks
            .filter(move |(w, _)| w == word)
            .map(|(_, value)| value.as_str())
    }

    /// The statements after a mark; those before any are after the empty one.
    pub fn part(&self, mark: &str) -> Vec<Statement> {
        let part = self.statements.iter().filter(|(m, _)| m == mark);
        part.map(|(_, statement)| statement.clone()).collect()
    }
}

/// Takes a file apart. `begins` are the words that begin sections, `marks` the others.
pub fn parse(text: &str, begins: &[&str], marks: &[&str]) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut lines = text.lines();
    let (mut mark, mut sql) = (String::new(), String::new());
    while let Some(line) = lines.next() {
        if let Some(comment) = line.strip_prefix("-- ")
            && sql.is_empty()
        {
            let (word, value) = comment.split_once(": ").unwrap_or((comment, ""));
            if begins.contains(&word) && !value.is_empty() {
                mark.clear();
                sections.push(Section {
                    word: word.into(),
                    name: value.into(),
                    marks: Vec::new(),
                    statements: Vec::new(),
                });
            } else if let Some(section) = sections.last_mut() {
                assert!(marks.contains(&word), "{}: {line}", section.name);
                if value.is_empty() {
                    word.clone_into(&mut mark);
                }
                section.marks.push((word.into(), value.into()));
            }
            continue;
        }
        if sections.is_empty()
            || line.starts_with("---")
            || line == "--"
            || sql.is_empty() && line.is_empty()
        {
            continue;
        }
        if !sql.is_empty() {
            sql.push('\n');
        }
        sql.push_str(line);
        if !line.ends_with(';') || sql.matches("$$").count() % 2 == 1 {
            continue;
        }
        let rows = sql.contains("FROM STDIN").then(|| {
            let rows = lines.by_ref().take_while(|l| *l != "\\.");
            rows.map(|l| format!("{l}\n")).collect()
        });
        sql.pop();
        let sql = std::mem::take(&mut sql);
        let section = sections.last_mut().expect("checked above");
        section
            .statements
            .push((mark.clone(), Statement { sql, rows }));
    }
    assert!(sql.is_empty(), "the last statement has no end: {sql}");
    sections
}
