//! What was measured: a table with a row for each pair of sides, and the file that takes all of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use zipper_tests::{cpu, profile, spread, value_name};

use crate::job::Job;
use crate::runs::Run;
use crate::{Bench, Side, WARM_UP, WARM_UP_PADDED};

/// What is compared: Zipper with what it would replace.
const PAIRS: [(Side, Side); 5] = [
    (Side::ZipperNative, Side::PytorchPadded),
    (Side::ZipperNative, Side::PytorchNative),
    (Side::ZipperCached, Side::PytorchPadded),
    (Side::ZipperCached, Side::PytorchNative),
    (Side::ZipperCached, Side::PytorchCached),
];

impl Bench {
    /// A row for each pair that was measured, of runs of one size.
    pub(crate) fn table(&self, runs: &[Run]) -> Vec<Value> {
        let selection = &self.arguments.selection;
        let mut rows = Vec::new();
        for &variant in &selection.variants {
            for &processes in &selection.processes {
                for (zipper, pytorch) in PAIRS {
                    let of = |side| {
                        let of_side = move |run: &&Run| {
                            (run.variant, run.processes, run.side) == (variant, processes, side)
                        };
                        runs.iter().filter(of_side).collect::<Vec<_>>()
                    };
                    let (ours, theirs) = (of(zipper), of(pytorch));
                    if !ours.is_empty() && !theirs.is_empty() {
                        rows.push(row(&ours, &theirs));
                    }
                }
            }
        }
        rows
    }

    pub(crate) fn write(&self, output: &Path, job: &Job, runs: &[Run]) -> Result<(), Box<dyn Error>> {
        let report = json!({
            "command": "cargo xtask bench training",
            "flags": self.arguments.selection.flags(),
            "machine": {"cpu": cpu(), "cores": self.cores},
            "profile": profile(),
            "uncounted_steps": {"padded_30s": WARM_UP_PADDED, "others": WARM_UP},
            "job": job.to_json(),
            "table": self.table(runs),
            "steps": steps(runs),
            "runs": runs.iter().map(Run::to_json).collect::<Vec<_>>(),
        });
        fs::write(output, serde_json::to_string_pretty(&report)? + "\n")?;
        Ok(())
    }
}

/// How one side compares with the other, round by round.
fn row(ours: &[&Run], theirs: &[&Run]) -> Value {
    let over_rounds = |value: &dyn Fn(&Run, &Run) -> f64| {
        let values: Vec<f64> = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| value(ours, theirs))
            .collect();
        let [min, median, max] = spread(&values);
        json!({"min": min, "median": median, "max": max})
    };
    let run = ours[0];
    json!({
        "size": value_name(run.size), "variant": value_name(run.variant), "processes": run.processes,
        "zipper": value_name(run.side), "pytorch": value_name(theirs[0].side),
        "zipper_audio_seconds_per_second": over_rounds(&|ours, _| ours.audio_rate),
        "pytorch_audio_seconds_per_second": over_rounds(&|_, theirs| theirs.audio_rate),
        "audio_ratio": over_rounds(&|ours, theirs| ours.audio_rate / theirs.audio_rate),
        "token_ratio": over_rounds(&|ours, theirs| ours.token_rate / theirs.token_rate),
        "zipper_peak_mib": over_rounds(&|ours, _| ours.peak_mib),
        "pytorch_peak_mib": over_rounds(&|_, theirs| theirs.peak_mib),
        "memory_ratio": over_rounds(&|ours, theirs| ours.peak_mib / theirs.peak_mib),
        "first_losses": {"zipper": run.finished.steps[0].loss, "pytorch": theirs[0].finished.steps[0].loss},
    })
}

/// Where the time of Zipper's steps went: a row for each kind of run, medians over its rounds.
pub(crate) fn steps(runs: &[Run]) -> Vec<Value> {
    // The best of all: others take their share of the machine during some measurements.
    let peaks = runs.iter().filter_map(|run| Some(run.operations?.of_cores));
    let peak = peaks.fold(0.0, f64::max);
    let mfu = |run: &Run| {
        run.operations
            .map_or(f64::NAN, |operations| operations.of_run / peak)
    };
    let mut kinds: BTreeMap<_, Vec<&Run>> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.operations.is_some()) {
        let kind = [
            value_name(run.size),
            value_name(run.variant),
            value_name(run.side),
        ];
        kinds.entry((kind, run.processes)).or_default().push(run);
    }
    let row = |(([size, variant, side], processes), of_kind): (([String; 3], u32), Vec<&Run>)| {
        let median = |value: &dyn Fn(&Run) -> f64| {
            let values: Vec<f64> = of_kind.iter().map(|run| value(run)).collect();
            spread(&values)[1]
        };
        let shares: Map<String, Value> = of_kind[0]
            .parts
            .keys()
            .map(|part| (part.clone(), json!(median(&|run| run.parts[part]))))
            .collect();
        json!({
            "size": size, "variant": variant, "program": side, "processes": processes,
            "mfu": median(&mfu), "shares_of_step": shares,
        })
    };
    kinds.into_iter().map(row).collect()
}

pub(crate) fn print_steps(rows: &[Value]) {
    let parts = ["data", "encoder", "forward", "backward", "exchange", "update"];
    println!(
        "\n| size | variant | Zipper | processes | MFU, % | % of a step: {} |",
        parts.join(" | ")
    );
    println!("|{}", " --- |".repeat(5 + parts.len()));
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let percent = |value: &Value| format!("{:.1}", 100.0 * value.as_f64().unwrap_or(f64::NAN));
        let shares = parts.map(|part| percent(&row["shares_of_step"][part]));
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            text("size"),
            text("variant"),
            text("program").trim_start_matches("zipper-"),
            row["processes"],
            percent(&row["mfu"]),
            shares.join(" | "),
        );
    }
}

pub(crate) fn print(rows: &[Value]) {
    println!(
        "\n| size | variant | processes | Zipper | PyTorch | audio seconds a second: Zipper, PyTorch | Zipper / PyTorch: min / \
         median / max | tokens a second, likewise | peak MiB of a process: Zipper, PyTorch | Zipper / PyTorch, likewise |"
    );
    println!("|{}", " --- |".repeat(10));
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let number = |key: &str, part: &str| row[key][part].as_f64().unwrap_or(f64::NAN);
        let ratio = |key: &str| {
            let [min, median, max] = ["min", "median", "max"].map(|part| number(key, part));
            format!("{min:.2} / **{median:.2}** / {max:.2}")
        };
        println!(
            "| {} | {} | {} | {} | {} | {:.1}, {:.1} | {} | {} | {:.0}, {:.0} | {} |",
            text("size"),
            text("variant"),
            row["processes"],
            text("zipper").trim_start_matches("zipper-"),
            text("pytorch").trim_start_matches("pytorch-"),
            number("zipper_audio_seconds_per_second", "median"),
            number("pytorch_audio_seconds_per_second", "median"),
            ratio("audio_ratio"),
            ratio("token_ratio"),
            number("zipper_peak_mib", "median"),
            number("pytorch_peak_mib", "median"),
            ratio("memory_ratio"),
        );
    }
}
