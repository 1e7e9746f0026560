// `cuda_rounding IN OUT`: IN holds floats, OUT receives `narrow<bfloat16>` of each, then `widen` of every bfloat16.
#include "cuda_on_cpu.h"

#include "../crab_mini/fused_lora/access.cuh"

#include <cstdio>
#include <vector>

int main(int, char** arguments) {
  std::FILE* in = std::fopen(arguments[1], "rb");
  std::FILE* out = std::fopen(arguments[2], "wb");
  if (!in || !out) return 1;
  for (float value; std::fread(&value, sizeof(value), 1, in) == 1;) {
    const crab::bfloat16 narrow = crab::narrow<crab::bfloat16>(value);
    std::fwrite(&narrow.bits, sizeof(narrow.bits), 1, out);
  }
  for (unsigned bits = 0; bits < 1u << 16; ++bits) {
    const float wide = crab::widen(crab::bfloat16{static_cast<unsigned short>(bits)});
    std::fwrite(&wide, sizeof(wide), 1, out);
  }
  std::fclose(in);
  return std::fclose(out);
}
