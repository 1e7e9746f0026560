// One forward and backward of the shipped launch.cu in the emulation: `cuda_driver IN OUT SEED`. IN holds seven ints
// (rows, in, out, rank, heads, bfloat16, masked), two floats (scaling, mask_scale), then x, A, W_r, B, y, gy, gx and, if
// masked, dropout_mask; OUT receives y, z, g, gx, g_stacked, gB. Every array is an allocation of its exact size, so that
// AddressSanitizer sees the first byte beyond it.
#include "cuda_on_cpu.h"

#include "../crab_mini/fused_lora/launch.cu"

#include <cstdio>
#include <cstdlib>
#include <memory>

namespace {

struct Array {
  std::unique_ptr<char[]> bytes;
  std::size_t size;
  explicit Array(std::size_t n) : bytes(new char[n]), size(n) {}
  Array(std::FILE* file, std::size_t n) : Array(n) { read(file, bytes.get(), n); }
  static void read(std::FILE* file, void* to, std::size_t n) {
    if (std::fread(to, 1, n, file) != n) emulator::fail("the input file is too short");
  }
  void write(std::FILE* file) const { std::fwrite(bytes.get(), 1, size, file); }
  float* floats() { return reinterpret_cast<float*>(bytes.get()); }
};

}  // namespace

int main(int, char** arguments) {
  std::FILE* in = std::fopen(arguments[1], "rb");
  std::FILE* out = std::fopen(arguments[2], "wb");
  if (!in || !out) emulator::fail("cannot open %s or %s", arguments[1], arguments[2]);
  emulator::seed(std::atoi(arguments[3]));
  int sizes[7];
  float scales[2];
  Array::read(in, sizes, sizeof(sizes));
  Array::read(in, scales, sizeof(scales));
  const std::size_t rows = sizes[0], width = sizes[1], wide = sizes[2], rank = sizes[3], heads = sizes[4];
  const std::size_t bytes = sizes[5] ? 2 : 4;
  const crab::Problem p{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], scales[0], scales[1],
                        sizes[5] ? crab::Type::bf16 : crab::Type::f32};
  Array x(in, rows * width * bytes), A(in, rank * width * bytes), W_r(in, heads * width * bytes);
  Array B(in, heads * rank * wide * bytes), y(in, rows * wide * bytes), gy(in, rows * wide * bytes);
  Array gx(in, rows * width * bytes), dropout_mask(in, sizes[6] ? rows * width : 0);
  Array z(rank * rows * bytes), g(heads * rows * 4);
  Array g_stacked((rank + heads) * width * bytes), gB(heads * rank * wide * bytes);
  Array workspace(crab::workspace_floats(p) * 4);
  const auto* mask = sizes[6] ? reinterpret_cast<const unsigned char*>(dropout_mask.bytes.get()) : nullptr;
  crab::forward(p, x.bytes.get(), A.bytes.get(), W_r.bytes.get(), B.bytes.get(), mask, y.bytes.get(), z.bytes.get(),
                g.floats(), nullptr);
  crab::backward(p, gy.bytes.get(), x.bytes.get(), A.bytes.get(), W_r.bytes.get(), B.bytes.get(), z.bytes.get(),
                 g.floats(), mask, gx.bytes.get(), g_stacked.bytes.get(), gB.bytes.get(), workspace.floats(), nullptr);
  for (const Array* array : {&y, &z, &g, &gx, &g_stacked, &gB}) array->write(out);
  std::fclose(in);
  return std::fclose(out);
}
