// The fused LoRA kernels. Three shapes of kernel (shrink, expand, wgrad) serve the forward and the backward pass.
//
// Forward:  z = A x, g = softmax(W_r x)               one shrink; the same kernel computes the softmax
//           y += (scaling · g ⊗ z) B                  one expand; y holds the base product
// Backward: gu = B gy, then gz and glogits            one shrink; the same kernel goes back through ⊗ and the softmax
//           gx += gz A + glogits W_r                  one expand; gx holds gy W
//           gB = uᵀ gy; gA, gW_r = [gz glogits]ᵀ x    two wgrads, split over rows; parts are added in order
//
// Letters: N rows of x, r LoRA rank, E LoRA heads. A small matrix is (K, width), row-major, with K at most 64.
// z (r, N), g (E, N) and the gradients of z and of the logits (r + E, N) have the rows of x along the last axis.
// Sums are float32. There are no tensor-core instructions and no atomics. Torch-free: plain pointers.
// ladder.cuh explains in four steps how the shape of these kernels came about.
#pragma once
#include "access.cuh"

namespace crab {

constexpr int WARPS = 4;           // warps of a shrink block; each works alone, on rows of its own
constexpr int MOST_COLUMNS = 64;   // largest K: a thread holds K sums in registers; dispatch.py has the same number
constexpr int EXPAND_ROWS = 8;     // rows of y of one expand block
constexpr int TILE = 32;           // rows of x between two barriers of wgrad
constexpr int WGRAD_COLUMNS = 8;   // rows of the weight gradient of one warp of wgrad

// Two (K, width) matrices, read row by row as if they were one: the rows of A, then the rows of W_r. To read a single
// matrix, name it as `first` and as `second`.
// A kernel steps from one row to the next. With an index, the compiler would hold every row's address in a register.
template <typename T>
struct Stacked {
  const T* first;
  const T* second;
  int count, all;  // rows of `first`; rows of both together
  __device__ const T* after(const T* row, int k, int width) const { return k + 1 == count ? second : row + width; }
};

// The coefficients that expand and wgrad multiply with: entry (k, n) for row n of x. They are read from `stored`. Where
// that is null, they are u = scaling · g ⊗ z, computed from g and z.
template <typename T>
struct Coefficients {
  const float* stored;
  const T* z;
  const float* g;
  int rank, rows;
  float scaling;
  __device__ float at(int k, int n) const {
    if (stored) return stored[size_t(k) * rows + n];
    return scaling * g[size_t(k / rank) * rows + n] * widen(z[size_t(k % rank) * rows + n]);
  }
};

// Sums COUNT values over the 32 lanes of a warp. Lane l ends with the totals of the COUNT / 32 values from
// l · COUNT / 32 on, in v[0], v[1], ...
// After each exchange a lane is responsible for half as many values, so 64 values take 62 shuffles. One by one they
// would take 5 · 64. The function is recursive because every index must be known at compile time: the compiler keeps an array
// in registers only then.
template <int COUNT, int HALF = COUNT / 2, int STEP = WARP / 2>
__device__ inline void transposing_sum(float (&v)[COUNT], int lane) {
  static_assert(COUNT % WARP == 0, "every lane must end with the same number of totals");
  const bool upper = lane & STEP;
#pragma unroll
  for (int i = 0; i < HALF; ++i) {
    const float given = __shfl_xor_sync(ALL, upper ? v[i] : v[i + HALF], STEP);
    v[i] = (upper ? v[i + HALF] : v[i]) + given;
  }
  if constexpr (STEP > 1) transposing_sum<COUNT, HALF / 2, STEP / 2>(v, lane);
}

// Rows of x that a warp works on at once. The fewer sums a row has, the more rows share one pass over m.
template <int KT>
constexpr int ROWS_OF_WARP = 64 / KT;

// Multiplies the warp's rows of x with the K <= KT rows of m: dots[offset + row · KT + k]. Each lane holds its entries
// of x in registers while it passes over m, so x is read once.
template <typename T, int V, int KT, typename Shared>
__device__ inline void warp_dots(const T* x, Stacked<T> m, const unsigned char* dropout_mask, float mask_scale,
                                 int first, int rows, int width, Shared& dots, int lane, int offset) {
  constexpr int ROWS = ROWS_OF_WARP<KT>;
  // Each lane sums over its own columns.
  float sum[ROWS * KT];
#pragma unroll
  for (int i = 0; i < ROWS * KT; ++i) sum[i] = 0.0f;
  for (int d = lane * V; d < width; d += WARP * V) {
    float xs[ROWS][V], ms[V];
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      const int n = min(first + row, rows - 1);  // past the end the last row is read again; that sum is not stored
      load(x + size_t(n) * width, d, width, xs[row]);
      drop(dropout_mask, mask_scale, n, d, width, xs[row]);
    }
    // One pass over m. KT is known at compile time, so that the loop can be unrolled; m may have fewer rows.
    const T* row_of_m = m.first;
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      if (k >= m.all) break;
      load(row_of_m, d, width, ms);
      row_of_m = m.after(row_of_m, k, width);
#pragma unroll
      for (int row = 0; row < ROWS; ++row)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[row * KT + k] += xs[row][v] * ms[v];
    }
  }
  // The lanes' sums are added, and each lane writes its share of the totals for the others to read.
  transposing_sum(sum, lane);
#pragma unroll
  for (int i = 0; i < ROWS * KT / WARP; ++i) dots[offset + lane * (ROWS * KT / WARP) + i] = sum[i];
  __syncwarp();
}

// z (r, N) = A x and g (E, N) = softmax(W_r x). m holds the rows of A (m.count of them), then those of W_r.
// With a dropout mask A and W_r see different x. Then there are two launches: m is A alone (and g is not written), then
// W_r alone (and z is not written). Grid: rows / (WARPS · ROWS_OF_WARP<KT>). Block: WARPS warps.
template <typename T, int V, int KT>
__global__ void shrink_softmax(const T* x, Stacked<T> m, const unsigned char* dropout_mask, float mask_scale, T* z,
                               float* g, int rows, int width) {
  constexpr int ROWS = ROWS_OF_WARP<KT>;
  CRAB_SHARED(float, dots, WARPS * ROWS * KT);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, offset = warp * ROWS * KT;
  const int first = (blockIdx.x * WARPS + warp) * ROWS;
  if (first >= rows) return;  // the whole warp leaves: below there is no barrier of the whole block
  warp_dots<T, V, KT>(x, m, dropout_mask, mask_scale, first, rows, width, dots, lane, offset);
  // z: neighbouring lanes write neighbouring rows.
  const int rank = m.count, heads = m.all - m.count, here = min(ROWS, rows - first);
  for (int i = lane; i < rank * here; i += WARP)
    z[size_t(i / here) * rows + first + i % here] = narrow<T>(dots[offset + i % here * KT + i / here]);
  // g: one softmax over the heads per row. The largest logit is subtracted, so that expf does not overflow.
  for (int i = lane; i < heads * here; i += WARP) {
    const int e = i / here, row = i % here, logits = offset + row * KT + rank;
    float top = -INFINITY, sum = 0.0f;
    for (int j = 0; j < heads; ++j) top = fmaxf(top, dots[logits + j]);
    for (int j = 0; j < heads; ++j) sum += expf(dots[logits + j] - top);
    g[size_t(e) * rows + first + row] = expf(dots[logits + e] - top) / sum;
  }
}

// g_both (r + E, N): the gradients of z, then those of the router's logits. m is B (E·r, width).
// With gu = B gy: gz_k = s · Σ_e g_e gu_ek; gg_e = s · Σ_k z_k gu_ek; glogits_e = g_e (gg_e - Σ_j g_j gg_j).
template <typename T, int V, int KT>
__global__ void shrink_collect(const T* gy, Stacked<T> m, Coefficients<T> u, int heads, float* g_both, int rows,
                               int width) {
  constexpr int ROWS = ROWS_OF_WARP<KT>;
  CRAB_SHARED(float, gus, WARPS * ROWS * KT);
  CRAB_SHARED(float, ggs, WARPS * ROWS * KT);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, offset = warp * ROWS * KT;
  const int first = (blockIdx.x * WARPS + warp) * ROWS;
  if (first >= rows) return;
  warp_dots<T, V, KT>(gy, m, nullptr, 1.0f, first, rows, width, gus, lane, offset);
  // gz.
  const int rank = u.rank, here = min(ROWS, rows - first);
  for (int i = lane; i < rank * here; i += WARP) {
    const int k = i / here, row = i % here, n = first + row;
    float sum = 0.0f;
    for (int e = 0; e < heads; ++e) sum += u.g[size_t(e) * rows + n] * gus[offset + row * KT + e * rank + k];
    g_both[size_t(k) * rows + n] = u.scaling * sum;
  }
  // gg, which every lane writes for the others to read.
  for (int i = lane; i < heads * here; i += WARP) {
    const int e = i / here, row = i % here, n = first + row;
    float sum = 0.0f;
    for (int k = 0; k < rank; ++k) sum += widen(u.z[size_t(k) * rows + n]) * gus[offset + row * KT + e * rank + k];
    ggs[offset + row * KT + e] = u.scaling * sum;
  }
  // glogits: each head needs the gg of all heads of its row.
  __syncwarp();
  for (int i = lane; i < heads * here; i += WARP) {
    const int e = i / here, row = i % here, n = first + row;
    float mean = 0.0f;
    for (int j = 0; j < heads; ++j) mean += u.g[size_t(j) * rows + n] * ggs[offset + row * KT + j];
    g_both[size_t(rank + e) * rows + n] = u.g[size_t(e) * rows + n] * (ggs[offset + row * KT + e] - mean);
  }
}

// y (N, width) += cᵀ m. With a dropout mask the added part is multiplied by it: that is the gradient of x · mask.
// Grid: (rows / EXPAND_ROWS, width / (threads · V)). A thread computes V columns of EXPAND_ROWS rows.
template <typename T, int V>
__global__ void expand(T* y, Coefficients<T> c, Stacked<T> m, const unsigned char* dropout_mask, float mask_scale,
                       int rows, int width) {
  CRAB_SHARED(float, cs, EXPAND_ROWS * MOST_COLUMNS);
  // The block's coefficients, read once for all its threads. Rows past the end get zeros.
  const int first = blockIdx.x * EXPAND_ROWS, here = min(EXPAND_ROWS, rows - first);
  for (int i = threadIdx.x; i < EXPAND_ROWS * m.all; i += blockDim.x) {
    const int k = i / EXPAND_ROWS, row = i % EXPAND_ROWS;
    cs[i] = row < here ? c.at(k, first + row) : 0.0f;
  }
  __syncthreads();
  const int d = (blockIdx.y * blockDim.x + threadIdx.x) * V;
  if (d >= width) return;
  // One pass over m: each of its entries serves EXPAND_ROWS rows.
  float sum[EXPAND_ROWS][V] = {}, ms[V], old[V];
  const T* row_of_m = m.first;
  for (int k = 0; k < m.all; ++k) {
    load(row_of_m, d, width, ms);
    row_of_m = m.after(row_of_m, k, width);
#pragma unroll
    for (int row = 0; row < EXPAND_ROWS; ++row)
#pragma unroll
      for (int v = 0; v < V; ++v) sum[row][v] += cs[k * EXPAND_ROWS + row] * ms[v];
  }
  // Only now is y read, added to and written.
#pragma unroll
  for (int row = 0; row < EXPAND_ROWS; ++row) {
    if (row >= here) break;
    T* y_row = y + size_t(first + row) * width;
    drop(dropout_mask, mask_scale, first + row, d, width, sum[row]);
    load(y_row, d, width, old);
#pragma unroll
    for (int v = 0; v < V; ++v) old[v] += sum[row][v];
    store(y_row, d, old);
  }
}

// partial (splits, K, width): each split's part of the product c x. If there is a dropout mask, x is multiplied by it.
// Grid: (width / (32 · V), splits). Block: (32, K / WGRAD_COLUMNS). All warps of a block read the same rows of x at the
// same time, so all but the first warp find them in the first-level cache.
template <typename T, int V>
__global__ void wgrad(const T* x, Coefficients<T> c, int columns, const unsigned char* dropout_mask, float mask_scale,
                      float* partial, int rows, int width, int split_rows) {
  CRAB_SHARED(float, cs, TILE * MOST_COLUMNS);
  const int d = (blockIdx.x * WARP + threadIdx.x) * V, k0 = threadIdx.y * WGRAD_COLUMNS;
  const int begin = blockIdx.y * split_rows, end = min(begin + split_rows, rows);
  // The rows of the split, a tile at a time. The block shares the coefficients of a tile.
  float sum[WGRAD_COLUMNS][V] = {}, xs[V];
  for (int tile = begin; tile < end; tile += TILE) {
    __syncthreads();  // no thread still reads the tile before
    for (int i = threadIdx.y * WARP + threadIdx.x; i < TILE * WGRAD_COLUMNS * blockDim.y; i += blockDim.y * WARP) {
      const int k = i / TILE, n = tile + i % TILE;
      cs[i] = k < columns && n < end ? c.at(k, n) : 0.0f;
    }
    __syncthreads();
    for (int row = 0; row < min(TILE, end - tile); ++row) {
      load(x + size_t(tile + row) * width, d, width, xs);
      drop(dropout_mask, mask_scale, tile + row, d, width, xs);
#pragma unroll
      for (int j = 0; j < WGRAD_COLUMNS; ++j)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[j][v] += cs[(k0 + j) * TILE + row] * xs[v];
    }
  }
  // The last warp may have more columns than there are, the last block more threads than the row has entries.
#pragma unroll
  for (int j = 0; j < WGRAD_COLUMNS; ++j)
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (k0 + j < columns && d < width)
        partial[(size_t(blockIdx.y) * columns + k0 + j) * width + d + v] = sum[j][v];
}

// out: the splits' parts, added in order, so that equal input always gives equal bits.
template <typename T>
__global__ void sum_splits(const float* partial, T* out, int splits, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
  for (int s = 0; s < splits; ++s) sum += partial[size_t(s) * count + i];
  out[i] = narrow<T>(sum);
}

}  // namespace crab
