//! Everything that can be refused before a process starts: configuration, manifests, audio, the run itself.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;
use zipper_checkpoint::{RunStore, layout};
use zipper_cli::{Progress, UserError, unusable};
use zipper_config::schema::StartFrom;
use zipper_config::{ConfigErrors, RunConfig};
use zipper_data::{BadAudio, Corpus, DurationLimits, Utterance, check_audio, load_corpus, sampler_problem};
use zipper_plan::{Placement, PlacementProblem, banks_that_fit};
use zipper_types::{Advised, Stage, Step, Variant, WorldSize};

use crate::container;
use crate::data::{self, RunData, TrainingData};
use crate::devices::{self, Crew, Devices, Machines, NodeRange, Wishes};
use crate::doctor;
use crate::plan;
use crate::processes;
use crate::resume::{self, Begun, Difference};
use crate::run::{Arguments, Resume};
use crate::slurm::{self, Allocation};

/// A run that may start.
pub(crate) struct Prepared {
    pub(crate) config: RunConfig,
    /// How it differs from the run's: `key.path=value`.
    pub(crate) changes: Vec<String>,
    pub(crate) store: RunStore,
    /// Its workers.
    pub(crate) crew: Crew,
    /// Torch threads of each worker.
    pub(crate) threads: usize,
    /// Whether Slurm gave GPUs.
    pub(crate) gpus_of_slurm: bool,
    /// Bytes that one bank takes on a worker, where memory for banks is limited.
    pub(crate) bank_memory: Option<u64>,
    /// Folder for the logs of all processes.
    pub(crate) logs: PathBuf,
}

/// Checks everything, and leaves in the run what its processes need: run.yaml, the ids to skip, the corpus report. What is there of these
/// is never replaced: another launch may be at work with it.
pub(crate) async fn prepare(
    arguments: &Arguments,
    allocation: Option<&Allocation>,
) -> anyhow::Result<Prepared> {
    let overrides = arguments.all_overrides();
    let given = arguments.config.as_deref();
    let given = given.map(|file| read_config(file, &overrides)).transpose()?;
    let url = run_url(arguments, given.as_ref())?;
    let nodes = training_nodes(arguments, allocation)?;
    let store = RunStore::open(&url).map_err(unusable)?;
    let is_new = !store.exists(layout::RUN_CONFIG).await.map_err(unusable)?;
    let (config, changes) = configuration(&store, given, &overrides, arguments.resume).await?;
    let of_run = RunData::read(&store).await?;
    if let Some(container) = &config.cluster.container {
        container::check(container)?;
    }

    // Decoding takes a while: signals are seen meanwhile.
    let (checked, begun) = (config.clone(), of_run.clone());
    let data = tokio::task::spawn_blocking(move || check_data(&checked, &begun))
        .await
        .context("the check of the data was cut off")??;
    let crew = decide_crew(arguments, allocation, &config, nodes, &data.corpus.utterances).await?;
    // The fewest workers have the least memory.
    let bank_memory = bank_memory(&config, WorldSize(crew.min_workers()))?;
    if let Some(warning) = crew.warning() {
        eprintln!("warning: {warning}");
    }
    if !arguments.no_preflight {
        doctor::preflight(&config, &crew, &store, allocation.is_none()).await?;
    }

    if is_new {
        store
            .put_create(layout::RUN_CONFIG, Bytes::from(config.to_yaml()))
            .await
            .context("the run cannot be created")?;
    }
    of_run.complete(&store, &data).await?;
    let logs = log_folder(&store, &config)?;
    make_log_folder(&logs)?;
    let cores = match allocation {
        Some(allocation) => allocation.cpus_per_node,
        None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    Ok(Prepared {
        threads: config
            .runtime
            .threads_per_worker
            .unwrap_or_else(|| (cores / crew.workers_per_machine() as usize).max(1)),
        gpus_of_slurm: allocation.is_some_and(|allocation| allocation.gpus_per_node > 0),
        config,
        changes,
        store,
        crew,
        bank_memory,
        logs,
    })
}

/// The run that is meant.
pub(crate) fn run_url(arguments: &Arguments, given: Option<&RunConfig>) -> Result<String, UserError> {
    match (&arguments.run, given) {
        (Some(url), _) => Ok(url.clone()),
        (None, Some(config)) => Ok(format!("./runs/{}", config.name)),
        (None, None) => Err(UserError::new("--config or --run is required")),
    }
}

/// There is nothing to go on with.
pub(crate) fn no_run(store: &RunStore) -> UserError {
    UserError::new(format!("there is no run in `{}`", store.url()))
        .hint("give the file to begin one with: `--config FILE`")
}

/// How many nodes train: as many as asked for, of those that Slurm gave.
fn training_nodes(arguments: &Arguments, allocation: Option<&Allocation>) -> Result<NodeRange, UserError> {
    let Some(allocation) = allocation else {
        return Ok(arguments.nodes.unwrap_or(NodeRange::exactly(1)));
    };
    let workers = arguments
        .workers_per_node
        .unwrap_or(allocation.gpus_per_node)
        .max(1);
    allocation.training_nodes(arguments.nodes, arguments.spares.div_ceil(workers))
}

/// The workers of this launch, on what there is to use; refused if there is too little data for so many.
async fn decide_crew(
    arguments: &Arguments,
    allocation: Option<&Allocation>,
    config: &RunConfig,
    nodes: NodeRange,
    utterances: &[Utterance],
) -> anyhow::Result<Crew> {
    let problem = sampler_problem(config, utterances);
    let check_workers = |workers| {
        problem
            .check_world_size(WorldSize(workers))
            .map_err(|error| UserError::new(error.to_string()))
    };
    // As many there will be at least, whatever the worker says of GPUs.
    check_workers(nodes.max.saturating_mul(arguments.workers_per_node.unwrap_or(1)))?;
    let wishes = Wishes {
        nodes,
        spares: arguments.spares,
        workers_per_node: arguments.workers_per_node,
        backend: config.runtime.backend,
        machines: match allocation {
            Some(_) => Machines::OnePerNode,
            None => Machines::One,
        },
    };
    let crew = Crew::decide(wishes, ask_for_devices(config, allocation).await?)?;
    check_workers(crew.workers())?;
    Ok(crew)
}

/// Asks a worker, where and how it would run, what it can use.
async fn ask_for_devices(config: &RunConfig, allocation: Option<&Allocation>) -> anyhow::Result<Devices> {
    let mut words = match allocation {
        Some(_) => slurm::srun(slurm::PROBE, 1),
        None => Vec::new(),
    };
    let gpus = allocation.is_some_and(|allocation| allocation.gpus_per_node > 0);
    let worker = match &config.cluster.container {
        Some(container) => {
            words.extend(container::words_here(container, gpus)?);
            // Beside zipper-launch, wherever that is.
            let program = Path::new(&container.program).with_file_name("zipper-worker");
            program.display().to_string()
        }
        None => processes::beside("zipper-worker")?.display().to_string(),
    };
    words.push(worker);
    let devices = devices::ask_by(&words).await?;
    if let Some(allocation) = allocation
        && devices.cuda_devices < allocation.gpus_per_node
    {
        let error = UserError::new(format!(
            "Slurm job {} has {} on each node, but zipper-worker can use {} there",
            allocation.job,
            devices::count(allocation.gpus_per_node, "GPU"),
            devices.cuda_devices
        ));
        return Err(error
            .hint(devices::BUILD_WITH_CUDA)
            .hint("or ask Slurm for no GPUs, to train on CPUs")
            .into());
    }
    Ok(devices)
}

/// The configuration of this launch, and how it differs from that of the run, if that was begun before.
async fn configuration(
    store: &RunStore,
    given: Option<RunConfig>,
    overrides: &[String],
    resume: Resume,
) -> anyhow::Result<(RunConfig, Vec<String>)> {
    let Some(begun) = Begun::find(store, resume).await? else {
        let config = given.ok_or_else(|| no_run(store))?;
        if let Some(start) = &config.training.start_from {
            check_start(start).await?;
        }
        return Ok((config, Vec::new()));
    };
    let config = match given {
        Some(config) => config,
        None => begun.changed(overrides)?,
    };
    let differences = begun.differences(store.url(), &config)?;
    resume::check_checkpoints(store, resume).await?;
    let changes = differences.iter().map(Difference::as_override);
    Ok((config, changes.collect()))
}

/// Looks whether what a new run is to begin with is there. What is in it, workers look at.
async fn check_start(start: &StartFrom) -> Result<(), UserError> {
    let missing = |key: &str, what: String| UserError::new(format!("training.start_from.{key}: {what}"));
    for (key, path) in [("peft", &start.peft), ("projector", &start.projector)] {
        if let Some(path) = path.as_ref().filter(|path| !path.is_dir()) {
            return Err(missing(key, format!("there is no folder `{}`", path.display())));
        }
    }
    if let (Some(url), Some(step)) = (&start.run, start.step) {
        let store = RunStore::open(url).map_err(|error| missing("run", error.to_string()))?;
        let found = store.checkpoints().load_manifest(Step(step)).await;
        found.map_err(|error| {
            let words = zipper_cli::in_words(&error);
            missing("step", format!("run `{url}`: {words}"))
                .may_pass_if(error.is_retryable())
                .hint_if(error.advice())
                .hint(format!(
                    "`zipper-launch checkpoints --run {url}` lists what is there"
                ))
        })?;
    }
    Ok(())
}

/// Bytes that a bank takes on an owner, if there is a limit: only that makes it matter. Refuses banks that do not fit.
fn bank_memory(config: &RunConfig, world_size: WorldSize) -> anyhow::Result<Option<u64>> {
    let Some(limit) = config.runtime.bank_memory_mib else {
        return Ok(None);
    };
    let bytes = plan::inventory(config, Stage::Zipper)?.bank_memory();
    if config.adapter.variant != Variant::Shared {
        let problem = PlacementProblem {
            // Whether banks fit does not depend on it.
            work: vec![1.0; config.data.languages.len()],
            world_size,
            max_banks_per_rank: Some(banks_that_fit(limit, bytes)),
        };
        Placement::solve(&problem).map_err(|error| UserError::new(error.to_string()))?;
    }
    Ok(Some(bytes))
}

/// Reads the configuration and checks that what it names exists.
pub(crate) fn read_config(file: &Path, overrides: &[String]) -> anyhow::Result<RunConfig> {
    let hint = "paths are relative to the directory that zipper-launch is called in";
    let config = zipper_config::load_checked(file, overrides).map_err(|error| refused(&error, hint))?;
    for warning in config.warnings() {
        eprintln!("warning: {}: {warning}", file.display());
    }
    Ok(config)
}

/// What is wrong with a configuration; with a hint on its paths, if one of them is not there.
pub(crate) fn refused(error: &ConfigErrors, on_paths: &str) -> UserError {
    let user = UserError::new(error.to_string());
    if error.has_missing_paths() {
        user.hint(on_paths)
    } else {
        user
    }
}

/// Reads all manifests and decodes all audio; returns what is trained on, without what cannot be used.
fn check_data(config: &RunConfig, of_run: &RunData) -> anyhow::Result<TrainingData> {
    let load = |paths: &[PathBuf]| read_manifests(config, paths);
    let train = load(&config.data.train)?;
    eprintln!("Training data:\n{}", train.report);
    let mut all = train.utterances.clone();
    all.extend(load(&config.data.validation)?.utterances);
    for test in &config.evaluation.tests {
        all.extend(load(std::slice::from_ref(&test.manifest))?.utterances);
    }
    let languages = &config.data.languages;
    if let Some(skipped) = of_run.skipped() {
        // Other manifests are refused before anything is decoded.
        let data = TrainingData::new(train, skipped.clone(), languages);
        of_run.check_corpus(&data)?;
        of_run.check_audio(&data, &all, &check_all_audio(&all))?;
        return Ok(data);
    }
    let skipped = data::decide_skipped(config.data.on_bad_audio, all.len(), check_all_audio(&all))?;
    let data = TrainingData::new(train, skipped, languages);
    of_run.check_corpus(&data)?;
    Ok(data)
}

/// Reads manifests without looking at the audio.
pub(crate) fn read_manifests(config: &RunConfig, paths: &[PathBuf]) -> anyhow::Result<Corpus> {
    let limits = DurationLimits::from(&config.data);
    let corpus = load_corpus(paths, &config.data.languages, limits);
    corpus.map_err(|error| UserError::new(error.to_string()).into())
}

fn check_all_audio(utterances: &[Utterance]) -> Vec<BadAudio> {
    let progress = Progress::new("Checking audio", utterances.len());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    check_audio(utterances, threads, |done| progress.at(done))
}

/// The run's folder, if it is in one.
pub(crate) fn local_folder(store: &RunStore) -> Option<PathBuf> {
    url::Url::parse(store.url())
        .ok()
        .filter(|url| url.scheme() == "file")
        .and_then(|url| url.to_file_path().ok())
        .or_else(|| (!store.url().contains("://")).then(|| PathBuf::from(store.url())))
}

/// Where logs are: inside the run if it is a folder, else below where zipper-launch was called. Never in an object store, which
/// cannot append.
pub(crate) fn log_folder(store: &RunStore, config: &RunConfig) -> anyhow::Result<PathBuf> {
    let folder = local_folder(store)
        .unwrap_or_else(|| Path::new("runs").join(&config.name))
        .join("logs");
    std::path::absolute(&folder).with_context(|| format!("`{}`", folder.display()))
}

pub(crate) fn make_log_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))
}
