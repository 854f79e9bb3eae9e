//! A comparison as Markdown, CSV and one HTML page that needs no network.

mod charts;
mod html;

use std::fmt::Write;

use minijinja::context;
use serde::Serialize;

use charts::Chart;

use crate::Comparison;
use crate::tables::{Table, figures, tables};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The CSV file.
    #[error("the figures cannot be written as CSV")]
    Csv(#[from] csv::Error),
    /// The page.
    #[error("the page cannot be written")]
    Page(#[from] minijinja::Error),
    /// A picture.
    #[error("a picture cannot be drawn: {0}")]
    Picture(String),
}

/// What is said above the tables of runs without a result.
fn missing(comparison: &Comparison) -> Option<String> {
    (!comparison.missing.is_empty()).then(|| {
        format!(
            "Not in it, because they have no result yet: {}.",
            comparison.missing.join(", ")
        )
    })
}

/// Every file of the report by its name: `report.md` with its pictures beside it, `report.html` with them inside it, `report.csv`.
///
/// # Errors
/// [`RenderError`] if one of them cannot be written.
pub fn files(comparison: &Comparison) -> Result<Vec<(String, String)>, RenderError> {
    let (charts, tables) = (charts::charts(comparison)?, tables(comparison));
    let mut files = vec![
        ("report.md".to_owned(), markdown(comparison, &charts, &tables)),
        ("report.csv".to_owned(), csv(comparison)?),
        (
            "report.html".to_owned(),
            html::html(comparison, &charts, &tables)?,
        ),
    ];
    files.extend(charts.into_iter().map(|chart| (chart.file, chart.svg)));
    Ok(files)
}

/// Tables for people, and for documents, without pictures.
pub fn text(comparison: &Comparison) -> String {
    markdown(comparison, &[], &tables(comparison))
}

fn markdown(comparison: &Comparison, charts: &[Chart], tables: &[Table]) -> String {
    let mut text = format!("# {}\n", comparison.name);
    if let Some(missing) = missing(comparison) {
        let _ = write!(text, "\n{missing}\n");
    }
    for chart in charts {
        let _ = write!(text, "\n![{}]({})\n", chart.title, chart.file);
    }
    for table in tables {
        text.push_str(&table_markdown(table));
    }
    text
}

/// A table as templates take it.
pub(crate) fn for_page(table: &Table) -> minijinja::Value {
    context! { title => &table.title, note => &table.note, header => &table.header, rows => &table.rows }
}

/// One table with its title.
pub(crate) fn table_markdown(table: &Table) -> String {
    let mut text = format!("\n## {}\n\n{}\n\n", table.title, table.note);
    let rule = vec!["---".to_owned(); table.header.len()];
    for row in [&table.header, &rule].into_iter().chain(&table.rows) {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// The text that was written.
///
/// # Errors
/// [`RenderError::Csv`] if it was not written in full.
pub(crate) fn text_of(writer: csv::Writer<Vec<u8>>) -> Result<String, RenderError> {
    let bytes = writer
        .into_inner()
        .map_err(|error| csv::Error::from(error.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One line of the CSV file: an error rate. Fractions, not percent.
#[derive(Serialize)]
struct Line<'a> {
    set: &'a str,
    /// `language` or `group`.
    of: &'static str,
    name: &'a str,
    seeds: usize,
    rate: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    silenced: Option<f64>,
    to_shared: Option<f64>,
    to_shared_low: Option<f64>,
    to_shared_high: Option<f64>,
    to_independent: Option<f64>,
    to_independent_low: Option<f64>,
    to_independent_high: Option<f64>,
}

/// Every error rate with its interval and its changes against the baselines, for programs: one line for each cell, test set, and
/// language or group.
///
/// # Errors
/// [`RenderError::Csv`] if it cannot be written.
fn csv(comparison: &Comparison) -> Result<String, RenderError> {
    let mut writer = csv::WriterBuilder::new()
        .has_headers(false)
        .from_writer(Vec::new());
    let fixed = [
        "set",
        "of",
        "name",
        "seeds",
        "rate",
        "low",
        "high",
        "silenced",
        "to_shared",
        "to_shared_low",
        "to_shared_high",
        "to_independent",
        "to_independent_low",
        "to_independent_high",
    ];
    writer.write_record(comparison.axes.iter().map(String::as_str).chain(fixed))?;
    for cell in &comparison.cells {
        for set in cell.tests.keys() {
            let groups = comparison.groups.iter();
            let groups_of = groups
                .clone()
                .map(|group| ("group", &group.name, group.languages.clone()));
            let languages = groups.flat_map(|group| &group.languages);
            let languages = languages.map(|lang| ("language", lang, vec![lang.clone()]));
            for (of, name, languages) in groups_of.chain(languages) {
                let figures = figures(comparison, cell, set, &languages);
                let Some(rate) = figures.rate else { continue };
                let silenced = cell.silenced.get(set);
                let [shared, independent] = figures.changes;
                let line = Line {
                    set,
                    of,
                    name,
                    seeds: cell.seeds,
                    rate: Some(rate.value),
                    low: Some(rate.low),
                    high: Some(rate.high),
                    silenced: silenced.and_then(|sample| sample.mean_rate(&languages)),
                    to_shared: shared.map(|change| change.value),
                    to_shared_low: shared.map(|change| change.low),
                    to_shared_high: shared.map(|change| change.high),
                    to_independent: independent.map(|change| change.value),
                    to_independent_low: independent.map(|change| change.low),
                    to_independent_high: independent.map(|change| change.high),
                };
                writer.serialize((&cell.values, line))?;
            }
        }
    }
    text_of(writer)
}
