//! The planner at sizes that no test machine has: prints the tables of docs/scaling.md.
//!
//! ```text
//! cargo run --release -p zipper-plan --example scaling
//! ```

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zipper_plan::{
    AdapterShape, Inventory, LanguageAmount, Placement, PlacementProblem, ProjectorShape, Sampler,
    SamplerProblem, SiteShape, WorkModel, expected_work, succession,
};
use zipper_types::{Rank, Variant, WorldSize};

/// Audio of one rank in a global batch, in seconds: 12,000 frames of 10 ms.
const SECONDS_PER_RANK: f64 = 120.0;
/// Characters of a transcript per second of speech.
const CHARACTERS_PER_SECOND: f64 = 14.0;
const SIMULATED_STEPS: usize = 200;
const MIB: f64 = 1024.0 * 1024.0;

fn main() {
    let inventory = qwen(12);
    println!("Qwen2.5-7B, rank 16, soft: {inventory:?}\n");
    for (hours, temperature) in [(30.0, 1.0), (30.0, 3.0), (1.0, 1.0), (1.0, 3.0)] {
        paper(hours, temperature, &inventory);
    }
    memory(&inventory);
    moves();
}

/// The paper's setting: English 960 h, eleven languages with `hours` each.
fn paper(hours: f64, temperature: f64, inventory: &Inventory) {
    println!("en 960 h, 11 languages of {hours} h, temperature {temperature}");
    println!(
        "{:>6} {:>7} {:>10} {:>13} {:>12} {:>13} {:>9} {:>11} {:>9}",
        "ranks",
        "pieces",
        "banks/rank",
        "bank MiB/rank",
        "shared MiB",
        "banks MiB",
        "expected",
        "step mean",
        "step p95"
    );
    let durations = durations(hours);
    let amounts: Vec<LanguageAmount> = durations
        .iter()
        .map(|durations| LanguageAmount {
            utterances: durations.len(),
            seconds: durations.iter().sum(),
            characters: (durations.iter().sum::<f64>() * CHARACTERS_PER_SECOND) as usize,
        })
        .collect();
    let model = WorkModel::unmeasured(durations.len());
    for world in [8, 64, 512] {
        let batch_seconds = SECONDS_PER_RANK * f64::from(world);
        let work = expected_work(&amounts, temperature, batch_seconds, &model).expect("there is data");
        let placement = place(&work, world);
        let banks: Vec<usize> = (0..world)
            .map(|rank| placement.languages_of(Rank(rank)).len())
            .collect();
        let (least, most) = (banks.iter().min().unwrap_or(&0), banks.iter().max().unwrap_or(&0));
        let mut sampler = Sampler::new(SamplerProblem {
            seed: 1,
            temperature,
            batch_seconds,
            durations: durations.clone(),
        })
        .expect("there is data");
        let (mut steps, mut bank_bytes) = (Vec::new(), 0.0);
        for _ in 0..SIMULATED_STEPS {
            let batch: Vec<(usize, f64)> = sampler
                .next_batch()
                .utterances
                .iter()
                .map(|at| {
                    let seconds = durations[at.language][at.index];
                    let characters = (seconds * CHARACTERS_PER_SECOND) as usize;
                    (at.language, model.cost(at.language, seconds, characters))
                })
                .collect();
            let hands = placement.deal(&batch);
            let loads = hands
                .iter()
                .map(|hand| hand.iter().map(|&index| batch[index].1).sum::<f64>());
            steps.push(imbalance(&loads.collect::<Vec<f64>>()));
            let split = placement.split_languages();
            let occurring = split
                .iter()
                .filter(|&&language| batch.iter().any(|&(other, _)| other == language));
            let copies: usize = occurring
                .map(|&language| placement.owners(language).count())
                .sum();
            bank_bytes += copies as f64 * inventory.bank_bytes() as f64;
        }
        steps.sort_by(f64::total_cmp);
        println!(
            "{world:>6} {:>7} {:>10} {:>13.0} {:>12.0} {:>13.0} {:>9.3} {:>11.2} {:>9.2}",
            placement.num_pieces(),
            format!("{least} to {most}"),
            *most as f64 * inventory.bank_memory() as f64 / MIB,
            inventory.shared_bytes() as f64 / MIB,
            bank_bytes / SIMULATED_STEPS as f64 / f64::from(world) / MIB,
            imbalance(&placement.shares(&work)),
            steps.iter().sum::<f64>() / steps.len() as f64,
            steps[steps.len() * 95 / 100],
        );
    }
    println!();
}

/// Memory for banks of the rank that has most of them, when every language has the same work.
fn memory(inventory: &Inventory) {
    println!(
        "Memory for banks of the fullest rank, MiB (weights, gradients, optimizer; one bank {:.0})",
        inventory.bank_memory() as f64 / MIB
    );
    let worlds = [1, 2, 4, 8, 64, 512];
    println!(
        "{:>10} {}",
        "languages",
        worlds.map(|world| format!("{world:>9}")).concat()
    );
    for languages in [12, 120, 1000] {
        let cells = worlds.map(|world| {
            let placement = place(&vec![1.0; languages], world);
            let most = (0..world)
                .map(|rank| placement.languages_of(Rank(rank)).len())
                .max();
            format!(
                "{:>9.0}",
                most.unwrap_or(0) as f64 * inventory.bank_memory() as f64 / MIB
            )
        });
        println!("{languages:>10} {}", cells.concat());
    }
    println!();
}

/// Banks that move when the world size changes by one.
fn moves() {
    println!(
        "Banks that move when one rank joins or is lost, of all pieces; in brackets if ranks kept their numbers"
    );
    println!(
        "{:>10} {:>6} {:>7} {:>22} {:>22}",
        "languages", "ranks", "pieces", "one joins", "one is lost"
    );
    for (languages, worlds) in [(12, [8, 64]), (120, [8, 64]), (1000, [64, 512])] {
        // Amounts fall off as they do in life: the second language has half of the first, and so on.
        let work: Vec<f64> = (0..languages)
            .map(|language| 1.0 / f64::from(language + 1))
            .collect();
        for world in worlds {
            let placement = place(&work, world);
            let cell = |other: u32| {
                let next = succession(&placement, &place(&work, other));
                format!("{} ({})", next.moved, next.moved_by_number)
            };
            println!(
                "{languages:>10} {world:>6} {:>7} {:>22} {:>22}",
                placement.num_pieces(),
                cell(world + 1),
                cell(world - 1)
            );
        }
    }
}

fn place(work: &[f64], world: u32) -> Placement {
    Placement::solve(&PlacementProblem {
        work: work.to_vec(),
        world_size: WorldSize(world),
        max_banks_per_rank: None,
    })
    .expect("memory is no limit")
}

fn imbalance(loads: &[f64]) -> f64 {
    let mean = loads.iter().sum::<f64>() / loads.len() as f64;
    loads.iter().copied().fold(0.0, f64::max) / mean
}

/// Utterances of 2 to 20 s until each language has its hours.
fn durations(hours: f64) -> Vec<Vec<f64>> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let hours = std::iter::once(960.0).chain(std::iter::repeat_n(hours, 11));
    hours
        .map(|hours| {
            let (mut durations, mut left) = (Vec::new(), hours * 3600.0);
            while left > 0.0 {
                let seconds: f64 = random.random_range(2.0..20.0);
                durations.push(seconds);
                left -= seconds;
            }
            durations
        })
        .collect()
}

/// Parameters of Zipper-LoRA on Qwen2.5-7B behind whisper-large-v3.
fn qwen(languages: u64) -> Inventory {
    let site = |name: &str, d_in, d_out| SiteShape {
        name: name.to_owned(),
        d_in,
        d_out,
    };
    let layer = [
        site("q_proj", 3584, 3584),
        site("k_proj", 3584, 512),
        site("v_proj", 3584, 512),
        site("o_proj", 3584, 3584),
        site("gate_proj", 3584, 18_944),
        site("up_proj", 3584, 18_944),
        site("down_proj", 18_944, 3584),
    ];
    let sites: Vec<SiteShape> = (0..28).flat_map(|_| layer.clone()).collect();
    let projector = ProjectorShape::Conv {
        d_encoder: 1280,
        d_llm: 3584,
    };
    let adapter = AdapterShape {
        variant: Variant::Soft,
        rank: 16,
        shared_rank: 8,
        lid_dim: 64,
        routers: sites.len() as u64,
        languages,
    };
    Inventory::new(projector, &adapter, &sites, 4)
}
