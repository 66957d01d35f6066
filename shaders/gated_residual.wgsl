// x = x + gate ⊙ (feature + bias), in place: a fresh feature that nothing will reuse.

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(2) var<storage, read_write> feature: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read> info: Info;

struct Info {
    count: u32,
    // Numbers of one batch element, tokens · dim.
    element: u32,
    dim: u32,
    vector_stride: u32,
    vector_count: u32,
    gate: u32,
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * {{ threads }}u + id.x;
    if (i >= info.count) {
        return;
    }
    let channel = i % info.dim;
    let vector = min(i / info.element, info.vector_count - 1u) * info.vector_stride;
    x[i] += vectors[info.gate + vector + channel] * (feature[i] + bias[channel]);
}
