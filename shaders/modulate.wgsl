// out = LN(x)·(1 + scale) + shift, a workgroup a token.

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> vectors: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<storage, read> info: Info;

struct Info {
    rows: u32,
    tokens: u32,
    dim: u32,
    vector_stride: u32,
    vector_count: u32,
    shift: u32,
    scale: u32,
    eps: f32,
}

var<workgroup> lanes: array<f32, {{ threads }}>;

// The sum of every thread's value, in every thread.
fn sum(thread: u32, value: f32) -> f32 {
    lanes[thread] = value;
    workgroupBarrier();
    for (var step = {{ threads }}u / 2u; step > 0u; step = step / 2u) {
        if (thread < step) {
            lanes[thread] += lanes[thread + step];
        }
        workgroupBarrier();
    }
    let total = lanes[0];
    // Nobody overwrites the total before everybody has read it.
    workgroupBarrier();
    return total;
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.y * groups.x + group.x;
    if (row >= info.rows) {
        return;
    }
    let at = row * info.dim;
    var total = 0.0;
    for (var i = thread; i < info.dim; i += {{ threads }}u) {
        total += x[at + i];
    }
    let mean = sum(thread, total) / f32(info.dim);
    var squares = 0.0;
    for (var i = thread; i < info.dim; i += {{ threads }}u) {
        let centred = x[at + i] - mean;
        squares += centred * centred;
    }
    let deviation = 1.0 / sqrt(sum(thread, squares) / f32(info.dim) + info.eps);
    let vector = min(row / info.tokens, info.vector_count - 1u) * info.vector_stride;
    for (var i = thread; i < info.dim; i += {{ threads }}u) {
        let normal = (x[at + i] - mean) * deviation;
        out[at + i] = normal * (1.0 + vectors[vector + info.scale + i]) + vectors[vector + info.shift + i];
    }
}
