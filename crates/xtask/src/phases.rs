//! Headings and times of a job's phases.

use std::time::{Duration, Instant};

use anyhow::Context;

/// The phases so far.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    done: Vec<(&'static str, Duration)>,
}

impl Phases {
    /// Does one phase under its heading.
    ///
    /// # Errors
    /// What `work` fails with, after the name of the phase.
    pub(crate) fn run<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        println!("\n== {name}");
        let started = Instant::now();
        let result = work().with_context(|| format!("phase `{name}`"))?;
        let time = started.elapsed();
        println!("== {name}: {}", minutes(time));
        self.done.push((name, time));
        Ok(result)
    }

    /// Prints how long everything took.
    pub(crate) fn summarize(&self) {
        println!();
        for (name, time) in &self.done {
            println!("{:>8}  {name}", minutes(*time));
        }
        println!(
            "{:>8}  in all",
            minutes(self.done.iter().map(|(_, time)| *time).sum())
        );
    }
}

fn minutes(time: Duration) -> String {
    format!("{}:{:02} min", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_minutes_and_seconds() {
        assert_eq!(minutes(Duration::from_millis(61_900)), "1:01 min");
        assert_eq!(minutes(Duration::from_secs(754)), "12:34 min");
    }

    /// Whoever reads the last lines of a long output learns which phase failed, and keeps the hints.
    #[test]
    fn a_failure_names_its_phase_and_keeps_its_hints() {
        let error = Phases::default()
            .run("build", || -> anyhow::Result<()> {
                Err(zipper_cli::UserError::new("no compiler").hint("get one").into())
            })
            .unwrap_err();
        let mut printed = Vec::new();
        zipper_cli::report(&error, &mut printed);
        let printed = String::from_utf8(printed).unwrap();
        assert_eq!(printed, "error: phase `build`: no compiler\n\nhint: get one\n");
    }
}
