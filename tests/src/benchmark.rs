//! What the benchmarks share: a job that is made up, with trained state of tens of MiB, so that moving it takes time; the demo's jobs;
//! the other side of a comparison, in Python; what is said of the machine, and of many numbers.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use clap::ValueEnum;
use serde_json::{Value, json};

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

/// Models and data of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DemoSize {
    /// Spoken numbers, a language model of 1.7 M parameters, a projector of the kind `stack`.
    Quickstart,
    /// Human speech, SmolLM2-135M, a projector of the kind `conv`.
    Smollm2,
}

impl DemoSize {
    /// The configuration of its run.
    pub fn config(self) -> &'static Path {
        Path::new(match self {
            Self::Quickstart => "configs/quickstart.yaml",
            Self::Smollm2 => "configs/smollm2.yaml",
        })
    }

    /// Sees that files and folders are there.
    ///
    /// # Errors
    /// Names the first that is missing, and the commands that make it.
    pub fn require<'a>(self, paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), String> {
        let how = match self {
            Self::Quickstart => {
                "`cargo xtask corpus numbers`, `cargo xtask model whisper-base` and `cargo xtask model numbers-lm` make it"
            }
            Self::Smollm2 => {
                "`cargo xtask corpus human`, `cargo xtask model whisper-base` and `cargo xtask model smollm2` make it"
            }
        };
        match paths.into_iter().find(|path| !path.exists()) {
            None => Ok(()),
            Some(missing) => Err(format!("`{}` is missing: {how}", missing.display())),
        }
    }
}

/// Where the other side of a comparison is: `cargo xtask bench` knows.
#[derive(Debug, Clone, clap::Args)]
pub struct TorchSide {
    /// A Python with transformers and PEFT.
    #[arg(long)]
    python: PathBuf,
    /// The folder with its torch.
    #[arg(long)]
    torch: PathBuf,
    /// The folder with PyTorch's side.
    #[arg(long)]
    scripts: PathBuf,
    /// Where Python keeps compiled modules.
    #[arg(long)]
    pycache: PathBuf,
}

impl TorchSide {
    /// Its Python with that many threads, which looks for nothing on the network.
    pub fn python(&self, threads: usize) -> Command {
        let mut command = Command::new(&self.python);
        command
            .env("PYTHONPATH", &self.torch)
            .env("PYTHONPYCACHEPREFIX", &self.pycache)
            // Else every start compiles all modules.
            .env_remove("PYTHONDONTWRITEBYTECODE")
            .env("OMP_NUM_THREADS", threads.to_string())
            .env("HF_HUB_OFFLINE", "1")
            .env("TOKENIZERS_PARALLELISM", "false");
        command
    }

    /// The path of one of its scripts.
    pub fn script(&self, name: &str) -> PathBuf {
        self.scripts.join(name)
    }
}

/// A script that does what it is told: a line of JSON on stdin is a question, a line of JSON on stdout its answer. What it has to read
/// and to import is there once, and the two sides of a comparison take turns. It ends with its stdin.
#[derive(Debug)]
pub struct Script {
    child: Child,
    answers: Lines<BufReader<ChildStdout>>,
    stderr: tempfile::NamedTempFile,
}

impl Script {
    /// Starts a script and waits for the first line that it says by itself, once it is ready: that line.
    ///
    /// # Errors
    /// If it cannot be started, or ends.
    pub fn start(command: &mut Command) -> Result<(Self, Value), Box<dyn Error>> {
        let stderr = tempfile::NamedTempFile::new()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr.reopen()?)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the script has no stdout")?;
        let mut script = Self {
            child,
            answers: BufReader::new(stdout).lines(),
            stderr,
        };
        let ready = script.answer()?;
        Ok((script, ready))
    }

    /// What it answers to a question.
    ///
    /// # Errors
    /// What it said on stderr if it ended instead.
    pub fn ask(&mut self, question: &Value) -> Result<Value, Box<dyn Error>> {
        if let Some(stdin) = &mut self.child.stdin {
            // If that fails the script has ended, and there is no answer either.
            let _ = writeln!(stdin, "{question}").and_then(|()| stdin.flush());
        }
        self.answer()
    }

    fn answer(&mut self) -> Result<Value, Box<dyn Error>> {
        if let Some(line) = self.answers.next() {
            return Ok(serde_json::from_str(&line?)?);
        }
        let status = self.child.wait()?;
        let said = fs::read_to_string(self.stderr.path())?;
        Err(format!("the script ended with {status}:\n{said}").into())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // Which closes its stdin.
        let _ = self.child.wait();
    }
}

/// A value of an argument as it is typed.
#[expect(clippy::needless_pass_by_value, reason = "values of an argument are copied")]
pub fn value_name(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

/// The file of one part of a measurement, `training-smollm2.json` for `training.json`: a part is measured again without the others.
pub fn file_of_part(output: &Path, part: &str) -> PathBuf {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{stem}-{part}.json"))
}

/// Values of an argument as they are typed.
pub fn comma_list<T>(values: &[T], text: impl Fn(&T) -> String) -> String {
    values.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Least, median and greatest, by these names.
pub fn spread_json<'a>(values: impl IntoIterator<Item = &'a f64>) -> Value {
    let [min, median, max] = spread(values);
    json!({"min": min, "median": median, "max": max})
}

/// Least, median and greatest of what [`spread_json`] made, for a table.
pub fn spread_text(spread: &Value) -> String {
    let [min, median, max] = ["min", "median", "max"].map(|part| spread[part].as_f64().unwrap_or(f64::NAN));
    format!("{min:.2} / **{median:.2}** / {max:.2}")
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

/// The profile that this benchmark and the programs beside it were built with, which names their folder.
pub fn profile() -> Option<String> {
    let benchmark = std::env::current_exe().ok()?;
    let folder = benchmark.ancestors().nth(2)?;
    Some(folder.file_name()?.to_string_lossy().into_owned())
}
