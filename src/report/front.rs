//! Error against saved work, a point a schedule, a line a policy.

use std::path::Path;

use plotters::prelude::*;

use super::{
    ReportError,
    plot::{Area, Drawn, FONT, GRID, INK, WIDTH, picture},
};

/// A schedule's place on the front.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontPoint {
    /// What it belongs to, such as `fora`.
    pub policy: String,
    pub macs_ratio: f64,
    /// Mean squared error to the uncached images, above 0.
    pub mse: f64,
    /// Whether nothing of its speed or more has a smaller error.
    pub on_front: bool,
}

const HEIGHT: u32 = 620;
const COLOURS: [RGBColor; 8] = [
    RGBColor(33, 102, 172),
    RGBColor(214, 96, 77),
    RGBColor(77, 146, 33),
    RGBColor(118, 42, 131),
    RGBColor(230, 150, 30),
    RGBColor(60, 160, 170),
    RGBColor(120, 120, 120),
    RGBColor(180, 90, 150),
];

/// Draws the points to a PNG: the error on a logarithmic axis, a line through the points of each policy in order of saved work, a
/// ring around those on the Pareto front.
///
/// # Errors
/// [`ReportError`].
pub fn draw_front(points: &[FrontPoint], path: &Path) -> Result<(), ReportError> {
    picture((WIDTH, HEIGHT), path, |root| draw(points, root))
}

fn draw(points: &[FrontPoint], root: &Area<'_>) -> Drawn {
    let shown = || points.iter().filter(|p| p.mse > 0.0 && p.mse.is_finite());
    let most = shown().map(|p| p.macs_ratio).fold(1.0, f64::max);
    let least = shown().map(|p| p.macs_ratio).fold(1.0, f64::min);
    let low = shown().map(|p| p.mse).fold(f64::INFINITY, f64::min);
    let high = shown().map(|p| p.mse).fold(0.0, f64::max);
    let (low, high) = match low <= high {
        true => (low / 1.5, high * 1.5),
        false => (1e-5, 1.0),
    };
    let mut chart = ChartBuilder::on(root)
        .caption(
            "error to the uncached images, by saved work",
            (FONT, 18).into_font().color(&INK),
        )
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(least..most * 1.05, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .label_style((FONT, 13).into_font().color(&INK))
        .x_desc("MACs ratio (×)")
        .y_desc("mean squared error")
        .x_label_formatter(&|x| format!("{x:.1}"))
        .y_label_formatter(&|y| format!("{y:.0e}"))
        .draw()?;
    let mut policies: Vec<&str> = Vec::new();
    for point in shown() {
        if !policies.contains(&point.policy.as_str()) {
            policies.push(&point.policy);
        }
    }
    for (policy, colour) in policies.into_iter().zip(COLOURS.into_iter().cycle()) {
        let mut places: Vec<(f64, f64)> = shown()
            .filter(|point| point.policy == policy)
            .map(|point| (point.macs_ratio, point.mse))
            .collect();
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart
            .draw_series(LineSeries::new(
                places.iter().copied(),
                colour.stroke_width(2),
            ))?
            .label(policy)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        chart.draw_series(
            places
                .iter()
                .map(|place| Circle::new(*place, 4, colour.filled())),
        )?;
    }
    let front = shown().filter(|point| point.on_front);
    chart
        .draw_series(front.map(|p| Circle::new((p.macs_ratio, p.mse), 8, INK.stroke_width(2))))?
        .label("on the front")
        .legend(|(x, y)| Circle::new((x + 9, y), 6, INK.stroke_width(2)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .label_font((FONT, 14).into_font().color(&INK))
        .draw()?;
    Ok(())
}
