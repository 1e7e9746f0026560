// For teaching: z = A x in four steps, from the simplest kernel to the shape of `warp_dots` in kernels.cuh.
// tests/test_cuda_on_cpu.py compares every step with float64. It also counts, in the emulation, what each step saves:
// 64 rows, 256 columns, rank 11, float32. A line is a 128-byte line of memory that a warp asks for.
//
//   step                              lines asked for    shuffles of a warp    what changed
//   1 one_thread_one_sum                       185856                     0    the simplest kernel
//   2 one_warp_one_sum                          11264                  3520    neighbouring lanes read neighbours
//   3 one_warp_one_row                           6144                  3520    x is read once, not once per sum
//   4 one_warp_four_rows                         1920                   992    A is read once per four rows; the
//                                                                              sums share their shuffles
//
// The kernel that runs has more: 16-byte loads, bfloat16, and the softmax in the same kernel. These are counts and not
// times. No GPU has been measured. The pointers are template parameters, so that the test can count their reads.
#pragma once
#include "kernels.cuh"

namespace crab::ladder {

// Step 1. Each thread computes one sum. Neighbouring threads read neighbouring rows of x, and their entries lie a whole
// row apart in memory. So each load of a warp asks for 32 lines and uses 4 bytes of each.
template <typename Pointer>
__global__ void one_thread_one_sum(Pointer x, Pointer A, float* z, int rows, int width, int rank) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x, k = blockIdx.y;
  if (n >= rows) return;
  float sum = 0.0f;
  for (int d = 0; d < width; ++d) sum += x[size_t(n) * width + d] * A[size_t(k) * width + d];
  z[size_t(k) * rows + n] = sum;
}

// The usual sum over a warp: five exchanges for one value. Every lane then holds the sum.
__device__ inline float warp_sum(float value) {
  for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL, value, step);
  return value;
}

// Step 2. A warp computes one sum. Its lanes read 32 neighbouring entries, which is one line. Each row of x is still
// read once per sum.
template <typename Pointer>
__global__ void one_warp_one_sum(Pointer x, Pointer A, float* z, int rows, int width, int rank) {
  const int lane = threadIdx.x % WARP, n = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, k = blockIdx.y;
  if (n >= rows) return;
  float sum = 0.0f;
  for (int d = lane; d < width; d += WARP) sum += x[size_t(n) * width + d] * A[size_t(k) * width + d];
  sum = warp_sum(sum);
  if (lane == 0) z[size_t(k) * rows + n] = sum;
}

// Step 3. A warp computes all sums of one row. It holds an entry of x in a register and multiplies it with every row of
// A. KT >= rank is known at compile time; otherwise the compiler could not keep the sums in registers.
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

// Step 4. A warp computes four rows, so each entry of A serves four rows. Then there are 64 sums to add up over the
// lanes. transposing_sum needs 62 exchanges for them, warp_sum would need 320.
template <int KT, typename Pointer>
__global__ void one_warp_four_rows(Pointer x, Pointer A, float* z, int rows, int width, int rank) {
  constexpr int ROWS = ROWS_OF_WARP<KT>, EACH = ROWS * KT / WARP;
  const int lane = threadIdx.x % WARP, first = (blockIdx.x * blockDim.x + threadIdx.x) / WARP * ROWS;
  if (first >= rows) return;
  // One pass over the columns: four entries of x, then every row of A.
  float sum[ROWS * KT] = {};
  for (int d = lane; d < width; d += WARP) {
    float entries[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; ++row) entries[row] = x[size_t(min(first + row, rows - 1)) * width + d];
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      if (k >= rank) break;
      const float weight = A[size_t(k) * width + d];
#pragma unroll
      for (int row = 0; row < ROWS; ++row) sum[row * KT + k] += entries[row] * weight;
    }
  }
  // Each lane receives EACH totals and writes them.
  transposing_sum(sum, lane);
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int row = (lane * EACH + i) / KT, k = (lane * EACH + i) % KT;
    if (k < rank && first + row < rows) z[size_t(k) * rows + first + row] = sum[i];
  }
}

}  // namespace crab::ladder
