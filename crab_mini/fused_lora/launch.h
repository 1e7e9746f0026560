// What binding.cpp and the tests call: forward and backward of the branch on plain device pointers and a stream.
#pragma once
#include <cstddef>

namespace crab {

enum class Type { f32, bf16 };

// The sizes of one call. out and in up to 2^31 - 1, rows·width may be larger.
struct Problem {
  int rows, in, out, rank, heads;
  float scaling, keep_scale;  // keep_scale = 1 / (1 - p) where there is a mask
  Type type;                  // of every tensor that is a void pointer
};

// Adds the branch to y (rows, out), which holds the base product; writes z (rank, rows) and g (heads, rows).
// x (rows, in), A (rank, in), R (heads, in), B (heads·rank, out), keep (rows, in) of bytes or null; stream: a
// cudaStream_t. Returns null, or what CUDA says went wrong.
const char* forward(const Problem& p, const void* x, const void* A, const void* R, const void* B,
                    const unsigned char* keep, void* y, void* z, float* g, void* stream);

// Adds the branch's part to gx (rows, in), which holds gy W (null: not wanted); writes gAR (rank + heads, in) and
// gB (heads·rank, out). workspace: workspace_floats(p) floats.
const char* backward(const Problem& p, const void* gy, const void* x, const void* A, const void* R, const void* B,
                     const void* z, const float* g, const unsigned char* keep, void* gx, void* gAR, void* gB,
                     float* workspace, void* stream);

std::size_t workspace_floats(const Problem& p);

}  // namespace crab
