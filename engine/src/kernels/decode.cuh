// What the kernels of decoding know of each other: the state of the slots, `[FIELDS, slots]` words on
// the device, so that a step needs nothing from the host. `cuda/decode.rs` has the same numbers.
#pragma once
#include "device.cuh"

namespace slot {

// Where the field of a slot stands: state[FIELD * slots + slot].
static const u32 STATUS = 0;
// The last token, which the next step reads ...
static const u32 ID = 1;
// ... and its position.
static const u32 POSITION = 2;
// Tokens of the answer so far, without the one that ended it.
static const u32 WRITTEN = 3;
// Most tokens of the answer.
static const u32 LIMIT = 4;
// The key of the answer's random stream.
static const u32 KEY_LOW = 5;
static const u32 KEY_HIGH = 6;
static const u32 FIELDS = 7;

// Values of STATUS. 0: there is nothing to do.
static const u32 RUNNING = 1;
// The prompt is read, no token drawn yet.
static const u32 FRESH = 2;
// Ended by an end token, by the limit, by logits that are no numbers.
static const u32 EOS = 3;
static const u32 LENGTH = 4;
static const u32 BAD = 5;

} // namespace slot
