//! How fast checkpoints are written and read, against plain object_store: `cargo xtask bench checkpoints`.
//!
//! A checkpoint is written as workers and the coordinator do it: the folder is claimed, parts are described by their checksums
//! and stored four at a time, the manifest comes last. It is read twice: as a coordinator reads it that resumes a run, which
//! checks every byte, and as a worker that restores its state from it. Plain object_store writes and reads the same bytes in
//! the same objects and pieces, also four at a time, and computes no checksum. Both take turns in a real S3 server and in a
//! folder, so that whatever else the machine does meets both.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::future::Future;
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use zipper_checkpoint::options::{Environment, StoreOptions};
use zipper_checkpoint::{PartRecord, RunStore, layout};
use zipper_tests::{S3Server, cpu, load, manifest, spread};
use zipper_types::{Generation, Step};

const MIB: usize = 1 << 20;
/// Objects, and pieces of one, that are on their way at the same time: as many as a worker's.
const PARALLEL: usize = 4;
const LANGUAGES: usize = 8;
/// What is not a tensor, whatever the size of the others.
const STATE_BYTES: usize = 64 << 10;
/// How long a request may take, on either side: a server that shares two cores takes more than the usual 30 s for 64 MiB.
const TIMEOUT: Duration = Duration::from_mins(10);
const STEP: Step = Step(500);
const GENERATION: Generation = Generation(1);

#[derive(Debug, Parser)]
struct Arguments {
    /// Where the figures go, as JSON.
    output: PathBuf,
    /// How often each is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Sizes of checkpoints, in MiB.
    #[arg(long, value_delimiter = ',', default_value = "16,128,512", value_parser = clap::value_parser!(u32).range(1..))]
    mib: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    S3,
    Folder,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Write,
    /// Every byte is read and checked, as by a coordinator that resumes a run.
    Verify,
    /// Every part is read and checked, four at a time, as by a worker that takes its state from them.
    Restore,
    PlainWrite,
    /// Into a folder, without waiting for the disk: what object_store does if nothing else is asked of it.
    PlainWriteUnsynced,
    PlainRead,
}

/// MiB/s of every round.
type Rates = BTreeMap<(Place, u32, Action), Vec<f64>>;

/// Objects with their paths below a checkpoint, or below a prefix.
type Parts = Vec<(String, Bytes)>;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let bench = Bench::new(arguments.mib.iter().copied().max().unwrap_or(1))?;
    // The server makes its volumes, buffers get their memory.
    let smallest = arguments.mib.iter().copied().min().unwrap_or(1);
    for place in [Place::S3, Place::Folder] {
        bench.turn(place, smallest, "warm-up", true)?;
    }
    let (mut rates, mut loads) = (Rates::new(), Vec::new());
    for round in 0..arguments.rounds {
        for &mib in &arguments.mib {
            for place in [Place::S3, Place::Folder] {
                println!(
                    "round {} of {}: {mib} MiB, {}",
                    round + 1,
                    arguments.rounds,
                    place.name()
                );
                loads.push(load());
                let measured = bench.turn(place, mib, &format!("round-{round}"), round % 2 == 0)?;
                for (action, rate) in measured {
                    rates.entry((place, mib, action)).or_default().push(rate);
                }
            }
        }
    }
    let rows = table(&rates, &arguments.mib);
    print(&rows);
    let report = json!({
        "command": "cargo xtask bench checkpoints",
        "machine": {"cpu": cpu(), "cores": available_parallelism()?.get(), "load_before_each_turn": loads},
        "rounds": arguments.rounds,
        "parallel": PARALLEL,
        "timeout_seconds": TIMEOUT.as_secs(),
        "piece_bytes": StoreOptions::default().multipart_bytes,
        "parts": arguments.mib.iter().map(|&mib| (mib.to_string(), sizes(mib))).collect::<BTreeMap<_, _>>(),
        "table": rows,
        "mib_per_second": rates.iter().map(|((place, mib, action), rates)| {
            json!({"store": place.name(), "mib": mib, "action": action.name(), "rates": rates})
        }).collect::<Vec<_>>(),
    });
    fs::write(&arguments.output, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nwritten: {}", arguments.output.display());
    Ok(())
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Folder => "file",
        }
    }
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Verify => "verify",
            Self::Restore => "restore",
            Self::PlainWrite => "plain write",
            Self::PlainWriteUnsynced => "plain write without fsync",
            Self::PlainRead => "plain read",
        }
    }
}

/// The objects of a checkpoint of `mib` MiB with their sizes: half of it shared, half of it banks, and of each a third parameters
/// and two thirds the optimizer's moments.
fn sizes(mib: u32) -> Vec<(String, usize)> {
    let third = (mib as usize * MIB - STATE_BYTES) / 6;
    let of_bank = third / LANGUAGES;
    let mut sizes = vec![
        (layout::SHARED.to_owned(), third),
        (layout::OPTIMIZER_SHARED.to_owned(), 2 * third),
        (layout::STATE.to_owned(), STATE_BYTES),
    ];
    for language in 0..LANGUAGES {
        let language = format!("l{language}");
        sizes.push((layout::bank(&language), of_bank));
        sizes.push((layout::optimizer_bank(&language), 2 * of_bank));
    }
    sizes
}

struct Bench {
    runtime: Runtime,
    server: S3Server,
    environment: Environment,
    folder: tempfile::TempDir,
    /// As many as the largest checkpoint has; all others are parts of it.
    random: Bytes,
}

impl Bench {
    fn new(most_mib: u32) -> Result<Self, Box<dyn Error>> {
        let mut random = vec![0; most_mib as usize * MIB];
        ChaCha8Rng::seed_from_u64(1).fill(&mut random[..]);
        let server = S3Server::start();
        Ok(Self {
            runtime: Runtime::new()?,
            environment: server.env().into_iter().collect(),
            server,
            folder: tempfile::tempdir()?,
            random: random.into(),
        })
    }

    fn parts(&self, mib: u32) -> Parts {
        let mut at = 0;
        let parts = sizes(mib).into_iter().map(|(path, bytes)| {
            at += bytes;
            (path, self.random.slice(at - bytes..at))
        });
        parts.collect()
    }

    /// Both sides once, `ours_first` or the other way round; what they took.
    fn turn(
        &self,
        place: Place,
        mib: u32,
        name: &str,
        ours_first: bool,
    ) -> Result<Vec<(Action, f64)>, Box<dyn Error>> {
        let parts = self.parts(mib);
        let name = format!("{name}-{mib}");
        let mut measured = Vec::new();
        for ours in [ours_first, !ours_first] {
            if ours {
                self.ours(place, &name, &parts, &mut measured)?;
            } else {
                self.plain(place, &name, &parts, &mut measured)?;
            }
        }
        Ok(measured)
    }

    fn ours(
        &self,
        place: Place,
        name: &str,
        parts: &Parts,
        measured: &mut Vec<(Action, f64)>,
    ) -> Result<(), Box<dyn Error>> {
        let folder = self.folder.path().join(name);
        let url = match place {
            Place::S3 => self.server.url(name),
            Place::Folder => format!("file://{}", folder.display()),
        };
        let options = StoreOptions {
            request_timeout: TIMEOUT,
            retry_timeout: TIMEOUT,
            ..StoreOptions::default()
        };
        let run = RunStore::open_in(&url, &options, &self.environment)?;
        let written = self.timed(parts, write(&run, parts))?;
        let verified = self.timed(parts, verify(&run))?;
        let restored = self.timed(parts, restore(&run))?;
        measured.extend([
            (Action::Write, written),
            (Action::Verify, verified),
            (Action::Restore, restored),
        ]);
        remove(&folder)
    }

    fn plain(
        &self,
        place: Place,
        name: &str,
        parts: &Parts,
        measured: &mut Vec<(Action, f64)>,
    ) -> Result<(), Box<dyn Error>> {
        let folder = self.folder.path().join(format!("plain-{name}"));
        let plain = match place {
            Place::S3 => Plain::in_bucket(&self.server, name)?,
            Place::Folder => Plain::in_folder(&folder, true)?,
        };
        let written = self.timed(parts, plain.write(parts))?;
        let read = self.timed(parts, plain.read(parts))?;
        measured.extend([(Action::PlainWrite, written), (Action::PlainRead, read)]);
        remove(&folder)?;
        if place == Place::Folder {
            let unsynced = Plain::in_folder(&folder, false)?;
            let written = self.timed(parts, unsynced.write(parts))?;
            measured.push((Action::PlainWriteUnsynced, written));
            remove(&folder)?;
        }
        Ok(())
    }

    /// MiB/s of `parts` while `work` lasts, which begins when the disk has what was written before.
    fn timed(
        &self,
        parts: &Parts,
        work: impl Future<Output = Result<(), Box<dyn Error>>>,
    ) -> Result<f64, Box<dyn Error>> {
        nix::unistd::sync();
        let started = Instant::now();
        self.runtime.block_on(work)?;
        let seconds = started.elapsed().as_secs_f64();
        let bytes: usize = parts.iter().map(|(_, bytes)| bytes.len()).sum();
        Ok(bytes as f64 / MIB as f64 / seconds)
    }
}

/// Removes what a folder keeps; objects in S3 stay, there is room.
fn remove(folder: &FilePath) -> Result<(), Box<dyn Error>> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// A checkpoint as the coordinator (what comes first and last) and a worker (what is between) write it.
async fn write(run: &RunStore, parts: &Parts) -> Result<(), Box<dyn Error>> {
    let checkpoints = run.checkpoints();
    if checkpoints.is_published(STEP).await? {
        return Err("the checkpoint is there already".into());
    }
    let prefix = checkpoints.begin(STEP, GENERATION).await?;
    let records: Vec<PartRecord> = stream::iter(parts)
        .map(|(path, bytes)| checkpoints.put_part(STEP, &prefix, path, bytes.clone()))
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    checkpoints.publish(&manifest(STEP, GENERATION, records)).await?;
    Ok(())
}

async fn verify(run: &RunStore) -> Result<(), Box<dyn Error>> {
    let latest = run.checkpoints().latest_readable().await?;
    if latest.manifest.is_none() {
        return Err("the checkpoint cannot be read".into());
    }
    Ok(())
}

async fn restore(run: &RunStore) -> Result<(), Box<dyn Error>> {
    let checkpoints = run.checkpoints();
    let manifest = checkpoints.load_manifest(STEP).await?;
    let parts: Vec<_> = manifest.parts.iter().collect();
    for part in checkpoints.read_parts(STEP, &parts).await? {
        // Copied, as the worker does.
        std::hint::black_box(part.to_vec());
    }
    Ok(())
}

/// object_store and nothing more.
struct Plain {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Larger objects are written and read in pieces of this size.
    piece: usize,
}

impl Plain {
    fn in_bucket(server: &S3Server, name: &str) -> Result<Self, Box<dyn Error>> {
        let mut builder = AmazonS3Builder::new().with_url(server.url(""));
        let timeout = ("timeout".to_owned(), format!("{} s", TIMEOUT.as_secs()));
        for (key, value) in server.env().into_iter().chain([timeout]) {
            builder = builder.with_config(key.to_ascii_lowercase().parse()?, value);
        }
        Ok(Self {
            store: Arc::new(builder.build()?),
            prefix: Path::from(format!("plain/{name}")),
            piece: StoreOptions::default().multipart_bytes as usize,
        })
    }

    fn in_folder(folder: &FilePath, fsync: bool) -> Result<Self, Box<dyn Error>> {
        fs::create_dir_all(folder)?;
        Ok(Self {
            store: Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_fsync(fsync)),
            prefix: Path::default(),
            piece: usize::MAX,
        })
    }

    fn path(&self, part: &str) -> Path {
        part.split('/').fold(self.prefix.clone(), Path::join)
    }

    async fn write(&self, parts: &Parts) -> Result<(), Box<dyn Error>> {
        stream::iter(parts)
            .map(|(path, bytes)| self.put(path, bytes.clone()))
            .buffered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    async fn put(&self, path: &str, mut bytes: Bytes) -> object_store::Result<()> {
        let path = self.path(path);
        if bytes.len() <= self.piece {
            self.store.put(&path, bytes.into()).await?;
            return Ok(());
        }
        let upload = self.store.put_multipart(&path).await?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, self.piece);
        while !bytes.is_empty() {
            upload.wait_for_capacity(PARALLEL).await?;
            upload.put(bytes.split_to(bytes.len().min(self.piece)));
        }
        upload.finish().await?;
        Ok(())
    }

    async fn read(&self, parts: &Parts) -> Result<(), Box<dyn Error>> {
        let mut read = stream::iter(parts)
            .map(|(path, bytes)| self.get(path, bytes.len()))
            .buffered(PARALLEL);
        while let Some(bytes) = read.next().await {
            std::hint::black_box(bytes?);
        }
        Ok(())
    }

    /// The object at `path`, which has `size` bytes.
    async fn get(&self, path: &str, size: usize) -> object_store::Result<Bytes> {
        let path = self.path(path);
        if size <= self.piece {
            return self.store.get(&path).await?.bytes().await;
        }
        let pieces = (0..size).step_by(self.piece).map(|start| Range {
            start: start as u64,
            end: size.min(start + self.piece) as u64,
        });
        let mut whole = Vec::with_capacity(size);
        let mut pieces = stream::iter(pieces)
            .map(|range| self.store.get_range(&path, range))
            .buffered(PARALLEL);
        while let Some(piece) = pieces.next().await {
            whole.extend_from_slice(&piece?);
        }
        Ok(whole.into())
    }
}

/// A row for each store, size and way to move a checkpoint.
fn table(rates: &Rates, sizes_in_mib: &[u32]) -> Vec<Value> {
    let mut rows = Vec::new();
    for place in [Place::S3, Place::Folder] {
        for &mib in sizes_in_mib {
            for (ours, plain) in [
                (Action::Write, Action::PlainWrite),
                (Action::Verify, Action::PlainRead),
                (Action::Restore, Action::PlainRead),
            ] {
                let of = |action| rates.get(&(place, mib, action)).map_or(&[][..], Vec::as_slice);
                let numbers = |rates: &[f64]| {
                    let [min, median, max] = spread(rates);
                    json!({"min": min, "median": median, "max": max})
                };
                let ratios: Vec<f64> = of(ours)
                    .iter()
                    .zip(of(plain))
                    .map(|(ours, plain)| ours / plain)
                    .collect();
                let unsynced = of(Action::PlainWriteUnsynced);
                let mut row = json!({
                    "store": place.name(), "mib": mib, "files": sizes(mib).len(), "action": ours.name(),
                    "zipper_mib_per_second": numbers(of(ours)), "object_store_mib_per_second": numbers(of(plain)),
                    "ratio": numbers(&ratios),
                });
                if ours == Action::Write && !unsynced.is_empty() {
                    row["object_store_without_fsync_mib_per_second"] = numbers(unsynced);
                }
                rows.push(row);
            }
        }
    }
    rows
}

fn print(rows: &[Value]) {
    println!(
        "\n| store | MiB in files | what | Zipper, MiB/s: min / median / max | object_store, MiB/s | Zipper / object_store, in the same round | object_store without fsync, MiB/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for row in rows {
        let three = |key: &str, digits: usize| {
            let number = |name: &str| {
                row.pointer(&format!("/{key}/{name}"))
                    .and_then(Value::as_f64)
                    .map(|number| format!("{number:.digits$}"))
            };
            let numbers: Option<Vec<String>> = ["min", "median", "max"].into_iter().map(number).collect();
            numbers.map_or_else(String::new, |numbers| numbers.join(" / "))
        };
        println!(
            "| {} | {} in {} | {} | {} | {} | {} | {} |",
            row["store"].as_str().unwrap_or_default(),
            row["mib"],
            row["files"],
            row["action"].as_str().unwrap_or_default(),
            three("zipper_mib_per_second", 0),
            three("object_store_mib_per_second", 0),
            three("ratio", 2),
            three("object_store_without_fsync_mib_per_second", 0),
        );
    }
}
