// From the network's last layer to the next state in one pass: bias, unpatchify, classifier-free guidance, x0 (clipped
// or not), DDIM with eta 0 (arXiv 2010.02502, eq. 12).

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
// [B or 2B, tokens, patch · patch · out_channels], the conditional half first.
@group(0) @binding(1) var<storage, read_write> patches: array<f32>;
@group(0) @binding(2) var<storage, read_write> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> next: array<f32>;
@group(0) @binding(4) var<storage, read_write> x0: array<f32>;
@group(0) @binding(5) var<storage, read> info: Info;

struct Info {
    count: u32,
    channels: u32,
    height: u32,
    width: u32,
    patch_size: u32,
    out_channels: u32,
    // Channels that guidance replaces; 0 without guidance.
    guided: u32,
    clip: u32,
    guidance: f32,
    // √ᾱ, √(1−ᾱ) of this step; √ᾱ, √(1−ᾱ) of the next.
    signal: f32,
    spread: f32,
    next_signal: f32,
    next_spread: f32,
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * {{ threads }}u + id.x;
    if (i >= info.count) {
        return;
    }
    let column = i % info.width;
    let row = i / info.width % info.height;
    let channel = i / info.width / info.height % info.channels;
    let image = i / info.width / info.height / info.channels;
    let columns = info.width / info.patch_size;
    let tokens = columns * (info.height / info.patch_size);
    let token = row / info.patch_size * columns + column / info.patch_size;
    let output = (row % info.patch_size * info.patch_size + column % info.patch_size) * info.out_channels + channel;
    let outputs = info.patch_size * info.patch_size * info.out_channels;

    var epsilon = patches[(image * tokens + token) * outputs + output] + bias[output];
    if (channel < info.guided) {
        let images = info.count / (info.width * info.height * info.channels);
        let unconditional = patches[((images + image) * tokens + token) * outputs + output] + bias[output];
        epsilon = unconditional + (epsilon - unconditional) * info.guidance;
    }
    var clean = (x[i] - epsilon * info.spread) / info.signal;
    // Clamping what is no number would make one of it, and hide damaged weights.
    let is_number = (bitcast<u32>(clean) & 0x7fffffffu) <= 0x7f800000u;
    if (info.clip == 1u && is_number) {
        clean = clamp(clean, -1.0, 1.0);
        epsilon = (x[i] - clean * info.signal) / info.spread;
    }
    x0[i] = clean;
    next[i] = clean * info.next_signal + epsilon * info.next_spread;
}
