//! A schedule as a picture: scores or compute/reuse by step and block, λ and MACs beside them, and the curves
//! of the training that made it.

use std::path::Path;

use plotters::prelude::*;

use super::{
    ReportError,
    plot::{Area, Drawn, FONT, INK, LINE, MARK, Scale, Ticked, WIDTH, line, picture},
};
use crate::{
    diffusion::Weights,
    graph::SiteKind,
    schedule::{FORECAST_DEPTH, Schedule, ScheduleFile},
};

/// How a training went, a value a pass.
#[derive(Debug, Clone, Default)]
pub struct Curves {
    pub loss: Vec<f64>,
    pub cur: Vec<f64>,
    pub target_cur: Option<f64>,
}

const REUSE: RGBColor = RGBColor(250, 226, 200);
/// Pixels of title and legend.
const HEAD: u32 = 66;
/// Steps that run no network.
const FORECAST: RGBColor = RGBColor(214, 234, 214);

/// Draws a schedule file to a PNG.
///
/// # Errors
/// [`ReportError`].
pub fn draw_schedule(
    file: &ScheduleFile,
    curves: Option<&Curves>,
    path: &Path,
) -> Result<(), ReportError> {
    let curves = curves.filter(|c| c.loss.len() > 1);
    let rows = file.run.steps as u32;
    let panel = (rows * 14).clamp(180, 620) + 90;
    let height = HEAD + panel + if curves.is_some() { 260 } else { 0 };
    picture((WIDTH, height), path, |root| {
        draw(file, curves, panel, root)
    })
}

fn draw(file: &ScheduleFile, curves: Option<&Curves>, panel: u32, root: &Area<'_>) -> Drawn {
    let schedule = file.schedule()?;
    let title = format!(
        "{}: {} steps, CUR {:.1} %, MACs ratio {:.2}×{}",
        file.policy.name,
        file.run.steps,
        100.0 * schedule.cur(),
        schedule.macs_ratio(&file.model.graph),
        file.threshold
            .map_or(String::new(), |t| format!(", threshold {t:.3}")),
    );
    root.draw(&Text::new(
        title,
        (16, 10),
        (FONT, 20).into_font().color(&INK),
    ))?;
    legend(root, &schedule, file.router()?.is_some())?;
    let (_, body) = root.split_vertically(HEAD);
    let (panels, below) = body.split_vertically(panel);
    let (maps, side) = panels.split_horizontally(820);
    let kinds = file.model.graph.kinds();
    let areas = maps.split_evenly((1, kinds.len()));
    for (kind, area) in kinds.into_iter().zip(&areas) {
        heat_map(file, area, kind)?;
    }
    let (lambda, macs) = side.split_horizontally(180);
    let values = file.lambda.clone().unwrap_or_default();
    let largest = values.iter().copied().fold(0.0, f64::max);
    let relative = values
        .iter()
        .map(|v| {
            if largest > 0.0 {
                (v / largest).sqrt()
            } else {
                0.0
            }
        })
        .collect();
    if !schedule.forecast().estimates.is_empty() {
        weights(&lambda, &schedule)?;
    } else if !values.is_empty() {
        side_bars(&lambda, "λ (square root)", relative, file.run.steps, MARK)?;
    }
    let graph = &file.model.graph;
    let full = graph.full_step_macs() as f64;
    let share = (0..schedule.steps())
        .map(|s| match schedule.runs_network(s) {
            true => graph.step_macs(schedule.row(s)) as f64 / full,
            false => 0.0,
        })
        .collect();
    side_bars(&macs, "MACs of the step", share, file.run.steps, LINE)?;
    if let Some(curves) = curves {
        let parts = below.split_evenly((1, 2));
        line(
            &parts[0],
            "mean loss, by pass",
            &by_pass(curves.loss.clone()),
            None,
            Scale::Decades,
        )?;
        let cur = curves.cur.iter().map(|c| 100.0 * c).collect();
        line(
            &parts[1],
            "CUR % at τ, by pass",
            &by_pass(cur),
            curves.target_cur.map(|c| 100.0 * c),
            Scale::Even,
        )?;
    }
    Ok(())
}

fn by_pass(values: Vec<f64>) -> Vec<(f64, f64)> {
    (0..).map(f64::from).zip(values).collect()
}

/// What the colours mean, of those that occur.
fn legend(root: &Area<'_>, schedule: &Schedule, has_scores: bool) -> Drawn {
    let network = |s: usize| schedule.runs_network(s);
    let steps = || 0..schedule.steps();
    let reuses = |s: usize| (0..schedule.branches()).any(|n| !schedule.computes(s, n));
    let scored = |with: &'static str, without| if has_scores { with } else { without };
    let entries = [
        (
            true,
            shade(1.0),
            scored("computed: the darker, the higher its score", "computed"),
        ),
        (
            steps().any(|s| network(s) && reuses(s)),
            reuse_shade(has_scores.then_some(0.0), has_scores.then_some(1.0)),
            scored(
                "reused: the stronger, the further below the threshold",
                "reused",
            ),
        ),
        (
            steps().any(|s| !network(s)),
            FORECAST,
            "the network does not run: the clean image is made of earlier ones",
        ),
    ];
    let mut x = 16;
    for (_, colour, text) in entries.into_iter().filter(|(occurs, ..)| *occurs) {
        root.draw(&Rectangle::new([(x, 43), (x + 22, 55)], colour.filled()))?;
        let font = (FONT, 13).into_font();
        let (width, _) = font.box_size(text)?;
        root.draw(&Text::new(text, (x + 29, 43), font.color(&INK)))?;
        x += 29 + width as i32 + 28;
    }
    Ok(())
}

/// Middles of cells that are named: all, or every second, fifth, … where they are many.
fn middles(cells: usize) -> Vec<f64> {
    let apart = [1, 2, 5, 10, 20, 50];
    let step = apart.into_iter().find(|step| cells / step <= 26);
    let named = (0..cells).step_by(step.unwrap_or(100));
    named.map(|cell| cell as f64 + 0.5).collect()
}

/// Steps × blocks of one kind of branch; step 0 at the top.
fn heat_map(file: &ScheduleFile, area: &Area<'_>, kind: SiteKind) -> Drawn {
    let graph = &file.model.graph;
    let (steps, blocks) = (file.run.steps, graph.blocks());
    let name = kind.name();
    let mut chart = ChartBuilder::on(area)
        .caption(name, (FONT, 16).into_font().color(&INK))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d(
            Ticked {
                ends: [0.0, blocks as f64],
                ticks: middles(blocks),
            },
            Ticked {
                ends: [steps as f64, 0.0],
                ticks: middles(steps),
            },
        )?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("block")
        .y_desc("step (0: noisiest)")
        .label_style((FONT, 12).into_font().color(&INK))
        .x_label_formatter(&|x| format!("{:.0}", x - 0.5))
        .y_label_formatter(&|y| format!("{:.0}", y - 0.5))
        .draw()?;
    let schedule = file.schedule()?;
    let router = file.router()?;
    for s in 0..steps {
        let scores = router.as_ref().map(|r| r.scores(s));
        let of_kind = graph.sites().iter().enumerate();
        for (n, site) in of_kind.filter(|(_, site)| site.kind == kind) {
            let score = scores.as_ref().map(|r| r[n]);
            let colour = if schedule.computes(s, n) {
                shade(score.unwrap_or(1.0))
            } else if !schedule.runs_network(s) {
                FORECAST
            } else {
                reuse_shade(score, file.threshold)
            };
            let (x, y) = (site.block as f64, s as f64);
            chart.draw_series([Rectangle::new(
                [(x + 0.04, y + 0.05), (x + 0.96, y + 0.95)],
                colour.filled(),
            )])?;
        }
    }
    Ok(())
}

/// Computed: the higher the score, the darker.
fn shade(score: f64) -> RGBColor {
    let mix = |from: u8, to: u8| {
        (f64::from(from) + (f64::from(to) - f64::from(from)) * score.clamp(0.0, 1.0)) as u8
    };
    RGBColor(mix(198, 8), mix(219, 48), mix(239, 107))
}

/// Reused: the further below the threshold, the stronger.
fn reuse_shade(score: Option<f64>, threshold: Option<f64>) -> RGBColor {
    let (Some(score), Some(threshold)) = (score, threshold) else {
        return REUSE;
    };
    let depth = 1.0 - (score / threshold.max(1e-9)).clamp(0.0, 1.0);
    let mix = |from: f64, to: f64| (from + (to - from) * depth) as u8;
    RGBColor(mix(253.0, 244.0), mix(240.0, 165.0), mix(226.0, 96.0))
}

/// What each step's clean image is made of, a column a term: red above 0, blue below.
fn weights(area: &Area<'_>, schedule: &Schedule) -> Drawn {
    let terms = FORECAST_DEPTH + 1;
    let mut chart = ChartBuilder::on(area)
        .caption(
            "weights of H0, H1, H2, x",
            (FONT, 14).into_font().color(&INK),
        )
        .margin(8)
        .x_label_area_size(34)
        .build_cartesian_2d(0f64..terms as f64, schedule.steps() as f64..0f64)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .disable_y_axis()
        .disable_x_axis()
        .draw()?;
    let label = (FONT, 10).into_font().color(&INK);
    for s in 0..schedule.steps() {
        let of_step = schedule.forecast().estimates.get(&s);
        let Weights { state, predictions } = *of_step.unwrap_or(&Weights::NEWEST);
        for (column, weight) in predictions.into_iter().chain([state]).enumerate() {
            let strength = weight.abs().clamp(0.0, 1.0);
            let fade = |to: u8| (255.0 - (255.0 - f64::from(to)) * 0.7 * strength) as u8;
            let colour = match weight < 0.0 {
                true => RGBColor(fade(33), fade(102), fade(172)),
                false => RGBColor(fade(214), fade(96), fade(77)),
            };
            let (x, y) = (column as f64, s as f64);
            chart.draw_series([Rectangle::new(
                [(x + 0.03, y + 0.05), (x + 0.97, y + 0.95)],
                colour.filled(),
            )])?;
            let text = match weight {
                0.0 => String::new(),
                // As little as a sign can say.
                weight if weight.abs() < 0.005 => "0".into(),
                weight => format!("{weight:.2}").replace('-', "−"),
            };
            // Rows of many steps are too low for numbers.
            if schedule.steps() <= 32 {
                chart.draw_series([Text::new(text, (x + 0.2, y + 0.15), label.clone())])?;
            }
        }
    }
    Ok(())
}

/// A bar a step, values 0 to 1, step 0 at the top.
fn side_bars(
    area: &Area<'_>,
    caption: &str,
    values: Vec<f64>,
    steps: usize,
    colour: RGBColor,
) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption(caption, (FONT, 14).into_font().color(&INK))
        .margin(8)
        // Numbers of neighbouring axes stay apart.
        .margin_right(20)
        .x_label_area_size(34)
        .build_cartesian_2d(0f64..1f64, steps as f64..0f64)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .disable_y_axis()
        .x_labels(3)
        .label_style((FONT, 11).into_font().color(&INK))
        .draw()?;
    chart.draw_series(values.iter().enumerate().map(|(s, v)| {
        Rectangle::new(
            [(0.0, s as f64 + 0.15), (v.clamp(0.0, 1.0), s as f64 + 0.85)],
            colour.filled(),
        )
    }))?;
    Ok(())
}
