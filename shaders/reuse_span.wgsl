// x = x + Σ gate_k ⊙ w_k·f_k, in place, over a span of neighbouring reused branches: x is read and written once.
// An invocation handles two neighbouring numbers, the two halves of a packed word.

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(2) var<storage, read_write> arena: array<u32>;
@group(0) @binding(3) var<storage, read> info: Info;

struct Info {
    count: u32,
    // Numbers of one batch element, tokens · dim.
    element: u32,
    dim: u32,
    vector_stride: u32,
    vector_count: u32,
    // 1 if a word holds two f16.
    packed: u32,
    features: u32,
    unused: u32,
    // Of each feature: the start of its gates in `vectors`, the first word of its slot, its weight as bits, nothing.
    reads: array<vec4<u32>>,
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let pair = id.y * groups.x * {{ threads }}u + id.x;
    let i = 2u * pair;
    if (i >= info.count) {
        return;
    }
    // An odd count leaves half a pair at the end; its second number is read nowhere and written nowhere.
    let j = min(i + 1u, info.count - 1u);
    let vector_i = min(i / info.element, info.vector_count - 1u) * info.vector_stride + i % info.dim;
    let vector_j = min(j / info.element, info.vector_count - 1u) * info.vector_stride + j % info.dim;
    var two = vec2<f32>(x[i], x[j]);
    for (var k = 0u; k < info.features; k++) {
        let read = info.reads[k];
        let gate = vec2<f32>(vectors[read.x + vector_i], vectors[read.x + vector_j]);
        var feature: vec2<f32>;
        if (info.packed == 1u) {
            feature = unpack2x16float(arena[read.y + pair]);
        } else {
            feature = bitcast<vec2<f32>>(vec2<u32>(arena[read.y + i], arena[read.y + j]));
        }
        two += gate * (bitcast<f32>(read.z) * feature);
    }
    x[i] = two.x;
    if (j > i) {
        x[j] = two.y;
    }
}
