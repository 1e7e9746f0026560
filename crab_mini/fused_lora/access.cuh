// What every kernel needs: bfloat16, wide loads and stores of a row, dropout. Torch-free.
//
// There is no inline PTX. tests/cuda_on_cpu.h compiles this file with g++ and runs it.
#pragma once
#include <math.h>
#include <string.h>

#ifndef CRAB_SHARED  // the tests define it as an array that checks its bounds and starts as NaN
#define CRAB_SHARED(type, name, count) __shared__ type name[count]
#endif

namespace crab {

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;  // the mask of a shuffle in which all lanes take part

struct bfloat16 {
  unsigned short bits;
};

template <typename T>
constexpr int VEC = 16 / sizeof(T);  // entries of one 16-byte access

__device__ inline float widen(float value) { return value; }

// A bfloat16 is the upper half of a float.
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

// Rounds to nearest, ties to even. Values beyond the largest finite bfloat16 round to infinity. The quiet NaN 0x7fc0
// stands for every NaN: rounding the bits of a NaN could give infinity or zero.
template <>
__device__ inline bfloat16 narrow<bfloat16>(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  if (value != value) return {0x7fc0};
  return {static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Reads V entries of a row from column d on. Entries beyond the end of the row are zero.
// V = VEC<T>: one 16-byte access. The width must be a multiple of V and the row must start on 16 bytes, so a group of V
// entries lies inside the row or outside it. V = 1: any row.
template <typename T, int V>
__device__ inline void load(const T* row, int d, int width, float (&to)[V]) {
  struct alignas(V * sizeof(T)) Group { T at[V]; } group = {};
  if (d < width) group = *reinterpret_cast<const Group*>(row + d);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = widen(group.at[v]);
}

// Writes V entries of a row from column d on. Column d must lie inside the row.
template <typename T, int V>
__device__ inline void store(T* row, int d, const float (&from)[V]) {
  struct alignas(V * sizeof(T)) Group { T at[V]; } group;
#pragma unroll
  for (int v = 0; v < V; ++v) group.at[v] = narrow<T>(from[v]);
  *reinterpret_cast<Group*>(row + d) = group;
}

// Multiplies V entries of row n from column d on by dropout_mask · mask_scale. Without a mask they stay as they are.
template <int V>
__device__ inline void drop(const unsigned char* dropout_mask, float mask_scale, int n, int d, int width,
                            float (&values)[V]) {
  if (!dropout_mask || d >= width) return;
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] *= dropout_mask[size_t(n) * width + d + v] ? mask_scale : 0.0f;
}

}  // namespace crab
