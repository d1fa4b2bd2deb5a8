//! One permutation, once: at a level, at a placement.

use crate::expectation::Outcome;
use crate::members::Members;
use crate::placement::Placement;
use crate::session::{Answer, Session};
use crate::spec::{Level, Move, Permutation, Spec};
use crate::support::PATIENCE;
use std::collections::VecDeque;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// How long a step may be silent before we look whether it waits for a lock.
const SILENCE: Duration = Duration::from_millis(5);

/// A session of the run.
struct Actor {
    session: Session,
    member: usize,
    /// The step under way.
    active: Option<usize>,
    /// Reported as waiting.
    reported: bool,
    /// Steps that came while another was under way.
    queued: VecDeque<usize>,
}

/// A run under way.
pub struct Run<'a, 'g> {
    spec: &'a Spec,
    permutation: &'a Permutation,
    members: &'a mut Members<'g>,
    actors: Vec<Actor>,
    outcome: Outcome,
    waited: Vec<&'a str>,
    completed: usize,
    transcript: String,
}

/// What came of it, and the way there as PostgreSQL's isolation tester prints it.
pub struct Report {
    pub outcome: Result<Outcome, String>,
    pub transcript: String,
}

/// Runs a permutation from setup to teardown.
pub fn run<'a, 'g>(
    spec: &'a Spec,
    permutation: &'a Permutation,
    level: Level,
    placement: &Placement,
    members: &'a mut Members<'g>,
) -> Report {
    let mut run = Run {
        spec,
        permutation,
        members,
        actors: Vec::new(),
        outcome: Outcome::new(),
        waited: Vec::new(),
        completed: 0,
        transcript: String::new(),
    };
    let outcome = run
        .set_up(level, placement)
        .and_then(|()| run.steps())
        .and_then(|()| run.tear_down());
    let actors = std::mem::take(&mut run.actors);
    if outcome.is_err() {
        run.members.let_go();
        for actor in actors {
            run.members.end(actor.member, &actor.session);
        }
    } else {
        for (actor, session) in actors.into_iter().zip(&spec.sessions) {
            // One that has more to leave behind than a transaction is not used again; one that lost
            // would, after several times, have the tables of another run reserved.
            if session.teardown.is_none() && run.outcome[&session.name] != "40001" {
                run.members.give_back(actor.member, actor.session);
            }
        }
    }
    Report {
        outcome: outcome.map(|()| run.outcome),
        transcript: run.transcript,
    }
}

impl Run<'_, '_> {
    fn set_up(&mut self, level: Level, placement: &Placement) -> Result<(), String> {
        // With what the last run left, in one commit.
        let sql = [self.spec.teardown.as_slice(), &self.spec.setup].concat();
        self.members.run(1, &sql.join("; "))?;
        self.members.in_step()?;
        for (index, session) in self.spec.sessions.iter().enumerate() {
            let member = placement.member(index);
            let actor = Actor {
                session: self.members.session(member)?,
                member,
                active: None,
                reported: false,
                queued: VecDeque::new(),
            };
            self.actors.push(actor);
            self.outcome.insert(session.name.clone(), "ok".into());
            let level = format!("SET default_transaction_isolation = '{}'", level.setting());
            self.must(index, &level)?;
            if let Some(sql) = &session.setup {
                self.must(index, sql)?;
            }
        }
        Ok(())
    }

    /// Runs SQL that can neither fail nor wait.
    fn must(&mut self, session: usize, sql: &str) -> Result<(), String> {
        let actor = &self.actors[session];
        actor.session.send(sql);
        let name = &self.spec.sessions[session].name;
        match actor.session.answer(PATIENCE) {
            Some(Answer::Failed(code, text)) => Err(format!("{name}: {sql}: {code} {text}")),
            Some(_) => Ok(()),
            None => Err(format!("{name}: {sql}: no answer")),
        }
    }

    fn steps(&mut self) -> Result<(), String> {
        for next in &self.permutation.moves {
            match *next {
                Move::Step(step) => {
                    self.launch(step);
                    self.follow(self.spec.steps[step].session)?;
                    self.settle()?;
                }
                Move::Send(step) => self.launch(step),
                Move::Wait => {
                    self.members.in_step()?;
                    self.settle()?;
                }
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while self.actors.iter().any(|actor| actor.active.is_some()) {
            self.settle()?;
            if Instant::now() > deadline {
                return Err("steps wait for each other".into());
            }
        }
        self.waited.sort_unstable();
        let waited = match self.waited.as_slice() {
            [] => "none".to_owned(),
            steps => steps.join(","),
        };
        self.outcome.insert("waiting".into(), waited);
        Ok(())
    }

    fn launch(&mut self, step: usize) {
        let what = &self.spec.steps[step];
        let actor = &mut self.actors[what.session];
        if actor.active.is_some() {
            actor.queued.push_back(step);
        } else {
            actor.session.send(&what.sql);
            actor.active = Some(step);
            actor.reported = false;
        }
    }

    /// Until every step under way has ended, or waits; and where no race is wanted, until every
    /// member shows what any has committed.
    fn settle(&mut self) -> Result<(), String> {
        loop {
            self.follow_all()?;
            if self.permutation.race {
                return Ok(());
            }
            let before = self.completed;
            self.members.in_step()?;
            // What was applied may have ended a wait.
            self.follow_all()?;
            if self.completed == before {
                return Ok(());
            }
        }
    }

    fn follow_all(&mut self) -> Result<(), String> {
        loop {
            let before = self.completed;
            for session in 0..self.actors.len() {
                self.follow(session)?;
            }
            if self.completed == before {
                return Ok(());
            }
        }
    }

    /// Until a session has ended its steps, or waits in one.
    fn follow(&mut self, session: usize) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(step) = self.actors[session].active {
            if let Some(answer) = self.actors[session].session.answer(SILENCE) {
                self.complete(session, step, &answer);
                continue;
            }
            if self.waits(session)? {
                // It may have ended while we asked.
                let late = self.actors[session].session.answer(Duration::ZERO);
                if let Some(answer) = late {
                    self.complete(session, step, &answer);
                    continue;
                }
                self.report_waiting(session, step);
                return Ok(());
            }
            if Instant::now() > deadline {
                let name = &self.spec.steps[step].name;
                return Err(format!("step {name} neither ends nor waits for a lock"));
            }
        }
        Ok(())
    }

    /// Whether a session waits for something that only another step can end.
    fn waits(&mut self, session: usize) -> Result<bool, String> {
        let stage = self.stage(session)?;
        if stage.blocked || stage.held {
            return Ok(true);
        }
        // Turns come by themselves, unless a session of this member is held in its own.
        if stage.in_turn {
            let member = self.actors[session].member;
            for other in 0..self.actors.len() {
                if self.actors[other].member == member
                    && self.actors[other].active.is_some()
                    && self.stage(other)?.held
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn stage(&mut self, session: usize) -> Result<crate::members::Stage, String> {
        let Actor { member, .. } = self.actors[session];
        let here = self.actors.iter().filter(|actor| actor.member == member);
        let pids: Vec<i32> = here.map(|actor| actor.session.pid).collect();
        let pid = self.actors[session].session.pid;
        self.members.stage(member, pid, &pids)
    }

    fn report_waiting(&mut self, session: usize, step: usize) {
        if std::mem::replace(&mut self.actors[session].reported, true) {
            return;
        }
        let what = &self.spec.steps[step];
        self.waited.push(&what.name);
        let _ = writeln!(
            self.transcript,
            "step {}: {} <waiting ...>",
            what.name, what.sql
        );
    }

    fn complete(&mut self, session: usize, step: usize, answer: &Answer) {
        let what = &self.spec.steps[step];
        let text = if self.actors[session].reported {
            "<... completed>"
        } else {
            &what.sql
        };
        let _ = writeln!(self.transcript, "step {}: {text}", what.name);
        let said = match answer {
            Answer::Done => String::new(),
            Answer::Rows(rows) => format!("  ({rows})\n"),
            Answer::Failed(code, message) => format!("  ERROR {code}: {message}\n"),
        };
        self.transcript.push_str(&said);
        let value = answer.value().to_owned();
        let name = &self.spec.sessions[session].name;
        // A session is called by its first error.
        if matches!(answer, Answer::Failed(..)) && self.outcome[name] == "ok" {
            self.outcome.insert(name.clone(), value.clone());
        }
        self.outcome.insert(what.name.clone(), value);
        self.completed += 1;
        self.actors[session].active = None;
        if let Some(next) = self.actors[session].queued.pop_front() {
            self.launch(next);
        }
    }

    fn tear_down(&mut self) -> Result<(), String> {
        for session in 0..self.actors.len() {
            self.must(session, "ROLLBACK")?;
            if let Some(sql) = &self.spec.sessions[session].teardown {
                self.must(session, sql)?;
            }
        }
        self.members.in_step()?;
        if let Some(sql) = &self.spec.last {
            let value = self.members.run(1, sql)?;
            self.outcome.insert("final".into(), value);
        }
        self.members.check()
    }
}
