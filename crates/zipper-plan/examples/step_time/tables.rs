//! Tables of the steps themselves, of their planning and of memory, and what they say together.

use crate::cell::Cell;
use crate::coordinator::{Load, heartbeats};
use crate::flags::Flags;
use crate::store::Checkpoint;
use crate::{LANGUAGES, WORLDS};

pub(crate) fn steps(cells: &[Cell]) {
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

pub(crate) fn planning(cells: &[Cell]) {
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

pub(crate) fn memory(flags: &Flags, cells: &[Cell]) {
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

/// Which limit comes first, from the tables above.
pub(crate) fn what_breaks(flags: &Flags, cells: &[Cell]) {
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
