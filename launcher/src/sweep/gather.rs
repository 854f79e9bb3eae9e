//! What the runs of a comparison came to, read from their folders.

use anyhow::Context;
use serde::Deserialize;
use zipper_checkpoint::{RunStore, layout};
use zipper_config::RunConfig;
use zipper_report::{Comparison, Costs, Group, Run, Sample};
use zipper_score::{RESULT_TABLE, ResultTable, score};
use zipper_types::{Stage, Step};
use zipper_watch::series::Series;

use super::Place;
use crate::plan;

/// A line of `eval/<set>-step-00000500.jsonl`.
#[derive(Deserialize)]
struct Line {
    id: String,
    lang: String,
    reference: String,
    hypothesis: String,
}

/// Everything that has a result.
pub(super) async fn comparison(place: &Place) -> anyhow::Result<Comparison> {
    let sweep = &place.sweep;
    let mut runs: Vec<Run> = Vec::new();
    let mut missing = Vec::new();
    for (index, planned) in sweep.runs.iter().enumerate() {
        // Of several combinations that are the same run, the first names it.
        let member = sweep.members.iter().find(|member| member.run == index);
        let values = member.context("every run is a combination")?.values.clone();
        match read(&place.run_url(planned), values).await? {
            Some(run) => runs.push(run),
            None => missing.push(planned.name.clone()),
        }
    }
    let groups = sweep.groups.iter().map(|group| Group {
        name: group.name.clone(),
        languages: group.languages.clone(),
    });
    Ok(Comparison::new(
        &sweep.name,
        &sweep.axes,
        groups.collect(),
        &runs,
        missing,
    ))
}

/// The table at the end of a run, if it has come there.
pub(super) async fn table(store: &RunStore) -> anyhow::Result<Option<ResultTable>> {
    let Some(bytes) = store.get_if_there(RESULT_TABLE).await? else {
        return Ok(None);
    };
    let table = serde_json::from_slice(&bytes);
    table.map(Some).with_context(|| store.object_url(RESULT_TABLE))
}

/// One run; nothing if it has no result yet.
async fn read(url: &str, values: Vec<String>) -> anyhow::Result<Option<Run>> {
    let store = RunStore::open(url)?;
    let config = store.get_if_there(layout::RUN_CONFIG).await?;
    let (Some(table), Some(config)) = (table(&store).await?, config) else {
        return Ok(None);
    };
    let config = std::str::from_utf8(&config).context("run.yaml is not UTF-8")?;
    let config = zipper_config::from_str(config, &store.object_url(layout::RUN_CONFIG), &[])?;
    let mut run = Run {
        values,
        costs: Costs {
            parameters: parameters(&config),
            throughput: 0.0,
            memory: None,
        },
        ..Run::default()
    };
    for set in &table.sets {
        for (silenced, samples) in [(false, &mut run.tests), (true, &mut run.silenced)] {
            if let Some(sample) = sample(&store, &config, &set.name, silenced, table.step).await? {
                samples.insert(set.name.clone(), sample);
            }
        }
    }
    let lines = store.get_if_there(layout::TRAIN_METRICS).await?;
    let lines = lines.unwrap_or_default();
    let lines = String::from_utf8_lossy(&lines);
    let series = Series::read(&config.data.languages, lines.lines());
    let before = config.training.align.steps;
    let stage_2 = series
        .points()
        .iter()
        .filter(|point| point.stage == Stage::Zipper);
    let (mut audio, mut seconds) = (0.0, 0.0);
    for point in stage_2 {
        run.losses.push((point.step - before, point.loss));
        audio += point.audio_seconds;
        seconds += point.seconds;
    }
    // 0 in runs of versions that did not tell.
    let peak = series.points().iter().map(|point| point.memory_peak_bytes).max();
    run.costs.memory = peak.filter(|&bytes| bytes > 0);
    run.costs.throughput = if seconds > 0.0 { audio / seconds } else { 0.0 };
    Ok(Some(run))
}

/// The trainable parameters of stage 2; nothing where the model files are not at hand.
fn parameters(config: &RunConfig) -> Option<u64> {
    let inventory = plan::inventory(config, Stage::Zipper).ok()?;
    Some(inventory.shared + config.data.languages.len() as u64 * inventory.bank)
}

/// What was counted in a decoded set, by the headline of each language.
async fn sample(
    store: &RunStore,
    config: &RunConfig,
    set: &str,
    silenced: bool,
    step: Step,
) -> anyhow::Result<Option<Sample>> {
    let path = format!("{}.jsonl", layout::evaluation(set, silenced, step));
    let Some(bytes) = store.get_if_there(&path).await? else {
        return Ok(None);
    };
    let mut sample = Sample::default();
    for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let line: Line = serde_json::from_slice(line).with_context(|| store.object_url(&path))?;
        let scoring = config.evaluation.scoring(&line.lang);
        let counted = score(scoring, &line.reference, &line.hypothesis);
        let counts = if config.evaluation.cer_languages.contains(&line.lang) {
            counted.cer
        } else {
            counted.wer
        };
        sample.add(&line.lang, &line.id, counts);
    }
    Ok(Some(sample))
}
