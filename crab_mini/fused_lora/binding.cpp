// Between torch and launch.cu: checks every tensor by name, computes the base product with torch's BLAS, passes plain
// pointers on. Of c10/cuda it includes the stream and the guard alone: other headers need parts of the CUDA toolkit
// that a small installation lacks.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>
#include <optional>

#include "launch.h"

namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

// Raises, in one line, for a tensor that does not have the device, dtype, shape and layout that the kernels read.
void check(const char* name, const Tensor& tensor, at::IntArrayRef shape, at::ScalarType type, const Tensor& x) {
  const auto device = tensor.device();
  const auto found = tensor.scalar_type();
  TORCH_CHECK(device == x.device(), "fused_lora cuda: ", name, " is on ", device, ", x on ", x.device());
  TORCH_CHECK(found == type, "fused_lora cuda: ", name, " must be ", type, ", found ", found);
  TORCH_CHECK(tensor.sizes() == shape, "fused_lora cuda: ", name, " must be ", shape, ", found ", tensor.sizes());
  TORCH_CHECK(tensor.is_contiguous(), "fused_lora cuda: ", name, " must be contiguous");
}

// The sizes of the call. Checks every tensor that both passes are given.
crab::Problem problem(const Tensor& x, const Tensor& weight, const Tensor& A, const Tensor& W_r, const Tensor& B,
                      double scaling, const OptTensor& dropout_mask, double mask_scale) {
  const auto type = x.scalar_type();
  TORCH_CHECK(x.is_cuda() && x.dim() == 2, "fused_lora cuda: x must be (N, in) on a CUDA device, found ", x.sizes(),
              " on ", x.device());
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16,
              "fused_lora cuda: x must be Float or BFloat16, found ", type);
  TORCH_CHECK(weight.dim() == 2 && A.dim() == 2 && W_r.dim() == 2,
              "fused_lora cuda: weight, A and W_r must be matrices");
  // Every size follows from x, weight, A and W_r; the other tensors must fit them.
  const int64_t N = x.size(0), in = x.size(1), out = weight.size(0), rank = A.size(0), heads = W_r.size(0);
  check("x", x, {N, in}, type, x);
  check("weight", weight, {out, in}, type, x);
  check("A", A, {rank, in}, type, x);
  check("W_r", W_r, {heads, in}, type, x);
  check("B", B, {heads, rank, out}, type, x);
  if (dropout_mask) check("dropout_mask", *dropout_mask, {N, in}, at::kBool, x);
  // The kernels hold at most 64 sums a row and count in 32 bits.
  TORCH_CHECK(N > 0 && rank > 0 && heads > 0 && heads * rank <= 64 && heads + rank <= 64,
              "fused_lora cuda: expected rows, and heads x rank and heads + rank in 1..64, found N ", N, ", heads ",
              heads, ", rank ", rank);
  const int64_t most = std::numeric_limits<int>::max() / 64;
  TORCH_CHECK(std::max({N, in, out}) <= most, "fused_lora cuda: sizes beyond ", most, " are not supported");
  return {int(N), int(in), int(out), int(rank), int(heads), float(scaling), float(mask_scale),
          type == at::kFloat ? crab::Type::f32 : crab::Type::bf16};
}

const unsigned char* mask_of(const OptTensor& dropout_mask) {
  return dropout_mask ? static_cast<const unsigned char*>(dropout_mask->const_data_ptr()) : nullptr;
}

void throw_on(const char* error) { TORCH_CHECK(!error, "fused_lora cuda: ", error); }

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const OptTensor& bias,
                                           const Tensor& A, const Tensor& W_r, const Tensor& B, double scaling,
                                           const OptTensor& dropout_mask, double mask_scale) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  const crab::Problem p = problem(x, weight, A, W_r, B, scaling, dropout_mask, mask_scale);
  if (bias) check("bias", *bias, {p.out}, x.scalar_type(), x);
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor y = bias ? at::addmm(*bias, x, weight.t()) : at::mm(x, weight.t());
  Tensor z = at::empty({p.rank, p.rows}, x.options());
  Tensor g = at::empty({p.heads, p.rows}, x.options().dtype(at::kFloat));
  throw_on(crab::forward(p, x.const_data_ptr(), A.const_data_ptr(), W_r.const_data_ptr(), B.const_data_ptr(),
                         mask_of(dropout_mask), y.mutable_data_ptr(), z.mutable_data_ptr(), g.mutable_data_ptr<float>(),
                         c10::cuda::getCurrentCUDAStream().stream()));
  return {y, z, g};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& gy, const Tensor& x, const Tensor& weight,
                                                    const Tensor& A, const Tensor& W_r, const Tensor& B,
                                                    const Tensor& z, const Tensor& g, double scaling,
                                                    const OptTensor& dropout_mask,
                                                    double mask_scale, bool need_x) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  const crab::Problem p = problem(x, weight, A, W_r, B, scaling, dropout_mask, mask_scale);
  check("gy", gy, {p.rows, p.out}, x.scalar_type(), x);
  check("z", z, {p.rank, p.rows}, x.scalar_type(), x);
  check("g", g, {p.heads, p.rows}, at::kFloat, x);
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor gx = need_x ? at::mm(gy, weight) : at::empty({0}, x.options());
  Tensor g_stacked = at::empty({p.rank + p.heads, p.in}, x.options()), gB = at::empty_like(B);
  Tensor workspace = at::empty({int64_t(crab::workspace_floats(p))}, g.options());
  throw_on(crab::backward(p, gy.const_data_ptr(), x.const_data_ptr(), A.const_data_ptr(), W_r.const_data_ptr(),
                          B.const_data_ptr(), z.const_data_ptr(), g.const_data_ptr<float>(), mask_of(dropout_mask),
                          need_x ? gx.mutable_data_ptr() : nullptr, g_stacked.mutable_data_ptr(), gB.mutable_data_ptr(),
                          workspace.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream().stream()));
  return {gx, g_stacked.narrow(0, 0, p.rank).clone(), g_stacked.narrow(0, p.rank, p.heads).clone(), gB};
}

}  // namespace

// The name is fixed, because build.py loads it by name. TORCH_EXTENSION_NAME changes when a process compiles twice.
PYBIND11_MODULE(crab_fused_lora_cuda, m) {
  m.def("forward", &forward, "y, z, g of the fused LoRA linear");
  m.def("backward", &backward, "gx, gA, gW_r, gB of the fused LoRA linear");
}
