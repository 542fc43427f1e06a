// `attention.rs` on the GPU for every type and head size: blockwise with the scores of one tile in
// shared memory, plain multiply-adds. Each result is the sum of one block, so results never vary.
// `attention_mma.cu` has the sizes and the type that tensor cores take.
//
// A block is 16 x 16 threads: thread (ty, tx) has rows ty, ty + 16, ... and columns tx, tx + 16, ... of
// a tile.
#include "attention_pattern.cuh"

static const u32 SIDE = 16;

template <typename T, u32 D> struct Shape {
    static constexpr u32 TILE = D <= 128 ? 64 : 32;
    // Elements between two rows in shared memory: no two of 16 rows in one bank.
    static constexpr u32 STRIDE = D + 4 / sizeof(T);
    static constexpr u32 ROWS = TILE / SIDE;
    static constexpr u32 COLUMNS = D / SIDE;
};

// Copies n rows of d elements, `stride` apart in memory, into `tile`; zeros to TILE rows of D.
template <typename T, u32 D>
__device__ void load(T *tile, const T *from, u32 n, u32 d, u64 stride) {
    using S = Shape<T, D>;
    for (u32 i = threadIdx.x; i < S::TILE * D; i += SIDE * SIDE) {
        const u32 r = i / D, c = i % D;
        tile[r * S::STRIDE + c] = r < n && c < d ? from[r * stride + c] : from_float<T>(0.0f);
    }
}

// out[i][j] = a[ty + 16 i] . b[tx + 16 j] over D elements.
template <typename T, u32 D>
__device__ void products(const T *a, const T *b, float out[Shape<T, D>::ROWS][Shape<T, D>::ROWS]) {
    using S = Shape<T, D>;
    const u32 ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    for (u32 i = 0; i < S::ROWS; i++) {
        for (u32 j = 0; j < S::ROWS; j++) out[i][j] = 0.0f;
    }
    for (u32 c = 0; c < D; c++) {
        float x[S::ROWS], y[S::ROWS];
        for (u32 i = 0; i < S::ROWS; i++) x[i] = to_float(a[(ty + SIDE * i) * S::STRIDE + c]);
        for (u32 j = 0; j < S::ROWS; j++) y[j] = to_float(b[(tx + SIDE * j) * S::STRIDE + c]);
        for (u32 i = 0; i < S::ROWS; i++) {
            for (u32 j = 0; j < S::ROWS; j++) out[i][j] += x[i] * y[j];
        }
    }
}

// acc[i][j] += sum over k of p[row i, k] * v[k, tx + 16 j], with p read as p[k, row] when TRANSPOSED.
template <typename T, u32 D, bool TRANSPOSED>
__device__ void accumulate(const float *p, const T *v, float acc[Shape<T, D>::ROWS][Shape<T, D>::COLUMNS]) {
    using S = Shape<T, D>;
    const u32 ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    for (u32 k = 0; k < S::TILE; k++) {
        float x[S::ROWS];
        for (u32 i = 0; i < S::ROWS; i++) {
            const u32 row = ty + SIDE * i;
            x[i] = TRANSPOSED ? p[k * (S::TILE + 1) + row] : p[row * (S::TILE + 1) + k];
        }
        for (u32 j = 0; j < S::COLUMNS; j++) {
            const float y = to_float(v[k * S::STRIDE + tx + SIDE * j]);
            for (u32 i = 0; i < S::ROWS; i++) acc[i][j] += x[i] * y;
        }
    }
}

template <typename V> __device__ __forceinline__ V side_sum(V v) {
    for (int offset = SIDE / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}
__device__ __forceinline__ float side_max(float v) {
    for (int offset = SIDE / 2; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

// out and lse, rows of which are the queries'. Grid: (tiles of queries, heads).
template <typename T, u32 D>
__device__ void forward(const T *q, const T *k, const T *v, const Tile *tiles, const u32 *query_rows, T *out,
                        float *lse, u32 heads, u32 kv_heads, u32 d, u32 pattern, u32 block, u32 views,
                        float scale) {
    using S = Shape<T, D>;
    DYNAMIC_SHARED(T, shared);
    T *queries = shared, *keys = queries + S::TILE * S::STRIDE;
    float *p = reinterpret_cast<float *>(keys + S::TILE * S::STRIDE);
    const Tile tile = tiles[blockIdx.x];
    const Spans spans = {pattern, block, views, tile.len};
    const u32 ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE, head = blockIdx.y;
    const u64 width = static_cast<u64>(heads) * d, kv_width = static_cast<u64>(kv_heads) * d;
    const u64 row0 = first_query(tile, query_rows);
    const u64 kv_column = static_cast<u64>(head / (heads / kv_heads)) * d;

    load<T, D>(queries, q + row0 * width + head * d, tile.n, d, width);
    float acc[S::ROWS][S::COLUMNS] = {}, largest[S::ROWS], total[S::ROWS] = {};
    for (u32 i = 0; i < S::ROWS; i++) largest[i] = -INFINITY;
    for (u32 part = 0; part < 2; part++) {
        u32 range[2];
        spans.range(tile.start, tile.start + tile.n - 1, part, range);
        for (u32 first = range[0]; first < range[1]; first += S::TILE) {
            const u32 n = min(S::TILE, range[1] - first);
            const u64 from = (static_cast<u64>(tile.example) + first) * kv_width + kv_column;
            // The tile before is read to its end.
            __syncthreads();
            load<T, D>(keys, k + from, n, d, kv_width);
            __syncthreads();
            float s[S::ROWS][S::ROWS];
            products<T, D>(queries, keys, s);
            for (u32 i = 0; i < S::ROWS; i++) {
                float top = largest[i];
                u32 at[4];
                spans.of(tile.start + min(ty + SIDE * i, tile.n - 1), at);
                for (u32 j = 0; j < S::ROWS; j++) {
                    const u32 c = tx + SIDE * j, key = first + c;
                    const bool seen = c < n && spans.sees(at, key);
                    s[i][j] = seen ? s[i][j] * scale : -INFINITY;
                    top = fmaxf(top, s[i][j]);
                }
                top = side_max(top);
                // A row that has seen nothing yet stays as it is.
                const float shift = top == -INFINITY ? 0.0f : top;
                const float old = expf(largest[i] - shift);
                float sum = 0.0f;
                for (u32 j = 0; j < S::ROWS; j++) {
                    const float e = expf(s[i][j] - shift);
                    p[(ty + SIDE * i) * (S::TILE + 1) + tx + SIDE * j] = e;
                    sum += e;
                }
                total[i] = total[i] * old + side_sum(sum);
                largest[i] = top;
                for (u32 j = 0; j < S::COLUMNS; j++) acc[i][j] *= old;
            }
            // Everybody has read the keys and written p.
            __syncthreads();
            load<T, D>(keys, v + from, n, d, kv_width);
            __syncthreads();
            accumulate<T, D, false>(p, keys, acc);
        }
    }
    for (u32 i = 0; i < S::ROWS; i++) {
        const u32 r = ty + SIDE * i;
        if (r >= tile.n) continue;
        if (tx == 0) lse[(row0 + r) * heads + head] = largest[i] + logf(total[i]);
        for (u32 j = 0; j < S::COLUMNS; j++) {
            const u32 c = tx + SIDE * j;
            if (c < d) out[(row0 + r) * width + head * d + c] = from_float<T>(acc[i][j] / total[i]);
        }
    }
}

// delta[row, head] = dO . O. One warp per item; grid: ceil(rows * heads / warps per block).
template <typename T> __device__ void attention_delta(const T *d_out, const T *out, float *delta, u32 items, u32 d) {
    const u32 item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (item >= items) return;
    const u64 start = static_cast<u64>(item) * d;
    float sum = 0.0f;
    for (u32 c = threadIdx.x % 32; c < d; c += 32) sum += to_float(d_out[start + c]) * to_float(out[start + c]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[item] = sum;
}
ENTRY(attention_delta, (const T *d_out, const T *out, float *delta, u32 items, u32 d), (d_out, out, delta, items, d))

// The probability and the gradient of the score of query row i of a tile and key column j, in place
// of the products q k and dO v.
template <u32 N>
__device__ __forceinline__ void score_gradients(float s[N][N], float dp[N][N], const Spans &spans,
                                                const Tile &tile, u32 first, u32 n, float scale,
                                                const float lse[N], const float delta[N]) {
    const u32 ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    for (u32 i = 0; i < N; i++) {
        const u32 r = ty + SIDE * i;
        u32 at[4];
        spans.of(tile.start + min(r, tile.n - 1), at);
        for (u32 j = 0; j < N; j++) {
            const u32 c = tx + SIDE * j;
            const bool seen = r < tile.n && c < n && spans.sees(at, first + c);
            s[i][j] = seen ? expf(s[i][j] * scale - lse[i]) : 0.0f;
            dp[i][j] = seen ? s[i][j] * (dp[i][j] - delta[i]) : 0.0f;
        }
    }
}

// dq. Grid: (tiles of queries, heads).
template <typename T, u32 D>
__device__ void backward_queries(const T *q, const T *k, const T *v, const T *d_out, const float *lse,
                                 const float *delta, const Tile *tiles, T *dq, u32 heads, u32 kv_heads,
                                 u32 d, u32 pattern, u32 block, u32 views, float scale) {
    using S = Shape<T, D>;
    DYNAMIC_SHARED(T, shared);
    T *queries = shared, *d_outs = queries + S::TILE * S::STRIDE, *keys = d_outs + S::TILE * S::STRIDE,
      *values = keys + S::TILE * S::STRIDE;
    float *ds = reinterpret_cast<float *>(values + S::TILE * S::STRIDE);
    const Tile tile = tiles[blockIdx.x];
    const Spans spans = {pattern, block, views, tile.len};
    const u32 ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE, head = blockIdx.y;
    const u64 width = static_cast<u64>(heads) * d, kv_width = static_cast<u64>(kv_heads) * d;
    const u64 row0 = static_cast<u64>(tile.example) + tile.start;
    const u64 kv_column = static_cast<u64>(head / (heads / kv_heads)) * d;

    load<T, D>(queries, q + row0 * width + head * d, tile.n, d, width);
    load<T, D>(d_outs, d_out + row0 * width + head * d, tile.n, d, width);
    float acc[S::ROWS][S::COLUMNS] = {}, row_lse[S::ROWS], row_delta[S::ROWS];
    for (u32 i = 0; i < S::ROWS; i++) {
        const u64 row = row0 + min(ty + SIDE * i, tile.n - 1);
        row_lse[i] = lse[row * heads + head];
        row_delta[i] = delta[row * heads + head];
    }
    for (u32 part = 0; part < 2; part++) {
        u32 range[2];
        spans.range(tile.start, tile.start + tile.n - 1, part, range);
        for (u32 first = range[0]; first < range[1]; first += S::TILE) {
            const u32 n = min(S::TILE, range[1] - first);
            const u64 from = (static_cast<u64>(tile.example) + first) * kv_width + kv_column;
            __syncthreads();
            load<T, D>(keys, k + from, n, d, kv_width);
            load<T, D>(values, v + from, n, d, kv_width);
            __syncthreads();
            float s[S::ROWS][S::ROWS], dp[S::ROWS][S::ROWS];
            products<T, D>(queries, keys, s);
            products<T, D>(d_outs, values, dp);
            score_gradients<S::ROWS>(s, dp, spans, tile, first, n, scale, row_lse, row_delta);
            for (u32 i = 0; i < S::ROWS; i++) {
                for (u32 j = 0; j < S::ROWS; j++) {
                    ds[(ty + SIDE * i) * (S::TILE + 1) + tx + SIDE * j] = dp[i][j];
                }
            }
            __syncthreads();
            accumulate<T, D, false>(ds, keys, acc);
        }
    }
    for (u32 i = 0; i < S::ROWS; i++) {
        const u32 r = ty + SIDE * i;
        if (r >= tile.n) continue;
        for (u32 j = 0; j < S::COLUMNS; j++) {
            const u32 c = tx + SIDE * j;
            if (c < d) dq[(row0 + r) * width + head * d + c] = from_float<T>(acc[i][j] * scale);
        }
    }
}

// dk and dv. `key_tiles` are tiles of keys; tiles of queries of the same example are
// query_tiles[first_tile[b]] .. query_tiles[first_tile[b] + n_tiles[b]]. Grid: (tiles of keys, key/value
// heads).
template <typename T, u32 D>
__device__ void backward_keys(const T *q, const T *k, const T *v, const T *d_out, const float *lse,
                              const float *delta, const Tile *key_tiles, const Tile *query_tiles,
                              const u32 *first_tile, const u32 *n_tiles, T *dk, T *dv, u32 heads,
                              u32 kv_heads, u32 d, u32 pattern, u32 block, u32 views, float scale) {
    using S = Shape<T, D>;
    DYNAMIC_SHARED(T, shared);
    T *queries = shared, *d_outs = queries + S::TILE * S::STRIDE, *keys = d_outs + S::TILE * S::STRIDE,
      *values = keys + S::TILE * S::STRIDE;
    float *p = reinterpret_cast<float *>(values + S::TILE * S::STRIDE);
    const Tile own = key_tiles[blockIdx.x];
    const Spans spans = {pattern, block, views, own.len};
    const u32 ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE, kv_head = blockIdx.y;
    const u32 group = heads / kv_heads;
    const u64 width = static_cast<u64>(heads) * d, kv_width = static_cast<u64>(kv_heads) * d;
    const u64 key0 = (static_cast<u64>(own.example) + own.start) * kv_width + static_cast<u64>(kv_head) * d;

    load<T, D>(keys, k + key0, own.n, d, kv_width);
    load<T, D>(values, v + key0, own.n, d, kv_width);
    float acc_k[S::ROWS][S::COLUMNS] = {}, acc_v[S::ROWS][S::COLUMNS] = {};
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
            __syncthreads();
            load<T, D>(queries, q + row0 * width + head * d, tile.n, d, width);
            load<T, D>(d_outs, d_out + row0 * width + head * d, tile.n, d, width);
            float row_lse[S::ROWS], row_delta[S::ROWS];
            for (u32 i = 0; i < S::ROWS; i++) {
                const u64 row = row0 + min(ty + SIDE * i, tile.n - 1);
                row_lse[i] = lse[row * heads + head];
                row_delta[i] = delta[row * heads + head];
            }
            __syncthreads();
            float s[S::ROWS][S::ROWS], dp[S::ROWS][S::ROWS];
            products<T, D>(queries, keys, s);
            products<T, D>(d_outs, values, dp);
            score_gradients<S::ROWS>(s, dp, spans, tile, own.start, own.n, scale, row_lse, row_delta);
            for (u32 i = 0; i < S::ROWS; i++) {
                for (u32 j = 0; j < S::ROWS; j++) p[(ty + SIDE * i) * (S::TILE + 1) + tx + SIDE * j] = s[i][j];
            }
            __syncthreads();
            accumulate<T, D, true>(p, d_outs, acc_v);
            __syncthreads();
            for (u32 i = 0; i < S::ROWS; i++) {
                for (u32 j = 0; j < S::ROWS; j++) p[(ty + SIDE * i) * (S::TILE + 1) + tx + SIDE * j] = dp[i][j];
            }
            __syncthreads();
            accumulate<T, D, true>(p, queries, acc_k);
        }
    }
    for (u32 i = 0; i < S::ROWS; i++) {
        const u32 r = ty + SIDE * i;
        if (r >= own.n) continue;
        for (u32 j = 0; j < S::COLUMNS; j++) {
            const u32 c = tx + SIDE * j;
            if (c >= d) continue;
            dk[key0 + r * kv_width + c] = from_float<T>(acc_k[i][j] * scale);
            dv[key0 + r * kv_width + c] = from_float<T>(acc_v[i][j]);
        }
    }
}

// `NAME_D_f32` and `NAME_D_bf16` for heads of up to D elements.
#define SIZES(NAME, PARAMETERS, ARGUMENTS)                                                             \
    template <typename T> __device__ void NAME##_64 PARAMETERS { NAME<T, 64> ARGUMENTS; }              \
    ENTRY(NAME##_64, PARAMETERS, ARGUMENTS)                                                            \
    template <typename T> __device__ void NAME##_128 PARAMETERS { NAME<T, 128> ARGUMENTS; }            \
    ENTRY(NAME##_128, PARAMETERS, ARGUMENTS)                                                           \
    template <typename T> __device__ void NAME##_256 PARAMETERS { NAME<T, 256> ARGUMENTS; }            \
    ENTRY(NAME##_256, PARAMETERS, ARGUMENTS)

template <typename T, u32 D, typename... A> __device__ void attention_forward(A... a) { forward<T, D>(a...); }
template <typename T, u32 D, typename... A> __device__ void attention_backward_queries(A... a) {
    backward_queries<T, D>(a...);
}
template <typename T, u32 D, typename... A> __device__ void attention_backward_keys(A... a) {
    backward_keys<T, D>(a...);
}

SIZES(attention_forward,
      (const T *q, const T *k, const T *v, const Tile *tiles, const u32 *query_rows, T *out, float *lse,
       u32 heads, u32 kv_heads, u32 d, u32 pattern, u32 block, u32 views, float scale),
      (q, k, v, tiles, query_rows, out, lse, heads, kv_heads, d, pattern, block, views, scale))
SIZES(attention_backward_queries,
      (const T *q, const T *k, const T *v, const T *d_out, const float *lse, const float *delta,
       const Tile *tiles, T *dq, u32 heads, u32 kv_heads, u32 d, u32 pattern, u32 block, u32 views,
       float scale),
      (q, k, v, d_out, lse, delta, tiles, dq, heads, kv_heads, d, pattern, block, views, scale))
SIZES(attention_backward_keys,
      (const T *q, const T *k, const T *v, const T *d_out, const float *lse, const float *delta,
       const Tile *key_tiles, const Tile *query_tiles, const u32 *first_tile, const u32 *n_tiles, T *dk,
       T *dv, u32 heads, u32 kv_heads, u32 d, u32 pattern, u32 block, u32 views, float scale),
      (q, k, v, d_out, lse, delta, key_tiles, query_tiles, first_tile, n_tiles, dk, dv, heads, kv_heads, d,
       pattern, block, views, scale))
