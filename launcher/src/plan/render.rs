//! A plan for people.

use comfy_table::Table;

use super::estimate::{Estimate, RankPlan, StagePlan};

/// Ranks that the table shows at each end; the ones between are counted.
const SHOWN: usize = 32;

/// The whole plan as text.
pub(crate) fn render(plan: &Estimate) -> String {
    let unit = if plan.measured { "s" } else { "positions" };
    let mut text = vec![format!(
        "Run `{}`: variant {}, {} workers",
        plan.name, plan.variant, plan.world_size
    )];
    text.push(languages(plan, unit).to_string());
    text.push(stage("align", &plan.align));
    text.push(stage("zipper", &plan.zipper));
    text.push(ranks(&plan.zipper, unit));
    text.push(memory(plan));
    let lost = match plan.banks_moved_when_one_is_lost {
        Some(moved) => format!("{moved} banks move if one worker is lost"),
        None if plan.world_size.0 == 1 => "there is no other worker if this one is lost".to_owned(),
        None => "the banks do not fit if a worker is lost".to_owned(),
    };
    text.push(format!(
        "Banks: {lost}, {} if one joins.",
        plan.banks_moved_when_one_joins
    ));
    text.join("\n")
}

fn languages(plan: &Estimate, unit: &str) -> Table {
    let work = format!("work per step, {unit}");
    let mut table = table(&[
        "language",
        "train h",
        "utterances",
        "epochs of align",
        "of zipper",
        &work,
        "bank on ranks",
    ]);
    for language in &plan.languages {
        let owners = match language.owners {
            None => "-".to_owned(),
            Some((first, last)) if first == last => first.to_string(),
            Some((first, last)) => format!("{first} to {last}"),
        };
        table.add_row([
            language.lang.clone(),
            format!("{:.2}", language.hours),
            language.utterances.to_string(),
            number(language.epochs_align),
            number(language.epochs_zipper),
            number(language.work),
            owners,
        ]);
    }
    table
}

fn stage(name: &str, plan: &StagePlan) -> String {
    let mut lines = vec![format!(
        "Stage {name}: {} shared parameters ({}), all-reduced by all ranks: {} per step; checkpoint {}",
        plan.shared_parameters,
        bytes(plan.shared_bytes),
        bytes(plan.all_reduce_bytes),
        bytes(plan.checkpoint_bytes)
    )];
    if plan.bank_parameters > 0 {
        lines.push(format!(
            "  a bank: {} parameters ({}), all-reduced by its owners where it has several",
            plan.bank_parameters,
            bytes(plan.bank_bytes)
        ));
    }
    let balance = &plan.balance;
    lines.push(format!(
        "  slowest rank to mean: {:.3} expected; {:.2} on average and {:.2} in 95 % of {} simulated steps",
        balance.expected, balance.simulated_mean, balance.simulated_p95, balance.simulated_steps
    ));
    lines.join("\n")
}

fn ranks(plan: &StagePlan, unit: &str) -> String {
    let work = format!("work per step, {unit}");
    let mut table = table(&[
        "rank",
        &work,
        "banks",
        "gradients",
        "optimizer",
        "remembered",
        "languages",
    ]);
    let row = |table: &mut Table, rank: &RankPlan| {
        table.add_row([
            rank.rank.to_string(),
            number(rank.work),
            bytes(rank.bank_bytes),
            bytes(rank.gradient_bytes),
            bytes(rank.optimizer_bytes),
            bytes(rank.remembered_bytes),
            rank.languages.join(" "),
        ]);
    };
    let left_out = plan.ranks.len().saturating_sub(2 * SHOWN);
    let head = if left_out > 0 { SHOWN } else { plan.ranks.len() };
    for rank in &plan.ranks[..head] {
        row(&mut table, rank);
    }
    if left_out > 0 {
        table.add_row(["..".to_owned(), format!("{left_out} more ranks; --json has all")]);
        for rank in &plan.ranks[plan.ranks.len() - SHOWN..] {
            row(&mut table, rank);
        }
    }
    format!("Ranks in stage zipper\n{table}")
}

/// What a worker's memory, or its GPU's, has to hold.
fn memory(plan: &Estimate) -> String {
    let trained = |rank: &RankPlan| {
        plan.zipper.shared_bytes
            + rank.bank_bytes
            + rank.gradient_bytes
            + rank.optimizer_bytes
            + rank.remembered_bytes
    };
    let most = plan.zipper.ranks.iter().map(trained).max().unwrap_or_default();
    format!(
        "Memory of a worker: frozen models {}, what is trained and remembered up to {}; activations come on top.",
        bytes(plan.frozen_bytes),
        bytes(most)
    )
}

fn table(header: &[&str]) -> Table {
    zipper_cli::table(header.iter().copied(), 1..header.len() - 1)
}

/// Three significant digits.
fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

/// So many bytes, for people.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
