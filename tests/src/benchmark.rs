//! The job of the benchmarks: made up, with trained state of tens of MiB, so that moving it takes time.

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
