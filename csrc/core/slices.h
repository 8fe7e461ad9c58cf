// One tensor under one move: plain structs of pointers and sizes, filled in by the caller, read by the CPU's and the GPU's
// kernels alike. All pointers are on one device.
#pragma once

#include "fixed_point.h"

namespace rh {

constexpr int kMaxStates = 3;
constexpr int kMaxNumbers = 8;  // of a rule
constexpr int kMaxSums = 5;     // inner products of one half of an adjoint

// One integer per weight: a state, or the weight itself.
struct Slot {
  void* integers;   // the tensor's first one
  uint8_t* planes;  // `shift` planes of plane_bytes(size) each; null where shift is 0
  int64_t centre;
  double sigma;  // after the step's decay
  int shift;
};

struct Slice {
  void* weight;          // size elements of type `type`
  const void* gradient;  // the same; null in phases without gradients
  int64_t size;
  int64_t position;  // first element in the slots' memory
  ScalarType type;
  bool active;  // takes part in the step
  Slot states[kMaxStates];
  Slot own;             // of the weight
  double sigma_before;  // of the weight, before the step
  double numbers[kMaxNumbers];
  const void* elements[kMaxNumbers];  // one per weight, of the layout's Real, in place of the number; null: the number
  uint8_t* skipped;                   // per block: 1 where undo_states refused; null where nothing was
};

enum class Phase { step, undo_weights, redo_weights, undo_states };

// For steps whose flags nobody on the host waits for: where the number of the first refused one stands (kNoneRefused if there is
// none), and the number of this one. `first` is null where the host looks at every step.
struct Ticket {
  int64_t* first;
  int64_t number;
};

constexpr int64_t kNoneRefused = INT64_MAX;

// After a refused step none takes place any more, and only that one is undone: so a caller may queue each step with the undoing
// that a flag would call for, and look later. Blocks of the step that was just refused still move, all or none of it.
RH_INLINE bool takes_place(const Ticket& ticket, Phase phase) {
  if (!ticket.first) return true;
  return phase == Phase::step ? *ticket.first >= ticket.number : *ticket.first == ticket.number;
}

// The gradients by a tensor's weights and states, on their way back through the step: vectors laid out as the slots, of double
// for weights of double, of float for all others.
template <class T>
using AdjointReal = std::conditional_t<sizeof(T) == sizeof(double), double, float>;

struct AdjointSlice {
  void* weight;                     // from the tensor's first element on
  void* states[kMaxStates];         // each from the tensor's first element on
  double carries[kMaxStates];       // decay of the states in the step that was undone before
  double weight_decay;              // of the weights in this step
  double sigma_before[kMaxStates];  // of the states before the step; in the second half
  const void* product;              // as the gradient; null: zero
  void* direction;                  // as `weight`; null: the rule's direction is the first state's vector as it is
  double* partials[kMaxSums];       // one per block of the tensor; null: not wanted
};

}  // namespace rh
