// out = scale ⊙ number: a word holds four numbers of a byte each, row-major, the first in its lowest byte.
// An invocation handles a word.

@group(0) @binding(0) var<storage, read_write> words: array<i32>;
@group(0) @binding(1) var<storage, read_write> scales: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<storage, read> info: Info;

struct Info {
    count: u32,
    outputs: u32,
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let word = id.y * groups.x * {{ threads }}u + id.x;
    let first = 4u * word;
    if (first >= info.count) {
        return;
    }
    let four = words[word];
    for (var k = 0u; k < min(4u, info.count - first); k++) {
        // Up to the sign, and down with it.
        let number = (four << (24u - 8u * k)) >> 24u;
        let i = first + k;
        out[i] = f32(number) * scales[i % info.outputs];
    }
}
