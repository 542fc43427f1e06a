// `normal.rs` on the GPU: random weights, drawn where they will be.
#include "counter_rng.cuh"

// values[2 i], values[2 i + 1]: pair i of the stream `key`. As the CPU computes it, but for the last bit
// of a double's logarithm, sine and cosine. Grid: ceil(ceil(n / 2) / threads).
template <typename T> __device__ void normal_draws(T *values, u64 n, u64 key, double deviation) {
    const u64 pair = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (2 * pair >= n) return;
    // In (0, 1], so that its logarithm is finite.
    const double radius = sqrt(-2.0 * log(1.0 - counter_uniform(key, pair, 0))) * deviation;
    const double angle = 6.283185307179586476925 * counter_uniform(key, pair, 1);
    values[2 * pair] = from_float<T>(static_cast<float>(radius * cos(angle)));
    if (2 * pair + 1 < n) values[2 * pair + 1] = from_float<T>(static_cast<float>(radius * sin(angle)));
}
ENTRY(normal_draws, (T * values, u64 n, u64 key, double deviation), (values, n, key, deviation))
