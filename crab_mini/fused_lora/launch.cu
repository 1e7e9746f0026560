// Launches the kernels: chooses grids, blocks and template arguments. Torch-free: nvcc compiles it alone. g++ compiles
// it for the tests, which define CRAB_LAUNCH.
#include "launch.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#ifndef CRAB_LAUNCH
#include <cuda_runtime.h>
#define CRAB_LAUNCH(stream, grid, block, ...) __VA_ARGS__<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>
#endif

#include "kernels.cuh"

namespace crab {
namespace {

constexpr int MOST_SPLITS = 32, SPLIT_ROWS = 256, EXPAND_THREADS = 128, SUM_THREADS = 256;

int ceil_div(long long a, int b) { return static_cast<int>((a + b - 1) / b); }

// Rows of one split: a multiple of the tile, and at most MOST_SPLITS splits. It depends on nothing but the number of
// rows, so equal input is always summed in the same order.
int split_rows(int rows) { return std::max(SPLIT_ROWS, ceil_div(ceil_div(rows, MOST_SPLITS), TILE) * TILE); }

int splits(int rows) { return ceil_div(rows, split_rows(rows)); }

// Calls with(std::integral_constant<int, V>). V is VEC<T> if each row of each matrix starts on 16 bytes, else 1.
template <typename T, typename F>
void for_access(int width, std::initializer_list<const void*> matrices, F&& with) {
  bool aligned = width % VEC<T> == 0;
  for (const void* p : matrices) aligned = aligned && reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
  if (aligned) with(std::integral_constant<int, VEC<T>>());
  else with(std::integral_constant<int, 1>());
}

// Calls with(std::integral_constant<int, KT>). KT is the smallest tile of registers for `columns` sums a row.
template <typename F>
void for_tile(int columns, F&& with) {
  if (columns <= 16) with(std::integral_constant<int, 16>());
  else if (columns <= 32) with(std::integral_constant<int, 32>());
  else with(std::integral_constant<int, MOST_COLUMNS>());
}

template <typename T>
void run_softmax(const T* x, Stacked<T> m, const unsigned char* dropout_mask, float mask_scale, T* z, float* g, int rows,
                 int width, void* stream) {
  for_access<T>(width, {x, m.first, m.second}, [&](auto access) {
    for_tile(m.all, [&](auto tile) {
      constexpr int V = decltype(access)::value, KT = decltype(tile)::value;
      const dim3 grid(ceil_div(rows, WARPS * ROWS_OF_WARP<KT>)), block(WARPS * WARP);
      CRAB_LAUNCH(stream, grid, block, shrink_softmax<T, V, KT>)(x, m, dropout_mask, mask_scale, z, g, rows, width);
    });
  });
}

template <typename T>
void run_collect(const T* gy, Stacked<T> m, Coefficients<T> u, int heads, float* g_both, int rows, int width,
                 void* stream) {
  for_access<T>(width, {gy, m.first}, [&](auto access) {
    for_tile(m.all, [&](auto tile) {
      constexpr int V = decltype(access)::value, KT = decltype(tile)::value;
      const dim3 grid(ceil_div(rows, WARPS * ROWS_OF_WARP<KT>)), block(WARPS * WARP);
      CRAB_LAUNCH(stream, grid, block, shrink_collect<T, V, KT>)(gy, m, u, heads, g_both, rows, width);
    });
  });
}

template <typename T>
void run_expand(T* y, Coefficients<T> c, Stacked<T> m, const unsigned char* dropout_mask, float mask_scale, int rows,
                int width, void* stream) {
  for_access<T>(width, {y, m.first, m.second}, [&](auto access) {
    constexpr int V = decltype(access)::value;
    const int threads = std::min(EXPAND_THREADS, ceil_div(ceil_div(width, V), WARP) * WARP);
    const dim3 grid(ceil_div(rows, EXPAND_ROWS), ceil_div(width, threads * V));
    CRAB_LAUNCH(stream, grid, dim3(threads), expand<T, V>)(y, c, m, dropout_mask, mask_scale, rows, width);
  });
}

template <typename T>
void run_wgrad(const T* x, Coefficients<T> c, int columns, const unsigned char* dropout_mask, float mask_scale, T* out,
               float* partial, int rows, int width, void* stream) {
  // Each split of the rows writes its own part.
  for_access<T>(width, {x}, [&](auto access) {
    constexpr int V = decltype(access)::value;
    const dim3 grid(ceil_div(width, WARP * V), splits(rows)), block(WARP, ceil_div(columns, WGRAD_COLUMNS));
    CRAB_LAUNCH(stream, grid, block, wgrad<T, V>)(x, c, columns, dropout_mask, mask_scale, partial, rows, width,
                                                  split_rows(rows));
  });
  // Then the splits' parts are added.
  const int count = columns * width;
  CRAB_LAUNCH(stream, dim3(ceil_div(count, SUM_THREADS)), dim3(SUM_THREADS), sum_splits<T>)(partial, out, splits(rows),
                                                                                            count);
}

template <typename T>
void forward_as(const Problem& p, const T* x, const T* A, const T* W_r, const T* B, const unsigned char* dropout_mask,
                T* y, T* z, float* g, void* stream) {
  // With a mask A and W_r see different x and need a launch each.
  if (dropout_mask) {
    run_softmax<T>(x, {A, A, p.rank, p.rank}, dropout_mask, p.mask_scale, z, g, p.rows, p.in, stream);
    run_softmax<T>(x, {W_r, W_r, 0, p.heads}, nullptr, 1.0f, z, g, p.rows, p.in, stream);
  } else {
    run_softmax<T>(x, {A, W_r, p.rank, p.rank + p.heads}, nullptr, 1.0f, z, g, p.rows, p.in, stream);
  }
  const Coefficients<T> u{nullptr, z, g, p.rank, p.rows, p.scaling};
  const int columns = p.heads * p.rank;
  run_expand<T>(y, u, {B, B, columns, columns}, nullptr, 1.0f, p.rows, p.out, stream);
}

template <typename T>
void backward_as(const Problem& p, const T* gy, const T* x, const T* A, const T* W_r, const T* B, const T* z,
                 const float* g, const unsigned char* dropout_mask, T* gx, T* g_stacked, T* gB, float* workspace,
                 void* stream) {
  // The workspace holds the gradients of z and of the logits, then the parts of the weight gradients.
  const int columns = p.heads * p.rank, both = p.rank + p.heads;
  float* g_both = workspace;
  float* partial = workspace + std::size_t(both) * p.rows;
  const Coefficients<T> u{nullptr, z, g, p.rank, p.rows, p.scaling};
  const Coefficients<T> gz{g_both, z, g, p.rank, p.rows, 1.0f};
  const Coefficients<T> gl{g_both + std::size_t(p.rank) * p.rows, z, g, p.rank, p.rows, 1.0f};
  // Through the product with B.
  run_collect<T>(gy, {B, B, columns, columns}, u, p.heads, g_both, p.rows, p.out, stream);
  run_wgrad<T>(gy, u, columns, nullptr, 1.0f, gB, partial, p.rows, p.out, stream);
  // Through the products with A and W_r.
  if (dropout_mask) {
    if (gx) run_expand<T>(gx, gz, {A, A, p.rank, p.rank}, dropout_mask, p.mask_scale, p.rows, p.in, stream);
    if (gx) run_expand<T>(gx, gl, {W_r, W_r, 0, p.heads}, nullptr, 1.0f, p.rows, p.in, stream);
    run_wgrad<T>(x, gz, p.rank, dropout_mask, p.mask_scale, g_stacked, partial, p.rows, p.in, stream);
    run_wgrad<T>(x, gl, p.heads, nullptr, 1.0f, g_stacked + std::size_t(p.rank) * p.in, partial, p.rows, p.in, stream);
  } else {
    if (gx) run_expand<T>(gx, gz, {A, W_r, p.rank, both}, nullptr, 1.0f, p.rows, p.in, stream);
    run_wgrad<T>(x, gz, both, nullptr, 1.0f, g_stacked, partial, p.rows, p.in, stream);
  }
}

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

std::size_t workspace_floats(const Problem& p) {
  const std::size_t sums = std::max(std::size_t(p.rank + p.heads) * p.in, std::size_t(p.heads) * p.rank * p.out);
  return std::size_t(p.rank + p.heads) * p.rows + sums * splits(p.rows);
}

const char* forward(const Problem& p, const void* x, const void* A, const void* W_r, const void* B,
                    const unsigned char* dropout_mask, void* y, void* z, float* g, void* stream) {
  const auto as = [&](auto type) {
    using T = decltype(type);
    forward_as<T>(p, static_cast<const T*>(x), static_cast<const T*>(A), static_cast<const T*>(W_r),
                  static_cast<const T*>(B), dropout_mask, static_cast<T*>(y), static_cast<T*>(z), g, stream);
  };
  p.type == Type::f32 ? as(float()) : as(bfloat16());
  return last_error();
}

const char* backward(const Problem& p, const void* gy, const void* x, const void* A, const void* W_r, const void* B,
                     const void* z, const float* g, const unsigned char* dropout_mask, void* gx, void* g_stacked,
                     void* gB, float* workspace, void* stream) {
  const auto as = [&](auto type) {
    using T = decltype(type);
    backward_as<T>(p, static_cast<const T*>(gy), static_cast<const T*>(x), static_cast<const T*>(A),
                   static_cast<const T*>(W_r), static_cast<const T*>(B), static_cast<const T*>(z), g, dropout_mask,
                   static_cast<T*>(gx), static_cast<T*>(g_stacked), static_cast<T*>(gB), workspace, stream);
  };
  p.type == Type::f32 ? as(float()) : as(bfloat16());
  return last_error();
}

}  // namespace crab
