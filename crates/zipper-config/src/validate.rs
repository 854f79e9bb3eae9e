//! Relations that types cannot express: each problem names the key, its value and the relation that is broken, with the other keys of
//! the relation in backticks: it is not reported where one of them has another value than was meant (`load`).

use std::collections::BTreeSet;
use std::time::Duration;

use zipper_types::Variant;
use zipper_types::language::language_codes;

use crate::problems::{Problem, suggest};
use crate::schema::{
    AugmentConfig, ByLanguage, ClusterConfig, CtcOutput, DEFAULT, RunConfig, SPEECH, Schedule, StageConfig,
    StartFrom,
};

/// Whisper's positions.
pub(crate) const LONGEST_SECONDS: f64 = 30.0;
/// Frames of log-mel features in that time.
const LONGEST_FRAMES: usize = 3000;
/// One such frame.
const SHORTEST_SECONDS: f64 = 0.01;
/// Mel bands of the smaller Whisper models.
const MEL_BANDS: usize = 80;
/// Factors of speed perturbation are taken to this.
pub(crate) const SPEED_PRECISION: f64 = 1e-3;
/// Factors of speed perturbation: beyond, it is no speech any more.
const SPEEDS: std::ops::RangeInclusive<f64> = 0.5..=2.0;
/// Heartbeats that may be lost before a worker is taken for dead.
const HEARTBEATS_IN_TIMEOUT: u32 = 3;

/// Shorter waits end before anybody can answer.
const LEAST_TIMEOUT: Duration = Duration::from_secs(1);

/// Collects problems.
#[derive(Default)]
struct Check(Vec<Problem>);

impl Check {
    fn require(&mut self, holds: bool, key: &str, message: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Problem::of_key(key, message()));
        }
    }

    fn above(&mut self, value: f64, limit: f64, key: &str) {
        self.require(value > limit && value.is_finite(), key, || {
            broken(value, &format!("not above {limit}"))
        });
    }

    fn positive(&mut self, value: f64, key: &str) {
        self.above(value, 0.0, key);
    }

    fn not_zero(&mut self, is_zero: bool, key: &str) {
        self.require(!is_zero, key, || "0 is not above 0".to_owned());
    }

    fn at_least(&mut self, value: f64, least: f64, key: &str) {
        self.require(value >= least && value.is_finite(), key, || {
            broken(value, &format!("below {least}"))
        });
    }

    fn part_of_one(&mut self, value: f64, key: &str) {
        self.require((0.0..1.0).contains(&value), key, || {
            format!("{value} is not in [0, 1)")
        });
    }
}

/// What is wrong with a number for which the relation would be.
fn broken(value: f64, relation: &str) -> String {
    if value.is_finite() {
        format!("{value} is {relation}")
    } else {
        format!("{value} is not a finite number")
    }
}

/// Every problem of a configuration that keys and types do not show.
pub(crate) fn validate(config: &RunConfig) -> Vec<Problem> {
    let mut check = Check::default();
    check.0.extend(bad_name("name", &config.name));
    model(&mut check, config);
    adapter(&mut check, config);
    data(&mut check, config);
    training(&mut check, config);
    evaluation(&mut check, config);
    checkpoint(&mut check, config);
    elastic(&mut check, config);
    runtime(&mut check, config);
    cluster(&mut check, config);
    check.0
}

/// Whether a character may be in a name, which becomes part of paths.
pub(crate) fn may_be_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// What is wrong with a name, if anything is.
pub(crate) fn bad_name(key: &str, name: &str) -> Option<Problem> {
    let is_fine = !name.is_empty() && name.chars().all(may_be_in_name) && !name.starts_with('.');
    (!is_fine).then(|| {
        let message = format!("`{name}` is not a name of letters, digits, `-`, `_` and `.`");
        Problem::of_key(key, message)
    })
}

fn model(check: &mut Check, config: &RunConfig) {
    let encoder = &config.model.encoder;
    check.positive(encoder.chunk_seconds, "model.encoder.chunk_seconds");
    check.at_least(
        encoder.left_context_seconds,
        0.0,
        "model.encoder.left_context_seconds",
    );
    check.require(
        encoder.cache.is_none() || config.adapter.encoder_targets.is_empty(),
        "model.encoder.cache",
        || {
            "cannot be used with `adapter.encoder_targets`: adapted encoder outputs change at every step"
                .to_owned()
        },
    );
    if let Some(head) = &config.model.lid_head {
        check.positive(head.loss_weight, "model.lid_head.loss_weight");
        check.require(config.adapter.encoder_targets.is_empty(), "model.lid_head", || {
            "cannot be used with `adapter.encoder_targets`: the encoder would have to know the language that the head is to find"
                .to_owned()
        });
    }
    let speeches = config.model.prompt.template.matches(SPEECH).count();
    check.require(speeches <= 1, "model.prompt.template", || {
        format!("`{SPEECH}` is in it {speeches} times, but there is one speech: leave all but one out")
    });
    check.require(
        encoder.cache.is_none() || config.training.augment.is_off(),
        "model.encoder.cache",
        || {
            "cannot be used with `training.augment`: utterances, and so encoder outputs, are others at every step; leave one of \
             the two out"
                .to_owned()
        },
    );
    check.at_least(
        config.model.projector.ctc_weight,
        0.0,
        "model.projector.ctc_weight",
    );
    check.require(
        config.model.projector.ctc_output == CtcOutput::Frames || config.model.projector.ctc_weight > 0.0,
        "model.projector.ctc_output",
        || {
            "needs a `model.projector.ctc_weight` above 0: nothing else teaches the projector tokens"
                .to_owned()
        },
    );
    check.not_zero(config.model.projector.stack == 0, "model.projector.stack");
    check.not_zero(config.model.projector.hidden == Some(0), "model.projector.hidden");
}

fn adapter(check: &mut Check, config: &RunConfig) {
    let adapter = &config.adapter;
    check.not_zero(adapter.rank == 0, "adapter.rank");
    check.positive(adapter.alpha, "adapter.alpha");
    check.part_of_one(adapter.dropout, "adapter.dropout");
    check.require(
        !adapter.targets.is_empty() || !adapter.encoder_targets.is_empty(),
        "adapter.targets",
        || "empty, and so is `adapter.encoder_targets`: there is nothing to adapt".to_owned(),
    );
    let router = &adapter.router;
    check.not_zero(router.lid_dim == 0, "adapter.router.lid_dim");
    check.require(
        router.initial_gate > 0.0 && router.initial_gate < 1.0,
        "adapter.router.initial_gate",
        || format!("{} is not between 0 and 1", router.initial_gate),
    );
    if let Some(shared_rank) = adapter.shared_rank {
        check.require(
            (1..adapter.rank.max(1)).contains(&shared_rank),
            "adapter.shared_rank",
            || {
                format!(
                    "{shared_rank} is not between 1 and `adapter.rank` - 1 = {}",
                    adapter.rank.max(1) - 1
                )
            },
        );
    } else if adapter.variant == Variant::Static {
        check.require(adapter.rank > 1, "adapter.rank", || {
            "1 leaves nothing to split between shared and own columns (`variant: static`)".to_owned()
        });
    }
}

fn data(check: &mut Check, config: &RunConfig) {
    let data = &config.data;
    check.require(!data.languages.is_empty(), "data.languages", || {
        "empty: a run needs at least one language".to_owned()
    });
    let mut seen = BTreeSet::new();
    for (index, code) in data.languages.iter().enumerate() {
        let key = format!("data.languages[{index}]");
        // It becomes part of names of files.
        let may_be_in_code = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_code = !code.is_empty() && code.chars().all(may_be_in_code);
        let has_name = config.model.prompt.name_of(code).is_some();
        check.require(is_code, &key, || {
            format!("`{code}` is no code: lower-case letters, digits and `-`")
        });
        check.require(!is_code || has_name, &key, || {
            let known: Vec<&str> = language_codes().collect();
            format!(
                "`{code}` is not a language code of Whisper, nor has it a name in `model.prompt.language_names`{}",
                suggest(code, &known)
            )
        });
        check.require(seen.insert(code), &key, || format!("`{code}` is there twice"));
    }
    for code in config.model.prompt.language_names.keys() {
        check.require(
            data.languages.contains(code),
            &format!("model.prompt.language_names.{code}"),
            || format!("`{code}` is not in `data.languages`"),
        );
    }
    check.require(!data.train.is_empty(), "data.train", || {
        "empty: a run needs a training manifest".to_owned()
    });
    by_language(
        check,
        &data.text_normalization,
        &data.languages,
        "data.text_normalization",
    );
    check.positive(data.temperature, "data.temperature");
    check.at_least(data.min_seconds, SHORTEST_SECONDS, "data.min_seconds");
    check.require(data.max_seconds <= LONGEST_SECONDS, "data.max_seconds", || {
        format!(
            "{} is above {LONGEST_SECONDS}, the longest that Whisper's encoder has positions for",
            data.max_seconds
        )
    });
    check.require(data.min_seconds < data.max_seconds, "data.min_seconds", || {
        format!(
            "{} is not below `data.max_seconds` = {}",
            data.min_seconds, data.max_seconds
        )
    });
}

/// Languages with a value of their own must be languages of the run.
fn by_language<T: Copy>(check: &mut Check, values: &ByLanguage<T>, languages: &[String], key: &str) {
    for lang in values.languages() {
        let known = || languages.iter().map(String::as_str);
        check.require(known().any(|code| code == lang), &format!("{key}.{lang}"), || {
            let known: Vec<&str> = known().chain([DEFAULT]).collect();
            format!(
                "`{lang}` is not in `data.languages`, nor is it `{DEFAULT}`{}",
                suggest(lang, &known)
            )
        });
    }
}

fn training(check: &mut Check, config: &RunConfig) {
    let training = &config.training;
    stage(check, &training.align, "training.align");
    stage(check, &training.zipper, "training.zipper");
    let steps = training.align.steps.checked_add(training.zipper.steps);
    check.require(steps != Some(0), "training.align.steps", || {
        "0, and so is `training.zipper.steps`: there is nothing to train".to_owned()
    });
    check.require(steps.is_some(), "training.align.steps", || {
        format!(
            "{} steps and those of `training.zipper` are too many to count",
            training.align.steps
        )
    });
    if let Some(start) = &training.start_from {
        start_from(check, start, training.align.steps);
    }
    check.positive(training.batch_audio_seconds, "training.batch_audio_seconds");
    check.positive(
        training.micro_batch_audio_seconds,
        "training.micro_batch_audio_seconds",
    );
    check.part_of_one(training.optimizer.betas[0], "training.optimizer.betas[0]");
    check.part_of_one(training.optimizer.betas[1], "training.optimizer.betas[1]");
    augment(check, &training.augment);
    check.positive(training.optimizer.eps, "training.optimizer.eps");
    check.at_least(
        training.optimizer.weight_decay,
        0.0,
        "training.optimizer.weight_decay",
    );
    check.at_least(training.clip_grad_norm, 0.0, "training.clip_grad_norm");
    check.above(training.loss_spike_factor, 1.0, "training.loss_spike_factor");
    check.not_zero(training.log_every == 0, "training.log_every");
}

fn augment(check: &mut Check, augment: &AugmentConfig) {
    let key = "training.augment";
    for (index, speed) in augment.speed.iter().enumerate() {
        check.require(SPEEDS.contains(speed), &format!("{key}.speed[{index}]"), || {
            format!("{speed} is not within {} and {}", SPEEDS.start(), SPEEDS.end())
        });
    }
    if let Some(masks) = &augment.spec_augment {
        check.require(
            masks.frequency_width <= MEL_BANDS,
            &format!("{key}.spec_augment.frequency_width"),
            || {
                format!(
                    "{} is above {MEL_BANDS}, all of Whisper's mel bands",
                    masks.frequency_width
                )
            },
        );
        check.require(
            masks.time_width <= LONGEST_FRAMES,
            &format!("{key}.spec_augment.time_width"),
            || {
                format!(
                    "{} is above {LONGEST_FRAMES}, the frames of the {LONGEST_SECONDS} s that Whisper hears",
                    masks.time_width
                )
            },
        );
    }
}

fn start_from(check: &mut Check, start: &StartFrom, align_steps: u64) {
    let key = "training.start_from";
    check.require(start.run.is_some() != start.peft.is_some(), key, || {
        "give either `run` and `step`, or `peft`".to_owned()
    });
    check.require(
        start.run.is_some() == start.step.is_some(),
        &format!("{key}.step"),
        || "`run` and `step` belong together: the checkpoint of that run to begin with".to_owned(),
    );
    check.require(
        start.projector.is_none() || start.peft.is_some(),
        &format!("{key}.projector"),
        || "a run brings its own projector: only with `peft`".to_owned(),
    );
    check.require(
        start.peft.is_none() || start.projector.is_some() || align_steps > 0,
        &format!("{key}.projector"),
        || {
            "missing, and `training.align.steps` is 0: stage 2 would begin with a projector that has learnt nothing"
                .to_owned()
        },
    );
}

fn stage(check: &mut Check, stage: &StageConfig, key: &str) {
    check.positive(stage.lr, &format!("{key}.lr"));
    for (rate, name) in [
        (stage.projector_lr, "projector_lr"),
        (stage.router_lr, "router_lr"),
    ] {
        if let Some(rate) = rate {
            check.at_least(rate, 0.0, &format!("{key}.{name}"));
        }
    }
    check.require(
        stage.warmup_steps <= stage.steps,
        &format!("{key}.warmup_steps"),
        || {
            format!(
                "{} is more than `{key}.steps` = {}",
                stage.warmup_steps, stage.steps
            )
        },
    );
    check.require(
        stage.schedule != Schedule::InverseSqrt || stage.warmup_steps > 0,
        &format!("{key}.warmup_steps"),
        || format!("0, from which `{key}.schedule: inverse_sqrt` cannot fall: give it at least 1"),
    );
    check.require(
        (0.0..=1.0).contains(&stage.final_lr_ratio),
        &format!("{key}.final_lr_ratio"),
        || format!("{} is not in [0, 1]", stage.final_lr_ratio),
    );
}

fn evaluation(check: &mut Check, config: &RunConfig) {
    let evaluation = &config.evaluation;
    check.not_zero(evaluation.beam == 0, "evaluation.beam");
    by_language(
        check,
        &evaluation.normalizer,
        &config.data.languages,
        "evaluation.normalizer",
    );
    for (index, lang) in evaluation.cer_languages.iter().enumerate() {
        // Also those of other runs: the default is for all.
        let is_known = config.data.languages.contains(lang) || language_codes().any(|code| code == lang);
        check.require(is_known, &format!("evaluation.cer_languages[{index}]"), || {
            let known: Vec<&str> = config.data.languages.iter().map(String::as_str).collect();
            format!(
                "`{lang}` is neither in `data.languages` nor a language code of Whisper{}",
                suggest(lang, &known)
            )
        });
    }
    check.not_zero(evaluation.max_new_tokens == 0, "evaluation.max_new_tokens");
    let mut seen = BTreeSet::new();
    for (index, test) in evaluation.tests.iter().enumerate() {
        let key = format!("evaluation.tests[{index}].name");
        check.0.extend(bad_name(&key, &test.name));
        check.require(
            test.name != "validation" && !test.name.ends_with("-silenced"),
            &key,
            || format!("`{}` is a name that Zipper uses itself", test.name),
        );
        check.require(seen.insert(&test.name), &key, || {
            format!("`{}` is there twice", test.name)
        });
    }
}

fn checkpoint(check: &mut Check, config: &RunConfig) {
    let checkpoint = &config.checkpoint;
    check.require(checkpoint.keep_last > 0, "checkpoint.keep_last", || {
        "0: there would be nothing to resume from".to_owned()
    });
    // S3 takes pieces of at least 5 MiB, and objects of at most 5 GiB in one.
    check.require(
        (5..=5 * 1024).contains(&checkpoint.multipart_mib),
        "checkpoint.multipart_mib",
        || format!("{} is not between 5 and 5120", checkpoint.multipart_mib),
    );
}

fn elastic(check: &mut Check, config: &RunConfig) {
    let elastic = &config.elastic;
    for (factor, key) in [
        (elastic.hang_factor, "elastic.hang_factor"),
        (elastic.straggler_factor, "elastic.straggler_factor"),
    ] {
        check.above(factor, 1.0, key);
    }
    check.not_zero(elastic.straggler_steps == 0, "elastic.straggler_steps");
    for (duration, key) in [
        (elastic.regroup_timeout, "elastic.regroup_timeout"),
        (elastic.hang_min, "elastic.hang_min"),
        (elastic.coordinator_timeout, "elastic.coordinator_timeout"),
        (elastic.lease_ttl, "elastic.lease_ttl"),
    ] {
        check.require(duration >= LEAST_TIMEOUT, key, || {
            format!("{} is less than 1s", humantime::format_duration(duration))
        });
    }
}

fn runtime(check: &mut Check, config: &RunConfig) {
    let runtime = &config.runtime;
    check.require(
        !runtime.heartbeat_interval.is_zero(),
        "runtime.heartbeat_interval",
        || "0s: workers would do nothing else".to_owned(),
    );
    check.require(
        runtime.heartbeat_timeout >= runtime.heartbeat_interval.saturating_mul(HEARTBEATS_IN_TIMEOUT),
        "runtime.heartbeat_timeout",
        || {
            format!(
                "{} is less than {HEARTBEATS_IN_TIMEOUT} times `runtime.heartbeat_interval` = {}",
                humantime::format_duration(runtime.heartbeat_timeout),
                humantime::format_duration(runtime.heartbeat_interval)
            )
        },
    );
    check.require(runtime.collective_timeout < runtime.rendezvous_timeout, "runtime.collective_timeout", || {
        format!(
            "{} is not less than `runtime.rendezvous_timeout` = {}: a failed group could not form again in time",
            humantime::format_duration(runtime.collective_timeout),
            humantime::format_duration(runtime.rendezvous_timeout)
        )
    });
    check.positive(runtime.bucket_mib, "runtime.bucket_mib");
    if let Some(mib) = runtime.bank_memory_mib {
        check.positive(mib, "runtime.bank_memory_mib");
    }
    check.not_zero(
        runtime.threads_per_worker == Some(0),
        "runtime.threads_per_worker",
    );
}

fn cluster(check: &mut Check, config: &RunConfig) {
    job_times(check, &config.cluster);
    job_arguments(check, &config.cluster);
}

/// Slurm counts time limits in minutes, and takes 16 bits of seconds for the time before one.
fn job_times(check: &mut Check, cluster: &ClusterConfig) {
    let stop_before = cluster.stop_before;
    let text = humantime::format_duration;
    if let Some(time) = cluster.time {
        let whole_minutes = time.as_secs() >= 60 && time == Duration::from_mins(time.as_secs() / 60);
        check.require(whole_minutes, "cluster.time", || {
            format!("{} is not a number of whole minutes", text(time))
        });
        check.require(stop_before < time, "cluster.stop_before", || {
            format!(
                "{} is not less than `cluster.time` = {}",
                text(stop_before),
                text(time)
            )
        });
    }
    let seconds = Duration::from_secs(1)..=Duration::from_secs(u16::MAX.into());
    check.require(seconds.contains(&stop_before), "cluster.stop_before", || {
        format!("{} is not within 1s and 18h 12m", text(stop_before))
    });
    let lifetime = cluster.certificate_lifetime;
    let sensible = Duration::from_hours(1)..=Duration::from_hours(10 * 365 * 24);
    check.require(
        sensible.contains(&lifetime),
        "cluster.certificate_lifetime",
        || format!("{} is not within 1h and 10 years", text(lifetime)),
    );
    let outlasts = cluster.time.is_none_or(|time| time <= lifetime);
    check.require(outlasts, "cluster.certificate_lifetime", || {
        format!("{} is less than `cluster.time`", text(lifetime))
    });
}

/// What becomes part of command lines, of sbatch and of the container's program.
fn job_arguments(check: &mut Check, cluster: &ClusterConfig) {
    let words = [
        ("cluster.interface", &cluster.interface),
        ("cluster.partition", &cluster.partition),
        ("cluster.account", &cluster.account),
        ("cluster.qos", &cluster.qos),
        ("cluster.constraint", &cluster.constraint),
    ];
    for (key, word) in words {
        let fine = |word: &String| !word.is_empty() && !word.contains(char::is_whitespace);
        check.require(word.as_ref().is_none_or(fine), key, || {
            format!("`{}` is not one word", word.as_deref().unwrap_or_default())
        });
    }
    for (key, count) in [
        ("cluster.gpus_per_node", cluster.gpus_per_node),
        ("cluster.cpus_per_node", cluster.cpus_per_node),
    ] {
        check.require(count != Some(0), key, || "0: leave it out instead".to_owned());
    }
    for (index, argument) in cluster.sbatch.iter().enumerate() {
        let fine = argument.starts_with('-') && !argument.contains(['\n', '\r']);
        check.require(fine, &format!("cluster.sbatch[{index}]"), || {
            format!("`{argument}` is not an argument of sbatch such as `--exclusive`")
        });
    }
    for (index, mount) in cluster
        .container
        .iter()
        .flat_map(|container| container.mounts.iter().enumerate())
    {
        let fine = mount.is_absolute() && !mount.to_string_lossy().contains([':', ',']);
        check.require(fine, &format!("cluster.container.mounts[{index}]"), || {
            format!(
                "`{}` is not an absolute path without `:` and `,`",
                mount.display()
            )
        });
    }
}
