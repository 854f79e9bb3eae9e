//! The lines on a terminal that keep themselves up to date.
//!
//! ```text
//! align   ━━━━━━━━━━━━━━━━━━━━━━━━ 2000/2000
//! zipper  ━━━━━━━━╸─────────────── 1310/4000  ETA 1h 3m
//! loss 1.234  lr 2.9e-4  181 audio-s/s  comm 6 %  940 tokens/s
//! 4/4 nodes healthy  checkpoint step 1250  8 ranks (generation 3)
//! en 0.91  de 1.30  vi 1.72  ...
//! • recovered in 1.4s with 8 workers from the memory of step 1240: no step was lost
//! ```

use std::sync::Arc;

use console::Style;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use zipper_types::Stage;
use zipper_watch::Picture;

use super::is_troubled;
use super::words::{fit, span, wrap};

/// Drawn at most so often in a second.
const DRAWS: u8 = 8;
/// Columns of the longest bar.
const LONGEST_BAR: usize = 40;

/// The lines.
pub(super) struct Screen {
    all: MultiProgress,
    stages: [(Stage, ProgressBar); 2],
    texts: [ProgressBar; 4],
}

impl Screen {
    pub(super) fn new() -> Self {
        if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
            console::set_colors_enabled_stderr(false);
        }
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(DRAWS));
        let stage = |stage| (stage, all.add(ProgressBar::new(0).with_style(text_style())));
        let stages = [stage(Stage::Align), stage(Stage::Zipper)];
        let texts = [(); 4].map(|()| all.add(ProgressBar::new(0).with_style(text_style())));
        // Logs make the lines step aside.
        let aside = all.clone();
        zipper_cli::write_logs_by(Some(Arc::new(move |write| aside.suspend(write))));
        Self { all, stages, texts }
    }

    /// Prints above the lines.
    pub(super) fn print(&self, text: &str) {
        let text = wrap(text, columns());
        self.all.suspend(|| eprintln!("{text}"));
    }

    pub(super) fn show(&mut self, picture: &Picture) {
        let width = columns();
        for (stage, bar) in &self.stages {
            bar.set_message(stage_line(picture, *stage, width));
        }
        let lines = [
            numbers(picture, width),
            cluster(picture, width),
            languages(picture, width),
            last_event(picture, width),
        ];
        for (bar, line) in self.texts.iter().zip(lines) {
            bar.set_message(line);
        }
    }

    /// Takes the lines away.
    pub(super) fn finish(&self) {
        zipper_cli::write_logs_by(None);
        for (_, bar) in &self.stages {
            bar.finish_and_clear();
        }
        for bar in &self.texts {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Columns of the terminal.
fn columns() -> usize {
    usize::from(console::Term::stderr().size().1).max(2)
}

/// Cut at the terminal's width, whatever it is when it is drawn.
fn text_style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_msg}").expect("the template has no mistake")
}

fn dim(text: &str) -> String {
    Style::new().for_stderr().dim().apply_to(text).to_string()
}

fn strong(text: String) -> String {
    Style::new().for_stderr().bold().apply_to(text).to_string()
}

/// `zipper  ━━━━━━╸───── 1310/4000  ETA 1h 3m`
fn stage_line(picture: &Picture, stage: Stage, width: usize) -> String {
    let run = &picture.run;
    let (before, steps) = match stage {
        Stage::Align => (0, run.align_steps),
        Stage::Zipper => (run.align_steps, run.zipper_steps),
    };
    let done = picture.step.saturating_sub(before).min(steps);
    let is_now = picture.stage == Some(stage);
    let eta = picture.eta_seconds.filter(|_| is_now);
    let eta = eta.map_or_else(String::new, |seconds| format!("  ETA {}", span(seconds)));
    let name = format!("{:<7} ", stage.name());
    let count = format!(" {done}/{steps}{eta}");
    let room = width.saturating_sub(name.len() + count.len());
    let bar = bar(done, steps, room.min(LONGEST_BAR));
    let name = if is_now { strong(name) } else { name };
    let line = format!("{name}{bar}{count}");
    console::truncate_str(&line, width, "…").into_owned()
}

fn bar(done: u64, steps: u64, columns: usize) -> String {
    let share = if steps == 0 {
        1.0
    } else {
        done as f64 / steps as f64
    };
    let halves = (share * 2.0 * columns as f64) as usize;
    let full = "━".repeat(halves / 2);
    let half = if halves % 2 == 1 { "╸" } else { "" };
    let rest = "─".repeat(columns - halves.div_ceil(2));
    let colour = Style::new().for_stderr().cyan();
    format!("{}{}", colour.apply_to(format!("{full}{half}")), dim(&rest))
}

/// Loss, learning rate, throughput.
fn numbers(picture: &Picture, width: usize) -> String {
    let Some(latest) = &picture.latest else {
        return fit(
            &[picture.phase.name().to_owned(), picture.detail.clone()],
            width,
            None,
        );
    };
    let loss = latest
        .loss
        .map_or_else(|| "not finite".to_owned(), |loss| format!("{loss:.3}"));
    let mut parts = vec![
        strong(format!("loss {loss}")),
        format!("lr {:.1e}", latest.lr),
        format!("{:.0} audio-s/s", latest.audio_per_second),
    ];
    if picture.world_size > 1 {
        parts.push(format!("comm {:.0} %", 100.0 * latest.comm_share));
    }
    parts.push(format!("{:.0} tokens/s", latest.tokens_per_second));
    if latest.skipped {
        parts.insert(1, "UPDATE LEFT OUT (not finite, or a spike)".to_owned());
    }
    fit(&parts, width, None)
}

/// Nodes, ranks, the newest checkpoint, alarms.
fn cluster(picture: &Picture, width: usize) -> String {
    let nodes: u32 = picture.nodes.values().sum();
    let healthy = picture.nodes.get("healthy").copied().unwrap_or_default();
    let mut parts = Vec::new();
    if !picture.alarms.is_empty() {
        let kinds: Vec<String> = picture
            .alarms
            .iter()
            .map(|alarm| alarm.kind.replace('_', " "))
            .collect();
        parts.push(strong(format!("ALARM: {}", kinds.join(", "))));
    }
    if nodes > 0 {
        parts.push(format!("{healthy}/{nodes} nodes healthy"));
    }
    parts.push(match picture.checkpoints.last() {
        Some(checkpoint) => format!("checkpoint step {}", checkpoint.step),
        None => "no checkpoint yet".to_owned(),
    });
    if picture.generation > 0 {
        parts.push(format!(
            "{} (generation {})",
            match picture.world_size {
                1 => "1 rank".to_owned(),
                ranks => format!("{ranks} ranks"),
            },
            picture.generation
        ));
    }
    fit(&parts, width, None)
}

/// Losses by language, in the order of the configuration.
fn languages(picture: &Picture, width: usize) -> String {
    let latest = picture.latest.as_ref();
    let losses = picture.run.languages.iter().filter_map(|lang| {
        let loss = latest?.by_language.get(lang)?;
        Some(format!("{lang} {loss:.2}"))
    });
    let losses: Vec<String> = losses.collect();
    fit(&losses, width, Some("more"))
}

/// The newest line of the timeline; while a run comes back, who is waited for.
fn last_event(picture: &Picture, width: usize) -> String {
    let troubled = is_troubled(picture.phase);
    let waiting = Some(&picture.detail).filter(|detail| troubled && !detail.is_empty());
    let Some(newest) = waiting.or(picture.timeline.last().map(|newest| &newest.text)) else {
        return String::new();
    };
    let mark = if troubled { "!" } else { "•" };
    let first = newest.lines().next().unwrap_or_default();
    let line = format!("{mark} {first}");
    dim(&console::truncate_str(&line, width, "…"))
}

#[cfg(test)]
mod tests {
    use zipper_watch::picture::{Alarm, Happening, Latest};

    use super::*;

    fn picture() -> Picture {
        let mut picture = Picture::default();
        picture.run.align_steps = 2000;
        picture.run.zipper_steps = 4000;
        picture.run.languages = (0..12).map(|number| format!("l{number}")).collect();
        picture.nodes.insert("healthy".to_owned(), 3);
        picture.nodes.insert("silent".to_owned(), 1);
        picture.generation = 3;
        picture.world_size = 8;
        picture.published(1250, "1");
        picture.reached(3360);
        picture.took(1.4);
        let by_language = picture.run.languages.iter().map(|lang| (lang.clone(), 1.25));
        picture.latest = Some(Latest {
            loss: Some(1.2345),
            lr: 2.9e-4,
            audio_per_second: 181.0,
            tokens_per_second: 940.0,
            comm_share: 0.06,
            by_language: by_language.collect(),
            ..Latest::default()
        });
        picture.alarms.push(Alarm {
            kind: "object_store".to_owned(),
            ..Alarm::default()
        });
        picture.happened(Happening {
            text: "recovered in 1.4s with 8 workers from the memory of step 1240: no step was lost\nmore"
                .to_owned(),
            ..Happening::default()
        });
        picture
    }

    fn lines(picture: &Picture, width: usize) -> Vec<String> {
        let lines = [
            stage_line(picture, Stage::Align, width),
            stage_line(picture, Stage::Zipper, width),
            numbers(picture, width),
            cluster(picture, width),
            languages(picture, width),
            last_event(picture, width),
        ];
        lines
            .iter()
            .map(|line| console::strip_ansi_codes(line).into_owned())
            .collect()
    }

    /// Goal: what matters most is there at any width, and no line is longer than the terminal is wide.
    #[test]
    fn every_width_has_what_matters_most() {
        let wide = lines(&picture(), 150);
        assert_eq!(
            wide[1].trim_end(),
            format!(
                "zipper  {}╸{} 1360/4000  ETA 1h 1m",
                "━".repeat(13),
                "─".repeat(26)
            )
        );
        assert_eq!(
            wide[2],
            "loss 1.234  lr 2.9e-4  181 audio-s/s  comm 6 %  940 tokens/s"
        );
        assert_eq!(
            wide[3],
            "ALARM: object store  3/4 nodes healthy  checkpoint step 1250  8 ranks (generation 3)"
        );
        assert!(
            wide[4].ends_with("l11 1.25") && wide[5].ends_with("no step was lost"),
            "{wide:#?}"
        );
        let narrow = lines(&picture(), 60);
        assert_eq!(
            narrow[3],
            "ALARM: object store  3/4 nodes healthy  checkpoint step 1250"
        );
        assert_eq!(lines(&picture(), 59)[3], "ALARM: object store  3/4 nodes healthy");
        assert!(narrow[4].ends_with("+7 more"), "{}", narrow[4]);
        assert!(narrow[1].contains("1360/4000  ETA 1h 1m"), "{}", narrow[1]);
        for width in 1..200 {
            for line in lines(&picture(), width)
                .iter()
                .chain(&lines(&Picture::default(), width))
            {
                assert!(console::measure_text_width(line) <= width, "{width}: {line}");
            }
        }
    }
}
