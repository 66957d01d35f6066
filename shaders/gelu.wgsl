// x = gelu(x + bias), in place; tanh form, as one exponential: (1 + tanh u)/2 = 1/(1 + e^(−2u)).

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> bias: array<f32>;
@group(0) @binding(2) var<storage, read> info: Info;

struct Info {
    count: u32,
    dim: u32,
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * {{ threads }}u + id.x;
    if (i >= info.count) {
        return;
    }
    let v = x[i] + bias[i % info.dim];
    let twice_u = 1.595769122 * v * (1.0 + 0.044715 * v * v);
    x[i] = v / (1.0 + exp(-twice_u));
}
