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
pub(super) const GRID: RGBColor = RGBColor(225, 225, 230);
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
        .x_label_formatter(&tick)
        .y_label_formatter(&tick)
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

/// A number at an axis: to four decimals and without idle zeros, thousands apart.
fn tick(value: &f64) -> String {
    let text = format!("{:.4}", value.abs());
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    let mut number = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            number.push(' ');
        }
        number.push(digit);
    }
    let decimals = decimals.trim_end_matches('0');
    if !decimals.is_empty() {
        number.push('.');
        number.push_str(decimals);
    }
    if *value < 0.0 && number != "0" {
        number.insert(0, '−');
    }
    number
}

#[cfg(test)]
mod tests {
    use super::tick;

    #[test]
    fn ticks_have_no_idle_digits() {
        let cases = [
            (0.0, "0"),
            (-1e-9, "0"),
            (-0.2, "−0.2"),
            (0.015, "0.015"),
            (1.4000000000000001, "1.4"),
            (50_000.0, "50 000"),
            (1_234_567.5, "1 234 567.5"),
            (100.0, "100"),
        ];
        for (value, text) in cases {
            assert_eq!(tick(&value), text);
        }
    }
}
