//! Goal: a wrong configuration is refused with every problem in one message, each with its key path, what is wrong and, where
//! something is close, what was meant. Method: a minimal file, changed in one place or in some.

use zipper_config::{RunConfig, from_str, from_str_checked};
use zipper_types::{Normalizer, TextNormalization};

const MINIMAL: &str = "
name: tiny
model: {encoder: {path: w}, llm: {path: q}}
data: {languages: [en, de], train: [train.jsonl]}
training:
  align: {steps: 3}
  zipper: {steps: 4}
  batch_audio_seconds: 8
";

fn problems(yaml: &str, overrides: &[&str]) -> Vec<String> {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    match from_str(yaml, "run.yaml", &overrides) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.problems().iter().map(ToString::to_string).collect(),
    }
}

/// The keys of problems.
fn keys(problems: &[String]) -> Vec<&str> {
    problems
        .iter()
        .filter_map(|problem| problem.split(": ").next())
        .collect()
}

fn minimal(overrides: &[&str]) -> RunConfig {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    from_str(MINIMAL, "run.yaml", &overrides).expect("it is valid")
}

#[test]
fn a_minimal_file_gets_the_defaults_of_the_field() {
    let config = minimal(&[]);
    assert_eq!(
        (config.adapter.rank, config.adapter.targets.len(), config.seed),
        (16, 7, 1)
    );
    assert_eq!(
        config.model.prompt.template,
        "Please transcribe the following audio in {language}:\n"
    );
    assert_eq!(
        from_str(&config.to_yaml(), "again", &[]).expect("the resolved file is valid"),
        config
    );
}

#[test]
fn overrides_reach_every_depth() {
    let config = minimal(&[
        "training.align.lr=3e-3",
        "adapter.variant=hard",
        "evaluation.tests=[{name: a, manifest: a.jsonl}]",
        "evaluation.tests.0.name=b",
        "evaluation.tests[0].manifest=b.jsonl",
        "runtime.heartbeat_timeout=1m",
    ]);
    assert!((config.training.align.lr - 3e-3).abs() < 1e-12);
    let test = &config.evaluation.tests[0];
    assert_eq!(
        (test.name.as_str(), test.manifest.to_str()),
        ("b", Some("b.jsonl"))
    );
    assert_eq!(config.runtime.heartbeat_timeout.as_secs(), 60);
}

#[test]
fn unknown_keys_and_wrong_types_are_reported_together() {
    let yaml = MINIMAL.replace("align: {steps: 3}", "align: {stepps: 3, lr: fast}")
        + "adapter: {varient: soft, rank: -1}\nchekpoint: {}\n";
    let found = problems(&yaml, &[]);
    for expected in [
        "training.align.stepps: unknown key; did you mean `steps`?",
        "adapter.varient: unknown key; did you mean `variant`?",
        "chekpoint: unknown key; did you mean `checkpoint`?",
    ] {
        assert!(
            found.iter().any(|problem| problem == expected),
            "no `{expected}` in {found:#?}"
        );
    }
    for key in ["training.align.lr: invalid type", "adapter.rank: invalid value"] {
        assert!(
            found.iter().any(|problem| problem.starts_with(key)),
            "no `{key}` in {found:#?}"
        );
    }
}

/// A key, a type, a relation and a file that is not there take one attempt, not four.
#[test]
fn problems_of_every_kind_are_reported_together() {
    let overrides = [
        "adapter.varient=soft",
        "adapter.rank=0",
        "runtime.grace=30",
        "data.train=[[1], gone.jsonl, src]",
        "training.align.warmup_steps=9",
    ];
    let overrides = overrides.map(str::to_owned);
    let errors = from_str_checked(MINIMAL, "run.yaml", &overrides).expect_err("it has problems");
    assert!(errors.has_missing_paths());
    let found: Vec<String> = errors.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        keys(&found),
        [
            "data.train[0]",
            "adapter.varient",
            "runtime.grace",
            "adapter.rank",
            "training.align.warmup_steps",
            "model.encoder.path",
            "model.llm.path",
            "data.train[1]",
        ],
        "{found:#?}"
    );
    assert_eq!(found[7], "data.train[1]: `gone.jsonl` does not exist");

    let there = ["model.encoder.path=src", "model.llm.path=src", "data.train=[src]"].map(str::to_owned);
    from_str_checked(MINIMAL, "run.yaml", &there).expect("all of it is there");
    let errors = from_str(MINIMAL, "run.yaml", &["adapter.rank=0".to_owned()]).expect_err("it has one");
    assert!(!errors.has_missing_paths());
}

/// Where a problem leaves a default, or nothing, in place of what was meant, nothing is said about that.
#[test]
fn what_follows_from_a_problem_is_none_of_its_own() {
    for (overrides, expected) in [
        (
            &["training.align={steps: many, warmup_steps: 9}"][..],
            &["training.align.steps"][..],
        ),
        (
            &["training.align={stepps: 20, warmup_steps: 9}"],
            &["training.align.stepps", "training.align.steps"],
        ),
        (
            &["runtime={heartbeat_interval: 10s, heartbeat_timeot: 1m}"],
            &["runtime.heartbeat_timeot"],
        ),
        (
            &["training.start_from={run: [1], step: 3}"],
            &["training.start_from.run"],
        ),
        (&["training.start_from={peff: a}"], &["training.start_from.peff"]),
        (&["data.languages=[[1]]"], &["data.languages[0]"]),
        (
            &["data.languages=en", "evaluation.normalizer={de: basic}"],
            &["data.languages"],
        ),
        (
            &[
                "data.languages=[en, tlh]",
                "model.prompt={language_names: {tlh: [1]}}",
            ],
            &["model.prompt.language_names.tlh"],
        ),
        (
            &[
                "adapter.variant=sttic",
                "adapter.shared_rank=99",
                "adapter.rank=x",
            ],
            &["adapter.variant", "adapter.rank"],
        ),
        // The change that failed was to mend it.
        (&["adapter.rank=0", "adapter.rank"], &["--set adapter.rank"]),
        (&["adapter..rank=0"], &["--set adapter..rank=0"]),
        // These do not depend on it, and keep their places.
        (
            &["data.languages=[[1], en, en]"],
            &["data.languages[0]", "data.languages[2]"],
        ),
        (
            &["seeed=3", "data.languages=[en, en]"],
            &["seeed", "data.languages[1]"],
        ),
        (
            &["runtime={heartbeat_timeot: 1m, bucket_mib: 0}"],
            &["runtime.heartbeat_timeot", "runtime.bucket_mib"],
        ),
    ] {
        let found = problems(MINIMAL, overrides);
        assert_eq!(keys(&found), expected, "{overrides:?}: {found:#?}");
    }
}

/// Without a key that has to be there the rest is looked at as with it.
#[test]
fn what_is_missing_hides_nothing_else() {
    for (from, to, key) in [
        ("name: tiny\n", "", "name"),
        ("encoder: {path: w}, ", "", "model.encoder"),
        ("llm: {path: q}", "llm: {}", "model.llm.path"),
        ("languages: [en, de], ", "", "data.languages"),
        (", train: [train.jsonl]", "", "data.train"),
        ("  align: {steps: 3}\n", "", "training.align"),
        ("zipper: {steps: 4}", "zipper: {}", "training.zipper.steps"),
        ("  batch_audio_seconds: 8\n", "", "training.batch_audio_seconds"),
    ] {
        assert!(MINIMAL.contains(from), "{from}");
        let found = problems(&MINIMAL.replace(from, to), &["adapter.rank=0"]);
        assert_eq!(keys(&found), [key, "adapter.rank"], "{found:#?}");
    }
}

#[test]
fn each_broken_relation_names_its_key_and_value() {
    let table = [
        (
            "data.languages=[]",
            "data.languages: empty: a run needs at least one language",
        ),
        (
            "data.languages=[en, en]",
            "data.languages[1]: `en` is there twice",
        ),
        (
            "model.prompt.template='{speech}, {speech}'",
            "model.prompt.template: `{speech}` is in it 2 times, but there is one speech: leave all but one out",
        ),
        ("adapter.rank=0", "adapter.rank: 0 is not above 0"),
        ("adapter.dropout=1", "adapter.dropout: 1 is not in [0, 1)"),
        (
            "adapter.router.initial_gate=0",
            "adapter.router.initial_gate: 0 is not between 0 and 1",
        ),
        (
            "adapter.targets=[]",
            "adapter.targets: empty, and so is `adapter.encoder_targets`: there is nothing to adapt",
        ),
        (
            "adapter.shared_rank=16",
            "adapter.shared_rank: 16 is not between 1 and `adapter.rank` - 1 = 15",
        ),
        (
            "data.max_seconds=45",
            "data.max_seconds: 45 is above 30, the longest that Whisper's encoder has positions for",
        ),
        (
            "data.min_seconds=30",
            "data.min_seconds: 30 is not below `data.max_seconds` = 30",
        ),
        ("data.min_seconds=0", "data.min_seconds: 0 is below 0.01"),
        (
            "training.align.warmup_steps=9",
            "training.align.warmup_steps: 9 is more than `training.align.steps` = 3",
        ),
        (
            "training.start_from={}",
            "training.start_from: give either `run` and `step`, or `peft`",
        ),
        (
            "training.start_from={run: a}",
            "training.start_from.step: `run` and `step` belong together: the checkpoint of that run to begin with",
        ),
        (
            "training.start_from={run: a, step: 3, projector: b}",
            "training.start_from.projector: a run brings its own projector: only with `peft`",
        ),
        (
            "training.batch_audio_seconds=0",
            "training.batch_audio_seconds: 0 is not above 0",
        ),
        (
            "evaluation.cer_languages=[ja, jp]",
            "evaluation.cer_languages[1]: `jp` is neither in `data.languages` nor a language code of Whisper",
        ),
        (
            "training.optimizer.betas=[0.9, 1]",
            "training.optimizer.betas[1]: 1 is not in [0, 1)",
        ),
        (
            "evaluation.tests=[{name: validation, manifest: x}]",
            "evaluation.tests[0].name: `validation` is a name that Zipper uses itself",
        ),
        (
            "runtime.heartbeat_timeout=2s",
            "runtime.heartbeat_timeout: 2s is less than 3 times `runtime.heartbeat_interval` = 1s",
        ),
        (
            "runtime.collective_timeout=10m",
            "runtime.collective_timeout: 10m is not less than `runtime.rendezvous_timeout` = 5m: a failed group could not form again in time",
        ),
        ("runtime.bucket_mib=0", "runtime.bucket_mib: 0 is not above 0"),
        (
            "runtime.bank_memory_mib=-1",
            "runtime.bank_memory_mib: -1 is not above 0",
        ),
        (
            "runtime.backend=ncll",
            "runtime.backend: `ncll` is not one of auto, gloo, nccl; did you mean `nccl`?",
        ),
        (
            "adapter.variant=sof",
            "adapter.variant: `sof` is not one of shared, independent, static, hard, soft; did you mean `soft`?",
        ),
    ];
    assert_each(&table);
}

#[test]
fn what_cannot_be_set_is_refused_as_it_was_typed() {
    let table = [
        (
            "training.align",
            "--set training.align: expected key.path=value, such as training.align.lr=1e-3",
        ),
        (
            "training.align.steps.more=1",
            "--set training.align.steps.more=1: `more` is below a value that has no keys",
        ),
        (
            "data.train[1]=x",
            "--set data.train[1]=x: `[1]` is not an index of a list of 1",
        ),
    ];
    assert_each(&table);
}

#[test]
fn what_is_no_number_or_duration_is_called_that() {
    let table = [
        (
            "training.clip_grad_norm=.inf",
            "training.clip_grad_norm: inf is not a finite number",
        ),
        (
            "elastic.hang_factor=.inf",
            "elastic.hang_factor: inf is not a finite number",
        ),
        ("adapter.alpha=.nan", "adapter.alpha: NaN is not a finite number"),
        (
            "runtime.grace=30",
            "runtime.grace: `30` is not a duration such as `30s`: time unit needed, for example 30sec or 30ms",
        ),
        (
            "runtime.grace=[30s]",
            "runtime.grace: not a duration such as `30s`",
        ),
        (
            "cluster.time=2",
            "cluster.time: `2` is not a duration such as `30s`: time unit needed, for example 2sec or 2ms",
        ),
    ];
    assert_each(&table);
}

/// Each change to the minimal file has exactly one problem.
fn assert_each(table: &[(&str, &str)]) {
    for (set, expected) in table {
        assert_eq!(problems(MINIMAL, &[set]), [*expected], "--set {set}");
    }
}

#[test]
fn augmentation_has_sane_limits() {
    assert_each(&[
        (
            "training.augment={speed: [1.0, 3.0]}",
            "training.augment.speed[1]: 3 is not within 0.5 and 2",
        ),
        (
            "training.augment={speed: [.nan]}",
            "training.augment.speed[0]: NaN is not within 0.5 and 2",
        ),
        (
            "training.augment={spec_augment: {frequency_width: 81}}",
            "training.augment.spec_augment.frequency_width: 81 is above 80, all of Whisper's mel bands",
        ),
        (
            "training.augment={spec_augment: {time_width: 3001}}",
            "training.augment.spec_augment.time_width: 3001 is above 3000, the frames of the 30 s that Whisper hears",
        ),
        (
            "training.augment={specaugment: {}}",
            "training.augment.specaugment: unknown key; did you mean `spec_augment`?",
        ),
        (
            "training.augment={spec_augment: {time_mask: 1}}",
            "training.augment.spec_augment.time_mask: unknown key; did you mean `time_masks`?",
        ),
    ]);
}

#[test]
fn text_rules_are_of_languages_of_the_run() {
    assert_each(&[
        (
            "evaluation.normalizer={fr: basic}",
            "evaluation.normalizer.fr: `fr` is not in `data.languages`, nor is it `default`",
        ),
        (
            "evaluation.normalizer={defualt: basic}",
            "evaluation.normalizer.defualt: `defualt` is not in `data.languages`, nor is it `default`; did you mean `default`?",
        ),
        (
            "evaluation.normalizer={en: engish}",
            "evaluation.normalizer.en: `engish` is not one of english, basic, basic_split, none; did you mean `english`?",
        ),
        (
            "data.text_normalization={german: lowercase}",
            "data.text_normalization.german: `german` is not in `data.languages`, nor is it `default`",
        ),
        (
            "data.text_normalization={default: lower}",
            "data.text_normalization.default: `lower` is not one of none, lowercase, basic; did you mean `lowercase`?",
        ),
    ]);
}

#[test]
fn every_missing_section_is_named() {
    let found = problems("name: x\n", &[]);
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(
        found
            .iter()
            .all(|problem| problem.ends_with("missing, and a run needs it"))
    );
    let found = problems(
        &MINIMAL
            .replace("  batch_audio_seconds: 8\n", "")
            .replace("languages: [en, de], ", ""),
        &[],
    );
    assert!(
        found.contains(&"data.languages: missing, and there is no default".to_owned()),
        "{found:#?}"
    );
    assert!(
        found.contains(&"training.batch_audio_seconds: missing, and there is no default".to_owned()),
        "{found:#?}"
    );
}

#[test]
fn problems_in_lists_keep_their_places() {
    let places = |set: &str| -> Vec<String> {
        let found = problems(MINIMAL, &[set]);
        found
            .iter()
            .filter_map(|problem| Some(problem.split(": ").next()?.to_owned()))
            .collect()
    };
    assert_eq!(
        places("data.languages=[[1], en, [2]]"),
        ["data.languages[0]", "data.languages[2]"]
    );
    assert_eq!(
        places("evaluation.tests=[{manifest: a}, {nam: b, name: c, manifest: d}]"),
        ["evaluation.tests[0].name", "evaluation.tests[1].nam"]
    );
}

#[test]
fn numbers_beyond_all_measure_are_problems_not_panics() {
    let found = problems(MINIMAL, &["training.align.steps=18446744073709551615"]);
    assert!(found[0].contains("too many to count"), "{found:?}");
    let found = problems(MINIMAL, &["runtime.heartbeat_interval=500000000000years"]);
    assert!(found[0].starts_with("runtime.heartbeat_timeout"), "{found:?}");
}

#[test]
fn text_that_is_not_yaml_says_where() {
    let found = problems("name: [unclosed\n", &[]);
    assert!(
        found[0].starts_with("not YAML:") && found[0].contains("line"),
        "{found:?}"
    );
}

#[test]
fn languages_have_codes_and_names() {
    let table = [
        (
            "data.languages=[en, xx]",
            "data.languages[1]: `xx` is not a language code of Whisper, nor has it a name in `model.prompt.language_names`",
        ),
        (
            "model.prompt={language_names: {xx: Elvish}}",
            "model.prompt.language_names.xx: `xx` is not in `data.languages`",
        ),
        (
            "data.languages=[en, EN]",
            "data.languages[1]: `EN` is no code: lower-case letters, digits and `-`",
        ),
    ];
    for (change, expected) in table {
        assert_eq!(problems(MINIMAL, &[change]), [expected]);
    }
    let config = minimal(&[
        "data.languages=[en, tlh]",
        "model.prompt={language_names: {tlh: Klingon}}",
    ]);
    assert_eq!(config.model.prompt.name_of("tlh"), Some("Klingon"));
    assert_eq!(config.model.prompt.name_of("en"), Some("English"));
}

#[test]
fn settings_without_effect_are_warned_of() {
    let config = minimal(&[
        "adapter.variant=shared",
        "adapter.shared_rank=4",
        "training.zipper.router_lr=1",
    ]);
    assert_eq!(config.warnings().len(), 2, "{:?}", config.warnings());
    assert!(minimal(&[]).warnings().is_empty());
    let config =
        minimal(&["training.augment={spec_augment: {frequency_width: 0, time_masks: 0}, speed: [1.0]}"]);
    assert_eq!(config.warnings().len(), 2, "{:?}", config.warnings());
    let config = minimal(&["model.projector.kind=conv", "model.projector.stack=8"]);
    assert_eq!(config.warnings().len(), 1, "{:?}", config.warnings());
}

/// Other trainers write the exponent itself, under the same name.
#[test]
fn a_temperature_that_makes_languages_less_even_is_warned_of() {
    let warnings = minimal(&["data.temperature=0.3"]).warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("is 3.33 here"),
        "{warnings:?}"
    );
    assert!(minimal(&["data.temperature=1.5"]).warnings().is_empty());
}

/// Each of these is warned of by itself, and not where it has an effect.
#[test]
fn settings_that_belong_to_another_are_warned_of_without_it() {
    let tests = "evaluation.tests=[{name: a, manifest: a.jsonl}]";
    for (key, value, belongs_to, without) in [
        (
            "adapter.init",
            "zero",
            "adapter.variant=soft",
            "adapter.variant=shared",
        ),
        (
            "elastic.replacement_wait",
            "3m",
            "elastic.on_loss=wait",
            "elastic.on_loss=shrink",
        ),
        (
            "training.loss_spike_factor",
            "4",
            "training.on_loss_spike=skip",
            "training.on_loss_spike=ignore",
        ),
        (
            "training.align.final_lr_ratio",
            "0.1",
            "training.align.schedule=cosine",
            "training.align.schedule=constant",
        ),
        ("evaluation.untrained", "true", tests, "evaluation.tests=[]"),
        (
            "evaluation.no_audio_control",
            "true",
            tests,
            "evaluation.tests=[]",
        ),
        (
            "model.encoder.chunk_seconds",
            "3",
            "model.encoder.context=chunked",
            "model.encoder.context=native",
        ),
        (
            "model.encoder.left_context_seconds",
            "4",
            "model.encoder.context=chunked",
            "model.encoder.context=native",
        ),
    ] {
        let set = format!("{key}={value}");
        let warnings = minimal(&[&set, without]).warnings();
        let expected = format!("`{key}` has no effect unless ");
        assert!(
            warnings.len() == 1 && warnings[0].starts_with(&expected),
            "{set} {without}: {warnings:?}"
        );
        let warnings = minimal(&[&set, belongs_to]).warnings();
        assert!(warnings.is_empty(), "{set} {belongs_to}: {warnings:?}");
    }
}

#[test]
fn a_job_that_slurm_may_kill_before_its_checkpoint_is_warned_of() {
    let of = |stop_before| minimal(&["cluster.time=1h", stop_before, "runtime.grace=2m"]).warnings();
    assert!(of("cluster.stop_before=121s").is_empty());
    let warnings = of("cluster.stop_before=2m");
    assert!(
        warnings.len() == 1 && warnings[0].contains("`runtime.grace` (2m)"),
        "{warnings:?}"
    );
}

#[test]
fn recovery_has_sane_limits() {
    let found = problems(
        MINIMAL,
        &[
            "checkpoint.keep_last=0",
            "checkpoint.multipart_mib=4",
            "elastic.hang_factor=1",
            "elastic.lease_ttl=10ms",
            "elastic.on_loss=panic",
        ],
    );
    assert_eq!(
        keys(&found),
        [
            "elastic.on_loss",
            "checkpoint.keep_last",
            "checkpoint.multipart_mib",
            "elastic.hang_factor",
            "elastic.lease_ttl"
        ],
        "{found:?}"
    );
    let found = problems(
        MINIMAL,
        &[
            "checkpoint.keep_last=0",
            "checkpoint.multipart_mib=4",
            "elastic.hang_factor=1",
            "elastic.lease_ttl=10ms",
            "training.loss_spike_factor=0.5",
        ],
    );
    for key in [
        "checkpoint.keep_last",
        "checkpoint.multipart_mib",
        "elastic.hang_factor",
        "elastic.lease_ttl",
        "training.loss_spike_factor",
    ] {
        assert!(
            found.iter().any(|problem| problem.contains(key)),
            "no `{key}` in {found:?}"
        );
    }
    assert_eq!(found.len(), 5, "{found:?}");
}

/// What is named has its own, then `default` counts, then what Whisper's authors do.
#[test]
fn languages_have_their_own_text_rules() {
    let of = |config: &RunConfig, lang| {
        let scoring = config.evaluation.scoring(lang);
        (scoring.normalizer, scoring.remove_repetitions)
    };
    let config = minimal(&[]);
    assert_eq!(of(&config, "en"), (Normalizer::English, false));
    assert_eq!(of(&config, "de"), (Normalizer::Basic, false));
    assert_eq!(config.data.text_normalization.get("de"), None);

    let config = minimal(&[
        "evaluation.normalizer={de: basic_split}",
        "evaluation.remove_repetitions=true",
    ]);
    assert_eq!(of(&config, "en"), (Normalizer::English, true));
    assert_eq!(of(&config, "de"), (Normalizer::BasicSplit, true));

    let config = minimal(&[
        "evaluation.normalizer={de: basic, default: none}",
        "data.text_normalization={en: basic, default: lowercase}",
    ]);
    assert_eq!(of(&config, "en"), (Normalizer::None, false));
    assert_eq!(of(&config, "de"), (Normalizer::Basic, false));
    let target = |lang| config.data.text_normalization.get(lang);
    assert_eq!(target("en"), Some(TextNormalization::Basic));
    assert_eq!(target("de"), Some(TextNormalization::Lowercase));
    assert_eq!(
        from_str(&config.to_yaml(), "again", &[]).expect("the resolved file is valid"),
        config
    );
}

/// What is kept of an utterance would be of one step only.
#[test]
fn augmentation_and_a_cache_of_encoder_outputs_exclude_each_other() {
    let masks = "training.augment.spec_augment={}";
    let speed = "training.augment.speed=[0.9, 1.0, 1.1]";
    let cache = "model.encoder.cache=cache";
    for augment in [masks, speed] {
        assert_eq!(
            problems(MINIMAL, &[augment, cache]),
            [
                "model.encoder.cache: cannot be used with `training.augment`: utterances, and so encoder outputs, are others at every \
                 step; leave one of the two out"
            ]
        );
    }
    let config = minimal(&[masks, speed]);
    let found = config.training.augment.spec_augment.expect("it is on");
    let widths = (found.frequency_width, found.time_width);
    assert_eq!(
        (found.frequency_masks, found.time_masks, widths),
        (2, 2, (10, 50))
    );
    assert!(
        minimal(&[cache]).training.augment.is_off(),
        "nothing is augmented by default"
    );
}

#[test]
fn stage_2_does_not_begin_with_a_projector_that_has_learnt_nothing() {
    let overrides = ["training.align.steps=0", "training.start_from={peft: a}"];
    assert_eq!(
        problems(MINIMAL, &overrides),
        [
            "training.start_from.projector: missing, and `training.align.steps` is 0: stage 2 would begin with a projector that has \
             learnt nothing"
        ]
    );
}

/// Slurm would refuse these in its own words hours later, or read a script's line as two.
#[test]
fn what_slurm_could_not_take_is_refused() {
    for (overrides, expected) in [
        (
            &["cluster.time=210s"][..],
            "cluster.time: 3m 30s is not a number of whole minutes",
        ),
        (
            &["cluster.time=2m"],
            "cluster.stop_before: 3m is not less than `cluster.time` = 2m",
        ),
        (
            &["cluster.stop_before=1day"],
            "cluster.stop_before: 1day is not within 1s and 18h 12m",
        ),
        (
            &["cluster.partition='a b'"],
            "cluster.partition: `a b` is not one word",
        ),
        (&["cluster.interface=''"], "cluster.interface: `` is not one word"),
        (
            &["cluster.certificate_lifetime=1s"],
            "cluster.certificate_lifetime: 1s is not within 1h and 10 years",
        ),
        (
            &["cluster.time=2day", "cluster.certificate_lifetime=1day"],
            "cluster.certificate_lifetime: 1day is less than `cluster.time`",
        ),
        (
            &["cluster.gpus_per_node=0"],
            "cluster.gpus_per_node: 0: leave it out instead",
        ),
        (
            &["cluster.sbatch=[exclusive]"],
            "cluster.sbatch[0]: `exclusive` is not an argument of sbatch such as `--exclusive`",
        ),
        (
            &["cluster.container={runtime: docker, image: a}"],
            "cluster.container.runtime: `docker` is not one of apptainer, enroot",
        ),
        (
            &["cluster.container={runtime: enroot, image: a, mounts: [data]}"],
            "cluster.container.mounts[0]: `data` is not an absolute path without `:` and `,`",
        ),
    ] {
        assert_eq!(problems(MINIMAL, overrides), [expected]);
    }
    let config = minimal(&["cluster.time=4h", "cluster.sbatch=[--exclusive]"]);
    assert_eq!(config.cluster.time.map(|time| time.as_secs()), Some(4 * 3600));
    assert_eq!(
        from_str(&config.to_yaml(), "again", &[]).expect("it is valid"),
        config
    );
}
