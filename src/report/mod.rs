//! Reports about results: schedules side by side, grids of samples, drawings of schedules and training curves, a page of them.

#[cfg(not(target_family = "wasm"))]
pub mod comparison;
#[cfg(not(target_family = "wasm"))]
mod curves;
#[cfg(not(target_family = "wasm"))]
mod film;
#[cfg(not(target_family = "wasm"))]
mod font;
#[cfg(not(target_family = "wasm"))]
mod front;
#[cfg(not(target_family = "wasm"))]
mod grid;
#[cfg(not(target_family = "wasm"))]
mod heatmap;
#[cfg(not(target_family = "wasm"))]
mod page;
mod picture;
#[cfg(not(target_family = "wasm"))]
mod plot;

#[cfg(not(target_family = "wasm"))]
pub use curves::{Panel, draw_curves};
#[cfg(not(target_family = "wasm"))]
pub use film::{FilmRow, draw_film};
#[cfg(not(target_family = "wasm"))]
pub use front::{FrontPoint, draw_front};
#[cfg(not(target_family = "wasm"))]
pub use grid::{Tile, columns_for, grid, grid_enlarged};
#[cfg(not(target_family = "wasm"))]
pub use heatmap::{Curves, draw_schedule};
#[cfg(not(target_family = "wasm"))]
pub use page::{PICTURE_SIDE, Page, Pictured, StepMap, page};
pub use picture::{
    PictureFormat, PictureText, encode_picture, image_from_values, text_of_png, write_picture,
    write_png,
};
#[cfg(not(target_family = "wasm"))]
pub use plot::Scale;

/// Why a picture could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The system refused.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    /// The encoder or plotter refused.
    #[error("cannot draw {}: {message}", path.display())]
    Draw {
        path: std::path::PathBuf,
        message: String,
    },
}
