// One image of a tensor [B, C, H, W] in [-1, 1], drawn over a whole colour target.
// CPU twin: report::image_from_values.

struct Picture {
    // Where the image begins in `values`.
    first: u32,
    channels: u32,
    height: u32,
    width: u32,
    // Size of the target in pixels.
    rows: u32,
    columns: u32,
    // 1: the target encodes sRGB by itself, and wants linear light.
    encodes: u32,
    padding: u32,
}

@group(0) @binding(0) var<uniform> picture: Picture;
@group(0) @binding(1) var<storage, read> values: array<f32>;

// One triangle that covers the target.
@vertex
fn cover(@builtin(vertex_index) corner: u32) -> @builtin(position) vec4<f32> {
    let at = vec2<f32>(f32((corner << 1u) & 2u), f32(corner & 2u));
    return vec4<f32>(at * 2.0 - 1.0, 0.0, 1.0);
}

fn value(channel: u32, row: u32, column: u32) -> f32 {
    let at = picture.first + (channel * picture.height + row) * picture.width + column;
    if at >= arrayLength(&values) {
        return -1.0;
    }
    return values[at];
}

fn linear(encoded: vec3<f32>) -> vec3<f32> {
    let dark = encoded / 12.92;
    let bright = pow((encoded + 0.055) / 1.055, vec3<f32>(2.4));
    return select(bright, dark, encoded <= vec3<f32>(0.04045));
}

@fragment
fn paint(@builtin(position) position: vec4<f32>) -> @location(0) vec4<f32> {
    // Nearest value: a picture of 32 pixels is looked at pixel by pixel.
    let row = min(u32(position.y) * picture.height / picture.rows, picture.height - 1u);
    let column = min(u32(position.x) * picture.width / picture.columns, picture.width - 1u);
    var rgb: vec3<f32>;
    if picture.channels == 3u {
        rgb = vec3<f32>(value(0u, row, column), value(1u, row, column), value(2u, row, column));
    } else if picture.channels == 4u {
        // The linear preview of Stable Diffusion latents.
        rgb = value(0u, row, column) * vec3<f32>(0.298, 0.207, 0.208)
            + value(1u, row, column) * vec3<f32>(0.187, 0.286, 0.173)
            + value(2u, row, column) * vec3<f32>(-0.158, 0.189, 0.264)
            + value(3u, row, column) * vec3<f32>(-0.184, -0.271, -0.473);
    } else {
        rgb = vec3<f32>(value(0u, row, column));
    }
    let encoded = (clamp(rgb, vec3<f32>(-1.0), vec3<f32>(1.0)) + 1.0) * 0.5;
    if picture.encodes == 1u {
        return vec4<f32>(linear(encoded), 1.0);
    }
    return vec4<f32>(encoded, 1.0);
}
