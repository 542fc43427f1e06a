// `attention.rs` on tensor cores: bfloat16, heads of exactly 64, 96 or 128. The tiles, patterns and
// arguments are those of attention.cu; scores and sums are float, and what is multiplied is bfloat16
// (probabilities and their gradients are rounded for the second product, as everywhere).
//
// A block is four warps; each has 16 rows of the block's tile of 64 and keeps its scores in
// registers. dq has a pass of its own, so that every result is the sum of one block, in one order.
#include "attention_pattern.cuh"
#include "tensor_core.cuh"

namespace mma {

// Rows of a tile, of queries or of keys.
static const u32 TILE = 64;
static const u32 THREADS = 128;
// Queries at a time in the pass of the keys, whose sums leave room for no more.
static const u32 PART = 32;

// Elements between two rows in shared memory: the eight rows of a matrix are in different banks.
template <u32 D> __device__ constexpr u32 stride() { return D + 8; }

// Starts copying n rows, `width` apart in memory; zeros after them. Others see neither before a barrier.
template <u32 D> __device__ void load(bf16 *tile, const bf16 *from, u32 n, u64 width) {
    constexpr u32 PIECE = 8, PIECES = D / PIECE;
    for (u32 i = threadIdx.x; i < TILE * PIECES; i += THREADS) {
        const u32 r = i / PIECES, c = i % PIECES * PIECE;
        bf16 *to = tile + r * stride<D>() + c;
        if (r < n) {
            start_copy(to, from + r * width + c);
        } else {
            for (u32 j = 0; j < PIECE; j++) to[j] = from_float<bf16>(0.0f);
        }
    }
}

// s[j] = rows 16 w .. of `a`, times rows 8 j .. of `b`, over D elements: w is this warp.
template <u32 D, u32 N> __device__ __forceinline__ void products(const bf16 *a, const bf16 *b, float s[N][4]) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Of A: rows 0-7 and 8-15 of the left half, then of the right one. Of B: the left and the right
    // half of eight rows, then of the next eight.
    const bf16 *a_row = a + (16 * warp + lane % 16) * stride<D>() + lane / 16 * 8;
    const bf16 *b_row = b + (lane / 16 * 8 + lane % 8) * stride<D>() + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 j = 0; j < N; j++) {
#pragma unroll
        for (u32 e = 0; e < 4; e++) s[j][e] = 0.0f;
    }
#pragma unroll
    for (u32 k = 0; k < D; k += 16) {
        u32 x[4];
        load_matrices<false>(x, a_row + k);
#pragma unroll
        for (u32 j = 0; j < N; j += 2) {
            u32 y[4];
            load_matrices<false>(y, b_row + 8 * j * stride<D>() + k);
            multiply_add(s[j], x, y[0], y[1]);
            multiply_add(s[j + 1], x, y[2], y[3]);
        }
    }
}

// acc += p, this warp's 16 rows by 8 N columns, times the 8 N rows of `v`.
template <u32 D, u32 N> __device__ __forceinline__ void accumulate(const float p[N][4], const bf16 *v, float acc[D / 8][4]) {
    const u32 lane = threadIdx.x % 32;
    // The upper and the lower eight rows of eight columns, then of the next eight.
    const bf16 *row = v + (lane % 16) * stride<D>() + lane / 16 * 8;
#pragma unroll
    for (u32 k = 0; k < N; k += 2) {
        // What C has in two tiles of columns is what A has in one.
        const u32 x[4] = {pack(p[k][0], p[k][1]), pack(p[k][2], p[k][3]), pack(p[k + 1][0], p[k + 1][1]),
                          pack(p[k + 1][2], p[k + 1][3])};
#pragma unroll
        for (u32 j = 0; j < D / 8; j += 2) {
            u32 y[4];
            load_matrices<true>(y, row + 8 * k * stride<D>() + 8 * j);
            multiply_add(acc[j], x, y[0], y[1]);
            multiply_add(acc[j + 1], x, y[2], y[3]);
        }
    }
}

// Reductions over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ __forceinline__ float row_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// Writes rows g and g + 8 of this warp, scaled, where they are below n.
template <u32 D> __device__ void store(bf16 *to, u64 width, u32 n, const float acc[D / 8][4], const float scale[2]) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u32 i = 0; i < 2; i++) {
        const u32 r = 16 * warp + lane / 4 + 8 * i;
        if (r >= n) continue;
        u32 *row = reinterpret_cast<u32 *>(to + r * width + 2 * (lane % 4));
#pragma unroll
        for (u32 j = 0; j < D / 8; j++) row[4 * j] = pack(acc[j][2 * i] * scale[i], acc[j][2 * i + 1] * scale[i]);
    }
}

// The tiles of keys that a tile of queries sees, in both spans: keys [first, first + n).
struct Keys {
    u32 ranges[2][2];
    u32 part, first, n;
    __device__ Keys(const Spans &spans, const Tile &tile) : part(0) {
        spans.range(tile.start, tile.start + tile.n - 1, 0, ranges[0]);
        spans.range(tile.start, tile.start + tile.n - 1, 1, ranges[1]);
        first = ranges[0][0];
        settle();
    }
    __device__ void settle() {
        if (part == 0 && first >= ranges[0][1]) {
            part = 1;
            first = ranges[1][0];
        }
        const u32 end = part == 0 ? ranges[0][1] : ranges[1][1];
        n = first < end ? min(TILE, end - first) : 0;
    }
    __device__ void next() {
        first += TILE;
        settle();
    }
};

// The spans of rows g and g + 8 of this warp, and whether they hold all of a tile of keys.
struct Rows {
    u32 at[2][4];
    __device__ Rows(const Spans &spans, const Tile &tile) {
        for (u32 i = 0; i < 2; i++) spans.of(tile.start + min(row(i), tile.n - 1), at[i]);
    }
    static __device__ u32 row(u32 i) { return 16 * (threadIdx.x / 32) + threadIdx.x % 32 / 4 + 8 * i; }
    __device__ bool whole(u32 i, const Keys &keys) const {
        const u32 end = keys.first + TILE;
        return keys.n == TILE &&
               ((at[i][0] <= keys.first && end <= at[i][1]) || (at[i][2] <= keys.first && end <= at[i][3]));
    }
    __device__ bool sees(const Spans &spans, u32 i, const Keys &keys, u32 c) const {
        return c < keys.n && spans.sees(at[i], keys.first + c);
    }
};

static __device__ const float LOG2_E = 1.4426950408889634f;

// out and lse, rows of which are the queries'. Grid: (tiles of queries, heads).
template <u32 D>
__device__ void forward(const bf16 *q, const bf16 *k, const bf16 *v, const Tile *tiles, const u32 *query_rows,
                        bf16 *out, float *lse, u32 heads, u32 kv_heads, u32 d, u32 pattern, u32 block,
                        u32 views, float scale) {
    DYNAMIC_SHARED(bf16, shared);
    bf16 *queries = shared, *keys_at = queries + TILE * stride<D>(), *values = keys_at + TILE * stride<D>();
    const Tile tile = tiles[blockIdx.x];
    const Spans spans = {pattern, block, views, tile.len};
    const u32 head = blockIdx.y, lane = threadIdx.x % 32;
    const u64 width = static_cast<u64>(heads) * D, kv_width = static_cast<u64>(kv_heads) * D;
    const u64 row0 = first_query(tile, query_rows);
    const u64 kv0 = static_cast<u64>(tile.example) * kv_width + static_cast<u64>(head / (heads / kv_heads)) * D;
    const Rows rows(spans, tile);
    Keys keys(spans, tile);

    load<D>(queries, q + row0 * width + head * D, tile.n, width);
    load<D>(keys_at, k + kv0 + keys.first * kv_width, keys.n, kv_width);
    float acc[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    // Scores are taken to base 2.
    const float base2 = scale * LOG2_E;
    while (keys.n > 0) {
        wait_for_copies();
        // The keys are here, and everybody is done with the values before.
        __syncthreads();
        load<D>(values, v + kv0 + keys.first * kv_width, keys.n, kv_width);
        float s[TILE / 8][4];
        products<D, TILE / 8>(queries, keys_at, s);
        float old[2];
        for (u32 i = 0; i < 2; i++) {
            const bool whole = rows.whole(i, keys);
            float top = largest[i];
#pragma unroll
            for (u32 j = 0; j < TILE / 8; j++) {
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    float &score = s[j][2 * i + e];
                    const bool seen = whole || rows.sees(spans, i, keys, 8 * j + 2 * (lane % 4) + e);
                    score = seen ? score * base2 : -INFINITY;
                    top = fmaxf(top, score);
                }
            }
            top = row_max(top);
            // A row that has seen nothing yet stays as it is.
            const float shift = top == -INFINITY ? 0.0f : top;
            old[i] = exp2f(largest[i] - shift);
            float sum = 0.0f;
#pragma unroll
            for (u32 j = 0; j < TILE / 8; j++) {
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    s[j][2 * i + e] = exp2f(s[j][2 * i + e] - shift);
                    sum += s[j][2 * i + e];
                }
            }
            // The lanes' own shares; they are added at the end.
            total[i] = total[i] * old[i] + sum;
            largest[i] = top;
        }
#pragma unroll
        for (u32 j = 0; j < D / 8; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) acc[j][e] *= old[e / 2];
        }
        wait_for_copies();
        // The values are here, and everybody is done with the keys.
        __syncthreads();
        keys.next();
        if (keys.n > 0) load<D>(keys_at, k + kv0 + keys.first * kv_width, keys.n, kv_width);
        accumulate<D, TILE / 8>(s, values, acc);
    }
    float share[2];
    for (u32 i = 0; i < 2; i++) {
        total[i] = row_sum(total[i]);
        share[i] = 1.0f / total[i];
        const u32 r = Rows::row(i);
        if (lane % 4 == 0 && r < tile.n) lse[(row0 + r) * heads + head] = largest[i] / LOG2_E + logf(total[i]);
    }
    store<D>(out + row0 * width + head * D, width, tile.n, acc, share);
}

// dq. Grid: (tiles of queries, heads).
template <u32 D>
__device__ void backward_queries(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_out, const float *lse,
                                 const float *delta, const Tile *tiles, bf16 *dq, u32 heads, u32 kv_heads,
                                 u32 d, u32 pattern, u32 block, u32 views, float scale) {
    DYNAMIC_SHARED(bf16, shared);
    bf16 *queries = shared, *d_outs = queries + TILE * stride<D>(), *keys_at = d_outs + TILE * stride<D>(),
         *values = keys_at + TILE * stride<D>();
    const Tile tile = tiles[blockIdx.x];
    const Spans spans = {pattern, block, views, tile.len};
    const u32 head = blockIdx.y, lane = threadIdx.x % 32;
    const u64 width = static_cast<u64>(heads) * D, kv_width = static_cast<u64>(kv_heads) * D;
    const u64 row0 = static_cast<u64>(tile.example) + tile.start;
    const u64 kv0 = static_cast<u64>(tile.example) * kv_width + static_cast<u64>(head / (heads / kv_heads)) * D;
    const Rows rows(spans, tile);

    load<D>(queries, q + row0 * width + head * D, tile.n, width);
    load<D>(d_outs, d_out + row0 * width + head * D, tile.n, width);
    float acc[D / 8][4] = {}, row_lse[2], row_delta[2];
    for (u32 i = 0; i < 2; i++) {
        const u64 row = row0 + min(Rows::row(i), tile.n - 1);
        row_lse[i] = lse[row * heads + head] * LOG2_E;
        row_delta[i] = delta[row * heads + head];
    }
    for (Keys keys(spans, tile); keys.n > 0; keys.next()) {
        // The tile before is read to its end.
        __syncthreads();
        load<D>(keys_at, k + kv0 + keys.first * kv_width, keys.n, kv_width);
        load<D>(values, v + kv0 + keys.first * kv_width, keys.n, kv_width);
        wait_for_copies();
        __syncthreads();
        float s[TILE / 8][4], dp[TILE / 8][4];
        products<D, TILE / 8>(queries, keys_at, s);
        products<D, TILE / 8>(d_outs, values, dp);
        for (u32 i = 0; i < 2; i++) {
            const bool whole = rows.whole(i, keys);
#pragma unroll
            for (u32 j = 0; j < TILE / 8; j++) {
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    const bool seen = whole || rows.sees(spans, i, keys, 8 * j + 2 * (lane % 4) + e);
                    const float p = exp2f(s[j][2 * i + e] * (scale * LOG2_E) - row_lse[i]);
                    float &ds = dp[j][2 * i + e];
                    ds = seen ? p * (ds - row_delta[i]) : 0.0f;
                }
            }
        }
        accumulate<D, TILE / 8>(dp, keys_at, acc);
    }
    const float scales[2] = {scale, scale};
    store<D>(dq + row0 * width + head * D, width, tile.n, acc, scales);
}

// dk and dv; arguments and grid as in attention.cu. A warp has 16 keys and all queries: the scores are
// transposed.
template <u32 D>
__device__ void backward_keys(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_out, const float *lse,
                              const float *delta, const Tile *key_tiles, const Tile *query_tiles,
                              const u32 *first_tile, const u32 *n_tiles, bf16 *dk, bf16 *dv, u32 heads,
                              u32 kv_heads, u32 d, u32 pattern, u32 block, u32 views, float scale) {
    // Of the queries of a tile.
    __shared__ float column_lse[TILE], column_delta[TILE];
    __shared__ u32 column_spans[TILE][4];
    DYNAMIC_SHARED(bf16, shared);
    bf16 *queries = shared, *d_outs = queries + TILE * stride<D>(), *keys_at = d_outs + TILE * stride<D>(),
         *values = keys_at + TILE * stride<D>();
    const Tile own = key_tiles[blockIdx.x];
    const Spans spans = {pattern, block, views, own.len};
    const u32 kv_head = blockIdx.y, group = heads / kv_heads, lane = threadIdx.x % 32;
    const u64 width = static_cast<u64>(heads) * D, kv_width = static_cast<u64>(kv_heads) * D;
    const u64 key0 = (static_cast<u64>(own.example) + own.start) * kv_width + static_cast<u64>(kv_head) * D;

    load<D>(keys_at, k + key0, own.n, kv_width);
    load<D>(values, v + key0, own.n, kv_width);
    float acc_k[D / 8][4] = {}, acc_v[D / 8][4] = {};
    for (u32 t = 0; t < n_tiles[blockIdx.x]; t++) {
        const Tile tile = query_tiles[first_tile[blockIdx.x] + t];
        bool any = false;
        for (u32 part = 0; part < 2; part++) {
            u32 range[2];
            spans.range(tile.start, tile.start + tile.n - 1, part, range);
            any = any || (range[0] < range[1] && range[0] < own.start + own.n && own.start < range[1]);
        }
        // The same for the whole block: all of it comes from the two tiles.
        if (!any) continue;
        const u64 row0 = static_cast<u64>(tile.example) + tile.start;
        for (u32 g = 0; g < group; g++) {
            const u32 head = kv_head * group + g;
            // The tile before is read to its end.
            __syncthreads();
            load<D>(queries, q + row0 * width + head * D, tile.n, width);
            load<D>(d_outs, d_out + row0 * width + head * D, tile.n, width);
            if (threadIdx.x < TILE) {
                const u32 c = threadIdx.x;
                const u64 row = row0 + min(c, tile.n - 1);
                column_lse[c] = lse[row * heads + head] * LOG2_E;
                column_delta[c] = delta[row * heads + head];
                u32 at[4] = {};
                if (c < tile.n) spans.of(tile.start + c, at);
                for (u32 i = 0; i < 4; i++) column_spans[c][i] = at[i];
            }
            wait_for_copies();
            __syncthreads();
#pragma unroll 1
            for (u32 first = 0; first < TILE; first += PART) {
                const bf16 *part_q = queries + first * stride<D>(), *part_d = d_outs + first * stride<D>();
                float s[PART / 8][4], dp[PART / 8][4];
                products<D, PART / 8>(keys_at, part_q, s);
                products<D, PART / 8>(values, part_d, dp);
#pragma unroll
                for (u32 j = 0; j < PART / 8; j++) {
#pragma unroll
                    for (u32 e = 0; e < 2; e++) {
                        const u32 c = first + 8 * j + 2 * (lane % 4) + e;
#pragma unroll
                        for (u32 i = 0; i < 2; i++) {
                            float &p = s[j][2 * i + e], &ds = dp[j][2 * i + e];
                            const bool seen = spans.sees(column_spans[c], own.start + Rows::row(i));
                            p = seen ? exp2f(p * (scale * LOG2_E) - column_lse[c]) : 0.0f;
                            ds = seen ? p * (ds - column_delta[c]) : 0.0f;
                        }
                    }
                }
                accumulate<D, PART / 8>(s, part_d, acc_v);
                accumulate<D, PART / 8>(dp, part_q, acc_k);
            }
        }
    }
    const float one[2] = {1.0f, 1.0f}, scales[2] = {scale, scale};
    store<D>(dk + key0, kv_width, own.n, acc_k, scales);
    store<D>(dv + key0, kv_width, own.n, acc_v, one);
}

} // namespace mma

// `NAME_D_bf16` for heads of D elements.
#define SIZE(NAME, D, PARAMETERS, ARGUMENTS)                                                           \
    template <typename T> __device__ void attention_mma_##NAME##_##D PARAMETERS { mma::NAME<D> ARGUMENTS; } \
    ENTRY_OF(attention_mma_##NAME##_##D, bf16, bf16, PARAMETERS, ARGUMENTS)
#define MMA_SIZES(NAME, PARAMETERS, ARGUMENTS)                                                         \
    SIZE(NAME, 64, PARAMETERS, ARGUMENTS)                                                              \
    SIZE(NAME, 96, PARAMETERS, ARGUMENTS)                                                              \
    SIZE(NAME, 128, PARAMETERS, ARGUMENTS)

MMA_SIZES(forward,
          (const T *q, const T *k, const T *v, const Tile *tiles, const u32 *query_rows, T *out, float *lse,
           u32 heads, u32 kv_heads, u32 d, u32 pattern, u32 block, u32 views, float scale),
          (q, k, v, tiles, query_rows, out, lse, heads, kv_heads, d, pattern, block, views, scale))
MMA_SIZES(backward_queries,
          (const T *q, const T *k, const T *v, const T *d_out, const float *lse, const float *delta,
           const Tile *tiles, T *dq, u32 heads, u32 kv_heads, u32 d, u32 pattern, u32 block, u32 views,
           float scale),
          (q, k, v, d_out, lse, delta, tiles, dq, heads, kv_heads, d, pattern, block, views, scale))
MMA_SIZES(backward_keys,
          (const T *q, const T *k, const T *v, const T *d_out, const float *lse, const float *delta,
           const Tile *key_tiles, const Tile *query_tiles, const u32 *first_tile, const u32 *n_tiles, T *dk,
           T *dv, u32 heads, u32 kv_heads, u32 d, u32 pattern, u32 block, u32 views, float scale),
          (q, k, v, d_out, lse, delta, key_tiles, query_tiles, first_tile, n_tiles, dk, dv, heads, kv_heads, d,
           pattern, block, views, scale))
