//! The charts of a comparison, as SVG.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::RenderError;
use crate::Comparison;
use crate::bootstrap::Interval;
use crate::comparison::Cell;
use crate::tables::rate;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Pixels: of a chart without its legend, of the legend, and of its lines.
const WIDTH: u32 = 760;
const LEGEND: u32 = 260;
const LINE: i32 = 20;
/// Least height of a chart.
const HEIGHT: u32 = 380;
const LETTERS: i32 = 13;
/// Part of a group's place that its bars take.
const BARS: f64 = 0.86;

/// One picture of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chart {
    /// Name of its file.
    pub(crate) file: String,
    /// What it shows.
    pub(crate) title: String,
    /// The SVG document.
    pub(crate) svg: String,
}

/// All of them: error rates for each test set, and the training losses.
pub(super) fn charts(comparison: &Comparison) -> Result<Vec<Chart>, RenderError> {
    let sets = comparison.sets();
    let mut charts = sets
        .iter()
        .map(|set| rates(comparison, set))
        .collect::<Result<Vec<_>, _>>()?;
    charts.extend(losses(comparison)?);
    Ok(charts)
}

/// Draws an SVG document: `draw` gets the part for the chart, and the whole for words at its edges.
fn picture(
    comparison: &Comparison,
    draw: impl FnOnce(&Area<'_>, &Area<'_>) -> Result<(), RenderError>,
) -> Result<String, RenderError> {
    let height = HEIGHT.max((comparison.cells.len() as i32 * LINE + 2 * LINE) as u32);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH + LEGEND, height)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let (chart, legend) = area.split_horizontally(WIDTH);
        draw(&chart, &area)?;
        for (line, cell) in (1i32..).zip(&comparison.cells) {
            let middle = line * LINE + LINE / 2;
            let swatch = [(0, middle - 5), (14, middle + 5)];
            let color = color(comparison, cell);
            legend
                .draw(&Rectangle::new(swatch, color.filled()))
                .map_err(failed)?;
            let words = Text::new(cell.values.join(", "), (22, middle), words(HPos::Left));
            legend.draw(&words).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Bars with intervals: a colour for each cell, a place for each group.
fn rates(comparison: &Comparison, set: &str) -> Result<Chart, RenderError> {
    let title = format!("Error rate by group of languages, test set {set}");
    let bars: Vec<Vec<Option<Interval>>> = comparison
        .groups
        .iter()
        .map(|group| {
            let of = |cell: &Cell| rate(cell, set, &group.languages);
            comparison.cells.iter().map(of).collect()
        })
        .collect();
    let highest = bars.iter().flatten().flatten().map(|rate| rate.high);
    let highest = highest.fold(0.01, f64::max) * 105.0;
    let svg = picture(comparison, |area, whole| {
        let places = comparison.groups.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(&title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..places, 0.0..highest)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .y_desc("WER or CER, %")
            .y_label_formatter(&|rate| format!("{rate:.0}"))
            .draw()
            .map_err(failed)?;
        let wide = BARS / comparison.cells.len().max(1) as f64;
        for (place, (group, of_group)) in comparison.groups.iter().zip(&bars).enumerate() {
            for (number, (cell, rate)) in comparison.cells.iter().zip(of_group).enumerate() {
                let Some(rate) = rate else { continue };
                let left = place as f64 + (1.0 - BARS) / 2.0 + number as f64 * wide;
                let corners = [(left, 0.0), (left + 0.9 * wide, 100.0 * rate.value)];
                let bar = Rectangle::new(corners, color(comparison, cell).filled());
                let middle = left + 0.45 * wide;
                let interval =
                    PathElement::new([(middle, 100.0 * rate.low), (middle, 100.0 * rate.high)], BLACK);
                chart.draw_series([bar]).map_err(failed)?;
                chart.draw_series([interval]).map_err(failed)?;
            }
            let (x, y) = chart.backend_coord(&(place as f64 + 0.5, 0.0));
            let name = Text::new(group.name.clone(), (x, y + LINE / 2), words(HPos::Center));
            whole.draw(&name).map_err(failed)?;
        }
        Ok(())
    })?;
    Ok(Chart {
        file: format!("rates-{set}.svg"),
        title,
        svg,
    })
}

/// Training loss by step of stage 2; nothing where no steps were logged.
fn losses(comparison: &Comparison) -> Result<Option<Chart>, RenderError> {
    let points = comparison.cells.iter().flat_map(|cell| &cell.losses);
    let points = points.filter(|(_, loss)| *loss > 0.0 && loss.is_finite());
    let (mut last, mut low, mut high) = (0, f64::INFINITY, 0.0f64);
    for &(step, loss) in points {
        (last, low, high) = (last.max(step), low.min(loss), high.max(loss));
    }
    if last == 0 {
        return Ok(None);
    }
    let title = "Training loss of stage 2, smoothed, mean over the seeds".to_owned();
    let svg = picture(comparison, |area, _| {
        let mut chart = ChartBuilder::on(area)
            .caption(&title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0..last, (0.95 * low..1.05 * high).log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("step of stage 2")
            .y_desc("nats a token")
            .y_label_formatter(&|loss| format!("{loss:.3}"))
            .draw()
            .map_err(failed)?;
        for cell in &comparison.cells {
            let line = PathElement::new(cell.losses.clone(), color(comparison, cell).stroke_width(2));
            chart.draw_series([line]).map_err(failed)?;
        }
        Ok(())
    })?;
    Ok(Some(Chart {
        file: "losses.svg".to_owned(),
        title,
        svg,
    }))
}

/// The same for a cell in every chart.
fn color(comparison: &Comparison, cell: &Cell) -> RGBColor {
    let number = comparison
        .cells
        .iter()
        .position(|other| std::ptr::eq(other, cell));
    let (red, green, blue) = Palette99::pick(number.unwrap_or(0)).rgb();
    RGBColor(red, green, blue)
}

fn words(at: HPos) -> TextStyle<'static> {
    ("sans-serif", LETTERS)
        .into_font()
        .color(&BLACK)
        .pos(Pos::new(at, VPos::Center))
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` gives it away")]
fn failed<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> RenderError {
    RenderError::Picture(error.to_string())
}
