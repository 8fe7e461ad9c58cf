// A bucket: tensors that share flat integer states, one information buffer and one momentum. Plain structs of pointers and
// sizes, filled in by the caller, read by the CPU's and the GPU's kernels alike. All pointers are on one device.
#pragma once

#include "scalar_types.h"

namespace rh {

// One tensor's part of a bucket.
struct Slice {
  void* weight;          // size elements of type `type`
  const void* gradient;  // the same; null: the tensor takes no part in this step
  int64_t size;
  int64_t state_offset;  // first element in the bucket's X and V
  int64_t lane_offset;   // first lane in the bucket's accumulators and planes
  ScalarType type;
  double gradient_coefficient;  // velocity quanta per unit of gradient
  double decay_coefficient;     // velocity quanta per quantum of weight
  double lr;                    // weight quanta per quantum of velocity
  const void* lr_elements;      // the same per weight, of the state's Real (float for 32 bits, double for 64); null: lr
};

// The state that a bucket's tensors share, and one step's contraction.
struct Bucket {
  void* weights;       // X
  void* velocities;    // V
  void* accumulators;  // s, one per lane
  int64_t n, d;        // momentum
  int spill_bits[8];   // per row of a block: 0, 8 or 16 bits to spill before the row's push
  void* planes[8];     // per row: where to, one uint8 or uint16 per lane; read on the way back
  uint8_t* skipped;    // per block: 1 where undo_velocity refused; null when there is nothing to skip
  // For steps whose flags nobody on the host waits for: where the number of the first refused one stands (kNoneRefused if
  // there is none), and the number of this one. Null where the host looks at every step.
  int64_t* first_refused;
  int64_t number;
};

enum class Phase { step, undo_weights, redo_weights, undo_velocity };

constexpr int64_t kNoneRefused = INT64_MAX;

// After a refused step none takes place any more, and only that one is undone: so a caller may queue each step with the undoing
// that a flag would call for, and look later. Blocks of the step that was just refused still move, all or none of it.
RH_INLINE bool takes_place(const Bucket& bucket, Phase phase) {
  if (!bucket.first_refused) return true;
  return phase == Phase::step ? *bucket.first_refused >= bucket.number : *bucket.first_refused == bucket.number;
}

}  // namespace rh
