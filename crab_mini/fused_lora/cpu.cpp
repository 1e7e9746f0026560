// The fused LoRA linear on the CPU: forward and backward over blocks of rows that stay in cache.
//
// A block of x is read from memory once and serves three products: with W, A and W_r. Its block of y is written once
// and gets the branch added while it is still in cache.
// The products are calls of torch's BLAS, one per block. Between them stand small loops over matrices of
// (heads · rank, rows of the block). The rows lie next to each other in memory, so the compiler vectorises the loops.
// Blocks run in parallel, with OpenMP and torch's number of threads. Each thread sums its weight gradients in float32
// (float64 for float64). The threads' sums are then added in a fixed order.
// It returns what torch_path.py returns: z (r, N) in the dtype of x, g (E, N) in float32 (float64 for float64).
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

// Rows of a block. x and y must still be in cache when the branch is added, so the block is small. A call of a product
// has a fixed cost, so the block is not too small: the cost is 12 µs in oneDNN, which computes bfloat16, and there the
// largest blocks are the fastest. Every thread gets at least one block.
int64_t block_rows(const Tensor& x, int64_t out) {
  const int64_t bytes = x.element_size() * (x.size(1) + out), threads = at::get_num_threads();
  const int64_t fitting = std::clamp<int64_t>((int64_t{1} << 20) / bytes, 512, 1024);
  const int64_t most = x.scalar_type() == at::kBFloat16 ? 8192 : fitting;
  return std::min(most, (x.size(0) + threads - 1) / threads);
}

template <typename T> using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// What A sees of x where there is a dropout mask: x · dropout_mask · mask_scale.
Tensor dropped(const Tensor& x, const Tensor& dropout_mask, double mask_scale) {
  return (x * dropout_mask).mul_(mask_scale);
}

// Writes n columns of z (r, N) and g (E, N), from column `first` on. zl (r + E, n) holds z, then the router's logits.
template <typename T>
void softmax_columns(const Tensor& zl, Tensor& z, Tensor& g, int64_t first) {
  const int64_t n = zl.size(1), N = z.size(1), rank = z.size(0), heads = g.size(0);
  const T* from = zl.const_data_ptr<T>();
  for (int64_t k = 0; k < rank; ++k) std::copy_n(from + k * n, n, z.mutable_data_ptr<T>() + k * N + first);
  // Softmax over the heads. Each loop runs along the rows, so that it can be vectorised.
  const T* logits = from + rank * n;
  Wide<T>* to = g.mutable_data_ptr<Wide<T>>() + first;
  std::vector<Wide<T>> top(n, -INFINITY), sum(n, 0);
  for (int64_t e = 0; e < heads; ++e)
    for (int64_t i = 0; i < n; ++i) top[i] = std::max<Wide<T>>(top[i], logits[e * n + i]);
  for (int64_t e = 0; e < heads; ++e)
    for (int64_t i = 0; i < n; ++i) sum[i] += to[e * N + i] = std::exp(Wide<T>(logits[e * n + i]) - top[i]);
  for (int64_t e = 0; e < heads; ++e)
    for (int64_t i = 0; i < n; ++i) to[e * N + i] /= sum[i];
}

// u (E·r, n) = scaling · g ⊗ z, for n columns of z and g from column `first` on.
template <typename T>
void spread(const Tensor& z, const Tensor& g, double scaling, int64_t first, Tensor& u) {
  const int64_t n = u.size(1), N = z.size(1), rank = z.size(0), heads = g.size(0);
  const T* zs = z.const_data_ptr<T>() + first;
  const Wide<T>* gs = g.const_data_ptr<Wide<T>>() + first;
  T* to = u.mutable_data_ptr<T>();
  for (int64_t e = 0; e < heads; ++e)
    for (int64_t k = 0; k < rank; ++k)
      for (int64_t i = 0; i < n; ++i)
        to[(e * rank + k) * n + i] = T(T(gs[e * N + i] * Wide<T>(scaling)) * zs[k * N + i]);
}

// g_both (r + E, n): the gradients of z, then those of the router's logits. gu (E·r, n): the gradient of u / scaling.
template <typename T>
void collect(const Tensor& gu, const Tensor& z, const Tensor& g, double scaling, int64_t first, Tensor& g_both) {
  const int64_t n = gu.size(1), N = z.size(1), rank = z.size(0), heads = g.size(0);
  const T* gus = gu.const_data_ptr<T>();
  const T* zs = z.const_data_ptr<T>() + first;
  const Wide<T>* gs = g.const_data_ptr<Wide<T>>() + first;
  T* to = g_both.mutable_data_ptr<T>();
  // The gradient of z, and gg: that of g without the factor `scaling`.
  std::vector<Wide<T>> sum(n), gg(heads * n, 0), mean(n, 0);
  for (int64_t k = 0; k < rank; ++k) {
    std::fill(sum.begin(), sum.end(), Wide<T>(0));
    for (int64_t e = 0; e < heads; ++e)
      for (int64_t i = 0; i < n; ++i) {
        const Wide<T> d = gus[(e * rank + k) * n + i];
        sum[i] += gs[e * N + i] * d;
        gg[e * n + i] += Wide<T>(zs[k * N + i]) * d;
      }
    for (int64_t i = 0; i < n; ++i) to[k * n + i] = T(sum[i] * Wide<T>(scaling));
  }
  // Back through the softmax.
  for (int64_t e = 0; e < heads; ++e)
    for (int64_t i = 0; i < n; ++i) mean[i] += gs[e * N + i] * gg[e * n + i];
  for (int64_t e = 0; e < heads; ++e)
    for (int64_t i = 0; i < n; ++i)
      to[(rank + e) * n + i] = T(gs[e * N + i] * (gg[e * n + i] - mean[i]) * Wide<T>(scaling));
}

// sum (K, D) += coefficients (K, n) · rows (n, D). The sum is float32. A bfloat16 product is rounded once per block.
void accumulate(Tensor& sum, const Tensor& coefficients, const Tensor& rows) {
  if (rows.scalar_type() == at::kBFloat16) sum.add_(at::mm(coefficients, rows));
  else sum.addmm_(coefficients, rows);
}

void require_contiguous(std::initializer_list<std::pair<const char*, const Tensor*>> tensors) {
  for (const auto& [name, tensor] : tensors)
    TORCH_CHECK(tensor->is_contiguous() && tensor->device().is_cpu(), "fused_lora cpp: ", name,
                " must be a contiguous CPU tensor");
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const OptTensor& bias,
                                           const Tensor& A, const Tensor& W_r, const Tensor& B, double scaling,
                                           const OptTensor& dropout_mask, double mask_scale) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  require_contiguous({{"x", &x}, {"weight", &weight}, {"A", &A}, {"W_r", &W_r}, {"B", &B}});
  const int64_t N = x.size(0), out = weight.size(0), rank = A.size(0), heads = W_r.size(0);
  const auto wide = x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  Tensor y = at::empty({N, out}, x.options()), z = at::empty({rank, N}, x.options()), g = at::empty({heads, N}, wide);
  const Tensor stacked = at::cat({A, W_r}), B_all = B.flatten(0, 1), Wt = weight.t();
  // Each block is complete in itself: z and g first, then y.
  const int64_t rows = block_rows(x, out);
  at::parallel_for(0, (N + rows - 1) / rows, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView no_autograd_here;  // it holds for one thread, so each worker needs its own
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * rows, n = std::min(rows, N - first);
      const Tensor xs = x.narrow(0, first, n);
      Tensor ys = y.narrow(0, first, n), u = at::empty({heads * rank, n}, x.options());
      Tensor zl = at::mm(stacked, xs.t());                                               // (r + E, n)
      if (dropout_mask) {
        const Tensor kept = dropped(xs, dropout_mask->narrow(0, first, n), mask_scale);
        zl.narrow(0, 0, rank).copy_(at::mm(A, kept.t()));
      }
      AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "fused_lora", [&] {
        softmax_columns<scalar_t>(zl, z, g, first);
        spread<scalar_t>(z, g, scaling, first, u);
      });
      // The base product, then the branch on top while y is in cache.
      if (bias) at::addmm_out(ys, *bias, xs, Wt);
      else at::mm_out(ys, xs, Wt);
      ys.addmm_(u.t(), B_all);
    }
  });
  return {y, z, g};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& gy, const Tensor& x, const Tensor& weight,
                                                    const Tensor& A, const Tensor& W_r, const Tensor& B,
                                                    const Tensor& z, const Tensor& g, double scaling,
                                                    const OptTensor& dropout_mask, double mask_scale, bool need_x) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  require_contiguous({{"gy", &gy}, {"x", &x}, {"weight", &weight}, {"A", &A}, {"W_r", &W_r}, {"B", &B}, {"z", &z},
                      {"g", &g}});
  const int64_t N = x.size(0), out = weight.size(0), rank = A.size(0), heads = W_r.size(0);
  Tensor gx = at::empty({need_x ? N : 0, x.size(1)}, x.options());
  // MKL's float32 product of long rows is half as fast with fewer than 16 rows of a factor. Zeros make them 16.
  const int64_t columns = x.size(1) > 512 ? std::max<int64_t>(rank + heads, 16) : rank + heads;
  const Tensor stacked = at::cat({A, W_r, at::zeros({columns - rank - heads, x.size(1)}, x.options())});
  const Tensor B_all = B.flatten(0, 1);
  // Each thread has sums of its own.
  const int64_t rows = block_rows(x, out);
  const int threads = at::get_num_threads();
  std::vector<Tensor> sums_stacked(threads), sums_B(threads);
  at::parallel_for(0, (N + rows - 1) / rows, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView no_autograd_here;
    Tensor sum_stacked = at::zeros({rank + heads, x.size(1)}, g.options());
    Tensor sum_B = at::zeros({heads * rank, out}, g.options());
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * rows, n = std::min(rows, N - first);
      const Tensor xs = x.narrow(0, first, n), gys = gy.narrow(0, first, n);
      Tensor u = at::empty({heads * rank, n}, x.options()), g_both = at::zeros({columns, n}, x.options());
      const Tensor gu = at::mm(B_all, gys.t());                                     // (E·r, n)
      AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "fused_lora_backward", [&] {
        spread<scalar_t>(z, g, scaling, first, u);
        collect<scalar_t>(gu, z, g, scaling, first, g_both);
      });
      // gB, the base product's part of gx, then the parts of A and W_r.
      accumulate(sum_B, u, gys);
      Tensor gxs = need_x ? gx.narrow(0, first, n) : Tensor();
      if (need_x) at::mm_out(gxs, gys, weight);
      if (!dropout_mask) {
        accumulate(sum_stacked, g_both.narrow(0, 0, rank + heads), xs);
        if (need_x) gxs.addmm_(g_both.t(), stacked);
        continue;
      }
      // With a mask A and W_r see different x.
      const Tensor gz = g_both.narrow(0, 0, rank), gl = g_both.narrow(0, rank, heads);
      const Tensor kept = dropout_mask->narrow(0, first, n);
      Tensor sum_A = sum_stacked.narrow(0, 0, rank), sum_router = sum_stacked.narrow(0, rank, heads);
      accumulate(sum_A, gz, dropped(xs, kept, mask_scale));
      accumulate(sum_router, gl, xs);
      if (need_x) gxs.addmm_(gl.t(), W_r).add_(dropped(at::mm(gz.t(), A), kept, mask_scale));
    }
    sums_stacked[at::get_thread_num()] = sum_stacked;
    sums_B[at::get_thread_num()] = sum_B;
  });
  // The threads' sums, in the order of the threads.
  Tensor g_stacked = at::zeros({rank + heads, x.size(1)}, g.options());
  Tensor gB = at::zeros({heads * rank, out}, g.options());
  for (int t = 0; t < threads; ++t)
    if (sums_B[t].defined()) g_stacked.add_(sums_stacked[t]), gB.add_(sums_B[t]);
  return {gx, g_stacked.narrow(0, 0, rank).clone(), g_stacked.narrow(0, rank, heads).clone(), gB.view_as(B)};
}

}  // namespace

// The name is fixed, because build.py loads it by name. TORCH_EXTENSION_NAME changes when a process compiles twice.
PYBIND11_MODULE(crab_fused_lora_cpp, m) {
  m.def("forward", &forward, "y, z, g of the fused LoRA linear");
  m.def("backward", &backward, "gx, gA, gW_r, gB of the fused LoRA linear");
}
