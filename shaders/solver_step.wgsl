// From the network's last layer to the next state in one pass, for every solver: bias, unpatchify, classifier-free guidance,
// the clean image (clipped or not), what older predictions make of it, the update, noise. A step that runs no network has
// the older predictions alone.

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
// [B or 2B, tokens, patch · patch · out_channels], the conditional half first.
@group(0) @binding(1) var<storage, read_write> patches: array<f32>;
@group(0) @binding(2) var<storage, read_write> bias: array<f32>;
// Planes of `count` numbers: predictions of earlier steps, the newest first.
@group(0) @binding(3) var<storage, read_write> history: array<f32>;
@group(0) @binding(4) var<storage, read_write> noise: array<f32>;
@group(0) @binding(5) var<storage, read_write> next: array<f32>;
@group(0) @binding(6) var<storage, read_write> x0: array<f32>;
@group(0) @binding(7) var<storage, read> info: Info;

struct Info {
    count: u32,
    channels: u32,
    height: u32,
    width: u32,
    patch_size: u32,
    out_channels: u32,
    // Channels that guidance replaces; 0 without guidance.
    guided: u32,
    // Whether `patches` holds the network's output.
    runs_network: u32,
    // Planes of `history`.
    kept: u32,
    clip: u32,
    // 0: none; 1: `deviation`; 2: between two logarithms of deviations, as the network says.
    noise_kind: u32,
    guidance: f32,
    // What state and output weigh in the prediction.
    predict_state: f32,
    predict_output: f32,
    // What state and predictions weigh in the estimate and in the update.
    estimate_state: f32,
    estimate_0: f32,
    estimate_1: f32,
    estimate_2: f32,
    update_state: f32,
    update_0: f32,
    update_1: f32,
    update_2: f32,
    deviation: f32,
    log_low: f32,
    log_high: f32,
}

// Clamping what is no number would make one of it, and hide damaged weights.
fn clipped(value: f32) -> f32 {
    let is_number = (bitcast<u32>(value) & 0x7fffffffu) <= 0x7f800000u;
    return select(value, clamp(value, -1.0, 1.0), info.clip == 1u && is_number);
}

fn kept_prediction(plane: u32, i: u32) -> f32 {
    if (plane >= info.kept) {
        return 0.0;
    }
    return history[plane * info.count + i];
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * {{ threads }}u + id.x;
    if (i >= info.count) {
        return;
    }
    let state = x[i];
    var h0 = kept_prediction(0u, i);
    var h1 = kept_prediction(1u, i);
    var h2 = kept_prediction(2u, i);
    var deviation = info.deviation;
    if (info.runs_network == 1u) {
        let column = i % info.width;
        let row = i / info.width % info.height;
        let channel = i / info.width / info.height % info.channels;
        let image = i / info.width / info.height / info.channels;
        let columns = info.width / info.patch_size;
        let tokens = columns * (info.height / info.patch_size);
        let token = row / info.patch_size * columns + column / info.patch_size;
        let output = (row % info.patch_size * info.patch_size + column % info.patch_size) * info.out_channels + channel;
        let outputs = info.patch_size * info.patch_size * info.out_channels;
        let at = (image * tokens + token) * outputs + output;

        var predicted = patches[at] + bias[output];
        if (channel < info.guided) {
            let images = info.count / (info.width * info.height * info.channels);
            let unconditional = patches[((images + image) * tokens + token) * outputs + output] + bias[output];
            predicted = unconditional + (predicted - unconditional) * info.guidance;
        }
        if (info.noise_kind == 2u) {
            let share = 0.5 * (patches[at + info.channels] + bias[output + info.channels] + 1.0);
            deviation = exp(info.log_low + share * (info.log_high - info.log_low));
        }
        h2 = h1;
        h1 = h0;
        h0 = clipped(state * info.predict_state + predicted * info.predict_output);
        if (info.kept > 0u) {
            history[i] = h0;
        }
        if (info.kept > 1u) {
            history[info.count + i] = h1;
        }
        if (info.kept > 2u) {
            history[2u * info.count + i] = h2;
        }
    }
    let estimate = clipped(state * info.estimate_state + h0 * info.estimate_0 + h1 * info.estimate_1 + h2 * info.estimate_2);
    x0[i] = estimate;
    var result = state * info.update_state + estimate * info.update_0 + h1 * info.update_1 + h2 * info.update_2;
    if (info.noise_kind != 0u) {
        result += noise[i] * deviation;
    }
    next[i] = result;
}
