// `routing.rs` on the GPU.
#include "experts.cuh"

namespace routing {

__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

// By what chosen scores of this sum are multiplied. As in routing.rs, `TINY` included.
__device__ __forceinline__ float factor(float sum, u32 normalise, float scale) {
    return normalise != 0 ? scale / (sum + 1e-20f) : scale;
}

// A float as a number of the same order. Never 0: that is the key of what cannot be chosen.
__device__ __forceinline__ u32 key_of(float x) {
    const u32 bits = __float_as_uint(x);
    return max((bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u, 1u);
}

// What is ranked: larger keys first, of equals the smaller number. Numbers count from 1.
struct Ranked {
    u32 key, number;
    __device__ __forceinline__ bool before(const Ranked &other) const {
        return key > other.key || (key == other.key && number < other.number);
    }
    // Before everything.
    static __device__ __forceinline__ Ranked none() { return {0xffffffffu, 0}; }
};

// Which of n keys follows `last`; the same in every lane.
__device__ __forceinline__ Ranked next(const u32 *keys, u32 n, const Ranked &last) {
    Ranked best = {0, 0xffffffffu};
    for (u32 i = threadIdx.x % 32; i < n; i += 32) {
        const Ranked own = {keys[i], i + 1};
        if (last.before(own) && own.before(best)) best = own;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
        const Ranked other = {__shfl_xor_sync(0xffffffffu, best.key, offset),
                              __shfl_xor_sync(0xffffffffu, best.number, offset)};
        if (other.before(best)) best = other;
    }
    return best;
}

// The sum of `own` over the threads before this one, and over all of them.
__device__ __forceinline__ u32 sum_before(u32 own, u32 *total) {
    __shared__ u32 partial[32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    u32 sum = own;
    for (u32 offset = 1; offset < 32; offset *= 2) {
        const u32 left = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= offset) sum += left;
    }
    // Whoever still reads `partial` of the call before has to be done.
    __syncthreads();
    if (lane == 31) partial[warp] = sum;
    __syncthreads();
    u32 ahead = sum - own;
    *total = 0;
    for (u32 w = 0; w < warps; w++) {
        if (w < warp) ahead += partial[w];
        *total += partial[w];
    }
    return ahead;
}

// Neighbouring pairs that a thread looks at between two sums over the block.
static const u32 RUN = 8;

} // namespace routing

// expert[r] = the n_chosen experts of row r, best first. A group of neighbouring experts counts what its
// two best do; of the groups kept the experts with the largest score + bias (may be null) are chosen. Of
// equals the first. Grid: rows, of one warp; shared memory for 2 n_experts + 2 n_groups numbers.
template <typename T>
__device__ void choose_experts(const float *logits, const T *bias, u32 *expert, u32 n_experts, u32 n_chosen,
                               u32 n_groups, u32 n_groups_kept) {
    DYNAMIC_SHARED(float, scores);
    u32 *keys = reinterpret_cast<u32 *>(scores + n_experts);
    u32 *group_keys = keys + n_experts, *kept = group_keys + n_groups;
    const u32 lane = threadIdx.x, size = n_experts / n_groups;
    logits += static_cast<u64>(blockIdx.x) * n_experts;
    expert += static_cast<u64>(blockIdx.x) * n_chosen;
    for (u32 e = lane; e < n_experts; e += 32) {
        scores[e] = routing::sigmoid(logits[e]) + (bias != nullptr ? to_float(bias[e]) : 0.0f);
    }
    __syncwarp();
    for (u32 g = lane; g < n_groups; g += 32) {
        float first = -INFINITY, second = -INFINITY;
        for (u32 e = g * size; e < (g + 1) * size; e++) {
            const float x = scores[e];
            if (x > first) {
                second = first;
                first = x;
            } else if (x > second) {
                second = x;
            }
        }
        group_keys[g] = routing::key_of(size == 1 ? first : first + second);
        kept[g] = 0;
    }
    __syncwarp();
    routing::Ranked last = routing::Ranked::none();
    for (u32 k = 0; k < n_groups_kept; k++) {
        last = routing::next(group_keys, n_groups, last);
        if (lane == 0) kept[last.number - 1] = 1;
    }
    __syncwarp();
    for (u32 e = lane; e < n_experts; e += 32) keys[e] = kept[e / size] != 0 ? routing::key_of(scores[e]) : 0;
    __syncwarp();
    last = routing::Ranked::none();
    for (u32 k = 0; k < n_chosen; k++) {
        last = routing::next(keys, n_experts, last);
        if (lane == 0) expert[k] = last.number - 1;
    }
}
ENTRY(choose_experts,
      (const float *logits, const T *bias, u32 *expert, u32 n_experts, u32 n_chosen, u32 n_groups,
       u32 n_groups_kept),
      (logits, bias, expert, n_experts, n_chosen, n_groups, n_groups_kept))

// weight[r, k] = the share of the k-th expert of row r. A thread per row.
extern "C" __global__ void weigh_experts(const float *logits, const u32 *expert, float *weight, u32 rows,
                                         u32 n_experts, u32 n_chosen, u32 normalise, float scale) {
    const u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    logits += static_cast<u64>(row) * n_experts;
    expert += static_cast<u64>(row) * n_chosen;
    weight += static_cast<u64>(row) * n_chosen;
    float sum = 0.0f;
    for (u32 k = 0; k < n_chosen; k++) {
        weight[k] = routing::sigmoid(logits[expert[k]]);
        sum += weight[k];
    }
    const float factor = routing::factor(sum, normalise, scale);
    for (u32 k = 0; k < n_chosen; k++) weight[k] *= factor;
}
REGISTERED(weigh_experts)

// counts[e] = pairs of expert e. Grid: experts.
extern "C" __global__ void count_pairs(const u32 *expert, u32 *counts, u32 n_pairs) {
    u32 own = 0;
    for (u32 i = threadIdx.x; i < n_pairs; i += blockDim.x) own += expert[i] == blockIdx.x;
    own = block_sum(own);
    if (threadIdx.x == 0) counts[blockIdx.x] = own;
}
REGISTERED(count_pairs)

// Sorts pairs by expert, those of an expert in order: place[i] = where pair i comes to stand, token[p] =
// whose pair stands at p; offsets[e] .. offsets[e + 1] are expert e's. tiles = theirs, of n_tiles; those
// that are too many are empty. Grid: experts; each block looks for its own pairs.
extern "C" __global__ void sort_pairs(const u32 *expert, const u32 *counts, u32 *place, u32 *token, u32 *offsets,
                                      ExpertTile *tiles, u32 n_pairs, u32 n_chosen, u32 n_tiles) {
    const u32 own = blockIdx.x, n_experts = gridDim.x, n = counts[own];
    u32 first = 0, first_tile = 0;
    for (u32 e = threadIdx.x; e < own; e += blockDim.x) {
        first += counts[e];
        first_tile += tiles_of(counts[e]);
    }
    first = block_sum(first);
    first_tile = block_sum(first_tile);
    const bool last = own + 1 == n_experts;
    if (threadIdx.x == 0) {
        offsets[own] = first;
        if (last) offsets[n_experts] = first + n;
    }
    for (u32 i = threadIdx.x; i < tiles_of(n); i += blockDim.x) {
        const u32 before = i * EXPERT_ROWS;
        tiles[first_tile + i] = {own, first + before, min(EXPERT_ROWS, n - before)};
    }
    if (last) {
        for (u32 i = first_tile + tiles_of(n) + threadIdx.x; i < n_tiles; i += blockDim.x) tiles[i] = {0, 0, 0};
    }
    for (u32 start = 0; start < n_pairs; start += blockDim.x * routing::RUN) {
        const u32 from = start + threadIdx.x * routing::RUN;
        bool is_own[routing::RUN];
        u32 found = 0, all;
#pragma unroll
        for (u32 j = 0; j < routing::RUN; j++) {
            is_own[j] = from + j < n_pairs && expert[from + j] == own;
            found += is_own[j];
        }
        u32 at = first + routing::sum_before(found, &all);
#pragma unroll
        for (u32 j = 0; j < routing::RUN; j++) {
            if (!is_own[j]) continue;
            place[from + j] = at;
            token[at] = (from + j) / n_chosen;
            at++;
        }
        first += all;
    }
}
REGISTERED(sort_pairs)

// into[r] += the sum of weight[r, k] (1 where there are none) times the row of the k-th pair of r, in the
// order of its experts. Grid: rows.
template <typename T>
__device__ void scatter_add_pairs(const T *sorted, const u32 *place, const float *weight, T *into, u32 width,
                                  u32 n_chosen) {
    const u64 row = blockIdx.x, pair = row * n_chosen;
    for (u32 i = threadIdx.x * EIGHT; i < width; i += blockDim.x * EIGHT) {
        Eight sum;
        sum.load(into + row * width + i, width - i);
        for (u32 k = 0; k < n_chosen; k++) {
            Eight v;
            v.load(sorted + static_cast<u64>(place[pair + k]) * width + i, width - i);
            const float factor = weight != nullptr ? weight[pair + k] : 1.0f;
#pragma unroll
            for (u32 e = 0; e < EIGHT; e++) sum.v[e] += factor * v.v[e];
        }
        sum.store(into + row * width + i, width - i);
    }
}
ENTRY(scatter_add_pairs,
      (const T *sorted, const u32 *place, const float *weight, T *into, u32 width, u32 n_chosen),
      (sorted, place, weight, into, width, n_chosen))

// The row of each pair, times its weight. Grid: pairs.
template <typename T> __device__ void weigh_pairs(T *sorted, const u32 *place, const float *weight, u32 width) {
    T *row = sorted + static_cast<u64>(place[blockIdx.x]) * width;
    const float factor = weight[blockIdx.x];
    for (u32 i = threadIdx.x * EIGHT; i < width; i += blockDim.x * EIGHT) {
        Eight v;
        v.load(row + i, width - i);
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) v.v[e] *= factor;
        v.store(row + i, width - i);
    }
}
ENTRY(weigh_pairs, (T * sorted, const u32 *place, const float *weight, u32 width), (sorted, place, weight, width))

// out[r] = the gradient of the logits of row r, where that of a pair's weight is the inner product of its
// rows of a and b; 0 for experts that r did not choose. Grid: rows; shared memory for n_chosen numbers.
template <typename T>
__device__ void expert_logit_gradient(const float *logits, const u32 *expert, const u32 *place, const T *a,
                                      const T *b, T *out, u32 n_experts, u32 n_chosen, u32 width, u32 normalise,
                                      float scale) {
    DYNAMIC_SHARED(float, d_weights);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const u64 row = blockIdx.x;
    logits += row * n_experts;
    out += row * n_experts;
    expert += row * n_chosen;
    place += row * n_chosen;
    for (u32 k = warp; k < n_chosen; k += warps) {
        const u64 at = static_cast<u64>(place[k]) * width;
        float sum = 0.0f;
        for (u32 i = lane * EIGHT; i < width; i += 32 * EIGHT) {
            Eight x, y;
            x.load(a + at + i, width - i);
            y.load(b + at + i, width - i);
#pragma unroll
            for (u32 e = 0; e < EIGHT; e++) sum += x.v[e] * y.v[e];
        }
        sum = warp_sum(sum);
        if (lane == 0) d_weights[k] = sum;
    }
    for (u32 e = threadIdx.x; e < n_experts; e += blockDim.x) out[e] = from_float<T>(0.0f);
    __syncthreads();
    float total = 0.0f, sum = 0.0f;
    for (u32 k = 0; k < n_chosen; k++) {
        const float s = routing::sigmoid(logits[expert[k]]);
        total += s;
        sum += s * d_weights[k];
    }
    const float common = normalise != 0 ? sum / (total + 1e-20f) : 0.0f;
    const float factor = routing::factor(total, normalise, scale);
    for (u32 k = threadIdx.x; k < n_chosen; k += blockDim.x) {
        const float s = routing::sigmoid(logits[expert[k]]);
        out[expert[k]] = from_float<T>(factor * (d_weights[k] - common) * s * (1.0f - s));
    }
}
ENTRY(expert_logit_gradient,
      (const float *logits, const u32 *expert, const u32 *place, const T *a, const T *b, T *out, u32 n_experts,
       u32 n_chosen, u32 width, u32 normalise, float scale),
      (logits, expert, place, a, b, out, n_experts, n_chosen, width, normalise, scale))
