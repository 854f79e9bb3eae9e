// Operations on CPU tensors of f32 or f64 that are several passes over memory in libtorch and one here, with their gradients.
// Loops are such as a compiler vectorizes, built twice on x86-64, and run on torch's own threads.
// Every tensor is an `at::Tensor*`, borrowed for the call and contiguous, as fused.rs sees to; a result is one that the caller owns.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include "guarded.h"

#if defined(__x86_64__)
#define WITH_AVX2 __attribute__((target("avx2,fma")))
#endif
#define INLINED inline __attribute__((always_inline))

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Elements that are worth a thread.
constexpr int64_t kGrain = 16384;

bool has_avx2() {
#if defined(WITH_AVX2)
  // What libtorch's own kernels go by; both include FMA.
  static const std::string capability = at::get_cpu_capability();
  return capability == "AVX2" || capability == "AVX512";
#else
  return false;
#endif
}

template <class Kernel, class... Arguments>
INLINED void plain(Arguments... arguments) {
  Kernel::run(arguments...);
}

#if defined(WITH_AVX2)
template <class Kernel, class... Arguments>
WITH_AVX2 void avx2(Arguments... arguments) {
  Kernel::run(arguments...);
}
#endif

// Runs `Kernel::run(begin, end, width, ...)` over parts of `rows` rows of `width` elements, on all of torch's threads.
template <class Kernel, class... Arguments>
void for_rows(int64_t rows, int64_t width, Arguments... arguments) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
#if defined(WITH_AVX2)
    if (has_avx2()) {
      return avx2<Kernel>(begin, end, width, arguments...);
    }
#endif
    plain<Kernel>(begin, end, width, arguments...);
  });
}

// The sum of a[i] b[i], in as many partial sums as the compiler keeps in registers.
template <typename T>
INLINED T sum_of_products(const T* a, const T* b, int64_t width) {
  constexpr int64_t lanes = 32;
  T partial[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      partial[lane] += a[i + lane] * b[i + lane];
    }
  }
  T sum = 0;
  for (int64_t lane = 0; lane < lanes; ++lane) {
    sum += partial[lane];
  }
  for (; i < width; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

int64_t width_of(const at::Tensor& x) {
  return x.size(-1);
}

int64_t rows_of(const at::Tensor& x) {
  return x.numel() / std::max<int64_t>(1, width_of(x));
}

// y = x / rms(x) * w, and 1 / rms(x) for the way back.
template <typename T>
struct NormForward {
  static INLINED void run(
      int64_t begin, int64_t end, int64_t width, const T* x, const T* weight, double eps, T* y, T* inverse) {
    for (int64_t row = begin; row < end; ++row) {
      const T* in = x + row * width;
      T* out = y + row * width;
      const T mean_square = sum_of_products(in, in, width) / static_cast<T>(width);
      const T factor = 1 / std::sqrt(mean_square + static_cast<T>(eps));
      inverse[row] = factor;
      for (int64_t i = 0; i < width; ++i) {
        out[i] = in[i] * factor * weight[i];
      }
    }
  }
};

// With g of y: dx = f (g w - x f^2 mean(g w x)), f = 1 / rms(x).
template <typename T>
struct NormBackward {
  static INLINED void run(
      int64_t begin, int64_t end, int64_t width, const T* grad, const T* x, const T* weight, const T* inverse, T* dx) {
    for (int64_t row = begin; row < end; ++row) {
      const T* in = x + row * width;
      const T* g = grad + row * width;
      T* out = dx + row * width;
      for (int64_t i = 0; i < width; ++i) {
        out[i] = g[i] * weight[i];
      }
      const T factor = inverse[row];
      const T along = factor * factor * sum_of_products<T>(out, in, width) / static_cast<T>(width);
      for (int64_t i = 0; i < width; ++i) {
        out[i] = factor * (out[i] - in[i] * along);
      }
    }
  }
};

struct RmsNorm : Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, double eps) {
    auto y = at::empty_like(x);
    auto inverse = at::empty({rows_of(x)}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm", [&] {
      for_rows<NormForward<scalar_t>>(
          rows_of(x),
          width_of(x),
          x.const_data_ptr<scalar_t>(),
          weight.const_data_ptr<scalar_t>(),
          eps,
          y.mutable_data_ptr<scalar_t>(),
          inverse.mutable_data_ptr<scalar_t>());
    });
    ctx->save_for_backward({x, weight, inverse});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &inverse = saved[2];
    const auto grad = grads[0].contiguous();
    auto dx = at::empty_like(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm_backward", [&] {
      for_rows<NormBackward<scalar_t>>(
          rows_of(x),
          width_of(x),
          grad.const_data_ptr<scalar_t>(),
          x.const_data_ptr<scalar_t>(),
          weight.const_data_ptr<scalar_t>(),
          inverse.const_data_ptr<scalar_t>(),
          dx.mutable_data_ptr<scalar_t>());
    });
    return {dx, at::Tensor(), at::Tensor()};
  }
};

// Turns the two halves of every head by the angles of its token; the other way round with `sign` -1, which is the gradient.
template <typename T>
struct Turn {
  static INLINED void run(
      int64_t begin, int64_t end, int64_t width, const T* x, const T* cos, const T* sin, int64_t head_dim, T sign, T* y) {
    const int64_t half = head_dim / 2;
    for (int64_t token = begin; token < end; ++token) {
      const T* c = cos + token * head_dim;
      const T* s = sin + token * head_dim;
      for (int64_t head = 0; head < width; head += head_dim) {
        const T* first = x + token * width + head;
        const T* second = first + half;
        T* out = y + token * width + head;
        for (int64_t i = 0; i < half; ++i) {
          const T turned = sign * s[i];
          const T a = first[i], b = second[i];
          out[i] = a * c[i] - b * turned;
          out[half + i] = b * c[i] + a * turned;
        }
      }
    }
  }
};

at::Tensor turned(const at::Tensor& input, const at::Tensor& cos, const at::Tensor& sin, int sign) {
  // A gradient may lie in any way.
  const auto x = input.contiguous();
  auto y = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rotate", [&] {
    for_rows<Turn<scalar_t>>(
        x.size(0),
        x.size(1) * x.size(2),
        x.const_data_ptr<scalar_t>(),
        cos.const_data_ptr<scalar_t>(),
        sin.const_data_ptr<scalar_t>(),
        x.size(2),
        static_cast<scalar_t>(sign),
        y.mutable_data_ptr<scalar_t>());
  });
  return y;
}

struct Rotate : Function<Rotate> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return turned(x, cos, sin, 1);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    return {turned(grads[0], saved[0], saved[1], -1), at::Tensor(), at::Tensor()};
  }
};

// Calls `body` with parts of rows that stay in a core's cache from one operation to the next.
template <class Body>
void in_cache(const at::Tensor& rows_and_columns, Body&& body) {
  const int64_t rows = std::max<int64_t>(1, kGrain * 2 / std::max<int64_t>(1, rows_and_columns.size(1)));
  const int64_t parts = (rows_and_columns.size(0) + rows - 1) / rows;
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    // What a thread records is its own affair: those of the pool know nothing of the caller's.
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * rows;
      const int64_t count = std::min(rows, rows_and_columns.size(0) - first);
      body([=](const at::Tensor& tensor) { return tensor.narrow(0, first, count); });
    }
  });
}

// silu(gate) * up.
struct SwiGlu : Function<SwiGlu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& up) {
    auto y = at::empty_like(gate);
    in_cache(gate, [&](auto part) {
      auto out = part(y);
      at::silu_out(out, part(gate));
      out.mul_(part(up));
    });
    ctx->save_for_backward({gate, up});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &gate = saved[0], &up = saved[1];
    const auto grad = grads[0].contiguous();
    auto of_gate = at::empty_like(gate);
    auto of_up = at::empty_like(up);
    in_cache(gate, [&](auto part) {
      auto to_gate = part(of_gate), to_up = part(of_up);
      at::silu_out(to_up, part(gate));
      to_up.mul_(part(grad));
      at::silu_backward_out(to_gate, part(grad) * part(up), part(gate));
    });
    return {of_gate, of_up};
  }
};

// Multiplications from which oneDNN is faster than MKL, whose calls cost less (docs/benchmarks/log.md).
constexpr int64_t kManyMultiplications = 1 << 23;

// x W^T + b: in f32, where it is worth it, by oneDNN's inner product, for which libtorch's own `linear` takes MKL's matrix product.
at::Tensor inner_product(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = std::nullopt) {
  using Signature = at::Tensor(
      const at::Tensor&,
      const at::Tensor&,
      const std::optional<at::Tensor>&,
      c10::string_view,
      c10::List<std::optional<at::Scalar>>,
      std::optional<c10::string_view>);
  // A libtorch without oneDNN has no such operation.
  static const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  static const bool has = found && found->hasKernelForDispatchKey(c10::DispatchKey::CPU);
  const int64_t rows = x.size(0);
  if (!has || x.scalar_type() != at::kFloat || rows == 1 || rows * weight.numel() < kManyMultiplications) {
    return at::linear(x, weight, bias);
  }
  static const auto operation = found->typed<Signature>();
  return operation.call(x, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

// Which features of which tokens are dropped: hashes of both, and what makes a decision of a pair of them.
struct Hashes {
  const int64_t* of_tokens;
  const int64_t* of_features;
  uint64_t multiplier;
  int64_t threshold;

  INLINED bool drops(int64_t of_token, int64_t feature) const {
    uint64_t hash = static_cast<uint64_t>(of_token) + static_cast<uint64_t>(of_features[feature]);
    hash = (hash ^ (hash >> 32)) * multiplier;
    return static_cast<int64_t>(hash) < threshold;
  }
};

// Copies x without what is dropped.
template <typename T>
struct Drop {
  static INLINED void run(int64_t begin, int64_t end, int64_t width, const T* x, Hashes hashes, T* y) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t of_token = hashes.of_tokens[token];
      for (int64_t i = 0; i < width; ++i) {
        y[token * width + i] = hashes.drops(of_token, i) ? 0 : x[token * width + i];
      }
    }
  }
};

// The same, and adds to `sum` what of `z` is not dropped.
template <typename T>
struct DropBoth {
  static INLINED void run(
      int64_t begin, int64_t end, int64_t width, const T* x, const T* z, Hashes hashes, T* y, T* sum) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t of_token = hashes.of_tokens[token];
      const int64_t first = token * width;
      for (int64_t i = 0; i < width; ++i) {
        const bool drops = hashes.drops(of_token, i);
        y[first + i] = drops ? 0 : x[first + i];
        sum[first + i] += drops ? 0 : z[first + i];
      }
    }
  }
};

// What decides about dropping, as it is kept for the way back: hashes of tokens and of features, which are undefined where nothing is dropped.
struct Dropout {
  at::Tensor of_tokens;
  at::Tensor of_features;
  int64_t multiplier;
  int64_t threshold;

  void keep(AutogradContext* ctx) const {
    ctx->saved_data["of_tokens"] = of_tokens;
    ctx->saved_data["of_features"] = of_features;
    ctx->saved_data["multiplier"] = multiplier;
    ctx->saved_data["threshold"] = threshold;
  }

  static Dropout kept(AutogradContext* ctx) {
    auto& data = ctx->saved_data;
    return {
        data["of_tokens"].toTensor(),
        data["of_features"].toTensor(),
        data["multiplier"].toInt(),
        data["threshold"].toInt()};
  }

  Hashes hashes() const {
    return {
        of_tokens.const_data_ptr<int64_t>(),
        of_features.const_data_ptr<int64_t>(),
        static_cast<uint64_t>(multiplier),
        threshold};
  }

  // Writes what of x is not dropped to y, which may be x.
  at::Tensor drop(const at::Tensor& x, at::Tensor y) const {
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "dropout", [&] {
      for_rows<Drop<scalar_t>>(
          rows_of(x), width_of(x), x.const_data_ptr<scalar_t>(), hashes(), y.mutable_data_ptr<scalar_t>());
    });
    return y;
  }

  at::Tensor of(const at::Tensor& x) const {
    return of_tokens.defined() ? drop(x, at::empty_like(x)) : x;
  }

  // What of x is not dropped; adds to `sum` what of z is not.
  at::Tensor of_both(const at::Tensor& x, const at::Tensor& z, at::Tensor& sum) const {
    if (!of_tokens.defined()) {
      sum.add_(z);
      return x;
    }
    auto y = at::empty_like(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "dropout", [&] {
      for_rows<DropBoth<scalar_t>>(
          rows_of(x),
          width_of(x),
          x.const_data_ptr<scalar_t>(),
          z.const_data_ptr<scalar_t>(),
          hashes(),
          y.mutable_data_ptr<scalar_t>(),
          sum.mutable_data_ptr<scalar_t>());
    });
    return y;
  }
};

// dropout(x) A^T without the factor 1 / (1 - rate). Kept for the way back are x, which other layers read, too, and A: what is dropped is found
// again from the hashes.
struct DroppedProduct : Function<DroppedProduct> {
  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& a, const Dropout& dropout) {
    ctx->save_for_backward({x, a});
    dropout.keep(ctx);
    return inner_product(dropout.of(x), a);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &a = saved[1];
    const auto dropout = Dropout::kept(ctx);
    at::Tensor of_x, of_a;
    if (ctx->needs_input_grad(0)) {
      of_x = grads[0].matmul(a);
      of_x = dropout.drop(of_x, of_x);
    }
    if (ctx->needs_input_grad(1)) {
      of_a = dropout.of(x).t().matmul(grads[0]).t();
    }
    return {of_x, of_a, at::Tensor()};
  }
};

// A frozen layer with LoRA: x W^T + b + scale dropout(x) A^T B^T. Kept for the way back are x, what A makes of it, and the matrices.
struct AdaptedLinear : Function<AdaptedLinear> {
  static at::Tensor forward(
      AutogradContext* ctx,
      const at::Tensor& x,
      const at::Tensor& a,
      const at::Tensor& b,
      const at::Tensor& weight,
      const std::optional<at::Tensor>& bias,
      double scale,
      const Dropout& dropout) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto low_rank = inner_product(dropout.of(x), a).mul_(scale);
    auto y = inner_product(x, weight, bias);
    y.addmm_(low_rank, b.t());
    ctx->save_for_backward({x, weight, a, b, low_rank});
    ctx->saved_data["scale"] = scale;
    dropout.keep(ctx);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &a = saved[2], &b = saved[3], &low_rank = saved[4];
    const auto dropout = Dropout::kept(ctx);
    const auto grad = grads[0].contiguous();
    const auto of_low_rank = inner_product(grad, b.t()).mul_(ctx->saved_data["scale"].toDouble());
    at::Tensor of_x, of_a, of_b, kept;
    if (ctx->needs_input_grad(0)) {
      of_x = inner_product(grad, weight.t());
      kept = dropout.of_both(x, of_low_rank.matmul(a), of_x);
    } else {
      kept = dropout.of(x);
    }
    // Products of many by few columns: MKL is faster with the many on the left.
    if (ctx->needs_input_grad(1)) {
      of_a = kept.t().matmul(of_low_rank).t();
    }
    if (ctx->needs_input_grad(2)) {
      of_b = low_rank.t().matmul(grad).t();
    }
    return {of_x, of_a, of_b, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// x W^T + b, of which only x gets a gradient.
struct FrozenLinear : Function<FrozenLinear> {
  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    ctx->save_for_backward({weight});
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return inner_product(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto weight = ctx->get_saved_variables()[0];
    return {inner_product(grads[0].contiguous(), weight.t()), at::Tensor(), at::Tensor()};
  }
};

const at::Tensor& tensor(void* pointer) {
  return *static_cast<at::Tensor*>(pointer);
}

at::Tensor tensor_or_none(void* pointer) {
  return pointer == nullptr ? at::Tensor() : tensor(pointer);
}

std::optional<at::Tensor> given_or_none(void* pointer) {
  return pointer == nullptr ? std::nullopt : std::make_optional(tensor(pointer));
}

// Gives the caller what `make` returns.
template <class Make>
char* given(void** result, Make&& make) noexcept {
  return guarded([&] { *result = new at::Tensor(make()); });
}

}  // namespace

extern "C" {

char* zipper_aten_rms_norm(void* x, void* weight, double eps, void** result) {
  return given(result, [&] { return RmsNorm::apply(tensor(x), tensor(weight), eps); });
}

char* zipper_aten_rotate(void* x, void* cos, void* sin, void** result) {
  return given(result, [&] { return Rotate::apply(tensor(x), tensor(cos), tensor(sin)); });
}

char* zipper_aten_swiglu(void* gate, void* up, void** result) {
  return given(result, [&] { return SwiGlu::apply(tensor(gate), tensor(up)); });
}

// `bias` may be null.
char* zipper_aten_frozen_linear(void* x, void* weight, void* bias, void** result) {
  return given(result, [&] { return FrozenLinear::apply(tensor(x), tensor(weight), given_or_none(bias)); });
}

char* zipper_aten_dropped_product(
    void* x, void* a, void* of_tokens, void* of_features, int64_t multiplier, int64_t threshold, void** result) {
  return given(result, [&] {
    const Dropout dropout{tensor(of_tokens), tensor(of_features), multiplier, threshold};
    return DroppedProduct::apply(tensor(x), tensor(a), dropout);
  });
}

// `bias` may be null, and both hashes where nothing is dropped.
char* zipper_aten_adapted_linear(
    void* x,
    void* weight,
    void* bias,
    void* a,
    void* b,
    double scale,
    void* of_tokens,
    void* of_features,
    int64_t multiplier,
    int64_t threshold,
    void** result) {
  return given(result, [&] {
    const Dropout dropout{tensor_or_none(of_tokens), tensor_or_none(of_features), multiplier, threshold};
    return AdaptedLinear::apply(
        tensor(x), tensor(a), tensor(b), tensor(weight), given_or_none(bias), scale, dropout);
  });
}

}  // extern "C"
