//! What the benchmarks share: a job that is made up, with trained state of tens of MiB, so that moving it takes time; what is said
//! of the machine, and of many numbers.

use std::fs;
use std::path::Path;

use crate::{corpus, models};
use models::LlmShape;

/// Its LLM.
pub const BENCHMARK_LLM: LlmShape = LlmShape {
    width: 512,
    ffn: 1408,
    heads: 8,
    kv_heads: 8,
    head_dim: 64,
    layers: 6,
};
/// Its languages with their training utterances.
pub const BENCHMARK_UTTERANCES: [(&str, usize); 3] = [("en", 100), ("de", 60), ("vi", 40)];

/// Writes models and corpus into `folder`.
pub fn write_benchmark(folder: &Path) {
    models::write_whisper(&folder.join("whisper"), 7);
    models::write_llm_of(&folder.join("llm"), 8, BENCHMARK_LLM);
    corpus::write_corpus_of(&folder.join("corpus"), 9, &BENCHMARK_UTTERANCES, 0.7..0.9);
}

/// The job's configuration with adapters of rank `rank`; `FOLDER` stands for its folder. `steps` are those of its stages; `more` are
/// lines for the end.
pub fn benchmark_config(name: &str, rank: u32, steps: [u64; 2], more: &str) -> String {
    let ([align, zipper], alpha) = (steps, 2 * rank);
    format!(
        "name: {name}
seed: 5
model:
  encoder: {{path: FOLDER/whisper, cache: FOLDER/cache}}
  projector: {{kind: stack, stack: 5, hidden: 512}}
  llm: {{path: FOLDER/llm}}
  prompt: {{template: \"<{{lang}}>\"}}
adapter: {{variant: soft, rank: {rank}, alpha: {alpha}}}
data: {{languages: [en, de, vi], train: [FOLDER/corpus/train.jsonl], temperature: 1.5}}
training:
  align: {{steps: {align}, lr: 1.0e-4}}
  zipper: {{steps: {zipper}, lr: 1.0e-4}}
  batch_audio_seconds: 16
  micro_batch_audio_seconds: 4
  log_every: 1
{more}
"
    )
}

/// Least, median and greatest.
pub fn spread<'a>(values: impl IntoIterator<Item = &'a f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.into_iter().copied().collect();
    values.sort_by(f64::total_cmp);
    match values.as_slice() {
        [] => [f64::NAN; 3],
        [first, .., last] => [*first, values[values.len() / 2], *last],
        [only] => [*only; 3],
    }
}

/// What else the machine does: how many processes wanted to run in the last minute.
pub fn load() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

/// The processor's name as Linux tells it.
pub fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name"));
    name.map_or_else(String::new, |name| name.trim_matches([' ', '\t', ':']).to_owned())
}
