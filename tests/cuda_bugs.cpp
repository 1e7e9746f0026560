// Seeded bugs for the emulation, each with its correct twin: BUG decides. `cuda_bugs NAME bug|twin SEED` prints "right"
// or "wrong"; what the sanitizers or the emulation find ends the process before that.
#include "cuda_on_cpu.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

namespace {

// Reverses a block through shared memory; without the barrier a thread reads what another has yet to write.
template <bool BUG>
__global__ void missing_syncthreads(float* out) {
  CRAB_SHARED(float, tile, 64);
  tile[threadIdx.x] = threadIdx.x;
  if (!BUG) __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// The tile is written again while another warp may still read it: the second of two barriers is what is missing.
template <bool BUG>
__global__ void missing_second_syncthreads(float* out) {
  CRAB_SHARED(float, tile, 64);
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = threadIdx.x;
    __syncthreads();
    sum += tile[63 - threadIdx.x] / 2;
    if (!BUG) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

template <bool BUG>
__global__ void missing_syncwarp(float* out) {
  CRAB_SHARED(float, tile, 64);
  const int other = threadIdx.x ^ 31;  // the warp's lanes in reverse
  tile[threadIdx.x] = threadIdx.x;
  if (!BUG) __syncwarp();
  out[63 - other] = tile[other];
}

// A shuffle in between exchanges values and does not order the accesses to shared memory.
template <bool BUG>
__global__ void shuffle_is_no_barrier(float* out) {
  CRAB_SHARED(float, tile, 64);
  tile[threadIdx.x] = threadIdx.x;
  const int other = __shfl_xor_sync(0xffffffffu, float(threadIdx.x), 1);
  if (!BUG) __syncwarp();
  out[63 - other] = tile[other];
}

// Each block of the bug counts up the same cell without an atomic.
template <bool BUG>
__global__ void race_between_blocks(float* out) {
  if (BUG && threadIdx.x == 0) out[0] += 1;
  if (!BUG && blockIdx.x == 0) out[threadIdx.x] = 63 - threadIdx.x;
}

template <bool BUG>
__global__ void shared_out_of_bounds(float* out) {
  CRAB_SHARED(float, tile, 64);
  tile[threadIdx.x + (BUG ? 1 : 0)] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

template <bool BUG>
__global__ void global_out_of_bounds(float* out) {
  out[threadIdx.x + (BUG ? 1 : 0)] = 63 - threadIdx.x;
}

template <bool BUG>
__global__ void divergent_barrier(float* out) {
  if (!BUG || threadIdx.x < 16) __syncthreads();
  out[threadIdx.x] = 63 - threadIdx.x;
}

// Half of the tile is never written; the zeros of an ordinary array would hide it.
template <bool BUG>
__global__ void uninitialised_shared(float* out) {
  CRAB_SHARED(float, tile, 64);
  if (!BUG || threadIdx.x >= 32) tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

}  // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  const bool bug = std::string(arguments[2]) == "bug";
  emulator::seed(std::atoi(arguments[3]));
  std::unique_ptr<float[]> out(new float[64]());
  float* launched = out.get();
  // One block where the kernel's blocks would all write the same cells: a race that is not the one in question.
  const dim3 grid(name == "race_between_blocks" ? 2 : 1), block(64);
#define RUN(kernel) \
  if (name == #kernel) CRAB_LAUNCH(nullptr, grid, block, bug ? kernel<true> : kernel<false>)(launched)
  RUN(missing_syncthreads);
  RUN(missing_second_syncthreads);
  RUN(missing_syncwarp);
  RUN(shuffle_is_no_barrier);
  RUN(race_between_blocks);
  RUN(shared_out_of_bounds);
  RUN(global_out_of_bounds);
  RUN(divergent_barrier);
  RUN(uninitialised_shared);
  bool right = true;
  for (int i = 0; i < 64; ++i) right = right && out[i] == float(63 - i);
  std::puts(right ? "right" : "wrong");
  return right ? 0 : 1;
}
