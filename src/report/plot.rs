//! What all drawings share: colours, the font, the way from a drawing area to a file, and lines.

use std::{path::Path, sync::Once};

use image::RgbImage;
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};

use super::{ReportError, write_png};

pub(super) const WIDTH: u32 = 1180;
pub(super) const INK: RGBColor = RGBColor(50, 50, 60);
const GRID: RGBColor = RGBColor(225, 225, 230);
pub(super) const LINE: RGBColor = RGBColor(33, 102, 172);
pub(super) const MARK: RGBColor = RGBColor(214, 96, 77);
pub(super) const FONT: &str = "sans-serif";

pub(super) type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
pub(super) type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws on white and writes a PNG.
pub(super) fn picture(
    (width, height): (u32, u32),
    path: &Path,
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<(), ReportError> {
    static FONTS: Once = Once::new();
    FONTS.call_once(|| {
        // Failing means an unreadable font file; text then fails below with a message of its own.
        let _ = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
    });
    let failed = |message: String| ReportError::Draw {
        path: path.into(),
        message,
    };
    let mut buffer = vec![255; (width * height * 3) as usize];
    let whole = |buffer: &mut [u8]| -> Drawn {
        let root = BitMapBackend::with_buffer(buffer, (width, height)).into_drawing_area();
        root.fill(&WHITE)?;
        draw(&root)?;
        root.present()?;
        Ok(())
    };
    whole(&mut buffer).map_err(|e| failed(e.to_string()))?;
    let image = RgbImage::from_raw(width, height, buffer)
        .ok_or_else(|| failed("the picture has another size than its buffer".into()))?;
    write_png(&image, path)
}

/// A line through `points` `(x, y)`, in order of x, and perhaps a level to compare it with.
pub(super) fn line(
    area: &Area<'_>,
    caption: &str,
    points: &[(f64, f64)],
    target: Option<f64>,
) -> Drawn {
    let all = points.iter().map(|p| p.1).chain(target);
    let low = all.clone().fold(f64::INFINITY, f64::min);
    let high = all.fold(f64::NEG_INFINITY, f64::max);
    let pad = ((high - low) * 0.08).max(1e-6);
    let first = points.first().map_or(0.0, |p| p.0);
    let last = points.last().map_or(1.0, |p| p.0).max(first + 1e-9);
    let mut chart = ChartBuilder::on(area)
        .caption(caption, (FONT, 14).into_font().color(&INK))
        .margin(8)
        .x_label_area_size(26)
        .y_label_area_size(48)
        .build_cartesian_2d(first..last, low - pad..high + pad)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .label_style((FONT, 11).into_font().color(&INK))
        .draw()?;
    if let Some(target) = target {
        chart.draw_series(LineSeries::new([(first, target), (last, target)], MARK))?;
    }
    chart.draw_series(LineSeries::new(
        points.iter().copied(),
        LINE.stroke_width(2),
    ))?;
    Ok(())
}
