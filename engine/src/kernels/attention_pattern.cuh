// `attention_pattern.rs` on the GPU: the spans of keys that a query sees, worked out again per query.
#pragma once

#include "device.cuh"

// Numbers of `t3s_core::AttentionPattern`; the launches use the same.
enum Pattern : u32 { CAUSAL = 0, BIDIRECTIONAL = 1, BLOCK_CAUSAL = 2, BLOCK_DIFFUSION = 3 };

// A pattern over one example of `len` rows, counted from its start; `copy` rows of one copy.
struct Spans {
    u32 pattern, block, views, len;
    __device__ u32 copy() const { return pattern == BLOCK_DIFFUSION ? len / (views + 1) : len; }
    // The keys that `query` sees: [at[0], at[1]) and [at[2], at[3]).
    __device__ void of(u32 query, u32 at[4]) const {
        at[2] = at[3] = 0;
        at[0] = 0;
        if (pattern == CAUSAL) {
            at[1] = query + 1;
        } else if (pattern == BIDIRECTIONAL) {
            at[1] = len;
        } else if (pattern == BLOCK_CAUSAL) {
            at[1] = min((query / block + 1) * block, len);
        } else {
            const u32 n = copy(), clean = views * n, start = query / n * n;
            const u32 own = (query - start) / block * block, end = min(own + block, n);
            if (start == clean) {
                at[0] = clean;
                at[1] = clean + end;
            } else {
                at[0] = start + own;
                at[1] = start + end;
                at[2] = clean;
                at[3] = clean + own;
            }
        }
    }
    // Which keys any query of [first, last] (of one copy) sees in span `part`, as [out[0], out[1]):
    // both ends of a span grow with the query. The two ranges of a tile never overlap: one is in the
    // queries' own copy, the other in the clean one.
    __device__ void range(u32 first, u32 last, u32 part, u32 out[2]) const {
        u32 a[4], b[4];
        of(first, a);
        of(last, b);
        const u32 start = b[2 * part], end = b[2 * part + 1];
        out[0] = start < end ? min(a[2 * part], start) : start;
        out[1] = end;
    }
    __device__ bool sees(const u32 at[4], u32 key) const {
        return (key >= at[0] && key < at[1]) || (key >= at[2] && key < at[3]);
    }
};

// Tiles as the host lists them: the example's first row and length, the tile's first row in it and
// its length.
struct Tile {
    u32 example, len, start, n;
};

// The first row of a tile's queries: among the example's rows, as its keys are, or, where the keys stand
// in a cache, where the list says.
__device__ __forceinline__ u64 first_query(const Tile &tile, const u32 *query_rows) {
    return query_rows == nullptr ? static_cast<u64>(tile.example) + tile.start : query_rows[blockIdx.x];
}
