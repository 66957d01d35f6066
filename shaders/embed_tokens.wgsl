// out = tokens + bias + positions, once for each half of a guided batch.

@group(0) @binding(0) var<storage, read_write> tokens: array<f32>;
@group(0) @binding(1) var<storage, read_write> bias: array<f32>;
@group(0) @binding(2) var<storage, read_write> positions: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read> info: Info;

struct Info {
    // Numbers of `tokens`, [B, tokens, dim].
    count: u32,
    copies: u32,
    // Numbers of one image, tokens · dim.
    element: u32,
    dim: u32,
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * {{ threads }}u + id.x;
    if (i >= info.count) {
        return;
    }
    let value = tokens[i] + bias[i % info.dim] + positions[i % info.element];
    for (var copy = 0u; copy < info.copies; copy++) {
        out[copy * info.count + i] = value;
    }
}
