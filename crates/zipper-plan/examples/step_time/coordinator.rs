//! What the coordinator does for so many workers, from what the load benchmark measured.

use std::error::Error;
use std::fs;

use serde_json::Value;

use crate::LANGUAGES;
use crate::assumed::LAYERS;
use crate::cell::Cell;
use crate::flags::Flags;

const LOAD: &str = "docs/benchmarks/load.json";

/// What the load benchmark measured.
pub(crate) struct Load {
    workers: f64,
    heartbeats_a_second: f64,
    cpu_share: f64,
    p99_ms: f64,
    memory_mb: f64,
}

impl Load {
    pub(crate) fn read() -> Result<Self, Box<dyn Error>> {
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
    pub(crate) fn core_seconds(&self) -> f64 {
        self.cpu_share / self.heartbeats_a_second
    }
}

pub(crate) fn coordinator(flags: &Flags, cells: &[Cell]) {
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
pub(crate) fn heartbeats(flags: &Flags, gpus: f64) -> f64 {
    (gpus + (gpus / flags.of("gpus-per-node")).ceil()) / flags.of("heartbeat-s")
}

/// Bytes of a logged step: of its message, and of its line in `metrics/train.jsonl`.
fn logged(languages: usize) -> [f64; 2] {
    // A code of two letters, a share of each layer as f32, lengths and tags; in the line a code and a number.
    let (shares, mean) = (4 * LAYERS + 12, 28);
    [400 + languages * shares, 600 + languages * mean].map(|bytes| bytes as f64)
}
