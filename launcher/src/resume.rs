//! Going on with a run: whether it may, and what may differ from the configuration that it was begun with.

use std::fmt;

use anyhow::Context;
use bytes::Bytes;
use serde_json::Value;
use zipper_checkpoint::{CheckpointError, ErrorKind, RunStore, layout};
use zipper_cli::{UserError, unusable};
use zipper_config::RunConfig;
use zipper_data::stored_fingerprint;

use crate::preflight;
use crate::run::Resume;

/// Sections and keys that say where and how a run is made, and not what is trained: they may change from launch to launch.
const MAY_CHANGE: [&str; 8] = [
    "checkpoint",
    "cluster",
    "elastic",
    "evaluation.tests",
    "model.encoder.cache",
    "runtime",
    "training.log_every",
    "watching",
];

/// A run that was begun before.
pub(crate) struct Begun {
    /// Its run.yaml.
    text: String,
    /// Where that is, for messages.
    source: String,
    config: RunConfig,
}

/// A key whose value differs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Difference {
    key: String,
    of_run: Value,
    now: Value,
}

impl Difference {
    /// Whether the run may go on with it.
    fn is_allowed(&self) -> bool {
        MAY_CHANGE.iter().any(|allowed| {
            let below = self.key.strip_prefix(allowed);
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    /// The change to run.yaml that makes it so: `runtime.grace="30s"`.
    pub(crate) fn as_override(&self) -> String {
        format!("{}={}", self.key, self.now)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, of_run, now } = self;
        write!(f, "  - {key}: {of_run}\n  + {key}: {now}")
    }
}

impl Begun {
    /// The run in `store`, if there is one.
    pub(crate) async fn find(store: &RunStore, resume: Resume) -> anyhow::Result<Option<Self>> {
        let url = store.url();
        if !store.exists(layout::RUN_CONFIG).await.map_err(unusable)? {
            if resume == Resume::Require {
                let error = UserError::new(format!("--resume require: there is no run in `{url}`"));
                return Err(error.hint("begin one with `--resume auto`").into());
            }
            return Ok(None);
        }
        if resume == Resume::Never {
            let error = UserError::new(format!("--resume never: there is a run in `{url}` already"));
            return Err(error
                .hint("choose another `--run`, or go on with `--resume auto`")
                .into());
        }
        let source = store.object_url(layout::RUN_CONFIG);
        let unreadable = |what: String| {
            UserError::new(what).hint("no run can go on from there: choose another `--run`, or mend it")
        };
        let text = store.get(layout::RUN_CONFIG).await.map_err(unusable)?;
        let text = String::from_utf8(text.to_vec())
            .map_err(|error| unreadable(format!("`{source}` is not text: {error}")))?;
        let config =
            zipper_config::from_str(&text, &source, &[]).map_err(|error| unreadable(error.to_string()))?;
        Ok(Some(Self { text, source, config }))
    }

    /// The run's own configuration with changes, for a launch without a file.
    pub(crate) fn changed(&self, overrides: &[String]) -> anyhow::Result<RunConfig> {
        let config = zipper_config::from_str_checked(&self.text, &self.source, overrides);
        let hint = "the run reads the same files wherever it goes on: make them available here";
        Ok(config.map_err(|error| preflight::refused(&error, hint))?)
    }

    /// Shows what differs, and refuses what may not.
    pub(crate) fn differences(&self, url: &str, now: &RunConfig) -> anyhow::Result<Vec<Difference>> {
        let value = |config| serde_json::to_value(config).context("a configuration as JSON");
        let mut found = Vec::new();
        compare("", &value(&self.config)?, &value(now)?, &mut found);
        let (allowed, refused): (Vec<_>, Vec<_>) = found.into_iter().partition(Difference::is_allowed);
        if !refused.is_empty() {
            let message = format!(
                "the run in `{url}` was begun with another configuration (- in the run, + now):\n{}",
                lines(&refused)
            );
            let may = MAY_CHANGE.map(|key| format!("`{key}`")).join(", ");
            return Err(UserError::new(message)
                .hint("undo the changes, or choose another `--run` for them")
                .hint(format!("what may change from launch to launch: {may}"))
                .into());
        }
        if !allowed.is_empty() {
            eprintln!(
                "This launch differs from the run's configuration (- in the run, + now):\n{}",
                lines(&allowed)
            );
        }
        Ok(allowed)
    }
}

/// Looks at the manifests of the run's checkpoints: tells of damaged ones, refuses those of a newer Zipper, and a run without any that must
/// have one. From which the run goes on is decided by the coordinator, which has the run to itself.
pub(crate) async fn check_checkpoints(store: &RunStore, resume: Resume) -> anyhow::Result<()> {
    let list = store.checkpoints().list().await.map_err(unusable)?;
    for (step, error) in list.unreadable {
        if error.kind() != ErrorKind::Damaged {
            return Err(unusable(error));
        }
        eprintln!("warning: the checkpoint of step {step} is damaged: {error}");
    }
    if resume != Resume::Require || !list.checkpoints.is_empty() {
        return Ok(());
    }
    let error = UserError::new(format!(
        "--resume require: the run in `{}` has no checkpoint to resume from",
        store.url()
    ));
    Err(error.hint("begin it again with `--resume auto`").into())
}

/// The fingerprint of the training corpus in the newest checkpoint; nothing if there is none, or it is of an earlier version. One that is
/// damaged or goes meanwhile is passed over: workers compare with the checkpoint that they go on from.
pub(crate) async fn trained_on(store: &RunStore) -> anyhow::Result<Option<String>> {
    match newest_state(store).await {
        Ok(state) => Ok(state.and_then(|state| stored_fingerprint(&state).ok().flatten())),
        Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(unusable(error)),
    }
}

/// `state.json` of the newest checkpoint.
async fn newest_state(store: &RunStore) -> Result<Option<Bytes>, CheckpointError> {
    let checkpoints = store.checkpoints();
    let Some(step) = checkpoints.latest().await? else {
        return Ok(None);
    };
    let manifest = checkpoints.load_manifest(step).await?;
    match manifest.part(layout::STATE) {
        Some(part) => checkpoints.read_part(step, part).await.map(Some),
        None => Ok(None),
    }
}

fn lines(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Finds every key whose value differs.
fn compare(key: &str, of_run: &Value, now: &Value, found: &mut Vec<Difference>) {
    match (of_run, now) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                let value = |of: &serde_json::Map<String, Value>| of.get(name).cloned().unwrap_or_default();
                compare(&key, &value(a), &value(b), found);
            }
        }
        (a, b) if a != b => found.push(Difference {
            key: key.to_owned(),
            of_run: a.clone(),
            now: b.clone(),
        }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn difference(key: &str) -> Difference {
        Difference {
            key: key.to_owned(),
            of_run: json!(1),
            now: json!(2),
        }
    }

    #[test]
    fn only_what_is_not_trained_may_change() {
        for key in [
            "runtime.grace",
            "cluster.partition",
            "elastic.snapshot_every",
            "checkpoint.keep_last",
            "evaluation.tests",
            "model.encoder.cache",
            "training.log_every",
        ] {
            assert!(difference(key).is_allowed(), "{key}");
        }
        for key in [
            "name",
            "seed",
            "data.train",
            "training.align.lr",
            "training.log_every_other",
            "evaluation.beam",
            "model.encoder.path",
            "runtimes.grace",
        ] {
            assert!(!difference(key).is_allowed(), "{key}");
        }
    }

    #[test]
    fn differences_are_found_by_key_and_read_as_a_diff() {
        let mut found = Vec::new();
        compare(
            "",
            &json!({"a": {"b": 1, "c": [1, 2]}, "same": 5}),
            &json!({"a": {"b": "x", "c": [1], "d": null}, "same": 5}),
            &mut found,
        );
        assert_eq!(
            lines(&found),
            "  - a.b: 1\n  + a.b: \"x\"\n  - a.c: [1,2]\n  + a.c: [1]"
        );
        assert_eq!(found[0].as_override(), "a.b=\"x\"");
    }
}
