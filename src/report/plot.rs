//! What all drawings share: colours, the font, the way from a drawing area to a file, and lines.

use std::{path::Path, sync::Once};

use image::RgbImage;
use plotters::{
    coord::{
        Shift,
        ranged1d::{DefaultFormatting, KeyPointHint, Ranged, ValueFormatter},
        types::RangedCoordf64,
    },
    prelude::*,
    style::{FontStyle, register_font},
};

use super::{ReportError, write_png};

pub(super) const WIDTH: u32 = 1180;
pub(super) const INK: RGBColor = RGBColor(50, 50, 60);
pub(super) const GRID: RGBColor = RGBColor(225, 225, 230);
pub(super) const LINE: RGBColor = RGBColor(33, 102, 172);
const PALE: RGBColor = RGBColor(184, 208, 230);
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

/// An axis from one number to another with ticks of our choice.
pub(super) struct Ticked {
    pub ends: [f64; 2],
    pub ticks: Vec<f64>,
}

impl Ranged for Ticked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let [from, to] = self.ends;
        let share = (value - from) / (to - from);
        (f64::from(first) + share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.ends[0]..self.ends[1]
    }
}

/// How numbers lie along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    #[default]
    Even,
    /// Decades; numbers that are not above 0 are left out.
    Decades,
}

/// Points from which on a curve is drawn pale, and its running mean over it.
const MANY: usize = 200;
/// Running means of a curve from its begin to its end.
const MEANS: usize = 60;

/// A line through `points` `(x, y)`, in order of x, and perhaps a level to compare it with.
pub(super) fn line(
    area: &Area<'_>,
    caption: &str,
    points: &[(f64, f64)],
    target: Option<f64>,
    scale: Scale,
) -> Drawn {
    let placed = |y: f64| match scale {
        Scale::Even => Some(y),
        Scale::Decades => (y > 0.0).then(|| y.log10()),
    };
    let points: Vec<_> = points
        .iter()
        .filter_map(|(x, y)| Some((*x, placed(*y)?)))
        .collect();
    let target = target.and_then(placed);
    let all = points.iter().map(|p| p.1).chain(target);
    let low = all.clone().fold(f64::INFINITY, f64::min);
    let high = all.fold(f64::NEG_INFINITY, f64::max);
    let pad = ((high - low) * 0.08).max(1e-6);
    let (low, high) = (low - pad, high + pad);
    let first = points.first().map_or(0.0, |p| p.0);
    let last = points.last().map_or(1.0, |p| p.0).max(first + 1e-9);
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(caption, (FONT, 14).into_font().color(&INK))
        .margin(8)
        .x_label_area_size(26)
        .y_label_area_size(48);
    let curves = Curve {
        points: &points,
        target: target.map(|y| [(first, y), (last, y)]),
    };
    match scale {
        Scale::Even => curves.draw(builder.build_cartesian_2d(first..last, low..high)?, tick),
        Scale::Decades => {
            let ticks = Ticked {
                ends: [low, high],
                ticks: ticks_of_decades(low, high),
            };
            let number = |y: &f64| tick(&10f64.powf(*y));
            curves.draw(builder.build_cartesian_2d(first..last, ticks)?, number)
        }
    }
}

/// Logarithms of round numbers between two logarithms: of 1, 2 and 5 in each decade, or of 1 alone where those are many.
fn ticks_of_decades(low: f64, high: f64) -> Vec<f64> {
    let digits: &[f64] = match high - low {
        span if span > 3.0 => &[1.0],
        span if span > 0.5 => &[1.0, 2.0, 5.0],
        _ => &[1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
    };
    let decades = low.floor() as i32..=high.ceil() as i32;
    let logs = decades.flat_map(|decade| digits.iter().map(move |d| f64::from(decade) + d.log10()));
    logs.filter(|log| (low..=high).contains(log)).collect()
}

struct Curve<'a> {
    points: &'a [(f64, f64)],
    target: Option<[(f64, f64); 2]>,
}

impl Curve<'_> {
    fn draw<'a, Y>(
        &self,
        mut chart: ChartContext<'_, BitMapBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
        number: impl Fn(&f64) -> String,
    ) -> Drawn
    where
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .label_style((FONT, 11).into_font().color(&INK))
            .x_label_formatter(&tick)
            .y_label_formatter(&number)
            .draw()?;
        if let Some(target) = self.target {
            chart.draw_series(LineSeries::new(target, MARK))?;
        }
        let points = self.points.iter().copied();
        if self.points.len() < MANY {
            chart.draw_series(LineSeries::new(points, LINE.stroke_width(2)))?;
            return Ok(());
        }
        chart.draw_series(LineSeries::new(points, PALE))?;
        chart.draw_series(LineSeries::new(
            running_mean(self.points),
            LINE.stroke_width(2),
        ))?;
        Ok(())
    }
}

/// The mean of so many neighbours around every point.
fn running_mean(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = points.len() / MEANS / 2;
    let around = |i: usize| {
        let near = &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
        let sum: f64 = near.iter().map(|p| p.1).sum();
        (points[i].0, sum / near.len() as f64)
    };
    (0..points.len()).map(around).collect()
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
    use super::{running_mean, tick, ticks_of_decades};

    #[test]
    fn decades_have_round_ticks() {
        let numbers = |low: f64, high: f64| -> Vec<String> {
            let ticks = ticks_of_decades(low.log10(), high.log10());
            ticks.iter().map(|log| tick(&10f64.powf(*log))).collect()
        };
        assert_eq!(numbers(0.03, 1.5), ["0.05", "0.1", "0.2", "0.5", "1"]);
        assert_eq!(numbers(0.011, 0.0199), ["0.015"]);
        assert_eq!(
            numbers(0.5, 20_000.0),
            ["1", "10", "100", "1 000", "10 000"]
        );
    }

    #[test]
    fn a_running_mean_keeps_a_line_and_evens_out_noise() {
        let line: Vec<_> = (0..600)
            .map(|i| (f64::from(i), 2.0 * f64::from(i)))
            .collect();
        let mean = running_mean(&line);
        assert_eq!(mean[300], (300.0, 600.0));
        let noise: Vec<_> = (0..600).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        assert!((running_mean(&noise)[300].1 - 0.5).abs() < 0.06);
    }

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
