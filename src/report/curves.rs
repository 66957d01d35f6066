//! How a training went, as a picture.

use std::path::Path;

use super::{
    ReportError,
    plot::{Scale, WIDTH, line, picture},
};

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    pub caption: String,
    /// `(x, y)` in order of x.
    pub points: Vec<(f64, f64)>,
    /// Of y.
    pub scale: Scale,
}

const HEIGHT: u32 = 260;

/// Draws panels below each other to a PNG; those with fewer than two points stay away.
///
/// # Errors
/// [`ReportError`].
pub fn draw_curves(panels: &[Panel], path: &Path) -> Result<(), ReportError> {
    let drawn: Vec<_> = panels.iter().filter(|p| p.points.len() > 1).collect();
    let rows = drawn.len().max(1);
    picture((WIDTH, HEIGHT * rows as u32), path, |root| {
        for (area, panel) in root.split_evenly((rows, 1)).iter().zip(&drawn) {
            line(area, &panel.caption, &panel.points, None, panel.scale)?;
        }
        Ok(())
    })
}
