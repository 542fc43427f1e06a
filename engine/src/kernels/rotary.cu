// `rotary.rs` on the GPU: per-head RMSNorm and rotary in one pass, one warp per head of a row.
#include "rotary.cuh"

// A lane holds elements lane, lane + 32, ...: heads of up to 256.
static const u32 MOST_PER_LANE = 8;

// y = rotary(norm(x)); norm may be null. `items` = rows * heads, `table` [positions, dim].
// Grid: ceil(items / warps per block).
template <typename T>
__device__ void rotary_forward(const T *x, const T *norm, const float *table, const u32 *positions,
                               T *y, u32 items, u32 heads, u32 head_dim, u32 dim, float eps) {
    const u32 item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    // Whole warps leave: nothing below waits for the block.
    if (item >= items) return;
    const u64 start = static_cast<u64>(item) * head_dim;
    const float *angles = table + static_cast<u64>(positions[item / heads]) * dim;
    const float inv = norm == nullptr ? 1.0f : warp_inverse_rms(x + start, head_dim, eps);
    for (u32 e = threadIdx.x % 32; e < head_dim; e += 32) {
        const Turn turn = turn_of(angles, e, dim);
        float own = to_float(x[start + e]) * inv, other = to_float(x[start + turn.partner]) * inv;
        if (norm != nullptr) {
            own *= to_float(norm[e]);
            other *= to_float(norm[turn.partner]);
        }
        y[start + e] = from_float<T>(own * turn.cos + other * turn.sin);
    }
}
ENTRY(rotary_forward,
      (const T *x, const T *norm, const float *table, const u32 *positions, T *y, u32 items, u32 heads,
       u32 head_dim, u32 dim, float eps),
      (x, norm, table, positions, y, items, heads, head_dim, dim, eps))

// Turns dy into dx in place. Warp w of all warps takes items w, w + n, ... and writes its share of the
// norm's gradient to partial[w] ([warps, head_dim], may be null).
template <typename T>
__device__ void rotary_backward(T *dy, const T *x, const T *norm, const float *table,
                                const u32 *positions, float *partial, u32 items, u32 heads,
                                u32 head_dim, u32 dim, float eps) {
    const u32 lane = threadIdx.x % 32;
    const u32 warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const u32 warps = gridDim.x * (blockDim.x / 32);
    float dw[MOST_PER_LANE] = {};
    for (u32 item = warp; item < items; item += warps) {
        const u64 start = static_cast<u64>(item) * head_dim;
        const float *angles = table + static_cast<u64>(positions[item / heads]) * dim;
        float turned[MOST_PER_LANE];
        for (u32 j = 0, e = lane; e < head_dim; j++, e += 32) {
            const Turn turn = turn_of(angles, e, dim);
            turned[j] = to_float(dy[start + e]) * turn.cos - to_float(dy[start + turn.partner]) * turn.sin;
        }
        // Every lane has read its partners before any lane writes.
        __syncwarp();
        if (norm == nullptr) {
            for (u32 j = 0, e = lane; e < head_dim; j++, e += 32) dy[start + e] = from_float<T>(turned[j]);
            continue;
        }
        const float inv = warp_inverse_rms(x + start, head_dim, eps);
        float projection = 0.0f;
        for (u32 j = 0, e = lane; e < head_dim; j++, e += 32) {
            projection += turned[j] * to_float(norm[e]) * to_float(x[start + e]);
        }
        const float mean = warp_sum(projection) * inv / static_cast<float>(head_dim);
        for (u32 j = 0, e = lane; e < head_dim; j++, e += 32) {
            const float v = to_float(x[start + e]) * inv;
            dw[j] += turned[j] * v;
            dy[start + e] = from_float<T>(inv * (turned[j] * to_float(norm[e]) - v * mean));
        }
    }
    if (partial == nullptr) return;
    for (u32 j = 0, e = lane; e < head_dim; j++, e += 32) {
        partial[static_cast<u64>(warp) * head_dim + e] = dw[j];
    }
}
ENTRY(rotary_backward,
      (T * dy, const T *x, const T *norm, const float *table, const u32 *positions, float *partial,
       u32 items, u32 heads, u32 head_dim, u32 dim, float eps),
      (dy, x, norm, table, positions, partial, items, heads, head_dim, dim, eps))
