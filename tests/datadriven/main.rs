//! Transcripts of the certifier: text that a person can read, check and extend. See `README.md`.

mod interpreter;

use interpreter::Interpreter;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// One command of a transcript with the output that the file expects.
struct Step {
    line: usize,
    /// What stands before the output, word for word: comments, the command, `----`.
    text: String,
    command: String,
    expected: String,
}

const RULE: &str = "----";

fn parse(file: &Path, contents: &str) -> (Vec<Step>, String) {
    let mut steps = Vec::new();
    let mut lines = contents.lines().enumerate().peekable();
    let mut text = String::new();
    let mut command = String::new();
    while let Some((number, line)) = lines.next() {
        writeln!(text, "{line}").expect("a string has room");
        if line != RULE {
            if !line.trim_start().starts_with('#') && !line.trim().is_empty() {
                writeln!(command, "{line}").expect("a string has room");
            }
            continue;
        }
        let mut expected = String::new();
        while let Some((_, line)) = lines.next_if(|(_, line)| !line.is_empty()) {
            writeln!(expected, "{line}").expect("a string has room");
        }
        steps.push(Step {
            line: number,
            text: std::mem::take(&mut text),
            command: std::mem::take(&mut command),
            expected,
        });
    }
    assert!(
        command.is_empty(),
        "{}: a command without {RULE} at the end",
        file.display()
    );
    (steps, text)
}

fn run(file: &Path) -> Result<(), String> {
    let contents = std::fs::read_to_string(file).expect("a transcript can be read");
    let (steps, rest) = parse(file, &contents);
    assert!(!steps.is_empty(), "{}: no command", file.display());
    let mut interpreter = Interpreter::default();
    let mut actual = String::new();
    let mut differences = String::new();
    for step in steps {
        let output = interpreter
            .run(&step.command)
            .unwrap_or_else(|error| panic!("{}:{}: {error}", file.display(), step.line));
        if output != step.expected {
            write!(
                differences,
                "\n{}:{}\n{}expected:\n{}actual:\n{output}",
                file.display(),
                step.line,
                step.command,
                step.expected
            )
            .expect("a string has room");
        }
        actual += &step.text;
        actual += &output;
    }
    actual += &rest;
    if differences.is_empty() {
        Ok(())
    } else if std::env::var_os("UPDATE").is_some() {
        std::fs::write(file, actual).expect("a transcript can be written");
        Ok(())
    } else {
        Err(differences)
    }
}

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/datadriven");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder of the transcripts")
        .map(|entry| entry.expect("a folder's entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no transcript");
    let differences: String = files.iter().filter_map(|file| run(file).err()).collect();
    assert!(
        differences.is_empty(),
        "transcripts differ (UPDATE=1 writes them anew):\n{differences}"
    );
}
