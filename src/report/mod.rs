//! Reports about results: schedules side by side, grids of samples, drawings of schedules and training curves, a page of them.

pub mod comparison;
mod curves;
mod font;
mod front;
mod grid;
mod heatmap;
mod page;
mod picture;
mod plot;

pub use curves::{Panel, draw_curves};
pub use front::{FrontPoint, draw_front};
pub use grid::{Tile, columns_for, grid};
pub use heatmap::{Curves, draw_schedule};
pub use page::{PICTURE_SIDE, Page, Pictured, StepMap, page};
pub use picture::{
    PictureFormat, PictureText, encode_picture, image_from_values, text_of_png, write_picture,
    write_png,
};

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
