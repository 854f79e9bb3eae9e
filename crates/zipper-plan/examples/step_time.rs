//! How long a step takes on machines that nobody here has: prints the tables of docs/scaling.md, "At scale, on paper".
//!
//! ```text
//! cargo run --release -p zipper-plan --example step_time
//! cargo run --release -p zipper-plan --example step_time -- --mfu 0.4 --inter-gb-s 20 --steps 100
//! cargo run --release -p zipper-plan --example step_time -- --measured docs/benchmarks/overlap.json
//! ```
//!
//! Sampler, placement and dealing are the real ones, and how long they take is measured here. Everything about GPUs, networks and
//! object stores is a number on the command line, of which the first table says where its default comes from. The last table puts
//! the same formulas beside runs on CPUs that were measured.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::time::Instant;
use std::{env, fs};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use zipper_plan::{
    AdapterShape, Inventory, LanguageAmount, Placement, PlacementProblem, ProjectorShape, Sampler,
    SamplerProblem, SiteShape, WorkModel, expected_work,
};
use zipper_types::{Rank, Variant, WorldSize};

const WORLDS: [u32; 4] = [8, 64, 512, 4096];
const LANGUAGES: [usize; 3] = [12, 120, 1000];
const LOAD: &str = "docs/benchmarks/load.json";
const OVERLAP: &str = "docs/benchmarks/overlap.json";

/// Hours of the largest language; the k-th has the k-th part of it.
const HOURS: f64 = 960.0;
const CHARACTERS_PER_SECOND: f64 = 14.0;
const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// Adapted layers, as many as there are routers.
const SITES: usize = 28 * 7;
/// Transformer layers of the LLM.
const LAYERS: usize = 28;
/// Shared parameter tensors: A, shared B, the router's two of each site; the LID table; the projector.
const SHARED_TENSORS: usize = 4 * SITES + 1 + 10;
/// Kernels for each adapted layer and language of a micro batch, counted in zipper-model: the product and its two in backward, cutting
/// and joining, adding the gradient up (`merged.rs`, `last_pass.rs`).
const KERNELS_OF_A_LANGUAGE: usize = 7;
/// Kernels of forward and backward without adapters, about: LLM, encoder.
const KERNELS_OF_A_PASS: usize = LAYERS * 180 + 32 * 25;
/// Bytes that an update reads and writes for each number: norm, scaling, AdamW in several passes, the state kept for other ranks.
const BYTES_OF_AN_UPDATE: f64 = 84.0;
/// How often a bank lies on the GPU of its owner: weights, gradients, two moments; weights and moments of the step before; the same in
/// a snapshot; the same of a bank that is kept for a neighbour (`memory.rs`).
const COPIES_OF_A_BANK: f64 = 13.0;
/// Numbers in a step's last exchange, and those for each language in the batch (`step.rs`).
const EXCHANGED: [usize; 2] = [5, 3];

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
        14.0,
        "counted in zipper-train for each tensor: norm 2, scaling 1, AdamW 11 (`step.rs`, `optimizer.rs`)",
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

fn main() -> Result<(), Box<dyn Error>> {
    let (flags, measured) = Flags::parse(env::args().skip(1))?;
    flags.print();
    let mut cells = Vec::new();
    for languages in LANGUAGES {
        let durations = durations(languages);
        for world in WORLDS {
            cells.push(Cell::new(&flags, world, &durations));
        }
    }
    cells.sort_by_key(|cell| (cell.world, cell.languages));
    steps(&cells);
    planning(&cells);
    memory(&flags, &cells);
    coordinator(&flags, &cells);
    store(&flags, &cells);
    what_breaks(&flags, &cells);
    let measured = measured.unwrap_or_else(|| OVERLAP.to_owned());
    match fs::read_to_string(&measured) {
        Ok(text) => check(&measured, &serde_json::from_str(&text)?),
        Err(error) => println!("\nNot checked against measured runs: {measured}: {error}"),
    }
    Ok(())
}

/// The numbers that the model goes by.
struct Flags(BTreeMap<&'static str, f64>);

impl Flags {
    /// These, and the file after `--measured`.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(Self, Option<String>), String> {
        let mut values: BTreeMap<&str, f64> =
            FLAGS.iter().map(|&(name, default, _)| (name, default)).collect();
        let mut measured = None;
        while let Some(argument) = arguments.next() {
            let name = argument.strip_prefix("--").unwrap_or_default();
            let value = arguments.next().ok_or(format!(
                "`{argument}` needs a value; known are --measured and: {}",
                names()
            ))?;
            if name == "measured" {
                measured = Some(value);
                continue;
            }
            let slot = values.get_mut(name).ok_or(format!(
                "`{argument}` is unknown; known are --measured and: {}",
                names()
            ))?;
            *slot = value
                .parse()
                .map_err(|error| format!("`{argument} {value}`: {error}"))?;
        }
        Ok((Self(values), measured))
    }

    fn of(&self, name: &str) -> f64 {
        self.0[name]
    }

    fn print(&self) {
        println!("| parameter | value | default, and where it comes from |\n| --- | --- | --- |");
        for &(name, default, source) in FLAGS {
            println!("| --{name} | {} | {default}: {source} |", self.of(name));
        }
    }

    /// Seconds that a GPU computes for `audio_seconds` of `utterances`, and the part of them that is backward.
    fn compute(&self, audio_seconds: f64, utterances: f64) -> (f64, f64) {
        let text = self.of("text-tokens") + self.of("positions");
        let tokens = audio_seconds * text + utterances * self.of("prompt-tokens");
        let encoder = 2.0 * self.of("encoder-parameters") * audio_seconds * self.of("encoder-frames");
        // The frozen weights have no gradients: backward is one product for each, like forward.
        let pass = 2.0 * self.of("llm-parameters") * tokens;
        let speed = self.of("gpu-tflops") * 1e12 * self.of("mfu");
        ((encoder + 2.0 * pass) / speed, pass / speed)
    }

    /// Seconds of `kernels` small kernels, by the host that launches them.
    fn launches(&self, kernels: f64) -> f64 {
        kernels * self.of("launch-us") * 1e-6
    }

    /// Seconds of an all-reduce of `bytes` among the ranks `first` to `last`: inside each node a ring, between nodes, where each
    /// rank sums its part of the node's bytes, a ring or a tree, whichever is faster.
    fn all_reduce(&self, bytes: f64, first: u32, last: u32) -> f64 {
        let per_node = self.of("gpus-per-node");
        let ranks = f64::from(last - first + 1);
        if ranks < 2.0 || bytes <= 0.0 {
            return 0.0;
        }
        let node = |rank: u32| (f64::from(rank) / per_node).floor();
        let nodes = node(last) - node(first) + 1.0;
        let of_node = (ranks / nodes).clamp(1.0, per_node);
        let buckets = (bytes / (self.of("bucket-mib") * MIB)).ceil();
        let inside = 2.0 * (of_node - 1.0) / of_node * bytes / (self.of("intra-gb-s") * 1e9)
            + buckets * 2.0 * (of_node - 1.0) * self.of("intra-us") * 1e-6;
        if nodes < 2.0 {
            return inside;
        }
        let wire = 2.0 * bytes / of_node / (self.of("inter-gb-s") * 1e9);
        let hops = buckets * 2.0 * self.of("inter-us") * 1e-6;
        let ring = wire * (nodes - 1.0) / nodes + hops * (nodes - 1.0);
        let tree = wire + hops * nodes.log2().ceil();
        inside + ring.min(tree)
    }
}

fn names() -> String {
    let names = FLAGS.iter().map(|(name, ..)| format!("--{name}"));
    names.collect::<Vec<_>>().join(" ")
}

/// A number of GPUs with a number of languages: means over the simulated steps, in seconds.
struct Cell {
    world: u32,
    languages: usize,
    utterances: f64,
    /// Languages in a batch, and on the rank that has most of them.
    in_batch: f64,
    on_rank: f64,
    compute: f64,
    /// Expected seconds beyond the mean of the rank that computes longest.
    slowest: f64,
    /// Of the rank that updates longest.
    update: f64,
    exposed: f64,
    exchange: f64,
    /// Drawing the batch, dealing it to owners, and dealing it where there are no banks: the least of all steps, as other work on
    /// this machine only adds.
    draw: f64,
    deal: f64,
    deal_without_banks: f64,
    /// Whether that is before the step.
    plans_first: bool,
    /// Banks of the rank that has most.
    banks: usize,
    /// Bytes of a checkpoint that the rank with most of them writes.
    written: u64,
    inventory: Inventory,
}

impl Cell {
    fn new(flags: &Flags, world: u32, durations: &[Vec<f64>]) -> Self {
        let languages = durations.len();
        let inventory = qwen(languages as u64);
        let steps = flags.of("steps").max(1.0) as usize;
        let batch_seconds = flags.of("rank-seconds") * f64::from(world);
        let model = WorkModel::unmeasured(languages);
        let amounts: Vec<LanguageAmount> = durations
            .iter()
            .map(|durations| LanguageAmount {
                utterances: durations.len(),
                seconds: durations.iter().sum(),
                characters: (durations.iter().sum::<f64>() * CHARACTERS_PER_SECOND) as usize,
            })
            .collect();
        let temperature = flags.of("temperature");
        let work = expected_work(&amounts, temperature, batch_seconds, &model).expect("there is data");
        let placement = place(&work, world);
        let mut sampler = Sampler::new(SamplerProblem {
            seed: 1,
            temperature,
            batch_seconds,
            durations: durations.to_vec(),
        })
        .expect("there is data");
        let owned: Vec<usize> = (0..world)
            .map(|rank| placement.languages_of(Rank(rank)).len())
            .collect();
        let mut cell = Self {
            world,
            languages,
            utterances: 0.0,
            in_batch: 0.0,
            on_rank: 0.0,
            compute: 0.0,
            slowest: 0.0,
            update: 0.0,
            exposed: 0.0,
            exchange: 0.0,
            draw: f64::INFINITY,
            deal: f64::INFINITY,
            deal_without_banks: f64::INFINITY,
            plans_first: flags.of("planning") > 0.0,
            banks: owned.iter().copied().max().unwrap_or(0),
            written: written(&placement, &inventory),
            inventory,
        };
        for _ in 0..steps {
            cell.add_step(flags, &placement, &mut sampler, durations, &model, &owned);
        }
        let means = [
            &mut cell.utterances,
            &mut cell.in_batch,
            &mut cell.on_rank,
            &mut cell.compute,
            &mut cell.slowest,
            &mut cell.update,
            &mut cell.exposed,
            &mut cell.exchange,
        ];
        for mean in means {
            *mean /= steps as f64;
        }
        cell
    }

    /// Draws and deals a batch, and adds what its step takes.
    fn add_step(
        &mut self,
        flags: &Flags,
        placement: &Placement,
        sampler: &mut Sampler,
        durations: &[Vec<f64>],
        model: &WorkModel,
        owned: &[usize],
    ) {
        let ranks = f64::from(self.world);
        // As zipper-train does it: every rank draws and deals the whole batch before it computes.
        let began = Instant::now();
        let batch = sampler.next_batch().utterances;
        self.draw = self.draw.min(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let costs: Vec<(usize, f64)> = batch
            .iter()
            .map(|at| {
                let seconds = durations[at.language][at.index];
                let characters = (seconds * CHARACTERS_PER_SECOND) as usize;
                (at.language, model.cost(at.language, seconds, characters))
            })
            .collect();
        let hands = placement.deal(&costs);
        self.deal = self.deal.min(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let everywhere = Placement::everywhere(placement.num_languages(), placement.world_size());
        let without_banks = everywhere.deal(&costs);
        self.deal_without_banks = self.deal_without_banks.min(began.elapsed().as_secs_f64());
        assert_eq!(without_banks.len(), hands.len(), "a hand for each rank");

        let in_batch: BTreeSet<usize> = batch.iter().map(|at| at.language).collect();
        let (mut total, mut longest, mut most, mut longest_update) = (0.0, 0.0_f64, 0, 0.0_f64);
        let mut backward = 0.0;
        for (rank, hand) in (0..).zip(&hands) {
            let of_hand = || hand.iter().map(|&index| batch[index]);
            let seconds: f64 = of_hand().map(|at| durations[at.language][at.index]).sum();
            let here: BTreeSet<usize> = of_hand().map(|at| at.language).collect();
            let (gpu, gpu_backward) = flags.compute(seconds, hand.len() as f64);
            let kernels = KERNELS_OF_A_PASS + KERNELS_OF_A_LANGUAGE * SITES * here.len();
            total += gpu;
            backward += gpu_backward / ranks;
            longest = longest.max(gpu.max(flags.launches(kernels as f64)));
            let mine = in_batch
                .iter()
                .filter(|&&language| placement.owns(Rank(rank), language));
            let updated = mine.count();
            most = most.max(updated);
            longest_update = longest_update.max(self.update_of(flags, updated, owned[rank as usize]));
        }
        self.utterances += batch.len() as f64;
        self.in_batch += in_batch.len() as f64;
        self.on_rank += most as f64;
        self.compute += total / ranks;
        self.slowest += longest - total / ranks;
        self.update += longest_update;
        self.exposed += self.exposed_of(flags, placement, &in_batch, backward);
        let [few, of_language] = EXCHANGED;
        let numbers = few + of_language * in_batch.len();
        self.exchange += flags.all_reduce(numbers as f64 * 8.0, 0, self.world - 1);
    }

    /// Norm, scaling and AdamW of everything shared and of `updated` banks; gradients of all `owned` banks are set to zero.
    fn update_of(&self, flags: &Flags, updated: usize, owned: usize) -> f64 {
        let tensors = SHARED_TENSORS + SITES * updated;
        let kernels = flags.of("update-kernels") * tensors as f64;
        let numbers = self.inventory.shared + updated as u64 * self.inventory.bank;
        let bytes = numbers as f64 * BYTES_OF_AN_UPDATE;
        let zeroed = (owned as u64 * self.inventory.bank_bytes()) as f64;
        let memory = flags.of("hbm-gb-s") * 1e9;
        flags.launches(kernels).max(bytes / memory) + zeroed / memory
    }

    /// What of the gradients' sums backward does not hide. The projector and the LID table stand before the LLM: their gradients are
    /// there when backward ends.
    fn exposed_of(
        &self,
        flags: &Flags,
        placement: &Placement,
        in_batch: &BTreeSet<usize>,
        backward: f64,
    ) -> f64 {
        let last = self.world - 1;
        let late = late_parameters(self.languages as u64) * self.inventory.element_bytes;
        let early = self.inventory.shared_bytes() - late;
        let mut of_rank = BTreeMap::new();
        for language in placement.split_languages() {
            if in_batch.contains(&language) {
                let owners = placement.owners(language);
                let bytes = self.inventory.bank_bytes() as f64;
                let seconds = flags.all_reduce(bytes, *owners.start(), *owners.end());
                // Each rank is in two groups at most, and only the ends of a run of owners are in another one.
                for rank in [*owners.start(), *owners.end()] {
                    *of_rank.entry(rank).or_insert(0.0) += seconds;
                }
            }
        }
        let banks = of_rank.into_values().fold(0.0, f64::max);
        let hidden = flags.all_reduce(early as f64, 0, last) + banks;
        flags.all_reduce(late as f64, 0, last) + (hidden - backward).max(0.0)
    }

    fn planning(&self) -> f64 {
        if self.plans_first {
            self.draw + self.deal
        } else {
            0.0
        }
    }

    fn terms(&self) -> [(&'static str, f64); 5] {
        [
            ("slowest rank", self.slowest),
            ("update", self.update),
            ("gradients", self.exposed),
            ("last exchange", self.exchange),
            ("planning", self.planning()),
        ]
    }

    fn step(&self) -> f64 {
        self.compute + self.terms().map(|(_, seconds)| seconds).iter().sum::<f64>()
    }

    fn largest(&self) -> (&'static str, f64) {
        let terms = self.terms().into_iter();
        terms
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .expect("there are terms")
    }

    /// GiB for banks on the rank that has most of them, with what is remembered of them.
    fn bank_gib(&self) -> f64 {
        self.banks as f64 * COPIES_OF_A_BANK * self.inventory.bank_bytes() as f64 / GIB
    }
}

fn steps(cells: &[Cell]) {
    println!(
        "\nA step, in milliseconds (means of simulated steps; planning is measured on this machine, the rest is the model)\n\n\
         | GPUs | languages | utterances | languages in the batch | most banks to update on a rank | compute | slowest rank | update | \
         gradients | last exchange | planning | step | compute / step | largest beside compute |"
    );
    println!("|{}", " --- |".repeat(14));
    for cell in cells {
        let ms = |seconds: f64| seconds * 1e3;
        println!(
            "| {} | {} | {:.0} | {:.0} | {:.1} | {:.0} | {:.1} | {:.1} | {:.1} | {:.2} | {:.1} | {:.0} | {:.2} | {} |",
            cell.world,
            cell.languages,
            cell.utterances,
            cell.in_batch,
            cell.on_rank,
            ms(cell.compute),
            ms(cell.slowest),
            ms(cell.update),
            ms(cell.exposed),
            ms(cell.exchange),
            ms(cell.planning()),
            ms(cell.step()),
            cell.compute / cell.step(),
            cell.largest().0,
        );
    }
}

fn planning(cells: &[Cell]) {
    println!(
        "\nPlanning a step, in milliseconds, measured on this machine on one core: what every rank does before it computes\n\n\
         | GPUs | languages | drawing | dealing to owners | dealing where there are no banks (stage 1, `shared`) |"
    );
    println!("|{}", " --- |".repeat(5));
    for cell in cells {
        let [draw, deal, without] =
            [cell.draw, cell.deal, cell.deal_without_banks].map(|seconds| seconds * 1e3);
        println!(
            "| {} | {} | {draw:.2} | {deal:.2} | {without:.2} |",
            cell.world, cell.languages
        );
    }
}

fn memory(flags: &Flags, cells: &[Cell]) {
    let room = flags.of("gpu-gib") - flags.of("other-gib");
    println!(
        "\nGiB for banks on the rank that has most of them, with the copies that ranks remember; there is room for {room:.0}\n"
    );
    println!(
        "| languages |{}",
        WORLDS.map(|world| format!(" {world} GPUs |")).concat()
    );
    println!("|{}", " --- |".repeat(WORLDS.len() + 1));
    for languages in LANGUAGES {
        let row = cells.iter().filter(|cell| cell.languages == languages);
        let row = row.map(|cell| {
            let gib = cell.bank_gib();
            let mark = if gib > room { " (too much)" } else { "" };
            format!(" {} banks, {gib:.0}{mark} |", cell.banks)
        });
        println!("| {languages} |{}", row.collect::<String>());
    }
}

/// What the load benchmark measured.
struct Load {
    workers: f64,
    heartbeats_a_second: f64,
    cpu_share: f64,
    p99_ms: f64,
    memory_mb: f64,
}

impl Load {
    fn read() -> Result<Self, Box<dyn Error>> {
        let value: Value = serde_json::from_str(&fs::read_to_string(LOAD)?)?;
        let number = |key: &str| value[key].as_f64().ok_or(format!("{LOAD}: no `{key}`"));
        Ok(Self {
            workers: number("workers")?,
            heartbeats_a_second: number("heartbeats")? / number("seconds")?,
            cpu_share: number("cpu_share")?,
            p99_ms: number("heartbeat_ms_p99")?,
            memory_mb: number("memory_peak")? / 1e6,
        })
    }

    /// Processor time of a heartbeat, with its share of everything else that the coordinator does meanwhile.
    fn core_seconds(&self) -> f64 {
        self.cpu_share / self.heartbeats_a_second
    }
}

fn coordinator(flags: &Flags, cells: &[Cell]) {
    let load = match Load::read() {
        Ok(load) => load,
        Err(error) => {
            println!("\nThe coordinator's load is not known without {LOAD}: {error}");
            return;
        }
    };
    println!(
        "\nThe coordinator. Measured ({LOAD}): {:.0} workers, {:.0} heartbeats a second, {:.2} of a core, that is {:.0} us each; p99 \
         {:.1} ms; {:.0} MB\n",
        load.workers,
        load.heartbeats_a_second,
        load.cpu_share,
        load.core_seconds() * 1e6,
        load.p99_ms,
        load.memory_mb
    );
    println!(
        "| GPUs | heartbeats a second, agents' too | share of a core | MB a second | logged steps a second, 12 languages |"
    );
    println!("|{}", " --- |".repeat(5));
    for cell in cells.iter().filter(|cell| cell.languages == LANGUAGES[0]) {
        let beats = heartbeats(flags, f64::from(cell.world));
        println!(
            "| {} | {beats:.0} | {:.3} | {:.2} | {:.2} |",
            cell.world,
            beats * load.core_seconds(),
            beats * flags.of("heartbeat-bytes") / 1e6,
            1.0 / cell.step() / flags.of("log-every"),
        );
    }
    println!(
        "\nOne line of rank 0 for a logged step, by its gates (soft, a router for each layer; counted from the messages, not measured)\n"
    );
    println!(
        "| languages | KB of the message | KB of the line in train.jsonl | MB that each worker keeps to say again (2,048 lines) |"
    );
    println!("|{}", " --- |".repeat(4));
    for languages in LANGUAGES {
        let [message, line] = logged(languages);
        let kept = 2048.0 * message / 1e6;
        println!(
            "| {languages} | {:.1} | {:.1} | {kept:.0} |",
            message / 1e3,
            line / 1e3
        );
    }
}

/// Heartbeats of workers and of the agents of their nodes.
fn heartbeats(flags: &Flags, gpus: f64) -> f64 {
    (gpus + (gpus / flags.of("gpus-per-node")).ceil()) / flags.of("heartbeat-s")
}

/// Bytes of a logged step: of its message, and of its line in `metrics/train.jsonl`.
fn logged(languages: usize) -> [f64; 2] {
    // A code of two letters, a share of each layer as f32, lengths and tags; in the line a code and a number.
    let (shares, mean) = (4 * LAYERS + 12, 28);
    [400 + languages * shares, 600 + languages * mean].map(|bytes| bytes as f64)
}

fn store(flags: &Flags, cells: &[Cell]) {
    println!(
        "\nA checkpoint: bytes and objects are counted, seconds are bytes by the assumed speed of a worker and of the store\n\n\
         | languages | GB | objects | GPUs | most of one worker, GB | seconds | requests a second | part of the time between two |"
    );
    println!("|{}", " --- |".repeat(8));
    for cell in by_language(cells) {
        let checkpoint = Checkpoint::of(flags, cell);
        let between = flags.of("checkpoint-every") * cell.step();
        println!(
            "| {} | {:.1} | {} | {} | {:.2} | {:.1} | {:.0} | {:.2} |",
            cell.languages,
            checkpoint.bytes / 1e9,
            checkpoint.objects,
            cell.world,
            cell.written as f64 / 1e9,
            checkpoint.seconds,
            checkpoint.requests / checkpoint.seconds,
            checkpoint.seconds / between,
        );
    }
}

struct Checkpoint {
    bytes: f64,
    objects: usize,
    requests: f64,
    seconds: f64,
}

impl Checkpoint {
    fn of(flags: &Flags, cell: &Cell) -> Self {
        let inventory = &cell.inventory;
        let bytes = inventory.checkpoint_bytes(cell.languages as u64) as f64;
        // Weights and moments of what is shared and of each bank; state.json, WRITER.json, MANIFEST.json.
        let objects = 2 * (cell.languages + 1) + 3;
        let piece = flags.of("multipart-mib") * MIB;
        // An object in pieces is begun and completed, too, and noted and forgotten.
        let requests_of = |bytes: u64| {
            let pieces = (bytes as f64 / piece).ceil();
            if pieces > 1.0 { pieces + 4.0 } else { 1.0 }
        };
        let of_pair = |weights: u64| requests_of(weights) + requests_of(Inventory::optimizer_bytes(weights));
        let requests =
            3.0 + of_pair(inventory.shared_bytes()) + cell.languages as f64 * of_pair(inventory.bank_bytes());
        let seconds = (cell.written as f64 / (flags.of("store-mb-s") * 1e6))
            .max(bytes / (flags.of("store-gb-s") * 1e9))
            .max(requests / flags.of("store-puts-s"));
        Self {
            bytes,
            objects,
            requests,
            seconds,
        }
    }
}

/// Bytes of a checkpoint that the rank with most of them writes: rank 0 what is shared, the first owner each bank.
fn written(placement: &Placement, inventory: &Inventory) -> u64 {
    let mut bytes = vec![0; placement.world_size().0 as usize];
    bytes[0] = 3 * inventory.shared_bytes();
    for language in 0..placement.num_languages() {
        bytes[placement.first_owner(language).0 as usize] += 3 * inventory.bank_bytes();
    }
    bytes.into_iter().max().unwrap_or(0)
}

fn by_language(cells: &[Cell]) -> Vec<&Cell> {
    let mut cells: Vec<&Cell> = cells.iter().collect();
    cells.sort_by_key(|cell| (cell.languages, cell.world));
    cells
}

/// Which limit comes first, from the tables above.
fn what_breaks(flags: &Flags, cells: &[Cell]) {
    println!("\nWhat breaks first\n");
    let room = flags.of("gpu-gib") - flags.of("other-gib");
    for languages in LANGUAGES {
        let row: Vec<&Cell> = cells.iter().filter(|cell| cell.languages == languages).collect();
        let fits = row.iter().find(|cell| cell.bank_gib() <= room);
        let smallest = fits.map_or("no number of GPUs here".to_owned(), |cell| {
            format!("{} GPUs", cell.world)
        });
        let largest: Vec<String> = row
            .iter()
            .map(|cell| {
                let (name, seconds) = cell.largest();
                format!(
                    "{}: {name}, {:.0} % of the step",
                    cell.world,
                    100.0 * seconds / cell.step()
                )
            })
            .collect();
        println!(
            "- {languages} languages: banks fit into memory from {smallest} on. By GPUs, most of the time beside compute: {}.",
            largest.join("; ")
        );
        for pair in row.windows(2) {
            let (before, after) = (
                pair[0].planning() / pair[0].step(),
                pair[1].planning() / pair[1].step(),
            );
            if before < 0.02 && after >= 0.02 {
                println!(
                    "  Planning goes from {:.1} to {:.1} % of the step between {} and {} GPUs: every rank draws and deals the whole batch.",
                    100.0 * before,
                    100.0 * after,
                    pair[0].world,
                    pair[1].world
                );
            }
        }
    }
    if let Ok(load) = Load::read() {
        let of_gpu = heartbeats(flags, 1e6) / 1e6 * load.core_seconds();
        println!(
            "- Coordinator: a core is full at {:.0} GPUs, if the processor time of a heartbeat stays what it was.",
            1.0 / of_gpu
        );
    }
    let slowest = cells.iter().max_by(|a, b| {
        let seconds = |cell: &Cell| Checkpoint::of(flags, cell).seconds;
        seconds(a).total_cmp(&seconds(b))
    });
    if let Some(cell) = slowest {
        println!(
            "- Store: the slowest checkpoint is that of {} languages on {} GPUs, {:.0} s.",
            cell.languages,
            cell.world,
            Checkpoint::of(flags, cell).seconds
        );
    }
}

/// The formulas with the parameters of CPUs, beside what was measured on them.
fn check(path: &str, measured: &Value) {
    println!("\nChecked against {path}\n");
    match measured["command"].as_str().unwrap_or_default() {
        "cargo xtask bench overlap" => check_overlap(measured),
        "cargo xtask bench training" => check_training(measured),
        other => println!(
            "It holds `{other}`, not runs of `cargo xtask bench overlap` or `cargo xtask bench training`."
        ),
    }
}

/// Seconds of forward and backward of the rank that computes longest, for `work` core seconds on `workers` ranks with a thread each:
/// cores are shared where there are fewer, and then those of ranks that are done help the slowest.
fn on_cores(work: f64, workers: f64, cores: f64, imbalance: f64) -> f64 {
    work * (imbalance / workers).max(1.0 / workers.min(cores))
}

/// A row of overlap.json's table.
struct Measured {
    workers: u32,
    stage: String,
    overlap: bool,
    step: f64,
    waiting: f64,
    /// Bytes that a rank puts into sums: shared, and of banks on average.
    bytes: [f64; 2],
}

/// Two parts are taken from rows with two workers and without overlap: core seconds of each stage, and the speed of Gloo. The rest is
/// predicted.
fn check_overlap(measured: &Value) {
    let cores = measured["machine"]["cores"].as_f64().unwrap_or(1.0);
    let rows = rows_of_overlap(measured);
    let calibration = |stage: &str| {
        rows.iter()
            .find(|row| row.workers == 2 && row.stage == stage && !row.overlap)
    };
    let (Some(align), Some(zipper)) = (calibration("align"), calibration("zipper")) else {
        println!("It has no rows with two workers and without overlap, from which speeds would be taken.");
        return;
    };
    let summed = |row: &Measured| {
        let workers = f64::from(row.workers);
        // A bank has two owners as a rule. Gloo sums on the cores that compute.
        let sent = 2.0 * (workers - 1.0) / workers * row.bytes[0] + row.bytes[1];
        sent * (workers / cores).max(1.0)
    };
    let speed = summed(align) / align.waiting;
    let slowest = |row: &Measured| {
        if row.stage == "align" {
            1.0
        } else {
            overlap_imbalance(row.workers)
        }
    };
    let work_of = |row: &Measured| {
        let workers = f64::from(row.workers);
        (row.step - summed(row) / speed) / on_cores(1.0, workers, cores, slowest(row))
    };
    let work = [work_of(align), work_of(zipper)];
    println!(
        "Taken from the two rows marked *: {:.2} and {:.2} core seconds a step, {:.0} MB/s of Gloo between two processes. Imbalance of \
         stage zipper simulated: {:.2} with 2, {:.2} with 4 workers.\n",
        work[0],
        work[1],
        speed / 1e6,
        overlap_imbalance(2),
        overlap_imbalance(4)
    );
    println!(
        "| workers | stage | overlap | step, s: measured | predicted | difference | waiting, s: measured | predicted |"
    );
    println!("|{}", " --- |".repeat(8));
    for row in &rows {
        let workers = f64::from(row.workers);
        let work = work[usize::from(row.stage != "align")];
        let longest = on_cores(work, workers, cores, slowest(row));
        let waiting = summed(row) / speed + longest - on_cores(work, workers, cores, 1.0);
        // Nothing is hidden where sums are made by the cores that compute.
        let step = longest + summed(row) / speed;
        let star = if row.workers == 2 && !row.overlap { "*" } else { "" };
        println!(
            "| {}{star} | {} | {} | {:.3} | {step:.3} | {:+.0} % | {:.3} | {waiting:.3} |",
            row.workers,
            row.stage,
            if row.overlap { "yes" } else { "no" },
            row.step,
            100.0 * (step / row.step - 1.0),
            row.waiting,
        );
    }
    println!(
        "\nMissing in this file: runs of one process, and `compute_seconds` of steps. `--measured docs/benchmarks/training.json` checks \
         1, 2 and 4 processes, once it is there."
    );
}

fn rows_of_overlap(measured: &Value) -> Vec<Measured> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let runs = list(&measured["steps"]);
    let table = list(&measured["table"]);
    let row = |row: &Value| {
        let workers = row["workers"].as_u64()? as u32;
        let same = |run: &&Value| {
            ["workers", "stage", "overlap"]
                .iter()
                .all(|key| run[*key] == row[*key])
        };
        let of_banks: Vec<f64> = runs
            .iter()
            .filter(same)
            .flat_map(|run| list(&run["comm_bytes_banks"]))
            .filter_map(|bytes| bytes.as_f64())
            .collect();
        let banks = of_banks.iter().sum::<f64>() / of_banks.len().max(1) as f64 / f64::from(workers);
        Some(Measured {
            workers,
            stage: row["stage"].as_str()?.to_owned(),
            overlap: row["overlap"].as_bool()?,
            step: row["step_seconds"]["median"].as_f64()?,
            waiting: row["exposed_seconds"]["median"].as_f64()?,
            bytes: [row["shared_bytes"].as_f64()?, banks],
        })
    };
    table.iter().filter_map(row).collect()
}

/// How much longer than the mean the slowest of `workers` computes on the corpus of that benchmark.
fn overlap_imbalance(workers: u32) -> f64 {
    const STEPS: u32 = 200;
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let durations: Vec<Vec<f64>> = [100, 60, 40]
        .map(|count| (0..count).map(|_| random.random_range(0.7..0.9)).collect())
        .into();
    let amounts: Vec<f64> = durations.iter().map(|of| of.iter().sum::<f64>()).collect();
    let work: Vec<f64> = amounts.iter().map(|seconds| seconds.powf(1.0 / 1.5)).collect();
    let placement = place(&work, workers);
    let mut sampler = Sampler::new(SamplerProblem {
        seed: 5,
        temperature: 1.5,
        batch_seconds: 16.0,
        durations: durations.clone(),
    })
    .expect("there is data");
    let mut sum = 0.0;
    for _ in 0..STEPS {
        let batch = sampler.next_batch().utterances;
        let costs: Vec<(usize, f64)> = batch
            .iter()
            .map(|at| (at.language, durations[at.language][at.index]))
            .collect();
        let hands = placement.deal(&costs);
        let loads = hands
            .iter()
            .map(|hand| hand.iter().map(|&index| costs[index].1).sum::<f64>());
        let total: f64 = costs.iter().map(|(_, seconds)| seconds).sum();
        sum += loads.fold(0.0, f64::max) / (total / f64::from(workers));
    }
    sum / f64::from(STEPS)
}

/// Core seconds are taken from one process; the file tells neither bytes nor waiting.
fn check_training(measured: &Value) {
    let cores = measured["machine"]["cores"].as_f64().unwrap_or(1.0);
    let mut groups: BTreeMap<[String; 3], BTreeMap<u64, Vec<f64>>> = BTreeMap::new();
    for run in measured["runs"].as_array().into_iter().flatten() {
        let text = |key: &str| run[key].as_str().unwrap_or_default().to_owned();
        if !text("program").starts_with("zipper") {
            continue;
        }
        let seconds = run["seconds"].as_array().into_iter().flatten();
        let seconds = seconds.filter_map(Value::as_f64);
        let processes = run["processes"].as_u64().unwrap_or(0);
        let group = [text("size"), text("variant"), text("program")];
        let of_group = groups.entry(group).or_default();
        of_group.entry(processes).or_default().extend(seconds);
    }
    println!(
        "Core seconds are those of one process (*). Gradients, imbalance and what every rank does for itself (the update) are not in \
         this file: the difference is what they take.\n"
    );
    println!("| size | variant | program | processes | step, s: measured | predicted | difference |");
    println!("|{}", " --- |".repeat(7));
    for ([size, variant, program], runs) in groups {
        let Some(alone) = runs.get(&1).map(|seconds| median(seconds)) else {
            continue;
        };
        for (processes, seconds) in &runs {
            let (found, star) = (median(seconds), if *processes == 1 { "*" } else { "" });
            let predicted = on_cores(alone, *processes as f64, cores, 1.0);
            let difference = 100.0 * (predicted / found - 1.0);
            println!(
                "| {size} | {variant} | {program} | {processes}{star} | {found:.3} | {predicted:.3} | {difference:+.0} % |"
            );
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn place(work: &[f64], world: u32) -> Placement {
    Placement::solve(&PlacementProblem {
        work: work.to_vec(),
        world_size: WorldSize(world),
        max_banks_per_rank: None,
    })
    .expect("memory is no limit")
}

/// Utterances of 2 to 20 s; the k-th language has a k-th of the hours of the first, and at least one utterance.
fn durations(languages: usize) -> Vec<Vec<f64>> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    (1..=languages)
        .map(|place| {
            let (mut durations, mut left) = (Vec::new(), HOURS * 3600.0 / place as f64);
            while left > 0.0 {
                let seconds: f64 = random.random_range(2.0..20.0);
                durations.push(seconds);
                left -= seconds;
            }
            durations
        })
        .collect()
}

const PROJECTOR: ProjectorShape = ProjectorShape::Conv {
    d_encoder: 1280,
    d_llm: 3584,
};
const LID_DIM: u64 = 64;

/// Shared parameters whose gradients are complete only when backward ends.
fn late_parameters(languages: u64) -> u64 {
    PROJECTOR.parameters() + languages * LID_DIM
}

/// Parameters of Zipper-LoRA on Qwen2.5-7B behind whisper-large-v3: rank 16, `soft`, f32.
fn qwen(languages: u64) -> Inventory {
    let shapes = [
        ("q_proj", 3584, 3584),
        ("k_proj", 3584, 512),
        ("v_proj", 3584, 512),
        ("o_proj", 3584, 3584),
        ("gate_proj", 3584, 18_944),
        ("up_proj", 3584, 18_944),
        ("down_proj", 18_944, 3584),
    ];
    let sites: Vec<SiteShape> = (0..LAYERS)
        .flat_map(|_| shapes)
        .map(|(name, d_in, d_out)| SiteShape {
            name: name.to_owned(),
            d_in,
            d_out,
        })
        .collect();
    let adapter = AdapterShape {
        variant: Variant::Soft,
        rank: 16,
        shared_rank: 8,
        lid_dim: LID_DIM,
        routers: SITES as u64,
        languages,
    };
    Inventory::new(PROJECTOR, &adapter, &sites, 4)
}
