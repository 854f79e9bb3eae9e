// Operations over lists of tensors, for Rust. Every tensor is an `at::Tensor*`, as `tch::Tensor::as_ptr` gives it, borrowed for the call.
#include <cstdlib>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_fused_adamw.h>
#include <c10/core/GradMode.h>

#include "guarded.h"

namespace {

std::vector<at::Tensor> list(void* const* tensors, size_t count) {
  std::vector<at::Tensor> copies;
  copies.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    copies.push_back(*static_cast<at::Tensor*>(tensors[i]));
  }
  return copies;
}

// Runs `body` without recording gradients.
template <class Body>
char* unrecorded(Body&& body) noexcept {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    body();
  });
}

}  // namespace

extern "C" {

void zipper_aten_string_free(char* string) {
  std::free(string);
}

char* zipper_aten_mul(void* const* tensors, size_t count, double factor) {
  return unrecorded([&] { at::_foreach_mul_(list(tensors, count), factor); });
}

char* zipper_aten_adamw(
    void* const* params,
    void* const* grads,
    void* const* exp_avgs,
    void* const* exp_avg_sqs,
    void* const* steps,
    size_t count,
    double lr,
    double beta1,
    double beta2,
    double weight_decay,
    double eps) {
  return unrecorded([&] {
    at::_fused_adamw_(
        list(params, count),
        list(grads, count),
        list(exp_avgs, count),
        list(exp_avg_sqs, count),
        /*max_exp_avg_sqs=*/{},
        list(steps, count),
        lr,
        beta1,
        beta2,
        weight_decay,
        eps,
        /*amsgrad=*/false,
        /*maximize=*/false);
  });
}

}  // extern "C"
