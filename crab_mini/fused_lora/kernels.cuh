// The fused LoRA kernels: shrink, expand and wgrad serve forward and backward. Torch-free, plain pointers.
//
// Forward:  z = A x, g = softmax(R x)           one shrink, the softmax in the same kernel
//           y += (scaling · g ⊗ z) B            one expand, after the base product has written y
// Backward: gu = B gy, then gz and glogits      one shrink, the chain rule through ⊗ and softmax in the same kernel
//           gx += gz A + glogits R              one expand
//           gB = uᵀ gy; gA, gR = [gz glogits]ᵀ x    two wgrads, split over rows, sums added in a fixed order
// Every matrix that is multiplied with is (K, width) row-major with K small; z (R, N), g (E, N) and the gradients of
// z and the logits (R + E, N) are stored with the rows of x along the last axis. Sums are float32 throughout.
// No inline PTX, no tensor-core intrinsics, no atomics: tests/cuda_on_cpu.h compiles this very file with g++ and runs
// it. How the shapes of these kernels came about is told step by step in ladder.cuh.
#pragma once
#include <math.h>
#include <string.h>

#ifndef CRAB_SHARED  // the emulation brings a bounds-checked, NaN-filled array instead
#define CRAB_SHARED(type, name, count) __shared__ type name[count]
#endif

namespace crab {

constexpr int WARP = 32;
constexpr int WARPS = 4;           // warps of a shrink block; each works alone on rows of its own
constexpr int MOST_COLUMNS = 64;   // largest K: what a thread's registers hold; dispatch.py says the same
constexpr int EXPAND_ROWS = 8;     // rows of y that an expand block accumulates into
constexpr int TILE = 32;           // rows of x between two barriers of wgrad
constexpr int WGRAD_COLUMNS = 8;   // rows of the weight gradient per warp of wgrad
constexpr unsigned ALL = 0xffffffffu;

struct bfloat16 {
  unsigned short bits;
};

template <typename T>
constexpr int VEC = 16 / sizeof(T);  // entries of one 16-byte access

__device__ inline float widen(float value) { return value; }

__device__ inline float widen(bfloat16 value) {
  const unsigned bits = unsigned(value.bits) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}

template <typename T>
__device__ inline T narrow(float value);

template <>
__device__ inline float narrow<float>(float value) { return value; }

// Round to nearest, ties to even; a NaN stays one.
template <>
__device__ inline bfloat16 narrow<bfloat16>(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  if (value != value) return {0x7fc0};
  return {static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// V entries of a row from column d on, zero beyond the row's end. V = VEC<T>: one 16-byte access, for a width that is a
// multiple of V and a row that starts on 16 bytes, so that a group is inside or outside as a whole. V = 1: any row.
template <typename T, int V>
__device__ inline void load(const T* row, int d, int width, float (&to)[V]) {
  struct alignas(V * sizeof(T)) Group { T at[V]; } group = {};
  if (d < width) group = *reinterpret_cast<const Group*>(row + d);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = widen(group.at[v]);
}

// The same way back; d lies inside the row.
template <typename T, int V>
__device__ inline void store(T* row, int d, const float (&from)[V]) {
  struct alignas(V * sizeof(T)) Group { T at[V]; } group;
#pragma unroll
  for (int v = 0; v < V; ++v) group.at[v] = narrow<T>(from[v]);
  *reinterpret_cast<Group*>(row + d) = group;
}

// values · keep · keep_scale for the entries d.. of a row; no mask leaves them.
template <int V>
__device__ inline void drop(const unsigned char* keep, float keep_scale, int row, int d, int width,
                            float (&values)[V]) {
  if (!keep || d >= width) return;
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] *= keep[size_t(row) * width + d + v] ? keep_scale : 0.0f;
}

// Two (K, width) matrices read as one, row after row: A on the router; or one alone, named twice. Stepping from row to
// row and not indexing keeps the compiler from holding all rows' addresses in registers.
template <typename T>
struct Stacked {
  const T* first;
  const T* second;
  int count, all;  // rows of `first`, rows of both
  __device__ const T* after(const T* row, int k, int width) const { return k + 1 == count ? second : row + width; }
};

// The small factor of expand and wgrad, entry (k, n): stored as it is, or scaling · g ⊗ z made on the way.
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

// Sums COUNT values over the 32 lanes. Each exchange halves what a lane is responsible for, so 64 values take 62
// shuffles and not 5 · 64; lane l ends with the totals of values l·COUNT/32 onwards, in v[0..]. A recursion and not a
// loop, for every index must be known when compiling: an array that is indexed at run time is not in registers.
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

// Rows of x that a warp keeps at a time: the fewer sums a row has, the more rows share one pass over m.
template <int KT>
constexpr int ROWS_OF_WARP = 64 / KT;

// The products of a warp's rows with the K <= KT rows of m, into dots[offset + r · KT + k]. Each lane keeps its
// entries of the rows in registers while it passes over m, so x is read once.
template <typename T, int V, int KT, typename Shared>
__device__ inline void warp_dots(const T* x, Stacked<T> m, const unsigned char* keep, float keep_scale, int first,
                                 int rows, int width, Shared& dots, int lane, int offset) {
  constexpr int ROWS = ROWS_OF_WARP<KT>;
  float sum[ROWS * KT];
#pragma unroll
  for (int i = 0; i < ROWS * KT; ++i) sum[i] = 0.0f;
  for (int d = lane * V; d < width; d += WARP * V) {
    float xs[ROWS][V], ms[V];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int row = min(first + r, rows - 1);  // past the end: computed with the last row, never stored
      load(x + size_t(row) * width, d, width, xs[r]);
      drop(keep, keep_scale, row, d, width, xs[r]);
    }
    const T* row_of_m = m.first;
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      if (k >= m.all) break;
      load(row_of_m, d, width, ms);
      row_of_m = m.after(row_of_m, k, width);
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[r * KT + k] += xs[r][v] * ms[v];
    }
  }
  transposing_sum(sum, lane);
#pragma unroll
  for (int i = 0; i < ROWS * KT / WARP; ++i) dots[offset + lane * (ROWS * KT / WARP) + i] = sum[i];
  __syncwarp();
}

// z (R, N) = A x and g (E, N) = softmax(R x), m being A on R, or A alone (no heads), or R alone (no rank): with a mask
// the two see different x and are two launches. Grid: rows / (WARPS · ROWS_OF_WARP<KT>); block: WARPS warps.
template <typename T, int V, int KT>
__global__ void shrink_softmax(const T* x, Stacked<T> m, const unsigned char* keep, float keep_scale, T* z, float* g,
                               int rows, int width) {
  constexpr int ROWS = ROWS_OF_WARP<KT>;
  CRAB_SHARED(float, dots, WARPS * ROWS * KT);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, offset = warp * ROWS * KT;
  const int first = (blockIdx.x * WARPS + warp) * ROWS;
  if (first >= rows) return;  // the whole warp leaves; there is no barrier of the block below
  warp_dots<T, V, KT>(x, m, keep, keep_scale, first, rows, width, dots, lane, offset);
  const int rank = m.count, heads = m.all - m.count, here = min(ROWS, rows - first);
  for (int i = lane; i < rank * here; i += WARP)
    z[size_t(i / here) * rows + first + i % here] = narrow<T>(dots[offset + i % here * KT + i / here]);
  for (int i = lane; i < heads * here; i += WARP) {
    const int e = i / here, r = i % here, logits = offset + r * KT + rank;
    float top = -INFINITY, sum = 0.0f;
    for (int j = 0; j < heads; ++j) top = fmaxf(top, dots[logits + j]);
    for (int j = 0; j < heads; ++j) sum += expf(dots[logits + j] - top);
    g[size_t(e) * rows + first + r] = expf(dots[logits + e] - top) / sum;
  }
}

// gzl (R + E, N): the gradients of z and of the router's logits, from gy and the heads' m = B (E·R, width).
// With gu = B gy: gz_k = s · sum_e g_e gu_ek; gg_e = s · sum_k z_k gu_ek; glogit_e = g_e (gg_e - sum_j g_j gg_j).
template <typename T, int V, int KT>
__global__ void shrink_collect(const T* gy, Stacked<T> m, Coefficients<T> u, int heads, float* gzl, int rows,
                               int width) {
  constexpr int ROWS = ROWS_OF_WARP<KT>;
  CRAB_SHARED(float, gus, WARPS * ROWS * KT);
  CRAB_SHARED(float, ggs, WARPS * ROWS * KT);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, offset = warp * ROWS * KT;
  const int first = (blockIdx.x * WARPS + warp) * ROWS;
  if (first >= rows) return;
  warp_dots<T, V, KT>(gy, m, nullptr, 1.0f, first, rows, width, gus, lane, offset);
  const int rank = u.rank, here = min(ROWS, rows - first);
  for (int i = lane; i < rank * here; i += WARP) {
    const int k = i / here, r = i % here, n = first + r;
    float sum = 0.0f;
    for (int e = 0; e < heads; ++e) sum += u.g[size_t(e) * rows + n] * gus[offset + r * KT + e * rank + k];
    gzl[size_t(k) * rows + n] = u.scaling * sum;
  }
  for (int i = lane; i < heads * here; i += WARP) {
    const int e = i / here, r = i % here, n = first + r;
    float sum = 0.0f;
    for (int k = 0; k < rank; ++k) sum += widen(u.z[size_t(k) * rows + n]) * gus[offset + r * KT + e * rank + k];
    ggs[offset + r * KT + e] = u.scaling * sum;
  }
  __syncwarp();  // a lane needs the other heads' gg
  for (int i = lane; i < heads * here; i += WARP) {
    const int e = i / here, r = i % here, n = first + r;
    float mean = 0.0f;
    for (int j = 0; j < heads; ++j) mean += u.g[size_t(j) * rows + n] * ggs[offset + r * KT + j];
    gzl[size_t(rank + e) * rows + n] = u.g[size_t(e) * rows + n] * (ggs[offset + r * KT + e] - mean);
  }
}

// y (N, width) += cᵀ m; with keep, what is added is dropped out: the gradient of x · keep.
// Grid: (rows / EXPAND_ROWS, width / (threads · V)). A thread owns V columns of EXPAND_ROWS rows.
template <typename T, int V>
__global__ void expand(T* y, Coefficients<T> c, Stacked<T> m, const unsigned char* keep, float keep_scale, int rows,
                       int width) {
  CRAB_SHARED(float, cs, EXPAND_ROWS * MOST_COLUMNS);
  const int first = blockIdx.x * EXPAND_ROWS, here = min(EXPAND_ROWS, rows - first);
  for (int i = threadIdx.x; i < EXPAND_ROWS * m.all; i += blockDim.x) {
    const int k = i / EXPAND_ROWS, r = i % EXPAND_ROWS;
    cs[i] = r < here ? c.at(k, first + r) : 0.0f;
  }
  __syncthreads();
  const int d = (blockIdx.y * blockDim.x + threadIdx.x) * V;
  if (d >= width) return;
  float sum[EXPAND_ROWS][V] = {}, ms[V], old[V];
  const T* row_of_m = m.first;
  for (int k = 0; k < m.all; ++k) {
    load(row_of_m, d, width, ms);
    row_of_m = m.after(row_of_m, k, width);
#pragma unroll
    for (int r = 0; r < EXPAND_ROWS; ++r)
#pragma unroll
      for (int v = 0; v < V; ++v) sum[r][v] += cs[k * EXPAND_ROWS + r] * ms[v];
  }
#pragma unroll
  for (int r = 0; r < EXPAND_ROWS; ++r) {
    if (r >= here) break;
    T* row = y + size_t(first + r) * width;
    drop(keep, keep_scale, first + r, d, width, sum[r]);
    load(row, d, width, old);
#pragma unroll
    for (int v = 0; v < V; ++v) old[v] += sum[r][v];
    store(row, d, old);
  }
}

// partial (splits, K, width): each split's share of c x, x (N, width) dropped out where there is a mask.
// Grid: (width / (32 · V), splits); block: (32, K / WGRAD_COLUMNS). The warps of a block read the same rows of x at
// the same time, so all but the first find them in the first-level cache.
template <typename T, int V>
__global__ void wgrad(const T* x, Coefficients<T> c, int columns, const unsigned char* keep, float keep_scale,
                      float* partial, int rows, int width, int split_rows) {
  CRAB_SHARED(float, cs, TILE * MOST_COLUMNS);
  const int d = (blockIdx.x * WARP + threadIdx.x) * V, k0 = threadIdx.y * WGRAD_COLUMNS;
  const int begin = blockIdx.y * split_rows, end = min(begin + split_rows, rows);
  float sum[WGRAD_COLUMNS][V] = {}, xs[V];
  for (int tile = begin; tile < end; tile += TILE) {
    __syncthreads();  // the tile before has been used by all
    for (int i = threadIdx.y * WARP + threadIdx.x; i < TILE * WGRAD_COLUMNS * blockDim.y; i += blockDim.y * WARP) {
      const int k = i / TILE, n = tile + i % TILE;
      cs[i] = k < columns && n < end ? c.at(k, n) : 0.0f;
    }
    __syncthreads();
    for (int r = 0; r < min(TILE, end - tile); ++r) {
      load(x + size_t(tile + r) * width, d, width, xs);
      drop(keep, keep_scale, tile + r, d, width, xs);
#pragma unroll
      for (int j = 0; j < WGRAD_COLUMNS; ++j)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[j][v] += cs[(k0 + j) * TILE + r] * xs[v];
    }
  }
#pragma unroll
  for (int j = 0; j < WGRAD_COLUMNS; ++j)
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (k0 + j < columns && d < width)
        partial[(size_t(blockIdx.y) * columns + k0 + j) * width + d + v] = sum[j][v];
}

// out = the splits' shares added in their order, so the same rows always give the same bits.
template <typename T>
__global__ void sum_splits(const float* partial, T* out, int splits, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
  for (int s = 0; s < splits; ++s) sum += partial[size_t(s) * count + i];
  out[i] = narrow<T>(sum);
}

}  // namespace crab
