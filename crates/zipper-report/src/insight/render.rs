//! [`Insight`] as tables, pictures (SVG) and one HTML page that needs no network.

use std::fmt::Write;

use minijinja::{Environment, context};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Insight, Unit};
use crate::render::{RenderError, for_page, table_markdown, text_of};
use crate::tables::Table;

const PAGE: &str = include_str!("page.html");
/// Pixels of a cell of a matrix whose numbers are written in it, and of one whose are not.
const WIDE: i32 = 44;
const NARROW: i32 = 16;
/// Pixels for the names of rows, of columns, and for the title.
const LEFT: i32 = 70;
const BOTTOM: i32 = 24;
const TOP: i32 = 28;
const LETTERS: i32 = 12;

/// Every file of the report: its name and contents.
pub type Files = Vec<(String, String)>;

/// The report: `inspect.md` with the pictures beside it, `inspect.html` with them inside it, `gates.csv`.
///
/// # Errors
/// [`RenderError`] if a file cannot be written.
pub fn files(insight: &Insight) -> Result<Files, RenderError> {
    let tables = tables(insight);
    let pictures = pictures(insight)?;
    let mut markdown = format!("# {}\n\n{}\n", title(insight), words(insight));
    for (file, about, _) in &pictures {
        let _ = write!(markdown, "\n![{about}]({file})\n");
    }
    for table in &tables {
        markdown.push_str(&table_markdown(table));
    }
    let mut environment = Environment::new();
    environment.add_template("page.html", PAGE)?;
    let page = environment.get_template("page.html")?.render(context! {
        title => title(insight),
        words => words(insight),
        pictures => pictures.iter().map(|(_, about, svg)| context! { about => about.as_str(), svg => svg.as_str() }).collect::<Vec<_>>(),
        tables => tables.iter().map(for_page).collect::<Vec<_>>(),
    })?;
    let mut files = vec![
        ("inspect.md".to_owned(), markdown),
        ("inspect.html".to_owned(), page),
        ("gates.csv".to_owned(), csv(insight)?),
    ];
    files.extend(pictures.into_iter().map(|(file, _, svg)| (file, svg)));
    Ok(files)
}

/// Every gate for programs: `unit,language,rank,gate`, ranks counted from 0.
///
/// # Errors
/// [`RenderError::Csv`] if it cannot be written.
fn csv(insight: &Insight) -> Result<String, RenderError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["unit", "language", "rank", "gate"])?;
    for unit in &insight.units {
        for (lang, gates) in insight.languages.iter().zip(&unit.gates) {
            for (rank, gate) in gates.iter().enumerate() {
                writer.serialize((&unit.name, lang, rank, gate))?;
            }
        }
    }
    text_of(writer)
}

/// What a terminal shows of it.
pub fn summary(insight: &Insight) -> String {
    let mut lines = vec![title(insight), words(insight)];
    if !insight.units.is_empty() {
        for (language, lang) in insight.languages.iter().enumerate() {
            lines.push(format!(
                "{lang:<6} {:.3} shared",
                insight.share_of_language(language)
            ));
        }
    }
    lines.join("\n")
}

fn title(insight: &Insight) -> String {
    format!("What `{}` learnt, step {}", insight.variant, insight.step)
}

fn words(insight: &Insight) -> String {
    use zipper_types::Variant::{Hard, Independent, Shared, Soft, Static};
    let what = match insight.variant {
        Shared => "All ranks are shared by all languages: there is nothing to see.",
        Independent => "Nothing is shared: every language has an adapter of its own.",
        Static => "The first ranks are shared, the others belong to the language, everywhere alike.",
        Hard => {
            "A rank is shared where its gate is at least 0.5, and else the language's own. The share is the part of ranks that are shared."
        }
        Soft => {
            "A gate is the weight of what is shared in a rank; the rest is the language's own. The share is the mean gate."
        }
    };
    format!("Run {}. {what}", insight.run)
}

fn tables(insight: &Insight) -> Vec<Table> {
    let mut tables = Vec::new();
    if !insight.units.is_empty() {
        let languages = insight.languages.iter().enumerate();
        let rows = languages.map(|(language, lang)| -> Vec<String> {
            let of_units = insight.units.iter();
            let shares: Vec<f64> = of_units.map(|unit| insight.share(unit, language)).collect();
            let lowest = shares.iter().copied().fold(f64::INFINITY, f64::min);
            let highest = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let share = insight.share_of_language(language);
            let shares = [share, lowest, highest].map(|share| format!("{share:.3}"));
            std::iter::once(lang.clone()).chain(shares).collect()
        });
        tables.push(Table {
            title: "Share by language".to_owned(),
            note: "Mean over the routers, and the lowest and highest of them.".to_owned(),
            header: ["language", "share", "lowest", "highest"]
                .map(str::to_owned)
                .to_vec(),
            rows: rows.collect(),
        });
        let units = insight.units.iter();
        tables.push(Table {
            title: "Share by layer".to_owned(),
            note: "Mean over the languages.".to_owned(),
            header: ["layer", "share"].map(str::to_owned).to_vec(),
            rows: units
                .map(|unit| vec![unit.name.clone(), format!("{:.3}", insight.share_of_unit(unit))])
                .collect(),
        });
    }
    tables
}

/// File name, what it shows, SVG.
fn pictures(insight: &Insight) -> Result<Vec<(String, String, String)>, RenderError> {
    let mut pictures = Vec::new();
    let languages = &insight.languages;
    if !insight.units.is_empty() {
        let shares = (0..languages.len()).map(|language| {
            let of_units = insight.units.iter();
            of_units.map(|unit| insight.share(unit, language)).collect()
        });
        let about = format!(
            "Share of shared ranks: a row for each language, a column for each of {} layers in their order",
            insight.units.len()
        );
        let matrix = Matrix {
            rows: languages,
            columns: &[],
            values: shares.collect(),
            range: (0.0, 1.0),
        };
        pictures.push((
            "shares.svg".to_owned(),
            about.clone(),
            matrix.svg("Share of shared ranks by layer")?,
        ));
    }
    let similarities = [
        ("similarity-gates.svg", "gates", insight.gate_similarity()),
        (
            "similarity-banks.svg",
            "own matrices",
            insight.bank_similarity.clone(),
        ),
    ];
    for (file, of, values) in similarities {
        let Some(values) = values else { continue };
        let about = format!(
            "Cosine similarity of the languages by their {of}, apart from the mean over the languages"
        );
        let matrix = Matrix {
            rows: languages,
            columns: languages,
            values,
            range: (-1.0, 1.0),
        };
        let title = format!("Similarity of languages by {of}");
        pictures.push((file.to_owned(), about, matrix.svg(&title)?));
    }
    for unit in &insight.units {
        let about = format!(
            "Gates of {}: a row for each language, a column for each of {} ranks",
            unit.name, insight.rank
        );
        let file = format!("gates-{}.svg", unit.name);
        pictures.push((file, about, gate_map(insight, unit)?));
    }
    Ok(pictures)
}

fn gate_map(insight: &Insight, unit: &Unit) -> Result<String, RenderError> {
    let rows = unit.gates.iter();
    let matrix = Matrix {
        rows: &insight.languages,
        columns: &[],
        values: rows
            .map(|row| row.iter().map(|&gate| f64::from(gate)).collect())
            .collect(),
        range: (0.0, 1.0),
    };
    matrix.svg(&unit.name)
}

/// A matrix as colours.
struct Matrix<'a> {
    rows: &'a [String],
    /// Empty: columns have no names, and cells no numbers.
    columns: &'a [String],
    values: Vec<Vec<f64>>,
    /// The values of the darkest and the brightest colour.
    range: (f64, f64),
}

impl Matrix<'_> {
    fn svg(&self, title: &str) -> Result<String, RenderError> {
        let cell = if self.columns.is_empty() { NARROW } else { WIDE };
        let height = if self.columns.is_empty() { NARROW } else { WIDE / 2 };
        let columns = self.values.first().map_or(0, Vec::len) as i32;
        let width = (LEFT + columns * cell).max(LEFT + title.len() as i32 * 8);
        let size = (
            width as u32,
            (TOP + self.rows.len() as i32 * height + BOTTOM) as u32,
        );
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            let drawn = self.draw(&area, title, (cell, height));
            drawn
                .and_then(|()| area.present())
                .map_err(|error| RenderError::Picture(error.to_string()))?;
        }
        Ok(svg)
    }

    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, plotters::coord::Shift>,
        title: &str,
        (cell, height): (i32, i32),
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        let text = |anchor: HPos, color: &RGBColor, size: i32| {
            ("sans-serif", size)
                .into_font()
                .color(color)
                .pos(Pos::new(anchor, VPos::Center))
        };
        let to_left = text(HPos::Right, &BLACK, LETTERS);
        let centred = text(HPos::Center, &BLACK, LETTERS);
        area.fill(&WHITE)?;
        area.draw(&Text::new(
            title.to_owned(),
            (LEFT, TOP / 2),
            text(HPos::Left, &BLACK, LETTERS + 2),
        ))?;
        for (row, (name, values)) in (0i32..).zip(self.rows.iter().zip(&self.values)) {
            let top = TOP + row * height;
            area.draw(&Text::new(
                name.clone(),
                (LEFT - 6, top + height / 2),
                to_left.clone(),
            ))?;
            for (column, &value) in (0i32..).zip(values) {
                let left = LEFT + column * cell;
                let bright = ((value - self.range.0) / (self.range.1 - self.range.0)).clamp(0.0, 1.0);
                let color = ViridisRGB.get_color(bright);
                area.draw(&Rectangle::new(
                    [(left, top), (left + cell, top + height)],
                    color.filled(),
                ))?;
                if !self.columns.is_empty() {
                    let ink = if bright > 0.6 { &BLACK } else { &WHITE };
                    let at = (left + cell / 2, top + height / 2);
                    area.draw(&Text::new(
                        format!("{value:.2}"),
                        at,
                        text(HPos::Center, ink, LETTERS),
                    ))?;
                }
            }
        }
        let below = TOP + self.rows.len() as i32 * height + BOTTOM / 2;
        for (column, name) in (0i32..).zip(self.columns) {
            let at = (LEFT + column * cell + cell / 2, below);
            area.draw(&Text::new(name.clone(), at, centred.clone()))?;
        }
        if self.columns.is_empty() {
            let scale = format!("dark {}, bright {}", self.range.0, self.range.1);
            area.draw(&Text::new(
                scale,
                (LEFT, below),
                text(HPos::Left, &BLACK, LETTERS - 2),
            ))?;
        }
        Ok(())
    }
}
