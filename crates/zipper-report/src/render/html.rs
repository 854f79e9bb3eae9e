//! The HTML page: charts and the tables.

use minijinja::{Environment, Value, context};

use super::charts::Chart;
use super::{RenderError, for_page, missing};
use crate::Comparison;
use crate::tables::Table;

const PAGE: &str = include_str!("page.html");

/// The page, which needs no network.
///
/// # Errors
/// [`RenderError::Page`] if its template does not hold.
pub(super) fn html(
    comparison: &Comparison,
    charts: &[Chart],
    tables: &[Table],
) -> Result<String, RenderError> {
    let mut environment = Environment::new();
    environment.add_template("page.html", PAGE)?;
    Ok(environment.get_template("page.html")?.render(context! {
        name => &comparison.name,
        missing => missing(comparison),
        charts => charts.iter().map(|chart| Value::from(chart.svg.as_str())).collect::<Vec<_>>(),
        tables => tables.iter().map(for_page).collect::<Vec<_>>(),
    })?)
}
