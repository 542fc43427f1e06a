// `sample.rs` on the GPU: from rows of logits to tokens, one block per row.
//
// Masses are the CPU's to the bit; their sums are double, added in another order than there, so a draw
// differs only where the uniform number falls within some 1e-13 of a boundary between two tokens.
#include "counter_rng.cuh"
#include "decode.cuh"

// `simd::exp`, operation by operation: nothing is contracted.
__device__ __forceinline__ float cpu_exp(float x) {
    const float round = 12582912.0f;
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    const float shifted = __fadd_rn(__fmul_rn(x, 1.44269504088896340736f), round);
    const float n = __fadd_rn(shifted, -round);
    float r = __fadd_rn(x, -__fmul_rn(n, 0.6933594f));
    r = __fadd_rn(r, -__fmul_rn(n, -2.1219444e-4f));
    float p = 1.9875692e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3982e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    const float e = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    return __fmul_rn(e, __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u));
}

// A row of logits, and what becomes of them.
struct Row {
    const float *logits;
    float largest, inverse_temperature;
    __device__ __forceinline__ float mass_of(float logit) const {
        const float z = __fmul_rn(__fadd_rn(logit, -largest), inverse_temperature);
        return z < -87.0f ? 0.0f : cpu_exp(z);
    }
    __device__ __forceinline__ float mass(u32 id) const { return mass_of(logits[id]); }
};

// Unsigned numbers in the order of the floats; both zeros are one.
__device__ __forceinline__ u32 key_of(float x) {
    const u32 bits = __float_as_uint(__fadd_rn(x, 0.0f));
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_key(u32 key) {
    return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// Sums over the threads of the block before this one, up to and with it, and over all.
template <typename V> struct Scan {
    V before, upto, total;
};
template <typename V> __device__ Scan<V> block_scan(V v) {
    __shared__ V partial[32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (u32 offset = 1; offset < 32; offset *= 2) {
        const V other = __shfl_up_sync(0xffffffffu, v, offset);
        if (lane >= offset) v += other;
    }
    const V shifted = __shfl_up_sync(0xffffffffu, v, 1u);
    // As in `block_sum`.
    __syncthreads();
    if (lane == 31) partial[warp] = v;
    __syncthreads();
    V below = V(0), total = V(0);
    for (u32 w = 0; w < warps; w++) {
        if (w == warp) below = total;
        total += partial[w];
    }
    return {lane == 0 ? below : below + shifted, below + v, total};
}

__device__ __forceinline__ u32 block_largest(u32 v) {
    __shared__ u32 partial[32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int offset = 16; offset > 0; offset /= 2) v = max(v, __shfl_xor_sync(0xffffffffu, v, offset));
    // As in `block_sum`.
    __syncthreads();
    if (lane == 0) partial[warp] = v;
    __syncthreads();
    v = lane < warps ? partial[lane] : 0;
    for (int offset = 16; offset > 0; offset /= 2) v = max(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

// The largest logit with its lowest id, the same in every thread; id `vocab` where a logit is NaN or
// positive infinity, or none is finite.
struct Best {
    float logit;
    u32 id;
};
__device__ __forceinline__ Best better(Best a, Best b) {
    return b.logit > a.logit || (b.logit == a.logit && b.id < a.id) ? b : a;
}
__device__ __forceinline__ Best warp_best(Best own) {
    for (int offset = 16; offset > 0; offset /= 2) {
        Best other;
        other.logit = __shfl_xor_sync(0xffffffffu, own.logit, offset);
        other.id = __shfl_xor_sync(0xffffffffu, own.id, offset);
        own = better(own, other);
    }
    return own;
}
__device__ Best arg_max(const float *logits, u32 vocab) {
    __shared__ Best partial[32];
    Best own = {-INFINITY, vocab};
    u32 bad = 0;
    for (u32 id = threadIdx.x; id < vocab; id += blockDim.x) {
        const float z = logits[id];
        bad |= z < INFINITY ? 0u : 1u;
        own = better(own, {z, id});
    }
    own = warp_best(own);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (lane == 0) partial[warp] = own;
    __syncthreads();
    own = lane < warps ? partial[lane] : Best{-INFINITY, vocab};
    own = warp_best(own);
    if (block_sum(bad) > 0 || own.logit == -INFINITY) own.id = vocab;
    return own;
}

// Sum of masses, and number, of those of the `n` ids in `list` whose key is at least `least`.
__device__ __forceinline__ double mass_from(const Row &row, const u32 *list, u32 n, u32 least) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        const float z = row.logits[list[i]];
        if (key_of(z) >= least) sum += static_cast<double>(row.mass_of(z));
    }
    return block_sum(sum);
}
__device__ __forceinline__ u32 count_from(const Row &row, const u32 *list, u32 n, u32 least) {
    u32 count = 0;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) count += key_of(row.logits[list[i]]) >= least;
    return block_sum(count);
}

// Moves to the front of `list`, in order, those of the `n` ids in `from` (of all ids where it is null)
// whose mass is at least `floor` and not 0, and whose key is above `threshold` or among the first `ties`
// that equal it; returns how many. `from` may be `list`.
__device__ u32 keep(const Row &row, const u32 *from, u32 n, u32 *list, float floor, u32 threshold, u32 ties) {
    u32 kept = 0, seen = 0;
    for (u32 start = 0; start < n; start += blockDim.x) {
        const u32 i = start + threadIdx.x;
        bool stays = false, tied = false;
        u32 id = 0;
        if (i < n) {
            id = from == nullptr ? i : from[i];
            const float z = row.logits[id], mass = row.mass_of(z);
            const u32 key = key_of(z);
            const bool possible = mass > 0.0f && mass >= floor;
            stays = possible && key > threshold;
            tied = possible && key == threshold;
        }
        const Scan<u32> among = block_scan<u32>(tied);
        stays = stays || (tied && seen + among.before < ties);
        seen += among.total;
        // Everybody has read its id: what is written here stands at or before it.
        const Scan<u32> at = block_scan<u32>(stays);
        if (stays) list[kept + at.before] = id;
        kept += at.total;
    }
    __syncthreads();
    return kept;
}

// The first of `n` ids (in `list`; all ids where it is null) at which the running sum of masses exceeds
// `uniform` times their sum; the last possible one where rounding leaves none. The same in every thread.
__device__ u32 draw(const Row &row, const u32 *list, u32 n, double uniform) {
    __shared__ double segments[32];
    __shared__ u32 found;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    // A segment per warp.
    const u32 length = (n + warps - 1) / warps;
    double sum = 0.0;
    for (u32 i = warp * length + lane; i < min((warp + 1) * length, n); i += 32) {
        sum += static_cast<double>(row.mass(list == nullptr ? i : list[i]));
    }
    sum = warp_sum(sum);
    __syncthreads();
    if (lane == 0) segments[warp] = sum;
    __syncthreads();
    double total = 0.0;
    for (u32 w = 0; w < warps; w++) total += segments[w];
    const double threshold = uniform * total;
    double before = 0.0, running = 0.0;
    u32 chosen = 0;
    for (u32 w = 0; w < warps; w++) {
        if (segments[w] > 0.0) {
            chosen = w;
            before = running;
        }
        running += segments[w];
        if (running > threshold) break;
    }
    // A few neighbours per thread.
    const u32 start = chosen * length, end = min(start + length, n);
    const u32 each = (length + blockDim.x - 1) / blockDim.x;
    const u32 from = min(start + threadIdx.x * each, end), to = min(from + each, end);
    double own = 0.0;
    u32 last = 0;
    for (u32 i = from; i < to; i++) {
        const float mass = row.mass(list == nullptr ? i : list[i]);
        own += static_cast<double>(mass);
        if (mass > 0.0f) last = i + 1;
    }
    const Scan<double> scan = block_scan<double>(own);
    const u32 beyond = last > 0 && before + scan.upto > threshold ? 1u : 0u;
    const Scan<u32> order = block_scan<u32>(beyond);
    const u32 last_of_all = block_largest(last);
    if (beyond == 1 && order.before == 0) {
        double at = before + scan.before;
        u32 pick = last - 1;
        for (u32 i = from; i < to; i++) {
            const float mass = row.mass(list == nullptr ? i : list[i]);
            at += static_cast<double>(mass);
            if (mass > 0.0f && at > threshold) {
                pick = i;
                break;
            }
        }
        found = pick;
    }
    if (order.total == 0 && threadIdx.x == 0) found = last_of_all - 1;
    __syncthreads();
    return list == nullptr ? found : list[found];
}

// The `rank`-th largest of the `n` keys in `list`, counted from 1.
__device__ u32 key_by_rank(const Row &row, const u32 *list, u32 n, u32 rank) {
    u32 key = 0;
    for (u32 bit = 0x80000000u; bit > 0; bit /= 2) {
        if (count_from(row, list, n, key | bit) >= rank) key |= bit;
    }
    return key;
}

// A bound below which no key is among the `rank` largest: that many threads have one at least as large.
__device__ u32 bound_by_rank(const Row &row, u32 vocab, u32 rank) {
    if (rank > blockDim.x) return 0;
    u32 own = 0;
    for (u32 id = threadIdx.x; id < vocab; id += blockDim.x) own = max(own, key_of(row.logits[id]));
    u32 key = 0;
    for (u32 bit = 0x80000000u; bit > 0; bit /= 2) {
        if (block_sum(own >= (key | bit) ? 1u : 0u) >= rank) key |= bit;
    }
    return key;
}

// The id that the CPU's rule picks from `z`, given its largest logit and a uniform number. A negative
// temperature asks for the arg max, `top_k` 0 and `top_p` 1 filter nothing; `list [vocab]` is scratch, not
// read where nothing is filtered. The same in every thread.
__device__ u32 pick(const float *z, u32 vocab, Best best, double uniform, u32 *list, float inverse_temperature,
                    u32 top_k, double top_p) {
    if (best.id >= vocab || inverse_temperature < 0.0f) return best.id;
    const Row row = {z, best.logit, inverse_temperature};
    const bool all = top_k == 0 || top_k >= vocab;
    if (all && top_p >= 1.0) return draw(row, nullptr, vocab, uniform);
    const u32 everyone = 0xffffffffu;
    u32 n;
    double total = 0.0;
    if (all) {
        for (u32 i = threadIdx.x; i < vocab; i += blockDim.x) total += static_cast<double>(row.mass(i));
        total = block_sum(total);
        // What is below this holds less than 1 - top_p together. Half, for what rounding does.
        const double floor = 0.5 * total * (1.0 - top_p) / static_cast<double>(vocab);
        n = keep(row, nullptr, vocab, list, static_cast<float>(floor), 0, everyone);
    } else {
        n = keep(row, nullptr, vocab, list, 0.0f, bound_by_rank(row, vocab, top_k), everyone);
        if (n > top_k) {
            const u32 last = key_by_rank(row, list, n, top_k);
            const u32 above = count_from(row, list, n, last + 1);
            n = keep(row, list, n, list, 0.0f, last, top_k - above);
        }
        total = mass_from(row, list, n, 0);
    }
    if (top_p < 1.0) {
        const double wanted = top_p * total;
        u32 last = 0;
        for (u32 bit = 0x80000000u; bit > 0; bit /= 2) {
            if (mass_from(row, list, n, last | bit) >= wanted) last |= bit;
        }
        // 0 where rounding leaves the whole list below: it stays as it is.
        if (last > 0) {
            const double missing = wanted - mass_from(row, list, n, last + 1);
            const double ties = ceil(missing / static_cast<double>(row.mass_of(of_key(last))));
            // At least one: those above alone do not suffice.
            const u32 tied = ties > static_cast<double>(n) ? n : max(1u, static_cast<u32>(ties));
            n = keep(row, list, n, list, 0.0f, last, tied);
        }
    }
    return draw(row, list, n, uniform);
}

// The next token of every slot whose status is `which` (running or fresh), and the slot's state after it.
// `answers [slots, most]`; `lists [slots, vocab]` is scratch, null where nothing is filtered; the rest as
// `pick` has it. Grid: slots.
extern "C" __global__ void __launch_bounds__(1024)
    sample_tokens(const float *logits, u32 *state, u32 *answers, const u32 *eos, u32 n_eos, u32 *lists, u32 vocab,
                  u32 n_slots, u32 most, u32 which, float inverse_temperature, u32 top_k, double top_p) {
    const u32 slot = blockIdx.x;
    // The same for the whole block; thread 0 writes after the last barrier.
    if (state[slot::STATUS * n_slots + slot] != which) return;
    const u32 token = state[slot::WRITTEN * n_slots + slot];
    const u64 key = static_cast<u64>(state[slot::KEY_HIGH * n_slots + slot]) << 32 |
                    state[slot::KEY_LOW * n_slots + slot];
    const u64 row = static_cast<u64>(slot) * vocab;
    const u32 id = pick(logits + row, vocab, arg_max(logits + row, vocab), counter_uniform(key, token, 0),
                        lists == nullptr ? nullptr : lists + row, inverse_temperature, top_k, top_p);
    if (threadIdx.x != 0) return;
    u32 status = slot::RUNNING;
    if (id >= vocab) {
        status = slot::BAD;
    } else {
        for (u32 i = 0; i < n_eos; i++) {
            if (eos[i] == id) status = slot::EOS;
        }
    }
    if (status == slot::RUNNING) {
        answers[static_cast<u64>(slot) * most + token] = id;
        state[slot::ID * n_slots + slot] = id;
        state[slot::POSITION * n_slots + slot] += 1;
        state[slot::WRITTEN * n_slots + slot] = token + 1;
        if (token + 1 == state[slot::LIMIT * n_slots + slot]) status = slot::LENGTH;
    }
    state[slot::STATUS * n_slots + slot] = status;
}
REGISTERED(sample_tokens)

// What the logit of an id becomes that may not be drawn; `NEVER` of blocks.rs.
static __device__ const float NEVER = -1e30f;

// For every row of `logits`: the id that is drawn, with its probability at temperature 1, as
// found[row] = {id, probability}; {-1, 0} where a logit is no finite number. `draws [rows, 4]` are the
// stream's key and the draw's counter, each its lower half first. Logits of the ids `never` are
// overwritten; `lists [rows, vocab]` is scratch, null where nothing is filtered; the rest as `pick` has
// it. Grid: rows.
extern "C" __global__ void __launch_bounds__(1024)
    sample_candidates(float *logits, const u32 *draws, const u32 *never, u32 n_never, u32 *lists, double *found,
                      u32 vocab, float inverse_temperature, u32 top_k, double top_p) {
    const u32 *words = draws + 4 * blockIdx.x;
    const u64 key = static_cast<u64>(words[1]) << 32 | words[0];
    const u64 counter = static_cast<u64>(words[3]) << 32 | words[2];
    const u64 row = static_cast<u64>(blockIdx.x) * vocab;
    float *z = logits + row;
    u32 bad = 0;
    for (u32 id = threadIdx.x; id < vocab; id += blockDim.x) bad |= fabsf(z[id]) < INFINITY ? 0u : 1u;
    // Everybody has read its logits when the sum is known.
    bad = block_sum(bad);
    for (u32 i = threadIdx.x; i < n_never; i += blockDim.x) z[never[i]] = NEVER;
    __syncthreads();
    const Best best = arg_max(z, vocab);
    u32 id = vocab;
    double total = 0.0;
    if (bad == 0) {
        id = pick(z, vocab, best, counter_uniform(key, counter, 0), lists == nullptr ? nullptr : lists + row,
                  inverse_temperature, top_k, top_p);
        for (u32 i = threadIdx.x; i < vocab; i += blockDim.x) {
            total += exp(static_cast<double>(__fadd_rn(z[i], -best.logit)));
        }
        total = block_sum(total);
    }
    if (threadIdx.x != 0) return;
    double *to = found + 2 * blockIdx.x;
    to[0] = id < vocab ? static_cast<double>(id) : -1.0;
    to[1] = id < vocab ? exp(static_cast<double>(__fadd_rn(z[id], -best.logit))) / total : 0.0;
}
REGISTERED(sample_candidates)

// Guided logits, in place: with = without + scale (with - without), rounded as the CPU rounds.
// Grid: ceil(n / threads).
extern "C" __global__ void sample_guide(float *with, const float *without, float scale, u64 n) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) with[i] = __fadd_rn(without[i], __fmul_rn(scale, __fadd_rn(with[i], -without[i])));
}
REGISTERED(sample_guide)
