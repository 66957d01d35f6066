//! Small text on pictures, from a font inside the binary.

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use image::RgbImage;

/// The font, `None` only if the embedded file were damaged (then pictures go without text).
fn font() -> Option<FontRef<'static>> {
    FontRef::try_from_slice(dejavu::sans::regular()).ok()
}

/// Draws one line of text, its box centred at `centre_x` and starting at `top`, cut to `max_width` pixels.
pub(super) fn draw_centred(
    image: &mut RgbImage,
    text: &str,
    centre_x: f32,
    top: f32,
    size: f32,
    max_width: f32,
    colour: [u8; 3],
) {
    let Some(font) = font() else { return };
    let scaled = font.as_scaled(PxScale::from(size));
    let mut glyphs: Vec<Glyph> = Vec::new();
    let mut width = 0.0;
    for c in text.chars() {
        let id = scaled.glyph_id(c);
        let advance = scaled.h_advance(id);
        if width + advance > max_width {
            break;
        }
        glyphs.push(id.with_scale_and_position(size, point(width, top + scaled.ascent())));
        width += advance;
    }
    let shift = centre_x - width / 2.0;
    for mut glyph in glyphs {
        glyph.position.x += shift;
        let Some(outline) = font.outline_glyph(glyph) else {
            continue;
        };
        let bounds = outline.px_bounds();
        outline.draw(|x, y, coverage| {
            let (x, y) = (
                bounds.min.x as i64 + i64::from(x),
                bounds.min.y as i64 + i64::from(y),
            );
            if x < 0 || y < 0 || x >= i64::from(image.width()) || y >= i64::from(image.height()) {
                return;
            }
            let pixel = image.get_pixel_mut(x as u32, y as u32);
            for (channel, wanted) in pixel.0.iter_mut().zip(colour) {
                let mixed = f32::from(*channel) * (1.0 - coverage) + f32::from(wanted) * coverage;
                *channel = mixed.round() as u8;
            }
        });
    }
}
