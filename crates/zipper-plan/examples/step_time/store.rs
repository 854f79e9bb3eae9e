//! What a checkpoint takes: bytes, objects and requests of the object store.

use zipper_plan::Inventory;

use crate::MIB;
use crate::cell::Cell;
use crate::flags::Flags;

/// One checkpoint of a cell.
pub(crate) struct Checkpoint {
    bytes: f64,
    objects: usize,
    requests: f64,
    pub(crate) seconds: f64,
}

impl Checkpoint {
    pub(crate) fn of(flags: &Flags, cell: &Cell) -> Self {
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

pub(crate) fn store(flags: &Flags, cells: &[Cell]) {
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

fn by_language(cells: &[Cell]) -> Vec<&Cell> {
    let mut cells: Vec<&Cell> = cells.iter().collect();
    cells.sort_by_key(|cell| (cell.languages, cell.world));
    cells
}
