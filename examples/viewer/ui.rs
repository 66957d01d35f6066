//! The panels.

use egui::{
    Align2, Color32, ComboBox, DragValue, FontId, Image, Panel, ProgressBar, Rect, ScrollArea,
    Sense, Slider, Stroke, StrokeKind, TextureId, Ui, Vec2, load::SizedTexture, pos2, vec2,
};

use crate::state::{Progress, Source, State};

const COMPUTED: Color32 = Color32::from_rgb(70, 130, 190);
const REUSED: Color32 = Color32::from_rgb(240, 190, 130);
const BY_HAND: Color32 = Color32::from_rgb(200, 40, 60);
const CELL: Vec2 = vec2(13.0, 15.0);
/// Room for the step numbers.
const MARGIN: f32 = 26.0;

/// What the user asked for in a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// A run with the knobs as they are.
    pub run: bool,
    pub save: bool,
}

/// Textures of the three pictures, as egui knows them.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    pub uncached: TextureId,
    pub cached: TextureId,
    pub difference: TextureId,
}

pub fn draw(ui: &mut Ui, state: &mut State, shown: &Shown) -> Asked {
    let mut asked = Asked::default();
    Panel::left("knobs").default_size(270.0).show(ui, |ui| {
        knobs(ui, state, &mut asked);
        ui.separator();
        figures(ui, state);
    });
    Panel::top("pictures").show(ui, |ui| {
        ui.columns(3, |columns| {
            let steps = state.controls.steps;
            side(
                &mut columns[0],
                "uncached",
                &state.uncached,
                steps,
                shown.uncached,
            );
            side(
                &mut columns[1],
                "cached",
                &state.cached,
                steps,
                shown.cached,
            );
            columns[2].heading("difference × 4");
            picture(&mut columns[2], shown.difference);
            match state.psnr() {
                Some(psnr) => columns[2].label(format!("PSNR {psnr:.1} dB")),
                None => columns[2].label("–"),
            };
        });
    });
    egui::CentralPanel::default().show(ui, |ui| {
        ui.label("Rows are steps, the noisiest on top; columns are attention and MLP of every block. Click a cell to force it the other way, again to let it go.");
        ScrollArea::both().show(ui, |ui| {
            if let Some((step, branch)) = table(ui, state) {
                state.click(step, branch);
                asked.run = true;
            }
        });
    });
    asked
}

fn knobs(ui: &mut Ui, state: &mut State, asked: &mut Asked) {
    let before = state.controls.clone();
    ui.heading("Run");
    let classes = state.info.classes().unwrap_or(0);
    ComboBox::from_label("class")
        .selected_text(state.info.class_name(state.controls.label))
        .show_ui(ui, |ui| {
            for label in 0..classes {
                let name = state.info.class_name(label);
                ui.selectable_value(&mut state.controls.label, label, name);
            }
        });
    ui.horizontal(|ui| {
        ui.add(DragValue::new(&mut state.controls.seed));
        ui.label("seed");
        if ui.button("next").clicked() {
            state.controls.seed = state.controls.seed.wrapping_add(1);
        }
    });
    ui.add(Slider::new(&mut state.controls.steps, 2..=100).text("steps"));
    ui.add(Slider::new(&mut state.controls.guidance, 1.0..=8.0).text("guidance"));
    ui.separator();
    ui.heading("Schedule");
    let has_router = state.has_router();
    ComboBox::from_label("source")
        .selected_text(state.controls.source.name())
        .show_ui(ui, |ui| {
            for source in Source::ALL {
                if source != Source::Learned || has_router {
                    ui.selectable_value(&mut state.controls.source, source, source.name());
                }
            }
        });
    match state.controls.source {
        Source::Learned => {
            ui.add(
                Slider::new(&mut state.controls.tau, 0.001..=0.99)
                    .logarithmic(true)
                    .text("threshold τ"),
            );
        }
        Source::Fora => {
            ui.add(Slider::new(&mut state.controls.interval, 1..=10).text("n"));
        }
        Source::Full => {}
    }
    if !has_router {
        ui.label("The bundled routers are for 20 and 50 steps, without other settings changed.");
    }
    if before != state.controls {
        if before.steps != state.controls.steps {
            state.steps_changed();
        }
        state.recompile();
        asked.run = true;
    }
    ui.horizontal(|ui| {
        if ui.button("Run again").clicked() {
            asked.run = true;
        }
        if ui.button("Let all cells go").clicked() && !state.forced.is_empty() {
            state.forced.clear();
            state.recompile();
            asked.run = true;
        }
        if ui.button("Save").clicked() {
            asked.save = true;
        }
    });
    match &state.message {
        Some(Ok(message)) => ui.label(message),
        Some(Err(message)) => ui.colored_label(BY_HAND, message),
        None => return,
    };
}

fn figures(ui: &mut Ui, state: &State) {
    let (schedule, figures) = (&state.compiled.schedule, &state.compiled.figures);
    let rows = [
        ("reused", format!("{:.1} %", 100.0 * schedule.cur())),
        (
            "multiplications",
            format!(
                "{:.2}× fewer",
                figures.macs_full as f64 / figures.macs as f64
            ),
        ),
        (
            "cache",
            format!(
                "{:.2} MB in {} slots",
                figures.cache_bytes() as f64 / 1e6,
                figures.slots
            ),
        ),
        ("spans", figures.spans.to_string()),
        ("cells by hand", state.forced.len().to_string()),
    ];
    for (name, value) in rows {
        ui.label(format!("{name}: {value}"));
    }
    if let (Some(_), Some(_)) = (&state.uncached.values, &state.cached.values) {
        ui.label(format!(
            "clock: {:.2}× as fast",
            state.uncached.seconds / state.cached.seconds
        ));
    }
}

fn side(ui: &mut Ui, name: &str, progress: &Progress, steps: usize, texture: TextureId) {
    ui.heading(name);
    picture(ui, texture);
    ui.add(
        ProgressBar::new(progress.done as f32 / steps.max(1) as f32)
            .text(format!("{} / {steps}", progress.done)),
    );
    ui.label(format!("{:.3} s", progress.seconds));
}

fn picture(ui: &mut Ui, texture: TextureId) {
    let side = ui.available_width().min(360.0);
    ui.add(Image::new(SizedTexture::new(texture, vec2(side, side))));
}

/// The table; the cell that was clicked.
fn table(ui: &mut Ui, state: &State) -> Option<(usize, usize)> {
    let schedule = &state.compiled.schedule;
    let (steps, branches) = (schedule.steps(), schedule.branches());
    // A gap after each block's two branches.
    let column = |n: usize| MARGIN + n as f32 * CELL.x + (n / 2) as f32 * 4.0;
    let size = vec2(column(branches), steps as f32 * CELL.y);
    let (response, painter) = ui.allocate_painter(size, Sense::click());
    let corner = response.rect.min;
    let ink = ui.visuals().text_color();
    for s in 0..steps {
        let y = corner.y + s as f32 * CELL.y;
        painter.text(
            pos2(corner.x + MARGIN - 6.0, y + CELL.y / 2.0),
            Align2::RIGHT_CENTER,
            s,
            FontId::monospace(10.0),
            ink,
        );
        for n in 0..branches {
            let cell = Rect::from_min_size(pos2(corner.x + column(n), y), CELL).shrink(1.0);
            let colour = if schedule.computes(s, n) {
                COMPUTED
            } else {
                REUSED
            };
            painter.rect_filled(cell, 1.0, colour);
            if state.forced.contains_key(&(s, n)) {
                painter.rect_stroke(cell, 1.0, Stroke::new(2.0, BY_HAND), StrokeKind::Inside);
            }
        }
    }
    let at = |x: f32, y: f32| {
        let s = ((y - corner.y) / CELL.y).floor();
        let n = (0..branches).find(|n| (0.0..CELL.x).contains(&(x - corner.x - column(*n))))?;
        (s >= 0.0 && (s as usize) < steps).then_some((s as usize, n))
    };
    let cell = response.hover_pos().and_then(|p| at(p.x, p.y));
    let clicked = response.clicked();
    if let Some((s, n)) = cell {
        response.on_hover_text(format!(
            "step {s}, block {}, {}: {}{}",
            n / 2,
            ["attention", "MLP"][n % 2],
            if schedule.computes(s, n) {
                "computed"
            } else {
                "reused"
            },
            if s == 0 { " (always)" } else { "" }
        ));
    }
    cell.filter(|_| clicked)
}
