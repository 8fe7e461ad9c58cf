// The checks of the ops' arguments.
#include "arguments.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "../core/blocks.h"
#include "../core/planes.h"

namespace rh {

using Type = torch::headeronly::ScalarType;

std::string take_string(StringHandle handle) {
  size_t length = 0;
  const char* characters = nullptr;
  STD_TORCH_CHECK(torch_string_length(handle, &length) == 0 && torch_string_c_str(handle, &characters) == 0,
                  "torch could not hand over a string");
  std::string taken(characters, length);
  STD_TORCH_CHECK(torch_delete_string(handle) == 0, "torch could not delete a string");
  return taken;
}

std::string device_of(const Tensor& t) {
  return t.is_cpu() ? "cpu" : (t.is_cuda() ? "cuda:" : "device ") + std::to_string(t.get_device_index());
}

bool same_device(const Tensor& a, const Tensor& b) {
  if (a.is_cpu() || b.is_cpu()) return a.is_cpu() && b.is_cpu();  // whatever index they name
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

bool same_strides(const Tensor& tensor, const Tensor& weight) {
  for (int64_t dim = 0; weight.numel() > 1 && dim < weight.dim(); ++dim)
    if (weight.size(dim) != 1 && (tensor.dim() != weight.dim() || tensor.stride(dim) != weight.stride(dim))) return false;
  return true;
}

namespace {

ScalarType scalar_type(const Tensor& t) {
  switch (t.scalar_type()) {
    case Type::Float:
      return ScalarType::float32;
    case Type::Double:
      return ScalarType::float64;
    case Type::BFloat16:
      return ScalarType::bfloat16;
    case Type::Half:
      return ScalarType::float16;
    default:
      STD_TORCH_CHECK(false, "weights must be float32, float64, bfloat16 or float16");
  }
}

// A row of numbers, and one of shifts, for every weight.
struct Tables {
  const double* numbers;
  const int64_t* shifts;
  int64_t numbers_row, shifts_row;
};

Tables tables_of(const Call& call, const RuleShape& shape) {
  const auto count = static_cast<int64_t>(call.weights.size());
  const int64_t slots = shape.states + 1, numbers = shape.states + 2 + shape.numbers, shifts = 1 + 2 * slots;
  STD_TORCH_CHECK(call.numbers.is_cpu() && call.numbers.scalar_type() == Type::Double && call.numbers.is_contiguous() &&
                      call.numbers.numel() == count * numbers,
                  "numbers: expected a contiguous float64 table on the CPU of ", count, " rows of ", numbers);
  STD_TORCH_CHECK(call.shifts.is_cpu() && call.shifts.scalar_type() == Type::Long && call.shifts.is_contiguous() &&
                      call.shifts.numel() == count * shifts,
                  "shifts: expected a contiguous int64 table on the CPU of ", count, " rows of ", shifts);
  return {static_cast<const double*>(call.numbers.data_ptr()), static_cast<const int64_t*>(call.shifts.data_ptr()), numbers,
          shifts};
}

void check_state(const Tensor& state, const Call& call, int64_t size, bool wide, const char* name) {
  const auto type = wide ? Type::Long : call.x.scalar_type();
  STD_TORCH_CHECK(state.numel() == size && state.scalar_type() == type && state.is_contiguous() && same_device(state, call.x),
                  name, ": expected ", size, " contiguous elements of ", type == Type::Long ? "int64" : "int32",
                  " on the device of x, ", device_of(call.x));
}

const void* matching(const Tensor& tensor, const Tensor& weight, const Call& call, const char* name, size_t i) {
  STD_TORCH_CHECK(same_device(tensor, call.x) && tensor.scalar_type() == weight.scalar_type() && tensor.numel() == weight.numel(),
                  name, "[", i, "]: expected the device, dtype and size of its weight");
  STD_TORCH_CHECK(same_strides(tensor, weight), name, "[", i, "]: expected the strides of its weight");
  return tensor.data_ptr();
}

// The rule's numbers, or their elements.
void read_numbers(const Call& call, const RuleShape& shape, const double* row, size_t i, Slice& slice) {
  const auto real = call.x.scalar_type() == Type::Long ? Type::Double : Type::Float;
  for (int j = 0; j < shape.numbers; ++j) {
    slice.numbers[j] = row[shape.states + 2 + j];
    if (call.elements.empty()) continue;
    const Tensor& own = call.elements[i * static_cast<size_t>(shape.numbers) + static_cast<size_t>(j)];
    if (own.numel() == 0) continue;
    STD_TORCH_CHECK(same_device(own, call.x) && own.scalar_type() == real && own.numel() == slice.size && own.is_contiguous(),
                    "elements[", i * static_cast<size_t>(shape.numbers) + static_cast<size_t>(j),
                    "]: expected one contiguous number per weight on its device, float64 (float32) for 64-bit (32-bit) state");
    slice.elements[j] = own.data_ptr();
  }
}

// A slot of one tensor; takes its planes from `next` on.
Slot slot_of(const Tensor& state, const Slice& slice, double sigma, const int64_t* shift, const Call& call, int64_t& next) {
  const int64_t bits = state.scalar_type() == Type::Long ? 64 : 32, item = bits / 8;
  Slot slot{static_cast<char*>(state.data_ptr()) + slice.position * item, nullptr, shift[1], sigma, static_cast<int>(shift[0])};
  STD_TORCH_CHECK(shift[0] >= 0 && shift[0] < bits - 2, "shifts: expected shifts from 0 to ", bits - 3, ", got ", shift[0]);
  if (!slice.active) slot.shift = 0;
  if (slot.shift) {
    const int64_t bytes = slot.shift * plane_bytes(slice.size);
    STD_TORCH_CHECK(next + bytes <= call.planes.numel(), "planes: expected ", next + bytes, " bytes or more, got ",
                    call.planes.numel());
    slot.planes = static_cast<uint8_t*>(call.planes.data_ptr()) + next;
    next += bytes;
  }
  return slot;
}

void make_slices(const Call& call, const RuleShape& shape, Arguments& result) {
  const size_t count = call.weights.size();
  const Tables tables = tables_of(call, shape);
  STD_TORCH_CHECK(call.gradients.empty() || call.gradients.size() == count, "gradients: expected ", count, " tensors");
  STD_TORCH_CHECK(call.elements.empty() || call.elements.size() == count * static_cast<size_t>(shape.numbers),
                  "elements: expected none, or ", count * static_cast<size_t>(shape.numbers), " tensors");
  int64_t position = 0, blocks = 0, planes = 0;
  for (size_t i = 0; i < count; ++i) {
    const Tensor& weight = call.weights[i];
    STD_TORCH_CHECK(same_device(weight, call.x), "weights[", i, "]: expected a tensor on ", device_of(call.x),
                    ", where x is, got one on ", device_of(weight), ". One call moves tensors of one device");
    const double* numbers = tables.numbers + static_cast<int64_t>(i) * tables.numbers_row;
    const int64_t* shifts = tables.shifts + static_cast<int64_t>(i) * tables.shifts_row;
    Slice slice{};
    slice.weight = weight.data_ptr();
    slice.size = weight.numel();
    slice.position = position;
    slice.type = scalar_type(weight);
    slice.active = shifts[0] != 0;
    if (slice.active && !call.gradients.empty()) slice.gradient = matching(call.gradients[i], weight, call, "gradients", i);
    for (int k = 0; k < shape.states; ++k)
      slice.states[k] = slot_of(call.states[static_cast<size_t>(k)], slice, numbers[k], shifts + 1 + 2 * k, call, planes);
    slice.own = slot_of(call.x, slice, numbers[shape.states + 1], shifts + 1 + 2 * shape.states, call, planes);
    slice.sigma_before = numbers[shape.states];
    read_numbers(call, shape, numbers, i, slice);
    result.first_block.push_back(blocks);
    result.slices.push_back(slice);
    position += state_size(slice.size);
    blocks += block_count(slice.size);
  }
  result.first_block.push_back(blocks);
  check_state(call.x, call, position, false, "x");
  for (int k = 0; k < shape.states; ++k)
    check_state(call.states[static_cast<size_t>(k)], call, position, shape.powers[k] == 2, "states");
}

}  // namespace

Arguments check_arguments(Phase, const Call& call, const RuleShape& shape) {
  Arguments result{};
  const auto type = call.x.scalar_type();
  STD_TORCH_CHECK(type == Type::Long || type == Type::Int, "x: expected int64 or int32");
  result.wide = type == Type::Long;
  STD_TORCH_CHECK(static_cast<int>(call.states.size()) == shape.states, "states: expected ", shape.states, " of the rule ",
                  call.rule, ", got ", call.states.size());
  STD_TORCH_CHECK(call.planes.scalar_type() == Type::Byte && call.planes.is_contiguous() &&
                      (call.planes.numel() == 0 || same_device(call.planes, call.x)),
                  "planes: expected a contiguous uint8 tensor on the device of x, ", device_of(call.x));
  make_slices(call, shape, result);
  const auto words = 1 + static_cast<int64_t>(result.slices.size()) * (2 + shape.states);
  STD_TORCH_CHECK(call.outcome.scalar_type() == Type::Long && call.outcome.numel() == words && call.outcome.is_contiguous() &&
                      same_device(call.outcome, call.x),
                  "outcome: expected ", words, " contiguous int64 on the device of x, ", device_of(call.x));
  if (call.skipped && call.skipped->numel()) {
    const Tensor& skipped = *call.skipped;
    STD_TORCH_CHECK(
        same_device(skipped, call.x) && skipped.scalar_type() == Type::Byte && skipped.numel() == result.first_block.back(),
        "skipped: expected a uint8 entry per block");
    for (size_t i = 0; i < result.slices.size(); ++i)
      result.slices[i].skipped = static_cast<uint8_t*>(skipped.data_ptr()) + result.first_block[i];
  }
  if (call.first_refused) {
    const Tensor& word = *call.first_refused;
    STD_TORCH_CHECK(same_device(word, call.x) && word.scalar_type() == Type::Long && word.numel() == 1,
                    "first_refused: expected one int64 on the device of x, ", device_of(call.x));
    result.ticket = {static_cast<int64_t*>(word.data_ptr()), call.number};
  }
  return result;
}

}  // namespace rh
