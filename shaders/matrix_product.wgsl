// out = x·w for x [rows, depth] in f32, w [depth, columns] in f16, by the device's matrix units: products of numbers in f16,
// their sums in f32. A workgroup of subgroups of 32 makes a tile of {{ tall }}×{{ wide }} numbers, {{ deep }} of the depth at a time; a
// subgroup has {{ own_rows }}×{{ own_columns }} fragments of 16×16. Depth and columns are multiples of the tile's; `out` has whole tiles of rows.
enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> w: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<storage, read> info: Info;

struct Info {
    rows: u32,
    depth: u32,
    columns: u32,
    tiles_across: u32,
    // Workgroups that have work.
    groups: u32,
}

const TALL = {{ tall }}u;
const WIDE = {{ wide }}u;
const DEEP = {{ deep }}u;
const OWN_ROWS = {{ own_rows }}u;
const OWN_COLUMNS = {{ own_columns }}u;
const SIDE = 16u;
const THREADS = {{ threads }}u;
const SUBGROUPS_ACROSS = WIDE / (SIDE * OWN_COLUMNS);
// From a row of a tile to the next: off the banks of workgroup memory.
const X_STRIDE = DEEP + 8u;
const W_STRIDE = WIDE + 8u;
// Numbers are loaded in fours.
const X_LOADS = TALL * DEEP / 4u / THREADS;
const W_LOADS = DEEP * WIDE / 4u / THREADS;

var<workgroup> x_tile: array<f16, TALL * X_STRIDE>;
var<workgroup> w_tile: array<f16, DEEP * W_STRIDE>;

fn load_x(first_row: u32, depth: u32, i: u32) -> vec4<f16> {
    let row = min(first_row + i / (DEEP / 4u), info.rows - 1u);
    // f16 ends there.
    let four = clamp(x[(row * info.depth + depth) / 4u + i % (DEEP / 4u)], vec4(-65504.0), vec4(65504.0));
    return vec4<f16>(four);
}

fn load_w(first_column: u32, depth: u32, i: u32) -> vec4<f16> {
    let row = depth + i / (WIDE / 4u);
    return w[(row * info.columns + first_column) / 4u + i % (WIDE / 4u)];
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
    let own_row = thread / 32u / SUBGROUPS_ACROSS * SIDE * OWN_ROWS;
    let own_column = thread / 32u % SUBGROUPS_ACROSS * SIDE * OWN_COLUMNS;

    var sums: array<coop_mat16x16<f32, C>, OWN_ROWS * OWN_COLUMNS>;
    var next_x: array<vec4<f16>, X_LOADS>;
    var next_w: array<vec4<f16>, W_LOADS>;
    for (var i = 0u; i < X_LOADS; i++) {
        next_x[i] = load_x(first_row, 0u, thread + i * THREADS);
    }
    for (var i = 0u; i < W_LOADS; i++) {
        next_w[i] = load_w(first_column, 0u, thread + i * THREADS);
    }
    for (var depth = 0u; depth < info.depth; depth += DEEP) {
        workgroupBarrier();
        for (var i = 0u; i < X_LOADS; i++) {
            let four = thread + i * THREADS;
            let at = four / (DEEP / 4u) * X_STRIDE + four % (DEEP / 4u) * 4u;
            for (var c = 0u; c < 4u; c++) {
                x_tile[at + c] = next_x[i][c];
            }
        }
        for (var i = 0u; i < W_LOADS; i++) {
            let four = thread + i * THREADS;
            let at = four / (WIDE / 4u) * W_STRIDE + four % (WIDE / 4u) * 4u;
            for (var c = 0u; c < 4u; c++) {
                w_tile[at + c] = next_w[i][c];
            }
        }
        workgroupBarrier();
        // The last slice is loaded once more rather than one beyond the end.
        let ahead = min(depth + DEEP, info.depth - DEEP);
        for (var i = 0u; i < X_LOADS; i++) {
            next_x[i] = load_x(first_row, ahead, thread + i * THREADS);
        }
        for (var i = 0u; i < W_LOADS; i++) {
            next_w[i] = load_w(first_column, ahead, thread + i * THREADS);
        }
        for (var k = 0u; k < DEEP; k += SIDE) {
            var right: array<coop_mat16x16<f16, B>, OWN_COLUMNS>;
            for (var j = 0u; j < OWN_COLUMNS; j++) {
                right[j] = coopLoadT<coop_mat16x16<f16, B>>(&w_tile[k * W_STRIDE + own_column + SIDE * j], W_STRIDE);
            }
            for (var i = 0u; i < OWN_ROWS; i++) {
                let left = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[(own_row + SIDE * i) * X_STRIDE + k], X_STRIDE);
                for (var j = 0u; j < OWN_COLUMNS; j++) {
                    sums[i * OWN_COLUMNS + j] = coopMultiplyAdd(left, right[j], sums[i * OWN_COLUMNS + j]);
                }
            }
        }
    }
    let width = info.columns;
    for (var i = 0u; i < OWN_ROWS; i++) {
        for (var j = 0u; j < OWN_COLUMNS; j++) {
            // Named: what a store takes is not evaluated in time otherwise (naga 30).
            let sum = sums[i * OWN_COLUMNS + j];
            let at = (first_row + own_row + SIDE * i) * width + first_column + own_column + SIDE * j;
            let place = &out[at];
            coopStoreT(sum, place, width);
        }
    }
}
