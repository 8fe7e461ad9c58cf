// The checks of the ops' arguments.
#include "arguments.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

#include "core/information_buffer.h"

namespace rh {

using Type = torch::headeronly::ScalarType;

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

void check_device(const Tensor& t, const Call& call, const char* name, size_t i) {
  STD_TORCH_CHECK(same_device(t, call.x), name, "[", i, "]: expected a tensor on ", device_of(call.x),
                  ", where state_weights is, got one on ", device_of(t), ". A bucket holds tensors of one device");
}

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

std::vector<Slice> make_slices(const Call& call, std::vector<int64_t>& first_block) {
  const size_t count = call.weights.size();
  STD_TORCH_CHECK(call.active.size() == count, "active: expected ", count, " entries");
  STD_TORCH_CHECK(call.coefficients.size() == 3 || call.coefficients.size() == 3 * count,
                  "coefficients: expected 3 numbers, or 3 for each of the ", count, " weights");
  STD_TORCH_CHECK(call.lr_elements.empty() || call.lr_elements.size() == count, "lr_elements: expected ", count, " tensors");
  STD_TORCH_CHECK(call.gradients.empty() || call.gradients.size() == count, "gradients: expected ", count, " tensors");
  std::vector<Slice> slices(count);
  int64_t state = 0, lanes = 0, blocks = 0;
  for (size_t i = 0; i < count; ++i) {
    const Tensor& weight = call.weights[i];
    check_device(weight, call, "weights", i);
    const double* c = call.coefficients.data() + (call.coefficients.size() == 3 ? 0 : 3 * i);
    Slice& slice = slices[i];
    slice.weight = weight.data_ptr();
    slice.size = weight.numel();
    slice.state_offset = state;
    slice.lane_offset = lanes;
    slice.type = scalar_type(weight);
    slice.gradient = nullptr;
    if (call.active[i]) {
      slice.gradient = slice.weight;  // phases without gradients only ask whether there is one
      if (!call.gradients.empty()) {
        const Tensor& gradient = call.gradients[i];
        STD_TORCH_CHECK(
            same_device(gradient, call.x) && gradient.scalar_type() == weight.scalar_type() && gradient.numel() == weight.numel(),
            "gradients[", i, "]: expected the device, dtype and size of its weight");
        STD_TORCH_CHECK(same_strides(gradient, weight), "gradients[", i, "]: expected the strides of its weight");
        slice.gradient = gradient.data_ptr();
      }
    }
    slice.gradient_coefficient = c[0];
    slice.decay_coefficient = c[1];
    slice.lr = c[2];
    slice.lr_elements = nullptr;
    if (!call.lr_elements.empty() && call.lr_elements[i].numel() > 0) {
      const auto type = call.x.scalar_type() == Type::Long ? Type::Double : Type::Float;
      STD_TORCH_CHECK(same_device(call.lr_elements[i], call.x) && call.lr_elements[i].scalar_type() == type &&
                          call.lr_elements[i].numel() == slice.size,
                      "lr_elements[", i,
                      "]: expected one number per weight on its device, float64 (float32) for 64-bit (32-bit) state");
      slice.lr_elements = call.lr_elements[i].data_ptr();
    }
    first_block.push_back(blocks);
    state += state_size(slice.size);
    lanes += lane_count(slice.size);
    blocks += block_count(slice.size);
  }
  first_block.push_back(blocks);
  STD_TORCH_CHECK(call.x.numel() == state && call.v.numel() == state, "state_weights and velocities: expected ", state,
                  " elements");
  for (const Tensor* t : {&call.x, &call.v, &call.accumulators, &call.outcome})
    STD_TORCH_CHECK(same_device(*t, call.x) && t->is_contiguous(),
                    "state and outcome: expected contiguous tensors on the device of state_weights, ", device_of(call.x));
  STD_TORCH_CHECK(call.accumulators.numel() == lanes, "accumulators: expected ", lanes, " elements");
  return slices;
}

template <class State>
void check_state(const Call& call) {
  constexpr auto type = State::bits == 64 ? Type::Long : Type::Int;
  STD_TORCH_CHECK(call.v.scalar_type() == type && call.accumulators.scalar_type() == type,
                  "velocities and accumulators: expected the dtype of state_weights");
  STD_TORCH_CHECK(call.n > 0 && call.n <= call.d && call.d <= State::max_denominator,
                  "momentum n/d: expected 0 < n <= d <= ", State::max_denominator, ", got ", call.n, "/", call.d);
}

}  // namespace

Arguments check_arguments(Phase phase, const Call& call, const Tensor* skipped) {
  Arguments result;
  result.slices = make_slices(call, result.first_block);
  result.wide = call.x.scalar_type() == Type::Long;
  result.wide ? check_state<State64>(call) : check_state<State32>(call);
  STD_TORCH_CHECK(
      call.outcome.scalar_type() == Type::Long && call.outcome.numel() == 1 + static_cast<int64_t>(result.slices.size()),
      "outcome: expected int64 of one element more than there are weights");

  Bucket& bucket = result.bucket;
  bucket = {call.x.data_ptr(), call.v.data_ptr(), call.accumulators.data_ptr(), call.n, call.d, {}, {}, nullptr,
            nullptr,           call.number};
  STD_TORCH_CHECK(call.spill_bits.size() == kWeightsPerLane, "spill_bits: expected ", kWeightsPerLane, " entries");
  size_t next_plane = 0;
  for (int k = 0; k < kWeightsPerLane; ++k) {
    const int64_t bits = call.spill_bits[static_cast<size_t>(k)];
    STD_TORCH_CHECK(bits == 0 || bits == 8 || bits == 16, "spill_bits: expected 0, 8 or 16");
    if (bits == 0 || (phase != Phase::step && phase != Phase::undo_velocity)) continue;
    STD_TORCH_CHECK(next_plane < call.planes.size() && call.planes[next_plane].numel() == call.accumulators.numel() * bits / 8 &&
                        call.planes[next_plane].scalar_type() == Type::Byte && same_device(call.planes[next_plane], call.x),
                    "planes: expected, on the state's device, a uint8 plane of lanes * bits / 8 for every row that spills");
    bucket.spill_bits[k] = static_cast<int>(bits);
    bucket.planes[k] = call.planes[next_plane++].data_ptr();
  }
  if (skipped) {
    STD_TORCH_CHECK(
        same_device(*skipped, call.x) && skipped->scalar_type() == Type::Byte && skipped->numel() == result.first_block.back(),
        "skipped: expected a uint8 entry per block");
    bucket.skipped = static_cast<uint8_t*>(skipped->data_ptr());
  }
  if (call.first_refused) {
    const Tensor& word = *call.first_refused;
    STD_TORCH_CHECK(same_device(word, call.x) && word.scalar_type() == Type::Long && word.numel() == 1,
                    "first_refused: expected one int64 on the device of state_weights, ", device_of(call.x));
    bucket.first_refused = static_cast<int64_t*>(word.data_ptr());
  }
  return result;
}

}  // namespace rh
