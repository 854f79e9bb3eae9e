//! Pretraining: next-token prediction on `<|lang|>`, text, end of text; with dictation (see [`crate::dictation`]) a spelling before them.
//!
//! So a Speech-LLM that is to read spellings has its speech before the language: `model.prompt.template: "{speech}<|{lang}|>"`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Instant;
use std::{fmt, fs};

use anyhow::Context;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Tensor};
use zipper_cli::UserError;
use zipper_config::schema::{PromptConfig, PromptKind};
use zipper_model::init;
use zipper_model::llm::{CausalLm, LlmConfig};
use zipper_model::packing::Packing;
use zipper_model::prompt::Prompt;

use crate::dictation::{Dictated, Dictation, Input};
use crate::directory::{self, Shape, Vocabulary};
use crate::words::{self, Words};

const SHAPE: Shape = Shape {
    hidden: 192,
    ffn: 512,
    layers: 4,
    heads: 4,
    kv_heads: 2,
};
const BATCH: usize = 48;
const PEAK_LR: f64 = 2e-3;
const WARMUP_STEPS: u32 = 20;
const WEIGHT_DECAY: f64 = 0.01;
const CLIP_NORM: f64 = 1.0;
/// Standard deviation of the initial weights, as in transformers.
const DEVIATION: f64 = 0.02;
const SEED: u64 = 1;
/// The target of positions whose successor is not to be predicted.
const IGNORED: i64 = -100;
const LOG_EVERY: u32 = 100;
/// Bumped when the model or its training changes, so that directories made before are made again.
const RECIPE: u32 = 4;
const STAMP: &str = ".stamp";

/// Makes the directory `output` from the text in `words`, unless that has been done. A share of `dictation` of the rows is dictation.
pub(crate) fn run(words: &Path, output: &Path, steps: u32, dictation: f64) -> anyhow::Result<()> {
    let text = fs::read_to_string(words)
        .map_err(|error| UserError::new(format!("cannot read `{}`: {error}", words.display())))?;
    let settings = format!("{RECIPE} {steps} {dictation} {}\n", blake3::hash(text.as_bytes()));
    let stamp = output.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == settings) {
        tracing::info!("kept {}", output.display());
        return Ok(());
    }
    let words = words::parse(&text).with_context(|| format!("`{}`", words.display()))?;
    fs::create_dir_all(output).with_context(|| format!("cannot make `{}`", output.display()))?;
    // Until all is written the folder is neither what it was nor what it will be.
    match fs::remove_file(&stamp) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove `{}`", stamp.display()));
        }
        _ => {}
    }
    let vocabulary = Vocabulary::new(words.keys(), &words::characters(&words));
    directory::write_description(output, &SHAPE, &vocabulary)?;
    let config = LlmConfig::read(&output.join("config.json"))?;
    let prompt = Prompt::load(output, &language_prompt(), &config)?;
    let model = Trainable::new(config)?;
    let rows = Rows {
        languages: languages(&words, &prompt)?,
        dictated: dictation,
        eos: prompt.eos(),
    };
    train(&model, &rows, steps)?;
    directory::write_weights(output, &model.tensors)?;
    fs::write(&stamp, settings).with_context(|| format!("cannot write `{}`", stamp.display()))
}

/// One token that names the language.
fn language_prompt() -> PromptConfig {
    PromptConfig {
        kind: PromptKind::Plain,
        template: "<|{lang}|>".to_owned(),
        ..PromptConfig::default()
    }
}

/// What is read of a language, as token ids.
struct Language {
    /// The tokens that name it.
    before: Vec<i64>,
    texts: Vec<Vec<i64>>,
    dictation: Dictation,
}

fn languages(words: &Words, prompt: &Prompt) -> anyhow::Result<Vec<Language>> {
    let space = prompt.encode(" ")?[0];
    words
        .iter()
        .map(|(lang, texts)| {
            let texts = texts.iter().map(|text| prompt.encode(text));
            let texts: Vec<Vec<i64>> = texts.collect::<Result<_, _>>()?;
            Ok(Language {
                before: prompt.frame(lang)?.before,
                dictation: Dictation::new(&texts, space),
                texts,
            })
        })
        .collect()
}

/// A model whose every weight is trained.
struct Trainable {
    model: CausalLm,
    store: nn::VarStore,
    tensors: BTreeMap<String, Tensor>,
}

impl Trainable {
    fn new(config: LlmConfig) -> anyhow::Result<Self> {
        let store = nn::VarStore::new(Device::Cpu);
        let mut tensors = BTreeMap::new();
        let model = CausalLm::build(config, Device::Cpu, |name, shape| {
            let value = if shape.len() == 1 {
                Tensor::ones(shape, tch::kind::FLOAT_CPU)
            } else {
                init::normal(SEED, name, shape, DEVIATION)
            };
            // A dot would mean a sub-path to the store.
            let tensor = store.root().var_copy(&name.replace('.', "/"), &value);
            tensors.insert(name.to_owned(), tensor.shallow_clone());
            Ok(tensor)
        })?;
        Ok(Self {
            model,
            store,
            tensors,
        })
    }
}

fn train(model: &Trainable, rows: &Rows, steps: u32) -> anyhow::Result<()> {
    let mut optimizer = nn::AdamW {
        wd: WEIGHT_DECAY,
        ..nn::AdamW::default()
    }
    .build(&model.store, PEAK_LR)?;
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let started = Instant::now();
    let mut recent = Recent::default();
    for step in 1..=steps {
        optimizer.set_lr(learning_rate(step, steps));
        let batch: Vec<Row> = (0..BATCH)
            .map(|_| rows.draw(f64::from(step) / f64::from(steps), &mut random))
            .collect();
        let (inputs, targets, packing) = pack(&model.model, &batch);
        let hidden = model.model.forward(&inputs, &packing, None);
        let logits = model.model.logits(&hidden);
        let losses = logits.cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::None, IGNORED, 0.0);
        let predicted = targets.ne(IGNORED).sum(Kind::Float);
        optimizer.backward_step_clip_norm(&(losses.sum(Kind::Float) / predicted), CLIP_NORM);
        recent.add(&losses, &targets, &batch);
        if step % LOG_EVERY == 0 {
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!("language model: step {step} of {steps}, loss {recent}, {seconds:.0} s");
            recent = Recent::default();
        }
    }
    Ok(())
}

/// Sums of losses in nats, and targets, of single texts and of dictated ones.
#[derive(Default)]
struct Recent {
    sums: [(f64, f64); 2],
}

impl Recent {
    /// Takes in the losses of packed rows, 0 where the target is [`IGNORED`].
    fn add(&mut self, losses: &Tensor, targets: &Tensor, rows: &[Row]) {
        let lengths: Vec<i64> = rows.iter().map(|row| row.inputs.len() as i64).collect();
        let losses = losses.detach().split_with_sizes(&lengths, 0);
        let targets = targets.ne(IGNORED).split_with_sizes(&lengths, 0);
        for ((row, losses), targets) in rows.iter().zip(losses).zip(targets) {
            let (loss, tokens) = &mut self.sums[usize::from(row.is_dictated)];
            *loss += losses.sum(Kind::Double).double_value(&[]);
            *tokens += targets.sum(Kind::Double).double_value(&[]);
        }
    }
}

impl fmt::Display for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [texts, dictated] = self.sums.map(|(loss, tokens)| loss / tokens);
        write!(f, "{texts:.3}")?;
        if !dictated.is_nan() {
            write!(f, ", dictated {dictated:.3}")?;
        }
        Ok(())
    }
}

/// Rises in a line over the warm-up, then falls in a line to nearly 0.
fn learning_rate(step: u32, steps: u32) -> f64 {
    let rising = f64::from(step) / f64::from(WARMUP_STEPS);
    let falling = 1.0 - f64::from(step - 1) / f64::from(steps);
    PEAK_LR * rising.min(1.0) * falling
}

/// What rows are drawn from.
struct Rows {
    languages: Vec<Language>,
    /// Share of rows.
    dictated: f64,
    eos: i64,
}

/// One sequence to learn.
struct Row {
    inputs: Vec<Input>,
    /// What follows each of the inputs; [`IGNORED`] before the text.
    targets: Vec<i64>,
    is_dictated: bool,
}

impl Rows {
    /// Languages are drawn evenly, then a text of the language.
    fn draw(&self, progress: f64, random: &mut impl RngExt) -> Row {
        let language = self.languages.choose(random).expect("there is a language");
        let is_dictated = self.dictated > 0.0 && random.random_bool(self.dictated);
        let Dictated {
            text,
            spelling,
            written,
        } = if is_dictated {
            language.dictation.draw(progress, random)
        } else {
            let text = language.texts.choose(random).expect("a language has texts");
            Dictated {
                text: text.clone(),
                spelling: Vec::new(),
                written: text.clone(),
            }
        };
        let mut inputs = spelling;
        inputs.extend(language.before.iter().copied().map(Input::clear));
        // The first character follows what stands last before the text.
        let mut targets = vec![IGNORED; inputs.len() - 1];
        inputs.extend(written.into_iter().map(Input::clear));
        targets.extend(text);
        targets.push(self.eos);
        Row {
            inputs,
            targets,
            is_dictated,
        }
    }
}

/// Embeddings `[tokens, hidden]`, targets `[tokens]`, and the length of each row.
fn pack(model: &CausalLm, rows: &[Row]) -> (Tensor, Tensor, Packing) {
    let ids = |of: fn(&Input) -> i64| {
        let ids: Vec<i64> = rows.iter().flat_map(|row| row.inputs.iter().map(of)).collect();
        model.embed(&Tensor::from_slice(&ids))
    };
    let weights: Vec<f32> = rows
        .iter()
        .flat_map(|row| row.inputs.iter().map(|input| input.weight as f32))
        .collect();
    let weights = Tensor::from_slice(&weights).unsqueeze(1);
    let targets: Vec<i64> = rows.iter().flat_map(|row| row.targets.iter().copied()).collect();
    let lengths = rows.iter().map(|row| row.inputs.len() as i64).collect();
    (
        ids(|input| input.other).lerp_tensor(&ids(|input| input.id), &weights),
        Tensor::from_slice(&targets),
        Packing::new(lengths, Device::Cpu),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A short run writes a directory that the rest of Zipper reads, and whose model has learned something: after a
    /// language token it prefers how that language's texts begin. A second run keeps it.
    #[test]
    fn a_pretrained_directory_loads_and_knows_its_languages() {
        tch::set_num_threads(1);
        let folder = tempfile::tempdir().unwrap();
        let (text, output) = (folder.path().join("words.tsv"), folder.path().join("lm"));
        fs::write(&text, "en\tone\nen\tone two\nvi\tm\u{1ed9}t\n").unwrap();
        run(&text, &output, 30, 0.0).unwrap();

        let model = CausalLm::load(&output, Device::Cpu, Kind::Float).unwrap();
        let prompt = Prompt::load(&output, &language_prompt(), model.config()).unwrap();
        for (lang, first) in [("en", "o"), ("vi", "m")] {
            let ids = prompt.frame(lang).unwrap().before;
            assert_eq!(ids.len(), 1, "the language is one token");
            let packing = Packing::uniform(1, 1, Device::Cpu);
            let hidden = model.forward(&model.embed(&Tensor::from_slice(&ids)), &packing, None);
            let best = model.logits(&hidden).argmax(-1, false).int64_value(&[0]);
            assert_eq!(prompt.decode(&[best]).unwrap(), first);
        }
        assert_eq!(
            prompt.decode(&prompt.encode("one m\u{1ed9}t").unwrap()).unwrap(),
            "one m\u{1ed9}t"
        );

        let weights = output.join("model.safetensors");
        let written = fs::metadata(&weights).unwrap().modified().unwrap();
        run(&text, &output, 30, 0.0).unwrap();
        assert_eq!(fs::metadata(&weights).unwrap().modified().unwrap(), written);
    }

    /// Goal: every weight of the model is trained, not only those next to its losses. Method: one step moves each of them.
    #[test]
    fn every_weight_is_trained() {
        tch::set_num_threads(1);
        let folder = tempfile::tempdir().unwrap();
        let words = words::parse("en\tone two\nvi\tm\u{1ed9}t hai\n").unwrap();
        let vocabulary = Vocabulary::new(words.keys(), &words::characters(&words));
        directory::write_description(folder.path(), &SHAPE, &vocabulary).unwrap();
        let config = LlmConfig::read(&folder.path().join("config.json")).unwrap();
        let prompt = Prompt::load(folder.path(), &language_prompt(), &config).unwrap();
        let model = Trainable::new(config).unwrap();
        let rows = Rows {
            languages: languages(&words, &prompt).unwrap(),
            dictated: 0.0,
            eos: prompt.eos(),
        };
        let before: Vec<Tensor> = model.tensors.values().map(Tensor::copy).collect();
        train(&model, &rows, 1).unwrap();
        let after = model.tensors.iter().zip(&before);
        let kept: Vec<&str> = after
            .filter(|((_, after), before)| after.equal(before))
            .map(|((name, _), _)| name.as_str())
            .collect();
        assert!(kept.is_empty(), "{kept:?}");
    }

    /// What is half another directory has no stamp of what it was before.
    #[test]
    fn a_run_that_does_not_come_to_its_end_leaves_no_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let (text, output) = (folder.path().join("words.tsv"), folder.path().join("lm"));
        fs::write(&text, "en\tone\n").unwrap();
        let stamp = output.join(STAMP);
        // Nothing can be written where it is a folder.
        fs::create_dir_all(output.join("config.json")).unwrap();
        fs::write(&stamp, "of another text\n").unwrap();
        assert!(run(&text, &output, 1, 0.0).is_err());
        assert!(!stamp.exists());
    }

    #[test]
    fn the_rate_warms_up_and_falls() {
        assert!(learning_rate(1, 500) < learning_rate(10, 500));
        assert!(learning_rate(21, 500) > learning_rate(250, 500));
        assert!(learning_rate(500, 500) > 0.0);
    }
}
