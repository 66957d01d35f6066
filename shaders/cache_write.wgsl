// x = x + gate ⊙ (feature + bias), in place, and the feature into its slot of the arena: f32, or two f16 a word.
// An invocation handles two neighbouring numbers, so that a packed word has one writer.

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(2) var<storage, read_write> feature: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> arena: array<u32>;
@group(0) @binding(5) var<storage, read> info: Info;

struct Info {
    count: u32,
    // Numbers of one batch element, tokens · dim.
    element: u32,
    dim: u32,
    vector_stride: u32,
    vector_count: u32,
    gate: u32,
    // First word of the slot.
    slot: u32,
    // 1 if a word holds two f16.
    packed: u32,
}

// f16 ends here; what packing does beyond is undefined.
const LARGEST: f32 = 65504.0;

fn join(i: u32) -> f32 {
    let channel = i % info.dim;
    let vector = min(i / info.element, info.vector_count - 1u) * info.vector_stride;
    let value = feature[i] + bias[channel];
    x[i] += vectors[info.gate + vector + channel] * value;
    return value;
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let pair = id.y * groups.x * {{ threads }}u + id.x;
    let i = 2u * pair;
    if (i >= info.count) {
        return;
    }
    let first = join(i);
    var second = 0.0;
    let both = i + 1u < info.count;
    if (both) {
        second = join(i + 1u);
    }
    if (info.packed == 1u) {
        let two = clamp(vec2<f32>(first, second), vec2<f32>(-LARGEST), vec2<f32>(LARGEST));
        arena[info.slot + pair] = pack2x16float(two);
    } else {
        arena[info.slot + i] = bitcast<u32>(first);
        if (both) {
            arena[info.slot + i + 1u] = bitcast<u32>(second);
        }
    }
}
