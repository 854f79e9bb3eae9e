//! The table of results.

use comfy_table::Table;
use zipper_score::{Headline, Rates, ResultRow, ResultSet, ResultTable};

/// One table for each test set; rates in per cent, the figure that counts for a language marked with `*`.
pub(crate) fn render(results: &ResultTable) -> String {
    let sets = results.sets.iter().map(|set| {
        format!(
            "Test set `{}` after step {}\n{}",
            set.name,
            results.step,
            render_set(set)
        )
    });
    let mut text: Vec<String> = sets.collect();
    text.push(
        "WER and CER in %; * the figure that counts for the language. `no audio`: the same model with silenced speech.\n\
         `untrained`: before the first step."
            .to_owned(),
    );
    text.join("\n\n")
}

fn render_set(set: &ResultSet) -> Table {
    let has_silenced = set.overall.silenced.is_some();
    let has_untrained = set.overall.untrained.is_some();
    let mut header = vec!["language", "train h", "utterances", "WER"];
    let controls = |header: &mut Vec<&str>| {
        header.extend(has_silenced.then_some("no audio"));
        header.extend(has_untrained.then_some("untrained"));
    };
    controls(&mut header);
    header.push("CER");
    controls(&mut header);
    let columns = header.len();
    let mut table = zipper_cli::table(header, 1..columns);
    for row in set.languages.iter().chain([&set.overall]) {
        table.add_row(cells(row, has_silenced, has_untrained));
    }
    table
}

fn cells(row: &ResultRow, has_silenced: bool, has_untrained: bool) -> Vec<String> {
    let hours = row
        .train_hours
        .map_or_else(|| "-".to_owned(), |hours| format!("{hours:.2}"));
    let mut cells = vec![row.lang.clone(), hours, row.utterances.to_string()];
    for figure in [Headline::Wer, Headline::Cer] {
        let mark = if row.headline == Some(figure) { "*" } else { "" };
        let percent = |rates: Option<&Rates>| match (rates, figure) {
            (None, _) => "-".to_owned(),
            (Some(rates), Headline::Wer) => format!("{:.1}", 100.0 * rates.wer),
            (Some(rates), Headline::Cer) => format!("{:.1}", 100.0 * rates.cer),
        };
        cells.push(format!("{}{mark}", percent(Some(&row.trained))));
        if has_silenced {
            cells.push(percent(row.silenced.as_ref()));
        }
        if has_untrained {
            cells.push(percent(row.untrained.as_ref()));
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use zipper_types::Step;

    use super::*;

    #[test]
    fn every_figure_stands_beside_its_controls() {
        let row = |lang: &str, wer: f64, headline| ResultRow {
            lang: lang.to_owned(),
            train_hours: Some(0.5),
            utterances: 7,
            headline,
            trained: Rates { wer, cer: wer / 2.0 },
            silenced: Some(Rates { wer: 0.91, cer: 0.6 }),
            untrained: None,
        };
        let set = ResultSet {
            name: "numbers".to_owned(),
            languages: vec![
                row("en", 0.125, Some(Headline::Wer)),
                row("ja", 0.5, Some(Headline::Cer)),
            ],
            overall: row("all", 0.3, None),
        };
        let text = render(&ResultTable {
            step: Step(12),
            sets: vec![set],
        });
        let line = |lang: &str| {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(lang))
                .expect("a row");
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("en"), "en 0.50 7 12.5* 91.0 6.2 60.0");
        assert_eq!(line("ja"), "ja 0.50 7 50.0 91.0 25.0* 60.0");
        assert!(
            !text.lines().nth(2).expect("a header").contains("untrained"),
            "{text}"
        );
    }
}
