// The dispatcher ops on tensors: schemas, argument checks, threads. Stable ABI: one binary serves torch >= 2.10.
//
// A bucket is a list of tensors that share flat integer states (X, V), accumulators and one momentum. One call
// moves a whole bucket. Nothing is read back and nothing raises for bad values: `outcome` receives the hash of the
// state and one word of flags per tensor, and the caller decides.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <Python.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "core/information_buffer.h"
#include "cpu/kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// From this many bytes of visible weights on, they are streamed past the cache: a cache would have dropped them before
// the next forward pass reads them.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
// Blocks per thread below which a thread costs more than it saves (16 k weights, about 10 us).
constexpr int64_t kGrain = 32;

const rh::Kernels*& active_kernels() {
  static const rh::Kernels* active = rh::available_kernels().front();
  return active;
}

rh::ScalarType scalar_type(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return rh::ScalarType::float32;
    case ScalarType::Double:
      return rh::ScalarType::float64;
    case ScalarType::BFloat16:
      return rh::ScalarType::bfloat16;
    case ScalarType::Half:
      return rh::ScalarType::float16;
    default:
      STD_TORCH_CHECK(false, "weights must be float32, float64, bfloat16 or float16");
  }
}

struct Call {
  std::vector<Tensor> weights;
  std::vector<Tensor> gradients;  // empty when the phase needs none
  std::vector<bool> active;
  Tensor x, v, accumulators;
  std::vector<Tensor> planes;  // one per row that spills
  std::vector<int64_t> spill_bits;
  std::vector<double> coefficients;
  std::vector<Tensor> lr_elements;  // empty, or one per weight: empty, or one number per element
  int64_t n, d;
  bool hash;
  Tensor outcome;
};

std::vector<rh::Slice> make_slices(const Call& call, std::vector<int64_t>& first_block) {
  const size_t count = call.weights.size();
  STD_TORCH_CHECK(call.active.size() == count, "active: expected ", count, " entries");
  STD_TORCH_CHECK(call.coefficients.size() == 3 || call.coefficients.size() == 3 * count,
                  "coefficients: expected 3 numbers, or 3 for each of the ", count, " weights");
  STD_TORCH_CHECK(call.lr_elements.empty() || call.lr_elements.size() == count, "lr_elements: expected ", count, " tensors");
  STD_TORCH_CHECK(call.gradients.empty() || call.gradients.size() == count, "gradients: expected ", count, " tensors");
  std::vector<rh::Slice> slices(count);
  int64_t state = 0, lanes = 0, blocks = 0;
  for (size_t i = 0; i < count; ++i) {
    const Tensor& weight = call.weights[i];
    STD_TORCH_CHECK(weight.is_cpu(), "weights[", i, "]: expected a CPU tensor");
    const double* c = call.coefficients.data() + (call.coefficients.size() == 3 ? 0 : 3 * i);
    rh::Slice& slice = slices[i];
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
        STD_TORCH_CHECK(gradient.is_cpu() && gradient.scalar_type() == weight.scalar_type() && gradient.numel() == weight.numel(),
                        "gradients[", i, "]: expected the device, dtype and size of its weight");
        for (int64_t dim = 0; slice.size > 1 && dim < weight.dim(); ++dim)
          STD_TORCH_CHECK(weight.size(dim) == 1 || (gradient.dim() == weight.dim() && gradient.stride(dim) == weight.stride(dim)),
                          "gradients[", i, "]: expected the strides of its weight");
        slice.gradient = gradient.data_ptr();
      }
    }
    slice.gradient_coefficient = c[0];
    slice.decay_coefficient = c[1];
    slice.lr = c[2];
    slice.lr_elements = nullptr;
    if (!call.lr_elements.empty() && call.lr_elements[i].numel() > 0) {
      const auto type = call.x.scalar_type() == ScalarType::Long ? ScalarType::Double : ScalarType::Float;
      STD_TORCH_CHECK(call.lr_elements[i].scalar_type() == type && call.lr_elements[i].numel() == slice.size, "lr_elements[", i,
                      "]: expected one number per weight, float64 (float32) for 64-bit (32-bit) state");
      slice.lr_elements = call.lr_elements[i].data_ptr();
    }
    first_block.push_back(blocks);
    state += rh::state_size(slice.size);
    lanes += rh::lane_count(slice.size);
    blocks += rh::block_count(slice.size);
  }
  first_block.push_back(blocks);
  STD_TORCH_CHECK(call.x.numel() == state && call.v.numel() == state, "state_weights and velocities: expected ", state,
                  " elements");
  for (const Tensor* t : {&call.x, &call.v, &call.accumulators, &call.outcome})
    STD_TORCH_CHECK(t->is_cpu() && t->is_contiguous(), "state and outcome: expected contiguous CPU tensors");
  STD_TORCH_CHECK(call.accumulators.numel() == lanes, "accumulators: expected ", lanes, " elements");
  return slices;
}

template <class State>
void check_state(const Call& call) {
  constexpr auto type = State::bits == 64 ? ScalarType::Long : ScalarType::Int;
  STD_TORCH_CHECK(call.v.scalar_type() == type && call.accumulators.scalar_type() == type,
                  "velocities and accumulators: expected the dtype of state_weights");
  STD_TORCH_CHECK(call.n > 0 && call.n <= call.d && call.d <= State::max_denominator,
                  "momentum n/d: expected 0 < n <= d <= ", State::max_denominator, ", got ", call.n, "/", call.d);
}

void run(rh::Phase phase, const Call& call, const Tensor* skipped) {
  std::vector<int64_t> first_block;
  std::vector<rh::Slice> slices = make_slices(call, first_block);
  const bool wide = call.x.scalar_type() == ScalarType::Long;
  wide ? check_state<rh::State64>(call) : check_state<rh::State32>(call);
  STD_TORCH_CHECK(
      call.outcome.scalar_type() == ScalarType::Long && call.outcome.numel() == 1 + static_cast<int64_t>(slices.size()),
      "outcome: expected int64 of one element more than there are weights");

  rh::Bucket bucket{call.x.data_ptr(), call.v.data_ptr(), call.accumulators.data_ptr(), call.n, call.d, {}, {}, nullptr};
  STD_TORCH_CHECK(call.spill_bits.size() == rh::kWeightsPerLane, "spill_bits: expected ", rh::kWeightsPerLane, " entries");
  size_t next_plane = 0;
  for (int k = 0; k < rh::kWeightsPerLane; ++k) {
    const int64_t bits = call.spill_bits[static_cast<size_t>(k)];
    STD_TORCH_CHECK(bits == 0 || bits == 8 || bits == 16, "spill_bits: expected 0, 8 or 16");
    if (bits == 0 || (phase != rh::Phase::step && phase != rh::Phase::undo_velocity)) continue;
    STD_TORCH_CHECK(next_plane < call.planes.size() && call.planes[next_plane].numel() == call.accumulators.numel() * bits / 8 &&
                        call.planes[next_plane].scalar_type() == ScalarType::Byte,
                    "planes: expected a uint8 plane of lanes * bits / 8 for every row that spills");
    bucket.spill_bits[k] = static_cast<int>(bits);
    bucket.planes[k] = call.planes[next_plane++].data_ptr();
  }
  if (skipped) {
    STD_TORCH_CHECK(skipped->scalar_type() == ScalarType::Byte && skipped->numel() == first_block.back(),
                    "skipped: expected a uint8 entry per block");
    bucket.skipped = static_cast<uint8_t*>(skipped->data_ptr());
  }

  int64_t bytes = 0;
  for (const Tensor& weight : call.weights) bytes += weight.numel() * static_cast<int64_t>(weight.element_size());
  const bool stream = bytes >= kStreamBytes;
  const rh::Run kernel = wide ? active_kernels()->run64 : active_kernels()->run32;
  std::atomic<uint64_t> hash{0};
  std::vector<std::atomic<uint32_t>> flags(slices.size());
  for (auto& word : flags) word.store(0, std::memory_order_relaxed);
  torch::stable::parallel_for(0, first_block.back(), kGrain, [&](int64_t begin, int64_t end) {
    uint64_t sum = 0;
    size_t i = static_cast<size_t>(std::upper_bound(first_block.begin(), first_block.end(), begin) - first_block.begin()) - 1;
    for (; begin < end; ++i) {
      const int64_t stop = std::min(end, first_block[i + 1]);
      if (stop == begin) continue;  // a tensor without elements
      const rh::Outcome part =
          kernel(phase, bucket, slices[i], first_block[i], begin - first_block[i], stop - first_block[i], call.hash, stream);
      sum += part.hash;
      if (part.flags) flags[i].fetch_or(part.flags, std::memory_order_relaxed);
      begin = stop;
    }
    hash.fetch_add(sum, std::memory_order_relaxed);
  });
  auto* out = static_cast<int64_t*>(call.outcome.data_ptr());
  out[0] = static_cast<int64_t>(hash.load());
  for (size_t i = 0; i < slices.size(); ++i) out[1 + i] = flags[i].load();
}

void sgd_step(std::vector<Tensor> weights, std::vector<Tensor> gradients, std::vector<bool> active, Tensor state_weights,
              Tensor velocities, Tensor accumulators, std::vector<Tensor> planes, std::vector<int64_t> spill_bits,
              std::vector<double> coefficients, int64_t n, int64_t d, Tensor skipped, bool hash, Tensor outcome,
              std::optional<std::vector<Tensor>> lr_elements) {
  Call call{std::move(weights),
            std::move(gradients),
            std::move(active),
            state_weights,
            velocities,
            accumulators,
            std::move(planes),
            std::move(spill_bits),
            std::move(coefficients),
            lr_elements.value_or(std::vector<Tensor>{}),
            n,
            d,
            hash,
            outcome};
  run(rh::Phase::step, call, skipped.numel() ? &skipped : nullptr);
}

void sgd_move_weights(std::vector<Tensor> weights, std::vector<bool> active, Tensor state_weights, Tensor velocities,
                      Tensor accumulators, std::vector<double> coefficients, bool back, bool hash, Tensor outcome,
                      std::optional<std::vector<Tensor>> lr_elements) {
  Call call{std::move(weights),
            {},
            std::move(active),
            state_weights,
            velocities,
            accumulators,
            {},
            std::vector<int64_t>(rh::kWeightsPerLane, 0),
            std::move(coefficients),
            lr_elements.value_or(std::vector<Tensor>{}),
            1,
            1,
            hash,
            outcome};
  run(back ? rh::Phase::undo_weights : rh::Phase::redo_weights, call, nullptr);
}

void sgd_undo_velocity(std::vector<Tensor> weights, std::vector<Tensor> gradients, std::vector<bool> active, Tensor state_weights,
                       Tensor velocities, Tensor accumulators, std::vector<Tensor> planes, std::vector<int64_t> spill_bits,
                       std::vector<double> coefficients, int64_t n, int64_t d, Tensor skipped, bool hash, Tensor outcome) {
  Call call{std::move(weights),
            std::move(gradients),
            std::move(active),
            state_weights,
            velocities,
            accumulators,
            std::move(planes),
            std::move(spill_bits),
            std::move(coefficients),
            {},
            n,
            d,
            hash,
            outcome};
  run(rh::Phase::undo_velocity, call, &skipped);
}

std::string instruction_sets() {
  std::string names;
  for (const rh::Kernels* kernels : rh::available_kernels()) names += (names.empty() ? "" : " ") + std::string(kernels->name);
  return names;
}

void use_instruction_set(std::string name) {
  for (const rh::Kernels* kernels : rh::available_kernels())
    if (name == kernels->name) {
      active_kernels() = kernels;
      return;
    }
  STD_TORCH_CHECK(false, "instruction set '", name, "' is not one that this machine runs: ", instruction_sets());
}

}  // namespace

STABLE_TORCH_LIBRARY(reversible_hypergrad, m) {
  m.def(
      "sgd_step(Tensor(a!)[] weights, Tensor[] gradients, bool[] active, Tensor(b!) state_weights, Tensor(c!) velocities,"
      " Tensor(d!) accumulators, Tensor(e!)[] planes, int[] spill_bits, float[] coefficients, int n, int d,"
      " Tensor skipped, bool hash, Tensor(f!) outcome, Tensor[]? lr_elements=None) -> ()");
  m.def(
      "sgd_move_weights(Tensor(a!)[] weights, bool[] active, Tensor(b!) state_weights, Tensor velocities,"
      " Tensor accumulators, float[] coefficients, bool back, bool hash, Tensor(c!) outcome,"
      " Tensor[]? lr_elements=None) -> ()");
  m.def(
      "sgd_undo_velocity(Tensor[] weights, Tensor[] gradients, bool[] active, Tensor state_weights, Tensor(a!) velocities,"
      " Tensor(b!) accumulators, Tensor[] planes, int[] spill_bits, float[] coefficients, int n, int d,"
      " Tensor(c!) skipped, bool hash, Tensor(d!) outcome) -> ()");
  m.def("instruction_sets() -> str");
  m.def("use_instruction_set(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad, CPU, m) {
  m.impl("sgd_step", TORCH_BOX(&sgd_step));
  m.impl("sgd_move_weights", TORCH_BOX(&sgd_move_weights));
  m.impl("sgd_undo_velocity", TORCH_BOX(&sgd_undo_velocity));
}

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad, CompositeExplicitAutograd, m) {
  m.impl("instruction_sets", TORCH_BOX(&instruction_sets));
  m.impl("use_instruction_set", TORCH_BOX(&use_instruction_set));
}

// An empty module: importing it loads the library and so registers the ops.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
