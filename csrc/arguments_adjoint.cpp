// The checks of what the ops with an adjoint receive beside the state.
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "arguments.h"

namespace rh {
namespace {

using Type = torch::headeronly::ScalarType;

void check_vectors(const AdjointCall& adjoint, const Call& call) {
  const Tensor& aw = adjoint.weights;
  const Tensor& av = adjoint.velocities;
  const auto is_double = [](const Tensor& weight) { return weight.scalar_type() == Type::Double; };
  const auto doubles = std::count_if(call.weights.begin(), call.weights.end(), is_double);
  STD_TORCH_CHECK(doubles == 0 || doubles == static_cast<int64_t>(call.weights.size()),
                  "weights: expected all of them in float64, or none, since a bucket's adjoint has one dtype");
  STD_TORCH_CHECK(aw.scalar_type() == (doubles ? Type::Double : Type::Float), "weights_adjoint: expected ",
                  doubles ? "float64, as the weights" : "float32, since no weight is float64");
  STD_TORCH_CHECK(av.scalar_type() == aw.scalar_type(), "velocities_adjoint: expected the dtype of weights_adjoint");
  for (const Tensor* t : {&aw, &av})
    STD_TORCH_CHECK(t->numel() == call.x.numel() && t->is_contiguous() && same_device(*t, call.x),
                    t == &aw ? "weights" : "velocities", "_adjoint: expected a contiguous vector of ", call.x.numel(),
                    " elements, laid out as state_weights, on ", device_of(call.x), "; got ", t->numel(), " elements on ",
                    device_of(*t));
  STD_TORCH_CHECK(call.x.numel() == 0 || aw.data_ptr() != av.data_ptr(),
                  "velocities_adjoint: expected memory of its own, got that of weights_adjoint");
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

}  // namespace

AdjointArguments check_adjoint(const AdjointCall& adjoint, const Call& call, const Arguments& arguments) {
  const size_t count = call.weights.size();
  const int64_t blocks = arguments.first_block.back();
  const auto wanted = static_cast<int64_t>(std::count(adjoint.wanted.begin(), adjoint.wanted.end(), true));
  check_vectors(adjoint, call);
  STD_TORCH_CHECK(adjoint.products.empty() || adjoint.products.size() == count, "products: expected ", count, " tensors");
  STD_TORCH_CHECK(adjoint.settings.empty() || adjoint.settings.size() == 2 || adjoint.settings.size() == 2 * count,
                  "settings: expected 2 numbers, or 2 for each of the ", count, " weights");
  STD_TORCH_CHECK(adjoint.wanted.size() <= kInnerProducts, "wanted: expected ", static_cast<int>(kInnerProducts), " entries");
  for (const Tensor* t : {&adjoint.partials, &adjoint.sums})
    STD_TORCH_CHECK(t->scalar_type() == Type::Double && t->is_contiguous() && same_device(*t, call.x),
                    "partials and sums: expected contiguous float64 tensors on ", device_of(call.x));
  STD_TORCH_CHECK(adjoint.partials.numel() >= wanted * blocks, "partials: expected ", wanted * blocks,
                  " elements, one for each wanted sum and block, or more");
  STD_TORCH_CHECK(adjoint.sums.numel() == wanted * static_cast<int64_t>(count), "sums: expected ",
                  wanted * static_cast<int64_t>(count), " elements, one for each wanted sum and weight");

  AdjointArguments result;
  result.shared = {adjoint.weights.data_ptr(),
                   adjoint.velocities.data_ptr(),
                   static_cast<double>(call.n) / static_cast<double>(call.d),
                   {},
                   {}};
  auto* partials = static_cast<double*>(adjoint.partials.data_ptr());
  auto* sums = static_cast<double*>(adjoint.sums.data_ptr());
  for (size_t kind = 0; kind < adjoint.wanted.size(); ++kind)
    if (adjoint.wanted[kind]) {
      result.shared.partials[kind] = partials;
      result.shared.sums[kind] = sums;
      partials += blocks;
      sums += count;
    }
  for (size_t i = 0; i < count; ++i) {
    const double* own = adjoint.settings.data() + (adjoint.settings.size() == 2 ? 0 : 2 * i);
    const bool none = adjoint.settings.empty();
    result.slices.push_back({product_of(adjoint, call, i), none ? 1.0 : own[0], none ? 0.0 : own[1]});
  }
  return result;
}

}  // namespace rh
