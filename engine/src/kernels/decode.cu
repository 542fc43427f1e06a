// Decoding on the GPU: the key-value cache, and attention of one query per slot over it. A slot that
// is not running costs a block that looks and leaves.
//
// The cache of a layer is `[slots, kv_heads, capacity, d]`, keys and values apart: what a head reads
// stands in one piece.
#include "decode.cuh"
#include "rotary.cuh"

// Elements of 16 bytes.
template <typename T> struct Vector {
    static constexpr u32 N = 16 / sizeof(T);
};

// The vector number `v` of a row of d elements, as floats; zeros past the row's end. `whole`: rows are
// whole vectors, and aligned.
template <typename T>
__device__ __forceinline__ void load_vector(const T *row, u32 v, u32 d, bool whole, float to[Vector<T>::N]) {
    const u32 start = v * Vector<T>::N;
    if (whole) {
        widen_16_bytes(row + start, to);
        return;
    }
#pragma unroll
    for (u32 e = 0; e < Vector<T>::N; e++) to[e] = start + e < d ? to_float(row[start + e]) : 0.0f;
}

// Queries, keys and values out of the product `qkv [rows, (heads + 2 kv_heads) d]`: norms (may be
// null) and rotary on queries and keys; queries to `q`, keys and values to `k` and `v` (may be null)
// and to the cache. A row's slot is slots[row], or its own number where `slots` is null; a row without
// one (slots[row] past the last) is not cached. Where `status` is given, only running slots count.
// `items` = rows * (heads + 2 kv_heads), one warp each. Grid: ceil(items / warps per block).
template <typename T>
__device__ void decode_rotate(const T *qkv, const T *query_norm, const T *key_norm, const float *table,
                              const u32 *positions, const u32 *slots, const u32 *status, T *q, T *k, T *v,
                              T *key_cache, T *value_cache, u32 items, u32 n_slots, u32 heads,
                              u32 kv_heads, u32 head_dim, u32 dim, u32 capacity, float eps) {
    const u32 item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    // Whole warps leave: nothing below waits for the block.
    if (item >= items) return;
    const u32 all = heads + 2 * kv_heads, row = item / all, head = item % all;
    if (status != nullptr && status[row] != slot::RUNNING) return;
    const u32 slot = slots == nullptr ? row : slots[row], position = positions[row];
    const bool is_query = head < heads, is_value = head >= heads + kv_heads;
    const u32 kv_head = is_query ? 0 : (head - heads) % kv_heads;
    const T *x = qkv + static_cast<u64>(item) * head_dim;
    const u64 apart = (static_cast<u64>(row) * kv_heads + kv_head) * head_dim;
    T *to, *cached = nullptr;
    if (is_query) {
        to = q + (static_cast<u64>(row) * heads + head) * head_dim;
    } else {
        T *packed = is_value ? v : k;
        to = packed == nullptr ? nullptr : packed + apart;
        if (slot < n_slots) {
            const u64 at = (static_cast<u64>(slot) * kv_heads + kv_head) * capacity + position;
            cached = (is_value ? value_cache : key_cache) + at * head_dim;
        }
    }
    const T *norm = is_query ? query_norm : key_norm;
    if (is_value) norm = nullptr;
    const float *angles = table + static_cast<u64>(position) * dim;
    const float inv = norm == nullptr ? 1.0f : warp_inverse_rms(x, head_dim, eps);
    for (u32 e = threadIdx.x % 32; e < head_dim; e += 32) {
        T y = x[e];
        if (!is_value) {
            const Turn turn = turn_of(angles, e, dim);
            float own = to_float(x[e]) * inv, other = to_float(x[turn.partner]) * inv;
            if (norm != nullptr) {
                own *= to_float(norm[e]);
                other *= to_float(norm[turn.partner]);
            }
            y = from_float<T>(own * turn.cos + other * turn.sin);
        }
        if (to != nullptr) to[e] = y;
        if (cached != nullptr) cached[e] = y;
    }
}
ENTRY(decode_rotate,
      (const T *qkv, const T *query_norm, const T *key_norm, const float *table, const u32 *positions,
       const u32 *slots, const u32 *status, T *q, T *k, T *v, T *key_cache, T *value_cache, u32 items,
       u32 n_slots, u32 heads, u32 kv_heads, u32 head_dim, u32 dim, u32 capacity, float eps),
      (qkv, query_norm, key_norm, table, positions, slots, status, q, k, v, key_cache, value_cache, items,
       n_slots, heads, kv_heads, head_dim, dim, capacity, eps))

// Keys of one partial result. Fixed, so that a slot's sums depend on its length alone.
static const u32 CHUNK = 256;
static const u32 ATTEND_THREADS = 128;
// Lanes that share a key, and groups of them in a block.
static const u32 LANES = 8;
static const u32 TEAMS = ATTEND_THREADS / LANES;
// Keys that a lane has under way.
static const u32 KEYS = 4;

// Attention of the running slots' queries, `q [slots, heads * d]`, over their caches, up to and with
// the slot's position: of every chunk of keys the sum of values weighted by exp(score - largest),
// partial[slot, head, chunk, d], and {largest, sum of weights}, statistics[slot, head, chunk, 2].
//
// A block has up to G query heads that read one key/value head, and every `splits`-th chunk.
// Grid: (kv_heads * ceil(group / G) * splits, slots). Shared memory: floats, G * dp for queries and
// the larger of G * CHUNK for scores and parts * G * dp for sums, dp = d rounded up to whole vectors.
template <typename T, u32 G>
__device__ void attend(const T *q, const T *keys, const T *values, const u32 *state, float *partial,
                       float *statistics, u32 n_slots, u32 heads, u32 kv_heads, u32 d, u32 capacity,
                       u32 chunks, u32 splits, float scale) {
    constexpr u32 N = Vector<T>::N;
    DYNAMIC_SHARED(float, shared);
    const u32 slot = blockIdx.y;
    // The same for the whole block.
    if (state[slot::STATUS * n_slots + slot] != slot::RUNNING) return;
    const u32 visible = state[slot::POSITION * n_slots + slot] + 1;
    const u32 group = heads / kv_heads, passes = (group + G - 1) / G;
    const u32 split = blockIdx.x % splits, pass = blockIdx.x / splits % passes;
    const u32 kv_head = blockIdx.x / splits / passes;
    const u32 first_head = kv_head * group + pass * G, n_heads = min(G, group - pass * G);
    const u32 vectors = (d + N - 1) / N, dp = vectors * N;
    const bool whole = d % N == 0;
    float *queries = shared, *scores = queries + G * dp, *sums = scores;

    for (u32 i = threadIdx.x; i < G * dp; i += ATTEND_THREADS) {
        const u32 g = i / dp, c = i % dp;
        const u64 at = (static_cast<u64>(slot) * heads + first_head + g) * d + c;
        queries[i] = g < n_heads && c < d ? to_float(q[at]) * scale : 0.0f;
    }
    const u32 lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
    const u32 column = threadIdx.x % vectors, part = threadIdx.x / vectors, parts = ATTEND_THREADS / vectors;
    for (u32 chunk = split; chunk * CHUNK < visible; chunk += splits) {
        const u32 first = chunk * CHUNK, n = min(CHUNK, visible - first);
        const u64 from = ((static_cast<u64>(slot) * kv_heads + kv_head) * capacity + first) * d;
        // The queries are there; the sums of the chunk before are read.
        __syncthreads();
        for (u32 block = 0; block < n; block += TEAMS * KEYS) {
            float dots[KEYS][G] = {};
            for (u32 v = lane; v < vectors; v += LANES) {
                float x[KEYS][N];
#pragma unroll
                for (u32 j = 0; j < KEYS; j++) {
                    // Past the end the last key again, whose product nobody keeps.
                    const u32 key = min(block + TEAMS * j + team, n - 1);
                    load_vector(keys + from + static_cast<u64>(key) * d, v, d, whole, x[j]);
                }
#pragma unroll
                for (u32 g = 0; g < G; g++) {
                    const float *y = queries + g * dp + v * N;
#pragma unroll
                    for (u32 e = 0; e < N; e++) {
                        const float factor = y[e];
#pragma unroll
                        for (u32 j = 0; j < KEYS; j++) dots[j][g] += x[j][e] * factor;
                    }
                }
            }
#pragma unroll
            for (u32 j = 0; j < KEYS; j++) {
                const u32 key = block + TEAMS * j + team;
#pragma unroll
                for (u32 g = 0; g < G; g++) {
                    float dot = dots[j][g];
#pragma unroll
                    for (u32 offset = LANES / 2; offset > 0; offset /= 2) {
                        dot += __shfl_xor_sync(0xffffffffu, dot, static_cast<int>(offset));
                    }
                    if (lane == 0 && key < n) scores[g * CHUNK + key] = dot;
                }
            }
        }
        __syncthreads();
        for (u32 g = threadIdx.x / 32; g < n_heads; g += ATTEND_THREADS / 32) {
            float top = -INFINITY, total = 0.0f;
            for (u32 i = threadIdx.x % 32; i < n; i += 32) top = fmaxf(top, scores[g * CHUNK + i]);
            top = warp_max(top);
            for (u32 i = threadIdx.x % 32; i < n; i += 32) {
                const float weight = expf(scores[g * CHUNK + i] - top);
                scores[g * CHUNK + i] = weight;
                total += weight;
            }
            total = warp_sum(total);
            if (threadIdx.x % 32 == 0) {
                const u64 item = static_cast<u64>(slot) * heads + first_head + g;
                float *to = statistics + (item * chunks + chunk) * 2;
                to[0] = top;
                to[1] = total;
            }
        }
        __syncthreads();
        float acc[G][N] = {};
        if (part < parts) {
#pragma unroll 4
            for (u32 key = part; key < n; key += parts) {
                float x[N];
                load_vector(values + from + static_cast<u64>(key) * d, column, d, whole, x);
#pragma unroll
                for (u32 g = 0; g < G; g++) {
                    const float weight = scores[g * CHUNK + key];
#pragma unroll
                    for (u32 e = 0; e < N; e++) acc[g][e] += weight * x[e];
                }
            }
        }
        // The weights are read: the sums take their place.
        __syncthreads();
        if (part < parts) {
#pragma unroll
            for (u32 g = 0; g < G; g++) {
#pragma unroll
                for (u32 e = 0; e < N; e++) sums[(part * G + g) * dp + column * N + e] = acc[g][e];
            }
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < n_heads * d; i += ATTEND_THREADS) {
            const u32 g = i / d, c = i % d;
            float total = 0.0f;
            for (u32 p = 0; p < parts; p++) total += sums[(p * G + g) * dp + c];
            partial[((static_cast<u64>(slot) * heads + first_head + g) * chunks + chunk) * d + c] = total;
        }
    }
}

#define ATTEND(G)                                                                                      \
    template <typename T>                                                                              \
    __device__ void decode_attend_##G(const T *q, const T *keys, const T *values, const u32 *state,    \
                                      float *partial, float *statistics, u32 n_slots, u32 heads,       \
                                      u32 kv_heads, u32 d, u32 capacity, u32 chunks, u32 splits,       \
                                      float scale) {                                                   \
        attend<T, G>(q, keys, values, state, partial, statistics, n_slots, heads, kv_heads, d,         \
                     capacity, chunks, splits, scale);                                                 \
    }                                                                                                  \
    ENTRY(decode_attend_##G,                                                                           \
          (const T *q, const T *keys, const T *values, const u32 *state, float *partial,               \
           float *statistics, u32 n_slots, u32 heads, u32 kv_heads, u32 d, u32 capacity, u32 chunks,   \
           u32 splits, float scale),                                                                   \
          (q, keys, values, state, partial, statistics, n_slots, heads, kv_heads, d, capacity, chunks, \
           splits, scale))
ATTEND(1)
ATTEND(2)
ATTEND(4)
ATTEND(8)

// out[slot, head * d ..] from the chunks of `attend`, in their order. `items` = cached slots * heads,
// one warp each. Grid: ceil(items / warps per block).
template <typename T>
__device__ void decode_combine(const float *partial, const float *statistics, const u32 *state, T *out,
                               u32 items, u32 n_slots, u32 heads, u32 d, u32 chunks) {
    const u32 item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (item >= items) return;
    const u32 slot = item / heads;
    if (state[slot::STATUS * n_slots + slot] != slot::RUNNING) return;
    const u32 n = state[slot::POSITION * n_slots + slot] / CHUNK + 1;
    const float *of = statistics + static_cast<u64>(item) * chunks * 2;
    float top = -INFINITY, total = 0.0f;
    for (u32 c = 0; c < n; c++) top = fmaxf(top, of[2 * c]);
    for (u32 c = 0; c < n; c++) total += of[2 * c + 1] * expf(of[2 * c] - top);
    for (u32 e = threadIdx.x % 32; e < d; e += 32) {
        float sum = 0.0f;
        for (u32 c = 0; c < n; c++) {
            sum += partial[(static_cast<u64>(item) * chunks + c) * d + e] * expf(of[2 * c] - top);
        }
        out[static_cast<u64>(item) * d + e] = from_float<T>(sum / total);
    }
}
ENTRY(decode_combine,
      (const float *partial, const float *statistics, const u32 *state, T *out, u32 items, u32 n_slots,
       u32 heads, u32 d, u32 chunks),
      (partial, statistics, state, out, items, n_slots, heads, d, chunks))

// The first positions of a slot's cache `x [slots, kv_heads, capacity, d]` become another's: `pairs` are
// {from, to, positions}. Grid: number of pairs * kv_heads.
template <typename T>
__device__ void decode_copy(T *x, const u32 *pairs, u32 kv_heads, u32 capacity, u32 d) {
    const u32 *pair = pairs + static_cast<u64>(blockIdx.x / kv_heads) * 3;
    const u32 head = blockIdx.x % kv_heads;
    const u64 stride = static_cast<u64>(capacity) * d, n = static_cast<u64>(pair[2]) * d;
    const T *from = x + (static_cast<u64>(pair[0]) * kv_heads + head) * stride;
    T *to = x + (static_cast<u64>(pair[1]) * kv_heads + head) * stride;
    constexpr u32 N = Vector<T>::N;
    if (d % N == 0) {
        for (u64 i = threadIdx.x; i < n / N; i += blockDim.x) {
            store_16_bytes(to + i * N, load_16_bytes(from + i * N));
        }
    } else {
        for (u64 i = threadIdx.x; i < n; i += blockDim.x) to[i] = from[i];
    }
}
ENTRY(decode_copy, (T * x, const u32 *pairs, u32 kv_heads, u32 capacity, u32 d),
      (x, pairs, kv_heads, capacity, d))

// y[to] = x[from] for `pairs` of {from, to}. Grid: number of pairs.
template <typename T> __device__ void decode_place(const T *x, const u32 *pairs, T *y, u32 width) {
    const u64 from = static_cast<u64>(pairs[2 * blockIdx.x]) * width;
    const u64 to = static_cast<u64>(pairs[2 * blockIdx.x + 1]) * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[to + i] = x[from + i];
}
ENTRY(decode_place, (const T *x, const u32 *pairs, T *y, u32 width), (x, pairs, y, width))

// Gives slots new answers: `starts` are {slot, last position of the prompt, limit, low and high half of
// the random stream's key}. Grid: ceil(n / threads).
extern "C" __global__ void decode_start(u32 *state, const u32 *starts, u32 n, u32 n_slots) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const u32 *from = starts + static_cast<u64>(i) * 5;
    const u32 slot = from[0];
    state[slot::STATUS * n_slots + slot] = slot::FRESH;
    state[slot::ID * n_slots + slot] = 0;
    state[slot::POSITION * n_slots + slot] = from[1];
    state[slot::WRITTEN * n_slots + slot] = 0;
    state[slot::LIMIT * n_slots + slot] = from[2];
    state[slot::KEY_LOW * n_slots + slot] = from[3];
    state[slot::KEY_HIGH * n_slots + slot] = from[4];
}
REGISTERED(decode_start)

// Slots move, with their answers [slots, most]: `moves` are {from, to, _}; `from` has nothing to do
// afterwards. Grid: number of moves.
extern "C" __global__ void decode_move(u32 *state, u32 *answers, const u32 *moves, u32 n_slots, u32 most) {
    const u32 from = moves[3 * blockIdx.x], to = moves[3 * blockIdx.x + 1];
    const u32 written = state[slot::WRITTEN * n_slots + from];
    const u32 *answer = answers + static_cast<u64>(from) * most;
    u32 *moved = answers + static_cast<u64>(to) * most;
    for (u32 i = threadIdx.x; i < written; i += blockDim.x) moved[i] = answer[i];
    // A thread has a field.
    if (threadIdx.x >= slot::FIELDS) return;
    u32 *field = state + static_cast<u64>(threadIdx.x) * n_slots;
    field[to] = field[from];
    if (threadIdx.x == slot::STATUS) field[from] = 0;
}
REGISTERED(decode_move)
