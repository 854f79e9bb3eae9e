//! A comparison: one configuration, the keys in which its runs differ, and what follows from them: which runs there are, and which of
//! them share a stage 1.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use serde_yaml::Value;
use zipper_types::Variant;

use crate::RunConfig;
use crate::problems::{ConfigErrors, Problem};
use crate::schema::{AdapterConfig, EvaluationConfig, StageConfig, StartFrom};
use crate::validate::{bad_name, may_be_in_name};

/// The axis over which results are put together.
pub const SEED: &str = "seed";
/// Keys on which stage 1 does not depend.
const OF_STAGE_2: [&str; 6] = [
    "adapter.variant",
    "adapter.init",
    "adapter.shared_rank",
    "adapter.router",
    "training.zipper",
    "evaluation",
];

/// The file of a comparison.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SweepConfig {
    /// Its name, for people. Also the last part of the default folder, `./sweeps/<name>`.
    pub name: String,
    /// The configuration that all runs have in common, relative to the directory that the command was started in.
    pub config: PathBuf,
    /// Changes to it for all runs: `training.zipper.steps=800`.
    #[serde(default)]
    pub set: Vec<String>,
    /// The keys in which runs differ; there is a run for each combination of their values.
    pub axes: Vec<Axis>,
    /// Languages that are put together in the report. Left out: one group of all.
    #[serde(default)]
    pub groups: Vec<Group>,
}

/// A key and its values.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Key path, `adapter.variant`.
    pub key: String,
    /// What it is set to.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub values: Vec<Value>,
}

/// Languages with about as much data.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// `high`, `mid`, `low`.
    pub name: String,
    /// Codes.
    pub languages: Vec<String>,
}

/// Every run of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// Its name.
    pub name: String,
    /// Keys of the axes.
    pub axes: Vec<String>,
    /// Groups of languages.
    pub groups: Vec<Group>,
    /// Runs of stage 1 alone, which others begin with.
    pub stage_1: Vec<SweepRun>,
    /// The runs that are compared.
    pub runs: Vec<SweepRun>,
    /// Every combination of values, in the order of the axes.
    pub members: Vec<Member>,
}

/// One run of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepRun {
    /// Its name, of its values.
    pub name: String,
    /// Its configuration; with both stages, whatever it begins with.
    pub config: RunConfig,
    /// The run in [`Sweep::stage_1`] that it begins with.
    pub begins_with: Option<usize>,
}

/// One combination of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// A value for each axis.
    pub values: Vec<String>,
    /// The run in [`Sweep::runs`] that has them. Combinations may share one: `shared` has no banks that `adapter.init` could
    /// start.
    pub run: usize,
}

impl SweepConfig {
    /// Reads the file of a comparison.
    ///
    /// # Errors
    /// [`ConfigErrors`] with what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let source = path.display().to_string();
        let one = |problem| ConfigErrors::one(&source, problem);
        let text = std::fs::read_to_string(path)
            .map_err(|error| one(Problem::of_file(format!("cannot be read: {error}"))))?;
        let value: Value = serde_yaml::from_str(&text)
            .map_err(|error| one(Problem::of_file(format!("not YAML: {error}"))))?;
        let sweep: Self = serde_path_to_error::deserialize(value).map_err(|error| {
            let path: Vec<String> = error.path().iter().map(ToString::to_string).collect();
            one(Problem::from_serde(&path, &error.into_inner().to_string()))
        })?;
        let problems = sweep.problems();
        if problems.is_empty() {
            Ok(sweep)
        } else {
            Err(ConfigErrors::new(&source, problems))
        }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        problems.extend(bad_name("name", &self.name));
        if self.axes.is_empty() {
            problems.push(Problem::of_key("axes", "empty: there is nothing to compare"));
        }
        for (index, axis) in self.axes.iter().enumerate() {
            if axis.values.is_empty() {
                problems.push(Problem::of_key(format!("axes[{index}].values"), "empty"));
            }
            if axis
                .values
                .iter()
                .any(|value| serde_json::to_string(value).is_err())
            {
                let problem = "keys in a value have to be words";
                problems.push(Problem::of_key(format!("axes[{index}].values"), problem));
            }
            if self.axes[..index].iter().any(|other| other.key == axis.key) {
                let problem = format!("`{}` is there twice", axis.key);
                problems.push(Problem::of_key(format!("axes[{index}].key"), problem));
            }
        }
        problems
    }

    /// The runs of the comparison.
    ///
    /// # Errors
    /// [`ConfigErrors`] if a combination is not a valid configuration, or a group has a language that the runs do not have.
    pub fn expand(&self, source: &Path) -> Result<Sweep, ConfigErrors> {
        let mut sweep = Sweep {
            name: self.name.clone(),
            axes: self.axes.iter().map(|axis| axis.key.clone()).collect(),
            groups: self.groups.clone(),
            stage_1: Vec::new(),
            runs: Vec::new(),
            members: Vec::new(),
        };
        for values in combinations(&self.axes) {
            let own = self.axes.iter().zip(&values);
            let overrides: Vec<String> = self
                .set
                .iter()
                .cloned()
                .chain(own.map(|(axis, value)| format!("{}={}", axis.key, inline(value))))
                .collect();
            let config = canonical(crate::load(&self.config, &overrides)?);
            sweep.add(values.into_iter().map(label).collect(), config);
        }
        let problems = sweep.problems();
        if problems.is_empty() {
            Ok(sweep)
        } else {
            Err(ConfigErrors::new(&source.display().to_string(), problems))
        }
    }
}

impl Sweep {
    fn add(&mut self, values: Vec<String>, mut config: RunConfig) {
        let known = self.runs.iter().position(|run| {
            config.name.clone_from(&run.config.name);
            run.config == config
        });
        let run = known.unwrap_or_else(|| {
            config.name = file_name(&values.join("-"));
            let begins_with = (config.training.align.steps > 0 && config.training.start_from.is_none())
                .then(|| self.stage_1_of(&values, &config));
            self.runs.push(SweepRun {
                name: config.name.clone(),
                config,
                begins_with,
            });
            self.runs.len() - 1
        });
        self.members.push(Member { values, run });
    }

    /// The run of stage 1 that a run with `config` begins with. It is evaluated as the first of these runs.
    fn stage_1_of(&mut self, values: &[String], config: &RunConfig) -> usize {
        let mut config = stage_1(config);
        let known = self.stage_1.iter().position(|run| {
            let same = RunConfig {
                name: run.config.name.clone(),
                evaluation: run.config.evaluation.clone(),
                ..config.clone()
            };
            run.config == same
        });
        known.unwrap_or_else(|| {
            let own = self.axes.iter().zip(values).filter(|(key, _)| {
                let below = |known: &&str| key.strip_prefix(*known);
                !OF_STAGE_2
                    .iter()
                    .filter_map(below)
                    .any(|rest| rest.is_empty() || rest.starts_with('.'))
            });
            let words = std::iter::once("stage1").chain(own.map(|(_, value)| value.as_str()));
            config.name = file_name(&words.collect::<Vec<_>>().join("-"));
            self.stage_1.push(SweepRun {
                name: config.name.clone(),
                config,
                begins_with: None,
            });
            self.stage_1.len() - 1
        })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for runs in [&self.runs, &self.stage_1] {
            for (index, run) in runs.iter().enumerate() {
                if runs[..index].iter().any(|other| other.name == run.name) {
                    let problem = format!("two runs would be called `{}`", run.name);
                    problems.push(Problem::of_key("axes", problem));
                }
            }
        }
        let Some(first) = self.runs.first() else {
            return problems;
        };
        if first.config.evaluation.tests.is_empty() {
            let problem =
                "`evaluation.tests` is empty in the configuration: there would be nothing to compare by";
            problems.push(Problem::of_key("config", problem));
        }
        let languages = &first.config.data.languages;
        for (index, group) in self.groups.iter().enumerate() {
            let unknown = group.languages.iter().filter(|lang| !languages.contains(lang));
            problems.extend(unknown.map(|lang| {
                let problem = format!("`{lang}` is not in `data.languages`");
                Problem::of_key(format!("groups[{index}].languages"), problem)
            }));
        }
        problems
    }

    /// The configuration that a run of [`Sweep::runs`] is made with, if its stage 1 is at `url`.
    pub fn after_stage_1(run: &SweepRun, url: &str) -> RunConfig {
        let mut config = run.config.clone();
        config.training.start_from = Some(StartFrom {
            run: Some(url.to_owned()),
            step: Some(config.training.align.steps),
            ..StartFrom::default()
        });
        config.training.align.steps = 0;
        config.training.align.warmup_steps = 0;
        config
    }
}

/// Without settings that have no effect, so that runs that would be the same are equal.
fn canonical(mut config: RunConfig) -> RunConfig {
    let defaults = AdapterConfig::default();
    let adapter = &mut config.adapter;
    if adapter.variant == Variant::Shared {
        adapter.init = defaults.init;
    }
    if adapter.variant != Variant::Static {
        adapter.shared_rank = defaults.shared_rank;
    }
    if !adapter.variant.has_router() {
        adapter.router = defaults.router;
        config.training.zipper.router_lr = None;
    }
    config
}

/// The part of a configuration that stage 1 depends on.
fn stage_1(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    let defaults = AdapterConfig::default();
    config.adapter.variant = Variant::Shared;
    config.adapter.init = defaults.init;
    config.adapter.shared_rank = defaults.shared_rank;
    config.adapter.router = defaults.router;
    config.training.zipper = StageConfig {
        steps: 0,
        warmup_steps: 0,
        router_lr: None,
        ..config.training.align.clone()
    };
    config.evaluation = EvaluationConfig {
        tests: Vec::new(),
        untrained: false,
        no_audio_control: false,
        ..config.evaluation
    };
    config
}

fn combinations(axes: &[Axis]) -> Vec<Vec<&Value>> {
    let mut all = vec![Vec::new()];
    for axis in axes {
        all = all
            .iter()
            .flat_map(|before: &Vec<&Value>| {
                axis.values.iter().map(|value| {
                    let mut longer = before.clone();
                    longer.push(value);
                    longer
                })
            })
            .collect();
    }
    all
}

/// A value on one line: JSON is YAML.
fn inline(value: &Value) -> String {
    serde_json::to_string(value).expect("it was tried when the file was read")
}

/// A value in words.
fn label(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => inline(other),
    }
}

/// With `_` in place of everything that a run's name may not have.
fn file_name(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|c| if may_be_in_name(c) { c } else { '_' })
        .collect();
    name.trim_start_matches('.').to_owned()
}
