// softmax(q·kᵀ/√head)·v for every head, from the fused projection [B, tokens, 3·dim] to [B, tokens, dim].
// A thread owns a query; keys and values pass through workgroup memory in tiles, with a running maximum and
// sum (online softmax, arXiv 1805.02867), so the scores are never written.

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(1) var<storage, read_write> bias: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<storage, read> info: Info;

struct Info {
    // Workgroups that have work: batch · heads · query tiles.
    groups: u32,
    tokens: u32,
    heads: u32,
    head: u32,
    query_tiles: u32,
    scale: f32,
}

// Four channels at a time; a head that is no multiple of four ends in zeros.
var<workgroup> keys: array<vec4<f32>, {{ tile_quads }}>;
var<workgroup> values: array<vec4<f32>, {{ tile_quads }}>;

// Channels 4·quad.. of a token's part `column` of the projection.
fn load(row: u32, column: u32, quad: u32) -> vec4<f32> {
    var four = vec4<f32>();
    let width = 3u * info.heads * info.head;
    for (var i = 0u; i < 4u; i++) {
        let channel = 4u * quad + i;
        if (channel < info.head) {
            four[i] = qkv[row * width + column + channel] + bias[column + channel];
        }
    }
    return four;
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
    let query = index % info.query_tiles * {{ threads }}u + thread;
    let head = index / info.query_tiles % info.heads;
    let first_row = index / info.query_tiles / info.heads * info.tokens;
    let dim = info.heads * info.head;
    let column = head * info.head;
    // Threads beyond the last query load keys like the others and write nothing.
    let row = first_row + min(query, info.tokens - 1u);

    var q: array<vec4<f32>, {{ quads }}>;
    var mixed: array<vec4<f32>, {{ quads }}>;
    for (var c = 0u; c < {{ quads }}u; c++) {
        q[c] = load(row, column, c) * info.scale;
        mixed[c] = vec4<f32>();
    }
    var largest = -3.0e38;
    var total = 0.0;
    for (var first = 0u; first < info.tokens; first += {{ tile }}u) {
        let count = min({{ tile }}u, info.tokens - first);
        workgroupBarrier();
        for (var i = thread; i < count * {{ quads }}u; i += {{ threads }}u) {
            let token = first_row + first + i / {{ quads }}u;
            keys[i] = load(token, dim + column, i % {{ quads }}u);
            values[i] = load(token, 2u * dim + column, i % {{ quads }}u);
        }
        workgroupBarrier();
        var scores: array<f32, {{ tile }}>;
        var tile_largest = largest;
        for (var k = 0u; k < count; k++) {
            var four = vec4<f32>();
            for (var c = 0u; c < {{ quads }}u; c++) {
                four += q[c] * keys[k * {{ quads }}u + c];
            }
            scores[k] = four.x + four.y + four.z + four.w;
            tile_largest = max(tile_largest, scores[k]);
        }
        let shrink = exp(largest - tile_largest);
        largest = tile_largest;
        total *= shrink;
        for (var c = 0u; c < {{ quads }}u; c++) {
            mixed[c] *= shrink;
        }
        for (var k = 0u; k < count; k++) {
            let weight = exp(scores[k] - largest);
            total += weight;
            for (var c = 0u; c < {{ quads }}u; c++) {
                mixed[c] += weight * values[k * {{ quads }}u + c];
            }
        }
    }
    if (query >= info.tokens) {
        return;
    }
    for (var channel = 0u; channel < info.head; channel++) {
        out[row * dim + column + channel] = mixed[channel / 4u][channel % 4u] / total;
    }
}
