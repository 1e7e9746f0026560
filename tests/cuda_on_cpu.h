// CUDA source compiled with g++ and run: what kernels.cuh needs of CUDA, on fibers.
//
// Each CUDA thread of a block is a fiber (cuda_on_cpu.cpp); a scheduler runs them in an order drawn from a seed,
// blocks too. Barriers and shuffles complete when all of their threads have arrived; a barrier that some threads miss
// is an error, and so is an index outside a __shared__ array, which starts full of NaN. Under ThreadSanitizer every
// CUDA thread is a thread of its own that only barriers order, so a missing one is a reported race; AddressSanitizer
// sees global accesses out of bounds. What is not modelled: caches, memory ordering weaker than that, and time.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <initializer_list>

#define __global__
#define __device__
#define CRAB_SHARED(type, name, count) emulator::Shared<type> name(#name, count)
#define CRAB_LAUNCH(stream, grid, block, ...) emulator::launcher(grid, block, __VA_ARGS__)
#define __syncthreads() emulator::block_barrier(__LINE__)
#define __syncwarp() emulator::warp_barrier(__LINE__)
#define __shfl_xor_sync(mask, value, step) emulator::shuffle_xor(mask, value, step, __LINE__)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

inline int min(int a, int b) { return a < b ? a : b; }

enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

namespace emulator {

extern long warp_shuffles;              // done so far, one for the 32 lanes together
void seed(unsigned value);              // of the order of blocks and threads in the launches to come
[[noreturn]] void fail(const char* format, ...);  // one line on stderr, exit status 3
void block_barrier(int line);
void warp_barrier(int line);
float shuffle_xor(unsigned mask, float value, int step, int line);
void* shared_memory(const char* name, std::size_t bytes);  // the block's, full of NaN when first asked for
void launch(dim3 grid, dim3 block, const std::function<void()>& kernel);

// A __shared__ array that knows its bounds.
template <typename T>
class Shared {
 public:
  Shared(const char* name, int count)
      : name_(name), count_(count), data_(static_cast<T*>(shared_memory(name, count * sizeof(T)))) {}
  T& operator[](int i) {
    if (i < 0 || i >= count_) fail("shared memory out of bounds: %s[%d] of %d", name_, i, count_);
    return data_[i];
  }

 private:
  const char* name_;
  int count_;
  T* data_;
};

template <typename... Parameters>
auto launcher(dim3 grid, dim3 block, void (*kernel)(Parameters...)) {
  return [=](Parameters... arguments) { launch(grid, block, [=] { kernel(arguments...); }); };
}

}  // namespace emulator
