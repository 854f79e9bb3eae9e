//! Tables for people.

use comfy_table::{Cell, CellAlignment, Table, presets};

/// A table as wide as the terminal; the columns `figures`, from 0, are aligned to the right.
pub fn table<T: Into<Cell>>(
    header: impl IntoIterator<Item = T>,
    figures: impl IntoIterator<Item = usize>,
) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    for column in figures {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
