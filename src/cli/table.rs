//! Tables for people, which markdown reads too.

use comfy_table::{CellAlignment, Table, presets};

use crate::report::comparison::{About, Column};

/// Names in the first column, figures in the others.
pub(super) fn markdown_table(
    header: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Prints names with columns of figures: in one table, or on a terminal that is too narrow for it in two.
pub(super) fn print_table(names: &[String], columns: &[Column]) {
    let of = |wanted: &dyn Fn(About) -> bool| {
        let columns: Vec<_> = columns.iter().filter(|c| wanted(c.about)).collect();
        let titles = columns.iter().map(|column| column.title);
        let header: Vec<&str> = std::iter::once("schedule").chain(titles).collect();
        let rows = names.iter().enumerate().map(|(row, name)| {
            let cells = columns.iter().map(|column| column.cells[row].clone());
            std::iter::once(name.clone()).chain(cells).collect()
        });
        markdown_table(&header, rows)
    };
    let whole = of(&|_| true);
    let width = whole.lines().next().map_or(0, |line| line.chars().count());
    match whole.width() {
        Some(terminal) if width > usize::from(terminal) => {
            out!("{}\n", of(&|about| about == About::Quality));
            out!("{}", of(&|about| about == About::Cost));
        }
        _ => out!("{whole}"),
    }
}
