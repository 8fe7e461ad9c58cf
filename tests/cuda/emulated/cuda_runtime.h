// The part of CUDA that csrc/cuda uses, on the CPU, so that a plain C++ compiler builds and runs the very kernels.
//
// A CUDA block is a set of fibers, one per thread, on one CPU thread (begun by ucontext, switched by _setjmp, which spares
// the system calls). A fiber runs until it must wait for the others: at __syncthreads and at the warp operations. Blocks run one
// after the other. Fibers are woken in an order that changes from round to round, so a result that depends on the order of
// threads differs from the CPU's sooner or later.
// __CUDA_ARCH__ is defined: the branches of csrc/core that are for device code are what runs.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __CUDACC__
#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// One CUDA block at a time runs in a process, so what its threads share may be static.
#define __shared__ static

struct dim3 {
  unsigned x, y = 1, z = 1;
  dim3(unsigned x_) : x(x_) {}
};

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

// Device intrinsics, by their definition.
template <class T>
void __stwb(T* p, T x) {
  *p = x;
}
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyintf(x)); }
inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
inline double __dsqrt_rn(double x) { return __builtin_sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fmaf(x, y, z); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
template <class T>
T atomicAdd(T* p, T x) {
  const T before = *p;
  *p += x;
  return before;
}
template <class T>
T atomicMin(T* p, T x) {
  const T before = *p;
  *p = x < before ? x : before;
  return before;
}
template <class T>
T atomicOr(T* p, T x) {
  const T before = *p;
  *p |= x;
  return before;
}

namespace emulated {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;

struct Fiber {
  jmp_buf state;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool begun = false, done = false;
  uint64_t offered = 0;  // to the other threads of a warp operation
};

struct Block {
  std::vector<Fiber> fibers;
  jmp_buf scheduler;
  int current = 0;
  std::function<void()> body;
  dim3 index{0};
};
inline Block* running = nullptr;

struct ThreadIndex {
  struct {
    operator unsigned() const { return static_cast<unsigned>(running->current); }
  } x;
};
struct BlockIndex {
  struct {
    operator unsigned() const { return running->index.x; }
  } x;
};

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

// A meeting of `count` threads: the last one to come lets all go on.
struct Barrier {
  int waiting = 0, round = 0;
};
inline Barrier block_barrier, warp_barriers[kWarp][2];  // of a warp: by whether the mask begins at lane 0

inline void yield() {
  if (!_setjmp(running->fibers[running->current].state)) _longjmp(running->scheduler, 1);
}

inline void meet(Barrier& barrier, int count) {
  const int round = barrier.round;
  if (++barrier.waiting == count) {
    barrier.waiting = 0;
    ++barrier.round;
  }
  while (barrier.round == round) yield();
}

inline void enter() {
  running->body();
  running->fibers[running->current].done = true;
  _longjmp(running->scheduler, 1);
}

// Runs fiber i until it waits or ends.
__attribute__((noinline)) inline void resume(Block& block, int i) {
  block.current = i;
  if (_setjmp(block.scheduler)) return;
  Fiber& fiber = block.fibers[i];
  if (fiber.begun) _longjmp(fiber.state, 1);
  fiber.begun = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStack;
  makecontext(&context, enter, 0);
  setcontext(&context);
}

inline void run_block(Block& block) {
  running = &block;
  const int threads = static_cast<int>(block.fibers.size());
  for (Fiber& fiber : block.fibers) fiber.begun = fiber.done = false;
  // Forwards, backwards, and from the middle on.
  for (int round = 0, left = threads; left > 0; ++round) {
    if (round > 100000) fail("threads wait for others that never come");
    left = 0;
    for (int i = 0; i < threads; ++i) {
      const int j = round % 3 == 0 ? i : round % 3 == 1 ? threads - 1 - i : (i + threads / 2 + 3) % threads;
      if (block.fibers[j].done) continue;
      resume(block, j);
      left += !block.fibers[j].done;
    }
  }
  running = nullptr;
}

// What the threads in `mask` of a warp have offered, once all are here.
inline uint64_t exchange(unsigned mask, uint64_t mine, const std::function<uint64_t(const uint64_t*)>& take) {
  Fiber& self = running->fibers[running->current];
  const int warp = running->current / kWarp, count = __builtin_popcount(mask);
  if (!(mask >> running->current % kWarp & 1)) fail("a thread is not in its own mask");
  Barrier& barrier = warp_barriers[warp][mask & 1];
  self.offered = mine;
  meet(barrier, count);
  uint64_t offered[kWarp];
  for (int i = 0; i < kWarp; ++i) offered[i] = mask >> i & 1 ? running->fibers[warp * kWarp + i].offered : 0xdeadbeef;
  const uint64_t taken = take(offered);
  meet(barrier, count);  // before anyone offers anew
  return taken;
}

inline int current_device = 0, launches = 0, last_device = -1;

}  // namespace emulated

inline emulated::ThreadIndex threadIdx;
inline emulated::BlockIndex blockIdx;

inline void __syncthreads() { emulated::meet(emulated::block_barrier, static_cast<int>(emulated::running->fibers.size())); }

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int offset) {
  static_assert(sizeof(T) <= 8, "offered as 64 bits");
  const int lane = emulated::running->current % emulated::kWarp;
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  bits = emulated::exchange(mask, bits, [&](const uint64_t* all) { return all[lane ^ offset]; });
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline int __any_sync(unsigned mask, int x) {
  return static_cast<int>(emulated::exchange(mask, x != 0, [&](const uint64_t* all) {
    uint64_t any = 0;
    for (int i = 0; i < emulated::kWarp; ++i) any |= mask >> i & 1 ? all[i] : 0;
    return any;
  }));
}

// Host functions.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDevice = 101 };
using cudaStream_t = struct CUstream_st*;
inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : "invalid device ordinal";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = emulated::current_device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 1) return cudaErrorInvalidDevice;
  emulated::current_device = device;
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}

template <class Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 threads, void** arguments, size_t, cudaStream_t) {
  if (grid.x == 0) emulated::fail("an empty grid was launched");
  ++emulated::launches;
  emulated::last_device = emulated::current_device;
  const Argument copy = *static_cast<Argument*>(arguments[0]);
  emulated::Block block;
  block.body = [&] { kernel(copy); };
  block.fibers = std::vector<emulated::Fiber>(threads.x);
  for (unsigned i = 0; i < grid.x; ++i) {
    block.index = dim3(i);
    emulated::run_block(block);
  }
  return cudaSuccess;
}
