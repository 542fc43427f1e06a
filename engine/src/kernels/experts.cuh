// How the pairs (token, expert) of a mixture are cut into tiles: by routing.cu for experts.cu and
// experts_mma.cu. The host knows no more than how many pairs and experts there are, so a grid has as many
// tiles as there can be at most, and those that are too many are empty.
#pragma once

#include "device.cuh"

// Pairs of a tile, at most.
static const u32 EXPERT_ROWS = 64;

// Neighbouring pairs of one expert.
struct ExpertTile {
    u32 expert, start, n;
};

__device__ __forceinline__ u32 tiles_of(u32 pairs) { return (pairs + EXPERT_ROWS - 1) / EXPERT_ROWS; }

// A tile of a result: where it begins, and how much of it there is.
struct Corner {
    u32 row, column;
};

// Which of the tiles of a matrix of `columns` columns this block has, neighbours side by side: they read
// the same rows.
__device__ __forceinline__ Corner corner_of(u32 tile, u32 columns, u32 height, u32 width) {
    const u32 across = (columns + width - 1) / width;
    return {tile / across * height, tile % across * width};
}
