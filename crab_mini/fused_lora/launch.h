// The functions that binding.cpp and the tests call: the branch's forward and backward pass on device pointers.
#pragma once
#include <cstddef>

namespace crab {

enum class Type { f32, bf16 };

// The sizes of one call. `in` and `out` are at most 2^31 - 1. rows · in and rows · out may be larger.
struct Problem {
  int rows, in, out, rank, heads;
  float scaling, mask_scale;  // alpha / r; 1 / (1 - dropout)
  Type type;                  // of every tensor that is passed as a void pointer
};

// Adds the branch to y (rows, out), which must hold the base product. Writes z (rank, rows) and g (heads, rows).
// x (rows, in), A (rank, in), W_r (heads, in), B (heads · rank, out). dropout_mask (rows, in): bytes, or null.
// stream: a cudaStream_t. Returns null, or CUDA's error message.
const char* forward(const Problem& p, const void* x, const void* A, const void* W_r, const void* B,
                    const unsigned char* dropout_mask, void* y, void* z, float* g, void* stream);

// Adds the branch's part to gx (rows, in), which must hold gy W. A null gx is not wanted. Writes g_stacked
// (rank + heads, in), the gradient of A above that of W_r, and gB (heads · rank, out).
// workspace: workspace_floats(p) floats.
const char* backward(const Problem& p, const void* gy, const void* x, const void* A, const void* W_r, const void* B,
                     const void* z, const float* g, const unsigned char* dropout_mask, void* gx, void* g_stacked,
                     void* gB, float* workspace, void* stream);

std::size_t workspace_floats(const Problem& p);

}  // namespace crab
