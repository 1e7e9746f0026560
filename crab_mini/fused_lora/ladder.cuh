// A ladder for teaching: z = A x in four steps from the first kernel one would write to the shape of `warp_dots` in
// kernels.cuh. Every step is held against float64 in tests/test_cuda_on_cpu.py, which also counts, in the emulation,
// what a step buys (64 rows, 256 -> rank 11, float32; lines are 128-byte lines of memory that a warp asks for):
//
//   step                              lines asked for    shuffles of a warp    what changed
//   1 one_thread_one_sum                       185856                     0
//   2 one_warp_one_sum                          11264                  3520    lanes read side by side
//   3 one_warp_one_row                           6144                  3520    x is read once, not once a sum
//   4 one_warp_four_rows                         1920                   992    A is read once per four rows, and the
//                                                                              sums share their shuffles
//
// Shipped on top of that: 16-byte loads, bfloat16, softmax in the same kernel. Counts are not times: no GPU has been
// measured. The pointers are template parameters so that the test can count through them.
#pragma once
#include "kernels.cuh"

namespace crab::ladder {

// Step 1. A thread computes one sum alone. Neighbouring threads work on neighbouring rows of x, whose entries lie a
// whole row apart, so each load of a warp asks for 32 lines and uses 4 bytes of each.
template <typename Pointer>
__global__ void one_thread_one_sum(Pointer x, Pointer A, float* z, int rows, int width, int rank) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x, k = blockIdx.y;
  if (n >= rows) return;
  float sum = 0.0f;
  for (int d = 0; d < width; ++d) sum += x[size_t(n) * width + d] * A[size_t(k) * width + d];
  z[size_t(k) * rows + n] = sum;
}

// The plain sum over a warp: five exchanges for one value, after which every lane knows it.
__device__ inline float warp_sum(float value) {
  for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL, value, step);
  return value;
}

// Step 2. A warp shares one sum: its lanes read 32 neighbours, one line. But each row of x is read once per sum.
template <typename Pointer>
__global__ void one_warp_one_sum(Pointer x, Pointer A, float* z, int rows, int width, int rank) {
  const int lane = threadIdx.x % WARP, n = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, k = blockIdx.y;
  if (n >= rows) return;
  float sum = 0.0f;
  for (int d = lane; d < width; d += WARP) sum += x[size_t(n) * width + d] * A[size_t(k) * width + d];
  sum = warp_sum(sum);
  if (lane == 0) z[size_t(k) * rows + n] = sum;
}

// Step 3. A warp computes all sums of a row: x stays in a register while A passes by. KT >= rank is known when
// compiling, or the sums could not stay in registers.
template <int KT, typename Pointer>
__global__ void one_warp_one_row(Pointer x, Pointer A, float* z, int rows, int width, int rank) {
  const int lane = threadIdx.x % WARP, n = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
  if (n >= rows) return;
  float sum[KT] = {};
  for (int d = lane; d < width; d += WARP) {
    const float entry = x[size_t(n) * width + d];
#pragma unroll
    for (int k = 0; k < KT; ++k)
      if (k < rank) sum[k] += entry * A[size_t(k) * width + d];
  }
#pragma unroll
  for (int k = 0; k < KT; ++k) {
    if (k >= rank) break;
    const float total = warp_sum(sum[k]);
    if (lane == 0) z[size_t(k) * rows + n] = total;
  }
}

// Step 4. A warp computes four rows: what it reads of A serves all of them. 64 sums then wait to be added up over the
// lanes, and transposing_sum does that in 62 exchanges where warp_sum takes 320.
template <int KT, typename Pointer>
__global__ void one_warp_four_rows(Pointer x, Pointer A, float* z, int rows, int width, int rank) {
  constexpr int ROWS = ROWS_OF_WARP<KT>, EACH = ROWS * KT / WARP;
  const int lane = threadIdx.x % WARP, first = (blockIdx.x * blockDim.x + threadIdx.x) / WARP * ROWS;
  if (first >= rows) return;
  float sum[ROWS * KT] = {};
  for (int d = lane; d < width; d += WARP) {
    float entries[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) entries[r] = x[size_t(min(first + r, rows - 1)) * width + d];
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      if (k >= rank) break;
      const float weight = A[size_t(k) * width + d];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) sum[r * KT + k] += entries[r] * weight;
    }
  }
  transposing_sum(sum, lane);
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int r = (lane * EACH + i) / KT, k = (lane * EACH + i) % KT;
    if (k < rank && first + r < rows) z[size_t(k) * rows + first + r] = sum[i];
  }
}

}  // namespace crab::ladder
