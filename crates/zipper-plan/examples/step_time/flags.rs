//! The numbers that the model goes by, each with where its default comes from: on the command line, in `--help` and in the first table.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Command, value_parser};

/// What is measured elsewhere and compared, unless another file is named.
const OVERLAP: &str = "docs/benchmarks/overlap.json";
/// The flag that names it.
const MEASURED: &str = "measured";

/// What can be set: name, default, where the default comes from.
const FLAGS: &[(&str, f64, &str)] = &[
    ("steps", 40.0, "chosen: steps drawn and dealt for each cell"),
    (
        "rank-seconds",
        120.0,
        "chosen: audio of a rank in a step, 12,000 frames of 10 ms",
    ),
    ("temperature", 1.0, "default of `data.temperature`"),
    (
        "gpu-tflops",
        989.0,
        "ASSUMED: bf16, dense; NVIDIA's data sheet of the H100 SXM",
    ),
    (
        "mfu",
        0.35,
        "ASSUMED: torchtitan publishes 33 to 39 % for full training of 8B on H100",
    ),
    (
        "launch-us",
        5.0,
        "ASSUMED: host time of a small kernel in eager PyTorch, often told as 4 to 10",
    ),
    (
        "update-kernels",
        0.2,
        "about, for each tensor: libtorch's fused AdamW takes lists of them; 14 before it (norm 2, scaling 1, AdamW 11), as in \
         docs/scaling.md's table",
    ),
    (
        "planning",
        1.0,
        "1: before a step is computed, as it is; 0: while the step before is computed",
    ),
    (
        "hbm-gb-s",
        2300.0,
        "ASSUMED: about 70 % of the 3,350 of an H100's data sheet",
    ),
    ("gpu-gib", 80.0, "H100's data sheet"),
    (
        "other-gib",
        46.0,
        "16 of frozen weights in bf16 (counted) and 30 of activations (ASSUMED)",
    ),
    (
        "llm-parameters",
        7.07e9,
        "Qwen2.5-7B without its input embeddings, with its output layer",
    ),
    (
        "encoder-parameters",
        6.37e8,
        "encoder of whisper-large-v3; 0 where its outputs are cached",
    ),
    (
        "encoder-frames",
        50.0,
        "frames of a second of audio, after Whisper's convolutions",
    ),
    (
        "positions",
        12.5,
        "positions of the LLM for a second of audio, projector `conv`",
    ),
    (
        "text-tokens",
        3.5,
        "ASSUMED: 14 characters a second, four to a token",
    ),
    ("prompt-tokens", 10.0, "ASSUMED: of an utterance"),
    ("gpus-per-node", 8.0, "usual"),
    (
        "intra-gb-s",
        300.0,
        "ASSUMED: two thirds of NVLink's 450 a direction (data sheet)",
    ),
    (
        "inter-gb-s",
        40.0,
        "ASSUMED: 80 % of a 400 Gbit/s card for each GPU",
    ),
    ("intra-us", 3.0, "ASSUMED: a hop inside a node"),
    ("inter-us", 10.0, "ASSUMED: a hop between nodes, with the launch"),
    ("bucket-mib", 25.0, "default of `runtime.bucket_mib`"),
    ("heartbeat-s", 1.0, "default of `runtime.heartbeat_interval`"),
    (
        "heartbeat-bytes",
        500.0,
        "ASSUMED: request and answer with HTTP/2 and TLS; not measured",
    ),
    ("log-every", 10.0, "default of `training.log_every`"),
    ("checkpoint-every", 500.0, "default of `checkpoint.every_steps`"),
    ("multipart-mib", 64.0, "default of `checkpoint.multipart_mib`"),
    (
        "store-mb-s",
        400.0,
        "ASSUMED: what one worker writes to an object store, several pieces at a time",
    ),
    (
        "store-gb-s",
        20.0,
        "ASSUMED: what the store takes from all; stores differ widely",
    ),
    (
        "store-puts-s",
        3500.0,
        "ASSUMED: writes a second and prefix that Amazon S3 documents",
    ),
];

/// Values of the flags, by name.
pub(crate) struct Flags(BTreeMap<&'static str, f64>);

impl Flags {
    /// These, and the file of `--measured`.
    pub(crate) fn parse() -> (Self, String) {
        let mut matches = command().get_matches();
        let measured = matches.remove_one(MEASURED).expect("it has a default");
        (Self::of_matches(&matches), measured)
    }

    fn of_matches(matches: &ArgMatches) -> Self {
        let value = |name, default| matches.get_one(name).copied().unwrap_or(default);
        Self(
            FLAGS
                .iter()
                .map(|&(name, default, _)| (name, value(name, default)))
                .collect(),
        )
    }

    pub(crate) fn of(&self, name: &str) -> f64 {
        self.0[name]
    }

    pub(crate) fn print(&self) {
        println!("| parameter | value | default, and where it comes from |\n| --- | --- | --- |");
        for &(name, default, source) in FLAGS {
            println!("| --{name} | {} | {default}: {source} |", self.of(name));
        }
    }
}

fn command() -> Command {
    let numbers = FLAGS.iter().map(|&(name, default, source)| {
        Arg::new(name)
            .long(name)
            .value_name("NUMBER")
            .value_parser(value_parser!(f64))
            .help(format!("{source} [default: {default}]"))
    });
    let measured = Arg::new(MEASURED)
        .long(MEASURED)
        .value_name("FILE")
        .default_value(OVERLAP)
        .help("What `cargo xtask bench overlap` or `cargo xtask bench training` wrote, to check the formulas against");
    Command::new("step_time")
        .about("Prints how long a step takes on machines that nobody here has")
        .args(numbers)
        .arg(measured)
}
