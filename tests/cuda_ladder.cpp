// Runs each step of ladder.cuh in the emulation: `cuda_ladder ROWS WIDTH RANK SEED` prints, a step a line, its name,
// its largest error against float64, the 128-byte lines that its warps ask for and their shuffles.
#include "cuda_on_cpu.h"

#include "../crab_mini/fused_lora/ladder.cuh"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <tuple>
#include <vector>

namespace {

// What the accesses of one warp have in common: the block, the warp, and how many loads the thread did before.
using Access = std::tuple<unsigned, unsigned, unsigned, long>;
std::set<std::tuple<Access, std::size_t>> lines;
std::map<std::tuple<unsigned, unsigned, unsigned>, long> loads_of_thread;

// A pointer that notes which lines of memory are asked for.
struct Counting {
  const float* data;
  std::size_t number;  // of the array, so that two arrays' lines differ
  float operator[](std::size_t i) const {
    const long before = loads_of_thread[{blockIdx.x, blockIdx.y, threadIdx.x}]++;
    lines.insert({{blockIdx.x, blockIdx.y, threadIdx.x / 32, before}, number << 40 | i / 32});
    return data[i];
  }
};

template <typename Kernel>
void step(const char* name, Kernel kernel, dim3 grid, int rows, int width, int rank, unsigned seed) {
  std::vector<float> x(rows * width), A(rank * width), z(rank * rows, NAN);
  for (float& entry : x) entry = std::rand() / float(RAND_MAX) - 0.5f;
  for (float& entry : A) entry = std::rand() / float(RAND_MAX) - 0.5f;
  lines.clear();
  loads_of_thread.clear();
  const long before = emulator::warp_shuffles;
  emulator::seed(seed);
  const auto launched = CRAB_LAUNCH(nullptr, grid, dim3(128), kernel);
  launched(Counting{x.data(), 0}, Counting{A.data(), 1}, z.data(), rows, width, rank);
  double error = 0;
  for (int n = 0; n < rows; ++n)
    for (int k = 0; k < rank; ++k) {
      double sum = 0;
      for (int d = 0; d < width; ++d) sum += double(x[n * width + d]) * A[k * width + d];
      const double off = std::abs(sum - z[k * rows + n]);
      if (!(off <= error)) error = off;  // a NaN too
    }
  std::printf("%s %.2e %zu %ld\n", name, error, lines.size(), emulator::warp_shuffles - before);
}

}  // namespace

int main(int, char** arguments) {
  const int rows = std::atoi(arguments[1]), width = std::atoi(arguments[2]), rank = std::atoi(arguments[3]);
  const unsigned seed = std::atoi(arguments[4]), warps = 4;
  using namespace crab::ladder;
  step("one_thread_one_sum", one_thread_one_sum<Counting>, dim3((rows + 127) / 128, rank), rows, width, rank, seed);
  step("one_warp_one_sum", one_warp_one_sum<Counting>, dim3((rows + warps - 1) / warps, rank), rows, width, rank, seed);
  step("one_warp_one_row", one_warp_one_row<16, Counting>, dim3((rows + warps - 1) / warps), rows, width, rank, seed);
  step("one_warp_four_rows", one_warp_four_rows<16, Counting>, dim3((rows + 4 * warps - 1) / (4 * warps)), rows, width,
       rank, seed);
}
