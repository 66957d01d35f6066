// out = x·w for x [rows, depth], w [depth, columns], in f32.
// A workgroup makes a tile of {{ tall }}×{{ wide }} numbers, {{ deep }} of the depth at a time: while a slice of x and one of w in
// workgroup memory are multiplied, the next is on its way to registers. A thread has {{ own_rows }} rows of {{ own_columns }} quads.

@group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> info: Info;

struct Info {
    rows: u32,
    // Multiples of four.
    depth: u32,
    columns: u32,
    tiles_across: u32,
    // Workgroups that have work.
    groups: u32,
}

const TALL = {{ tall }}u;
// Everything along the depth and the columns is counted in fours.
const DEEP = {{ deep }}u / 4u;
const WIDE = {{ wide }}u / 4u;
const OWN = {{ own_rows }}u;
const OWN_QUADS = {{ own_columns }}u;
// Threads across and down the tile; a thread's rows and quads lie so far apart.
const ACROSS = WIDE / OWN_QUADS;
const DOWN = TALL / OWN;
const THREADS = {{ threads }}u;
const X_LOADS = TALL * DEEP / THREADS;
const W_LOADS = 4u * DEEP * WIDE / THREADS;

var<workgroup> x_tile: array<vec4<f32>, TALL * DEEP>;
var<workgroup> w_tile: array<vec4<f32>, 4u * DEEP * WIDE>;

fn load_x(first_row: u32, depth: u32, i: u32) -> vec4<f32> {
    let row = min(first_row + i / DEEP, info.rows - 1u);
    let at = depth + i % DEEP;
    if (4u * at < info.depth) {
        return x[row * (info.depth / 4u) + at];
    }
    return vec4<f32>();
}

fn load_w(first_column: u32, depth: u32, i: u32) -> vec4<f32> {
    let row = 4u * depth + i / WIDE;
    let column = first_column + i % WIDE;
    if (row < info.depth && 4u * column < info.columns) {
        return w[row * (info.columns / 4u) + column];
    }
    return vec4<f32>();
}

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = group.y * grid.x + group.x;
    if (index >= info.groups) {
        return;
    }
    let first_row = index / info.tiles_across * TALL;
    let first_column = index % info.tiles_across * WIDE;
    let across = thread % ACROSS;
    let down = thread / ACROSS;

    var sums: array<vec4<f32>, OWN * OWN_QUADS>;
    var next_x: array<vec4<f32>, X_LOADS>;
    var next_w: array<vec4<f32>, W_LOADS>;
    for (var i = 0u; i < X_LOADS; i++) {
        next_x[i] = load_x(first_row, 0u, thread + i * THREADS);
    }
    for (var i = 0u; i < W_LOADS; i++) {
        next_w[i] = load_w(first_column, 0u, thread + i * THREADS);
    }
    for (var depth = 0u; 4u * depth < info.depth; depth += DEEP) {
        workgroupBarrier();
        for (var i = 0u; i < X_LOADS; i++) {
            x_tile[thread + i * THREADS] = next_x[i];
        }
        for (var i = 0u; i < W_LOADS; i++) {
            w_tile[thread + i * THREADS] = next_w[i];
        }
        workgroupBarrier();
        for (var i = 0u; i < X_LOADS; i++) {
            next_x[i] = load_x(first_row, depth + DEEP, thread + i * THREADS);
        }
        for (var i = 0u; i < W_LOADS; i++) {
            next_w[i] = load_w(first_column, depth + DEEP, thread + i * THREADS);
        }
        for (var k = 0u; k < DEEP; k++) {
            var four: array<vec4<f32>, OWN>;
            for (var i = 0u; i < OWN; i++) {
                four[i] = x_tile[(down + i * DOWN) * DEEP + k];
            }
            for (var one = 0u; one < 4u; one++) {
                for (var c = 0u; c < OWN_QUADS; c++) {
                    let quad = w_tile[(4u * k + one) * WIDE + across + c * ACROSS];
                    for (var i = 0u; i < OWN; i++) {
                        sums[i * OWN_QUADS + c] = fma(vec4(four[i][one]), quad, sums[i * OWN_QUADS + c]);
                    }
                }
            }
        }
    }
    for (var i = 0u; i < OWN; i++) {
        let row = first_row + down + i * DOWN;
        for (var c = 0u; c < OWN_QUADS; c++) {
            let column = first_column + across + c * ACROSS;
            if (row < info.rows && 4u * column < info.columns) {
                out[row * (info.columns / 4u) + column] = sums[i * OWN_QUADS + c];
            }
        }
    }
}
