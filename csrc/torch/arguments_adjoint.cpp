// The checks of what the ops with an adjoint receive beside the state.
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "arguments.h"

namespace rh {
namespace {

using Type = torch::headeronly::ScalarType;

void check_vectors(const AdjointCall& adjoint, const Call& call) {
  const auto is_double = [](const Tensor& weight) { return weight.scalar_type() == Type::Double; };
  const auto doubles = std::count_if(call.weights.begin(), call.weights.end(), is_double);
  STD_TORCH_CHECK(doubles == 0 || doubles == static_cast<int64_t>(call.weights.size()),
                  "weights: expected all of them in float64, or none, since their adjoint has one dtype");
  STD_TORCH_CHECK(adjoint.states.size() == call.states.size(), "states_adjoint: expected ", call.states.size(), " vectors");
  std::vector<const Tensor*> vectors{&adjoint.weights};
  for (const Tensor& state : adjoint.states) vectors.push_back(&state);
  for (const Tensor* t : vectors) {
    const char* name = t == &adjoint.weights ? "weights_adjoint" : "states_adjoint";
    STD_TORCH_CHECK(t->scalar_type() == (doubles ? Type::Double : Type::Float), name, ": expected ",
                    doubles ? "float64, as the weights" : "float32, since no weight is float64");
    STD_TORCH_CHECK(t->numel() == call.x.numel() && t->is_contiguous() && same_device(*t, call.x), name,
                    ": expected a contiguous vector of ", call.x.numel(), " elements, laid out as x, on ", device_of(call.x),
                    "; got ", t->numel(), " elements on ", device_of(*t));
    STD_TORCH_CHECK(t == &adjoint.weights || call.x.numel() == 0 || t->data_ptr() != adjoint.weights.data_ptr(),
                    "states_adjoint: expected memory of its own, got that of weights_adjoint");
  }
}

void* part_of(const Tensor& vector, const Slice& slice) {
  return static_cast<char*>(vector.data_ptr()) + slice.position * static_cast<int64_t>(vector.element_size());
}

const void* product_of(const AdjointCall& adjoint, const Call& call, size_t i) {
  if (adjoint.products.empty() || adjoint.products[i].numel() == 0) return nullptr;
  const Tensor& product = adjoint.products[i];
  const Tensor& weight = call.weights[i];
  STD_TORCH_CHECK(
      same_device(product, call.x) && product.scalar_type() == weight.scalar_type() && product.numel() == weight.numel(),
      "products[", i, "]: expected the device, dtype and size of its weight, or no elements");
  STD_TORCH_CHECK(same_strides(product, weight), "products[", i, "]: expected the strides of its weight");
  return product.data_ptr();
}

void* direction_of(const AdjointCall& adjoint, const Call& call, size_t i) {
  if (adjoint.directions.empty() || adjoint.directions[i].numel() == 0) return nullptr;
  const Tensor& direction = adjoint.directions[i];
  STD_TORCH_CHECK(direction.is_contiguous() && direction.scalar_type() == adjoint.weights.scalar_type() &&
                      direction.numel() == call.weights[i].numel() && same_device(direction, call.x),
                  "directions[", i,
                  "]: expected a contiguous vector of the size of its weight and the dtype of weights_adjoint, or "
                  "no elements");
  return direction.data_ptr();
}

// A row of numbers for every weight; null if there is no table.
const double* table_of(const std::optional<Tensor>& table, const char* name, size_t count, size_t columns) {
  if (!table) return nullptr;
  STD_TORCH_CHECK(table->is_cpu() && table->scalar_type() == Type::Double && table->is_contiguous() &&
                      table->numel() == static_cast<int64_t>(count * columns),
                  name, ": expected a contiguous float64 table on the CPU of ", count, " rows of ", columns);
  return static_cast<const double*>(table->data_ptr());
}

}  // namespace

void check_adjoint(Phase phase, const AdjointCall& adjoint, const Call& call, const RuleShape& shape, Arguments& arguments) {
  const size_t count = call.weights.size();
  const auto states = static_cast<size_t>(shape.states);
  const int64_t blocks = arguments.first_block.back();
  const int most = phase == Phase::undo_weights ? shape.sums_before : shape.sums_after;
  const auto wanted = static_cast<int64_t>(std::count(adjoint.wanted.begin(), adjoint.wanted.end(), true));
  arguments.moved = adjoint.moved;
  check_vectors(adjoint, call);
  STD_TORCH_CHECK(adjoint.products.empty() || adjoint.products.size() == count, "products: expected ", count, " tensors");
  STD_TORCH_CHECK(adjoint.directions.empty() || adjoint.directions.size() == count, "directions: expected ", count, " tensors");
  STD_TORCH_CHECK(static_cast<int>(adjoint.wanted.size()) <= most, "wanted: expected ", most, " entries or less");
  const size_t carried = states + (shape.decays_weight ? 1 : 0);
  const double* carries = table_of(adjoint.carries, "carries", count, carried);
  const double* sigma_before = table_of(adjoint.sigma_before, "sigma_before", count, states);
  for (const Tensor* t : {&adjoint.partials, &adjoint.sums})
    STD_TORCH_CHECK(t->scalar_type() == Type::Double && t->is_contiguous() && same_device(*t, call.x),
                    "partials and sums: expected contiguous float64 tensors on ", device_of(call.x));
  STD_TORCH_CHECK(adjoint.partials.numel() >= wanted * blocks, "partials: expected ", wanted * blocks,
                  " elements, one for each wanted sum and block, or more");
  STD_TORCH_CHECK(adjoint.sums.numel() == wanted * static_cast<int64_t>(count), "sums: expected ",
                  wanted * static_cast<int64_t>(count), " elements, one for each wanted sum and weight");

  for (size_t i = 0; i < count; ++i) {
    AdjointSlice slice{};
    slice.weight = part_of(adjoint.weights, arguments.slices[i]);
    for (size_t k = 0; k < states; ++k) {
      slice.states[k] = part_of(adjoint.states[k], arguments.slices[i]);
      slice.carries[k] = carries ? carries[i * carried + k] : 1.0;
      slice.sigma_before[k] = sigma_before ? sigma_before[i * states + k] : 1.0;
    }
    slice.weight_decay = carries && shape.decays_weight ? carries[i * carried + states] : 1.0;
    slice.product = product_of(adjoint, call, i);
    slice.direction = direction_of(adjoint, call, i);
    arguments.adjoint.push_back(slice);
  }
  auto* partials = static_cast<double*>(adjoint.partials.data_ptr());
  auto* sums = static_cast<double*>(adjoint.sums.data_ptr());
  for (size_t kind = 0; kind < adjoint.wanted.size(); ++kind) {
    if (!adjoint.wanted[kind]) continue;
    arguments.sums[kind] = sums;
    for (size_t i = 0; i < count; ++i) arguments.adjoint[i].partials[kind] = partials + arguments.first_block[i];
    partials += blocks;
    sums += count;
  }
}

}  // namespace rh
