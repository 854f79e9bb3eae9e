//! The HTML page: charts and the tables.

use minijinja::{Environment, context};
use plotly::common::{ErrorData, ErrorType, Mode, Title};
use plotly::layout::{Axis, BarMode};
use plotly::{Bar, Layout, Plot, Scatter};

use super::{RenderError, missing};
use crate::Comparison;
use crate::comparison::Cell;
use crate::tables::{figures, tables};

const PAGE: &str = include_str!("page.html");

/// The page. It holds the chart library and needs no network: about 4 MB.
///
/// # Errors
/// [`RenderError::Page`] if its template does not hold.
pub fn html(comparison: &Comparison) -> Result<String, RenderError> {
    let mut charts: Vec<String> = comparison
        .sets()
        .iter()
        .enumerate()
        .map(|(index, set)| rates(comparison, set).to_inline_html(Some(&format!("rates-{index}"))))
        .collect();
    charts.push(losses(comparison).to_inline_html(Some("losses")));
    let tables: Vec<_> = tables(comparison)
        .into_iter()
        .map(|table| context! { title => table.title, note => table.note, header => table.header, rows => table.rows })
        .collect();
    let mut environment = Environment::new();
    environment.add_template("page.html", PAGE)?;
    Ok(environment.get_template("page.html")?.render(context! {
        name => &comparison.name,
        missing => missing(comparison),
        library => first_script(&Plot::offline_js_sources()),
        charts,
        tables,
    })?)
}

fn title_of(cell: &Cell) -> String {
    cell.values.join(", ")
}

/// Bars with intervals: a colour for each cell, a place for each group.
fn rates(comparison: &Comparison, set: &str) -> Plot {
    let mut plot = Plot::new();
    let names: Vec<String> = comparison.groups.iter().map(|group| group.name.clone()).collect();
    for cell in &comparison.cells {
        let of_groups: Vec<_> = comparison
            .groups
            .iter()
            .map(|group| figures(comparison, cell, set, &group.languages).rate)
            .collect();
        let column = |of: &dyn Fn(crate::bootstrap::Interval) -> f64| -> Vec<f64> {
            of_groups.iter().map(|rate| rate.map_or(f64::NAN, of)).collect()
        };
        let errors = ErrorData::new(ErrorType::Data)
            .array(column(&|rate| 100.0 * (rate.high - rate.value)))
            .array_minus(column(&|rate| 100.0 * (rate.value - rate.low)));
        plot.add_trace(
            Bar::new(names.clone(), column(&|rate| 100.0 * rate.value))
                .name(title_of(cell))
                .error_y(errors),
        );
    }
    plot.set_layout(
        Layout::new()
            .title(Title::with_text(format!("Error rate by group, test set {set}")))
            .bar_mode(BarMode::Group)
            .y_axis(Axis::new().title(Title::with_text("WER or CER, %"))),
    );
    plot
}

/// Training loss by step of stage 2.
fn losses(comparison: &Comparison) -> Plot {
    let mut plot = Plot::new();
    for cell in &comparison.cells {
        let (steps, losses) = cell.losses.iter().copied().unzip();
        plot.add_trace(
            Scatter::<u64, f64>::new(steps, losses)
                .mode(Mode::Lines)
                .name(title_of(cell)),
        );
    }
    plot.set_layout(
        Layout::new()
            .title(Title::with_text(
                "Training loss of stage 2, smoothed, mean over the seeds",
            ))
            .x_axis(Axis::new().title(Title::with_text("step of stage 2")))
            .y_axis(
                Axis::new()
                    .title(Title::with_text("nats a token"))
                    .type_(plotly::layout::AxisType::Log),
            ),
    );
    plot
}

/// What is in the first `<script>`: the chart library, without the one for formulas.
fn first_script(html: &str) -> String {
    let script = html
        .split_once("<script")
        .and_then(|(_, rest)| rest.split_once('>'));
    let script = script.and_then(|(_, rest)| rest.split_once("</script>"));
    script.map_or_else(String::new, |(script, _)| script.to_owned())
}
