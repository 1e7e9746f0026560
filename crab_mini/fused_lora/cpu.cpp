// The fused LoRA linear on the CPU: forward and backward over blocks of rows that stay in cache.
//
// A block of x is read from memory once and serves three products (W, A stacked on R), its block of y is written once
// and receives the branch while it is still in cache. The products are torch's own BLAS, one call a block; between
// them stand a few small loops over the (heads·rank, rows) matrices, which lie transposed so that the rows are
// contiguous and the loops vectorise. Blocks run in parallel (OpenMP, torch's thread count); each thread sums its
// weight gradients in float32 and the threads' sums are added in a fixed order.
// Same contract as torch_path.py: z (R, N) in the dtype of x, g (E, N) in float32 (float64 for float64).
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

// Rows of a block: few enough that x and y are still in cache when the branch is added, enough that a product repays
// its call (12 µs through oneDNN for bfloat16, where whole threads' shares do best), and at least one block a thread.
int64_t block_rows(const Tensor& x, int64_t out) {
  const int64_t bytes = x.element_size() * (x.size(1) + out), threads = at::get_num_threads();
  const int64_t fitting = std::clamp<int64_t>((int64_t{1} << 20) / bytes, 512, 1024);
  const int64_t most = x.scalar_type() == at::kBFloat16 ? 8192 : fitting;
  return std::min(most, (x.size(0) + threads - 1) / threads);
}

template <typename T> using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The dropped-out rows that A sees: x · keep · keep_scale.
Tensor dropped(const Tensor& x, const Tensor& keep, double keep_scale) { return (x * keep).mul_(keep_scale); }

// zl (R + E, n) holds z and the router's logits. Writes z and g into columns first.. of the saved (R, N) and (E, N).
template <typename T>
void softmax_columns(const Tensor& zl, Tensor& z, Tensor& g, int64_t first) {
  const int64_t n = zl.size(1), N = z.size(1), rank = z.size(0), heads = g.size(0);
  const T* from = zl.const_data_ptr<T>();
  for (int64_t k = 0; k < rank; ++k) std::copy_n(from + k * n, n, z.mutable_data_ptr<T>() + k * N + first);
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

// u (E·R, n) = scaling · g ⊗ z for the columns from `first` on.
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

// gzl (R + E, n): the gradients of z and of the router's logits, from gu (E·R, n), the gradient of u / scaling.
template <typename T>
void collect(const Tensor& gu, const Tensor& z, const Tensor& g, double scaling, int64_t first, Tensor& gzl) {
  const int64_t n = gu.size(1), N = z.size(1), rank = z.size(0), heads = g.size(0);
  const T* gus = gu.const_data_ptr<T>();
  const T* zs = z.const_data_ptr<T>() + first;
  const Wide<T>* gs = g.const_data_ptr<Wide<T>>() + first;
  T* to = gzl.mutable_data_ptr<T>();
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
  for (int64_t e = 0; e < heads; ++e)
    for (int64_t i = 0; i < n; ++i) mean[i] += gs[e * N + i] * gg[e * n + i];
  for (int64_t e = 0; e < heads; ++e)
    for (int64_t i = 0; i < n; ++i)
      to[(rank + e) * n + i] = T(gs[e * N + i] * (gg[e * n + i] - mean[i]) * Wide<T>(scaling));
}

// sum (K, D) += coefficients (K, n) · rows (n, D). A bfloat16 product is rounded once per block, the sum is float32.
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
                                           const Tensor& A, const Tensor& R, const Tensor& B, double scaling,
                                           const OptTensor& keep, double keep_scale) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  require_contiguous({{"x", &x}, {"weight", &weight}, {"A", &A}, {"R", &R}, {"B", &B}});
  const int64_t N = x.size(0), out = weight.size(0), rank = A.size(0), heads = R.size(0);
  const auto wide = x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  Tensor y = at::empty({N, out}, x.options()), z = at::empty({rank, N}, x.options()), g = at::empty({heads, N}, wide);
  const Tensor AR = at::cat({A, R}), B_all = B.flatten(0, 1), Wt = weight.t();
  const int64_t rows = block_rows(x, out);
  at::parallel_for(0, (N + rows - 1) / rows, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView no_autograd_here;  // thread-local, so once more in each worker
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * rows, n = std::min(rows, N - first);
      const Tensor xs = x.narrow(0, first, n);
      Tensor ys = y.narrow(0, first, n), u = at::empty({heads * rank, n}, x.options());
      Tensor zl = at::mm(AR, xs.t());                                               // (R + E, n)
      if (keep) zl.narrow(0, 0, rank).copy_(at::mm(A, dropped(xs, keep->narrow(0, first, n), keep_scale).t()));
      AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "fused_lora", [&] {
        softmax_columns<scalar_t>(zl, z, g, first);
        spread<scalar_t>(z, g, scaling, first, u);
      });
      if (bias) at::addmm_out(ys, *bias, xs, Wt);
      else at::mm_out(ys, xs, Wt);
      ys.addmm_(u.t(), B_all);
    }
  });
  return {y, z, g};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& gy, const Tensor& x, const Tensor& weight,
                                                    const Tensor& A, const Tensor& R, const Tensor& B,
                                                    const Tensor& z, const Tensor& g, double scaling,
                                                    const OptTensor& keep, double keep_scale, bool need_x) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  require_contiguous({{"gy", &gy}, {"x", &x}, {"weight", &weight}, {"A", &A}, {"R", &R}, {"B", &B}, {"z", &z},
                      {"g", &g}});
  const int64_t N = x.size(0), out = weight.size(0), rank = A.size(0), heads = R.size(0);
  Tensor gx = at::empty({need_x ? N : 0, x.size(1)}, x.options());
  // Long rows with fewer than 16 of a factor halve the speed of MKL's float32 product: zeros make them 16.
  const int64_t columns = x.size(1) > 512 ? std::max<int64_t>(rank + heads, 16) : rank + heads;
  const Tensor AR = at::cat({A, R, at::zeros({columns - rank - heads, x.size(1)}, x.options())});
  const Tensor B_all = B.flatten(0, 1);
  const int64_t rows = block_rows(x, out);
  const int threads = at::get_num_threads();
  std::vector<Tensor> sums_AR(threads), sums_B(threads);
  at::parallel_for(0, (N + rows - 1) / rows, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView no_autograd_here;
    Tensor sum_AR = at::zeros({rank + heads, x.size(1)}, g.options());
    Tensor sum_B = at::zeros({heads * rank, out}, g.options());
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * rows, n = std::min(rows, N - first);
      const Tensor xs = x.narrow(0, first, n), gys = gy.narrow(0, first, n);
      Tensor u = at::empty({heads * rank, n}, x.options()), gzl = at::zeros({columns, n}, x.options());
      const Tensor gu = at::mm(B_all, gys.t());                                     // (E·R, n)
      AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "fused_lora_backward", [&] {
        spread<scalar_t>(z, g, scaling, first, u);
        collect<scalar_t>(gu, z, g, scaling, first, gzl);
      });
      accumulate(sum_B, u, gys);
      Tensor gxs = need_x ? gx.narrow(0, first, n) : Tensor();
      if (need_x) at::mm_out(gxs, gys, weight);
      if (!keep) {
        accumulate(sum_AR, gzl.narrow(0, 0, rank + heads), xs);
        if (need_x) gxs.addmm_(gzl.t(), AR);
        continue;
      }
      const Tensor gz = gzl.narrow(0, 0, rank), gl = gzl.narrow(0, rank, heads), kept = keep->narrow(0, first, n);
      Tensor sum_A = sum_AR.narrow(0, 0, rank), sum_R = sum_AR.narrow(0, rank, heads);
      accumulate(sum_A, gz, dropped(xs, kept, keep_scale));
      accumulate(sum_R, gl, xs);
      if (need_x) gxs.addmm_(gl.t(), R).add_(dropped(at::mm(gz.t(), A), kept, keep_scale));
    }
    sums_AR[at::get_thread_num()] = sum_AR;
    sums_B[at::get_thread_num()] = sum_B;
  });
  Tensor gAR = at::zeros({rank + heads, x.size(1)}, g.options()), gB = at::zeros({heads * rank, out}, g.options());
  for (int t = 0; t < threads; ++t)
    if (sums_B[t].defined()) gAR.add_(sums_AR[t]), gB.add_(sums_B[t]);
  return {gx, gAR.narrow(0, 0, rank).clone(), gAR.narrow(0, rank, heads).clone(), gB.view_as(B)};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward, "y, z, g of the fused LoRA linear");
  m.def("backward", &backward, "gx, gA, gR, gB of the fused LoRA linear");
}
