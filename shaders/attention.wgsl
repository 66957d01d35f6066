// softmax(q·kᵀ/√head)·v for every head, from the fused projection [B, tokens, 3·dim] to [B, tokens, dim].
// A workgroup has {{ queries }} queries of a head. Keys and values pass through workgroup memory in tiles; {{ parts }} threads share a
// query, each with its part of every tile's keys, a running maximum and sum (online softmax, arXiv 1805.02867), so the
// scores are never written. In the end the parts are weighed and added.

@group(0) @binding(0) var<storage, read_write> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> bias: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> info: Info;

struct Info {
    // Workgroups that have work: batch · heads · query tiles.
    groups: u32,
    tokens: u32,
    heads: u32,
    query_tiles: u32,
    scale: f32,
}

// Channels in fours, of a head and of a step of the final sum.
const QUADS = {{ quads }}u;
const STEP = 4u;
const QUERIES = {{ queries }}u;
const PARTS = {{ parts }}u;
const THREADS = {{ threads }}u;
// Keys of a tile, and of a thread's part of it.
const TILE = {{ tile }}u;
const EACH = {{ each }}u;
// Whether loops over keys run to their constant end, past the last key, so that GPUs' compilers can unroll them.
const TO_THE_END = {{ to_the_end }}u == 1u;

// A tile's keys, then its values; in the end what the threads have.
var<workgroup> shared_quads: array<vec4<f32>, {{ room }}>;

// Channels 4·quad.. of a token's part of the projection, which begins at `column`.
fn load(row: u32, column: u32, quad: u32) -> vec4<f32> {
    let width = 3u * info.heads * QUADS;
    return qkv[row * width + column + quad] + bias[column + quad];
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
    let first_query = index % info.query_tiles * QUERIES;
    let head = index / info.query_tiles % info.heads;
    let first_row = index / info.query_tiles / info.heads * info.tokens;
    let dim = info.heads * QUADS;
    let column = head * QUADS;
    let part = thread / QUERIES;
    // Threads beyond the last query take part in all but the writing.
    let query = min(first_query + thread % QUERIES, info.tokens - 1u);

    var q: array<vec4<f32>, QUADS>;
    var mixed: array<vec4<f32>, QUADS>;
    for (var c = 0u; c < QUADS; c++) {
        q[c] = load(first_row + query, column, c) * info.scale;
        mixed[c] = vec4<f32>();
    }
    var largest = -3.0e38;
    var total = 0.0;
    for (var first = 0u; first < info.tokens; first += TILE) {
        let count = min(TILE, info.tokens - first);
        workgroupBarrier();
        for (var i = thread; i < count * QUADS; i += THREADS) {
            let row = first_row + first + i / QUADS;
            shared_quads[i] = load(row, dim + column, i % QUADS);
            shared_quads[TILE * QUADS + i] = load(row, 2u * dim + column, i % QUADS);
        }
        workgroupBarrier();
        var scores: array<f32, EACH>;
        var tile_largest = largest;
        let own = select(min(max(count, part * EACH) - part * EACH, EACH), EACH, TO_THE_END);
        for (var k = 0u; k < own; k++) {
            let key = part * EACH + k;
            var four = vec4<f32>();
            for (var c = 0u; c < QUADS; c++) {
                four = fma(q[c], shared_quads[key * QUADS + c], four);
            }
            scores[k] = select(-3.0e38, four.x + four.y + four.z + four.w, key < count);
            tile_largest = max(tile_largest, scores[k]);
        }
        let shrink = exp(largest - tile_largest);
        largest = tile_largest;
        total *= shrink;
        for (var c = 0u; c < QUADS; c++) {
            mixed[c] *= shrink;
        }
        for (var k = 0u; k < own; k++) {
            let key = part * EACH + k;
            // Memory behind the last key holds anything.
            if (key < count) {
                let weight = exp(scores[k] - largest);
                total += weight;
                for (var c = 0u; c < QUADS; c++) {
                    mixed[c] = fma(vec4(weight), shared_quads[(TILE + key) * QUADS + c], mixed[c]);
                }
            }
        }
    }

    workgroupBarrier();
    shared_quads[thread] = vec4(largest, total, 0.0, 0.0);
    workgroupBarrier();
    var largest_of_all = largest;
    for (var p = 0u; p < PARTS; p++) {
        largest_of_all = max(largest_of_all, shared_quads[p * QUERIES + thread % QUERIES].x);
    }
    var total_of_all = 0.0;
    for (var p = 0u; p < PARTS; p++) {
        let other = shared_quads[p * QUERIES + thread % QUERIES];
        total_of_all += other.y * exp(other.x - largest_of_all);
    }
    let weight = exp(largest - largest_of_all) / total_of_all;
    for (var first = 0u; first < QUADS; first += STEP) {
        workgroupBarrier();
        // Indices that are constant once the loop is unrolled keep the array in registers.
        for (var c = 0u; c < QUADS; c++) {
            if (c / STEP == first / STEP) {
                shared_quads[thread * STEP + c % STEP] = mixed[c] * weight;
            }
        }
        workgroupBarrier();
        for (var i = thread; i < QUERIES * STEP; i += THREADS) {
            let row = first_query + i / STEP;
            let c = first + i % STEP;
            if (row < info.tokens && c < QUADS) {
                var sum = vec4<f32>();
                for (var p = 0u; p < PARTS; p++) {
                    sum += shared_quads[p * QUERIES * STEP + i];
                }
                out[(first_row + row) * dim + column + c] = sum;
            }
        }
    }
}
