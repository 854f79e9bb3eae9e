//! The model of one step: what each part of it takes on a number of GPUs with a number of languages.

use std::collections::{BTreeMap, BTreeSet};

use zipper_plan::{Inventory, Placement};
use zipper_types::Rank;

use crate::GIB;
use crate::assumed::{LAYERS, SITES, late_parameters, qwen};
use crate::flags::Flags;
use crate::simulation::{Dealt, Simulation};

/// Shared parameter tensors: A, shared B, the router's two of each site; the LID table; the projector.
const SHARED_TENSORS: usize = 4 * SITES + 1 + 10;
/// Kernels for each adapted layer and language of a micro batch, counted in zipper-model: the product and its two in backward, cutting
/// and joining, adding the gradient up (`merged.rs`, `last_pass.rs`).
const KERNELS_OF_A_LANGUAGE: usize = 7;
/// Kernels of forward and backward without adapters, about: LLM, encoder.
const KERNELS_OF_A_PASS: usize = LAYERS * 180 + 32 * 25;
/// Bytes that an update reads and writes for each number: norm, scaling, AdamW, the state kept for other ranks; counted when AdamW took
/// several passes, so too many.
const BYTES_OF_AN_UPDATE: f64 = 84.0;
/// How often a bank lies on the GPU of its owner: weights, gradients, two moments; weights and moments of the step before; the same in
/// a snapshot; the same of a bank that is kept for a neighbour (`memory.rs`).
const COPIES_OF_A_BANK: f64 = 13.0;
/// Numbers in a step's last exchange, and those for each language in the batch (`step.rs`).
const EXCHANGED: [usize; 2] = [5, 3];

/// A number of GPUs with a number of languages: means over the simulated steps, in seconds.
pub(crate) struct Cell {
    pub(crate) world: u32,
    pub(crate) languages: usize,
    pub(crate) utterances: f64,
    /// Languages in a batch, and on the rank that has most of them.
    pub(crate) in_batch: f64,
    pub(crate) on_rank: f64,
    pub(crate) compute: f64,
    /// Expected seconds beyond the mean of the rank that computes longest.
    pub(crate) slowest: f64,
    /// Of the rank that updates longest.
    pub(crate) update: f64,
    pub(crate) exposed: f64,
    pub(crate) exchange: f64,
    /// Drawing the batch, dealing it to owners, and dealing it where there are no banks: the least of all steps, as other work on
    /// this machine only adds.
    pub(crate) draw: f64,
    pub(crate) deal: f64,
    pub(crate) deal_without_banks: f64,
    /// Whether that is before the step.
    plans_first: bool,
    /// Banks of the rank that has most.
    pub(crate) banks: usize,
    /// Bytes of a checkpoint that the rank with most of them writes.
    pub(crate) written: u64,
    pub(crate) inventory: Inventory,
}

impl Cell {
    pub(crate) fn new(flags: &Flags, world: u32, durations: &[Vec<f64>]) -> Self {
        let languages = durations.len();
        let inventory = qwen(languages as u64);
        let steps = flags.of("steps").max(1.0) as usize;
        let mut simulation = Simulation::new(flags, world, durations);
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
            banks: simulation.owned.iter().copied().max().unwrap_or(0),
            written: written(&simulation.placement, &inventory),
            inventory,
        };
        for _ in 0..steps {
            cell.add_step(flags, &mut simulation);
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
    fn add_step(&mut self, flags: &Flags, simulation: &mut Simulation<'_>) {
        let ranks = f64::from(self.world);
        let Dealt {
            batch,
            hands,
            draw,
            deal,
            deal_without_banks,
        } = simulation.next_step();
        self.draw = self.draw.min(draw);
        self.deal = self.deal.min(deal);
        self.deal_without_banks = self.deal_without_banks.min(deal_without_banks);

        let placement = &simulation.placement;
        let in_batch: BTreeSet<usize> = batch.iter().map(|at| at.language).collect();
        let (mut total, mut longest, mut most, mut longest_update) = (0.0, 0.0_f64, 0, 0.0_f64);
        let mut backward = 0.0;
        for (rank, hand) in (0..).zip(&hands) {
            let of_hand = || hand.iter().map(|&index| &batch[index]);
            let seconds: f64 = of_hand().map(|at| simulation.seconds(at)).sum();
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
            longest_update =
                longest_update.max(self.update_of(flags, updated, simulation.owned[rank as usize]));
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

    pub(crate) fn planning(&self) -> f64 {
        if self.plans_first {
            self.draw + self.deal
        } else {
            0.0
        }
    }

    pub(crate) fn terms(&self) -> [(&'static str, f64); 5] {
        [
            ("slowest rank", self.slowest),
            ("update", self.update),
            ("gradients", self.exposed),
            ("last exchange", self.exchange),
            ("planning", self.planning()),
        ]
    }

    pub(crate) fn step(&self) -> f64 {
        self.compute + self.terms().map(|(_, seconds)| seconds).iter().sum::<f64>()
    }

    pub(crate) fn largest(&self) -> (&'static str, f64) {
        let terms = self.terms().into_iter();
        terms
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .expect("there are terms")
    }

    /// GiB for banks on the rank that has most of them, with what is remembered of them.
    pub(crate) fn bank_gib(&self) -> f64 {
        self.banks as f64 * COPIES_OF_A_BANK * self.inventory.bank_bytes() as f64 / GIB
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
