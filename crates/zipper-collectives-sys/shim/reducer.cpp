#include "internal.h"

#include <atomic>
#include <memory>
#include <unordered_set>
#include <vector>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using zipper::guarded;

struct Bucket {
  // Without a backend its gradients are not summed.
  zipper_c10d_group group{};
  at::Tensor flat;
  std::vector<at::Tensor> params;
  std::vector<at::Tensor> views;

  int32_t plan = ZIPPER_C10D_SKIP;
  // Parameters that have no gradient yet.
  size_t awaited = 0;
  c10::intrusive_ptr<c10d::Work> work;
  int64_t launched_ns = -1;
  int64_t finished_ns = -1;

  bool takes_part() const {
    return group.backend && plan != ZIPPER_C10D_SKIP;
  }
};

// Makes the gradient of a parameter its view again, with the values it has.
void take_back(const at::Tensor& param, const at::Tensor& view) {
  auto& gradient = param.mutable_grad();
  if (gradient.defined() && gradient.is_same(view)) {
    return;
  }
  at::NoGradGuard no_grad;
  if (gradient.defined() && gradient.data_ptr() != view.data_ptr()) {
    view.copy_(gradient);
  }
  gradient = view;
}

class Reducer : public std::enable_shared_from_this<Reducer> {
 public:
  void add(zipper_c10d_group* group, std::vector<at::Tensor> params) {
    TORCH_CHECK(!params.empty(), "a bucket has at least one parameter");
    auto bucket = std::make_unique<Bucket>();
    if (group != nullptr) {
      bucket->group = *group;
    }
    int64_t elements = 0;
    for (const auto& param : params) {
      TORCH_CHECK(param.is_leaf() && param.requires_grad(), "a parameter is a leaf that requires a gradient");
      TORCH_CHECK(
          param.scalar_type() == params[0].scalar_type() && param.device() == params[0].device(),
          "the parameters of a bucket have one kind and one device");
      TORCH_CHECK(known_.insert(param.unsafeGetTensorImpl()).second, "a parameter is in one bucket only");
      elements += param.numel();
    }
    at::NoGradGuard no_grad;
    bucket->flat = at::zeros({elements}, params[0].options().requires_grad(false));
    int64_t offset = 0;
    for (const auto& param : params) {
      auto view = bucket->flat.narrow(0, offset, param.numel()).view(param.sizes());
      offset += param.numel();
      param.mutable_grad() = view;
      bucket->views.push_back(view);
    }
    bucket->params = std::move(params);
    const size_t index = buckets_.size();
    buckets_.push_back(std::move(bucket));
    for (size_t param = 0; param < buckets_[index]->params.size(); ++param) {
      hook(index, param);
    }
  }

  void zero(const uint8_t* wanted) {
    std::lock_guard<std::mutex> lock(mutex_);
    active_ = false;
    for (size_t index = 0; index < buckets_.size(); ++index) {
      auto& bucket = *buckets_[index];
      settle(bucket);
      if (wanted[index] == 0) {
        continue;
      }
      for (size_t i = 0; i < bucket.params.size(); ++i) {
        bucket.params[i].mutable_grad() = bucket.views[i];
      }
      at::NoGradGuard no_grad;
      bucket.flat.zero_();
    }
  }

  void begin(const int32_t* plans, milliseconds timeout) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < buckets_.size(); ++i) {
      auto& bucket = *buckets_[i];
      settle(bucket);
      bucket.plan = plans[i];
      bucket.awaited = bucket.params.size();
      bucket.launched_ns = bucket.finished_ns = -1;
    }
    failure_ = nullptr;
    next_ = 0;
    timeout_ = timeout;
    began_ = Clock::now();
    active_ = true;
    launch_what_is_ready(false);
  }

  void finish(zipper_c10d_bucket_report* reports, uint32_t* launched_early, uint32_t* failed_bucket) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      *launched_early = 0;
      for (const auto& bucket : buckets_) {
        *launched_early += bucket->launched_ns >= 0 ? 1 : 0;
      }
      if (active_) {
        launch_what_is_ready(true);
      }
      active_ = false;
    }
    // Without the lock: no hook does anything any more.
    for (size_t i = 0; i < buckets_.size() && !failure_; ++i) {
      auto& bucket = *buckets_[i];
      if (!bucket.work) {
        continue;
      }
      try {
        zipper::wait_for_end(bucket.group, *bucket.work, timeout_);
        bucket.finished_ns = since_begin();
        bucket.work.reset();
      } catch (...) {
        failure_ = std::current_exception();
        failed_ = i;
      }
    }
    for (size_t i = 0; i < buckets_.size(); ++i) {
      const auto& bucket = *buckets_[i];
      const auto bytes = bucket.takes_part() ? bucket.flat.nbytes() : 0;
      reports[i] = {static_cast<uint64_t>(bytes), bucket.launched_ns, bucket.finished_ns};
    }
    if (failure_) {
      *failed_bucket = static_cast<uint32_t>(failed_);
      std::rethrow_exception(failure_);
    }
  }

  size_t size() const {
    return buckets_.size();
  }

  void remove_hooks() {
    std::lock_guard<std::mutex> lock(mutex_);
    active_ = false;
    for (auto& [accumulator, key] : hooks_) {
      accumulator->del_post_hook(key);
    }
    hooks_.clear();
  }

 private:
  void hook(size_t bucket, size_t param) {
    auto accumulator = torch::autograd::impl::grad_accumulator(buckets_[bucket]->params[param]);
    std::weak_ptr<Reducer> weak = weak_from_this();
    auto key = accumulator->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
        [weak, bucket, param](
            const torch::autograd::variable_list& outputs, const torch::autograd::variable_list&) {
          if (auto reducer = weak.lock()) {
            reducer->accumulated(bucket, param);
          }
          return outputs;
        }));
    // The accumulator is kept alive: a parameter holds its own only weakly, and a new one would have no hook.
    hooks_.emplace_back(std::move(accumulator), key);
  }

  // Called by autograd, on the thread of the parameter's device, when the parameter has got its gradient.
  void accumulated(size_t index, size_t param) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& bucket = *buckets_[index];
    if (!active_ || bucket.plan != ZIPPER_C10D_AS_READY || bucket.launched_ns >= 0 || bucket.awaited == 0) {
      return;
    }
    take_back(bucket.params[param], bucket.views[param]);
    --bucket.awaited;
    launch_what_is_ready(false);
  }

  // Launches buckets in their order, up to the first that has to wait. Never throws: autograd is not told of failures,
  // `finish` is.
  void launch_what_is_ready(bool at_end) {
    for (; next_ < buckets_.size() && !failure_; ++next_) {
      auto& bucket = *buckets_[next_];
      const bool ready = bucket.plan == ZIPPER_C10D_NOW || (bucket.plan == ZIPPER_C10D_AS_READY && bucket.awaited == 0);
      if (!bucket.takes_part()) {
        continue;
      }
      if (!at_end && !ready) {
        return;
      }
      try {
        for (size_t i = 0; i < bucket.params.size(); ++i) {
          take_back(bucket.params[i], bucket.views[i]);
        }
        c10d::AllreduceOptions options;
        options.timeout = timeout_;
        std::vector<at::Tensor> tensors{bucket.flat};
        bucket.work = zipper::hand_over([&] { return bucket.group.backend->allreduce(tensors, options); });
        bucket.launched_ns = since_begin();
      } catch (...) {
        failure_ = std::current_exception();
        failed_ = next_;
      }
    }
  }

  // Lets an operation of a step that failed end: its group is closed, so it does soon.
  void settle(Bucket& bucket) {
    if (!bucket.work) {
      return;
    }
    try {
      zipper::wait_for_end(bucket.group, *bucket.work, timeout_);
    } catch (...) {
      // Reported when the step failed.
    }
    bucket.work.reset();
  }

  int64_t since_begin() const {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - began_).count();
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Bucket>> buckets_;
  // The parameters of all buckets.
  std::unordered_set<const c10::TensorImpl*> known_;
  std::vector<std::pair<std::shared_ptr<torch::autograd::Node>, uintptr_t>> hooks_;
  // Between begin and finish.
  bool active_ = false;
  // The first bucket that is neither launched nor left out.
  size_t next_ = 0;
  milliseconds timeout_{0};
  Clock::time_point began_;
  std::exception_ptr failure_;
  size_t failed_ = 0;
};

}  // namespace

struct zipper_c10d_reducer {
  std::shared_ptr<Reducer> reducer;
};

zipper_c10d_status zipper_c10d_reducer_new(zipper_c10d_reducer** out, char** error) {
  return guarded(error, [&] { *out = new zipper_c10d_reducer{std::make_shared<Reducer>()}; });
}

zipper_c10d_status zipper_c10d_reducer_add_bucket(
    zipper_c10d_reducer* reducer, zipper_c10d_group* group, void* const* params, uint32_t num_params, char** error) {
  return guarded(error, [&] {
    std::vector<at::Tensor> tensors;
    for (uint32_t i = 0; i < num_params; ++i) {
      tensors.push_back(zipper::tensor_at(params[i]));
    }
    reducer->reducer->add(group, std::move(tensors));
  });
}

zipper_c10d_status zipper_c10d_reducer_zero(
    zipper_c10d_reducer* reducer, const uint8_t* wanted, uint32_t num_buckets, char** error) {
  return guarded(error, [&] {
    TORCH_CHECK(num_buckets == reducer->reducer->size(), "it is said of each bucket whether it is wanted");
    reducer->reducer->zero(wanted);
  });
}

zipper_c10d_status zipper_c10d_reducer_begin(
    zipper_c10d_reducer* reducer, const int32_t* plans, uint32_t num_plans, int64_t timeout_ms, char** error) {
  return guarded(error, [&] {
    TORCH_CHECK(num_plans == reducer->reducer->size(), "there is one plan for each bucket");
    reducer->reducer->begin(plans, milliseconds(timeout_ms));
  });
}

zipper_c10d_status zipper_c10d_reducer_finish(
    zipper_c10d_reducer* reducer, zipper_c10d_bucket_report* reports, uint32_t num_reports, uint32_t* launched_early,
    uint32_t* failed_bucket, char** error) {
  return guarded(error, [&] {
    TORCH_CHECK(num_reports == reducer->reducer->size(), "there is one report for each bucket");
    reducer->reducer->finish(reports, launched_early, failed_bucket);
  });
}

void zipper_c10d_reducer_free(zipper_c10d_reducer* reducer) {
  if (reducer != nullptr) {
    try {
      reducer->reducer->remove_hooks();
    } catch (...) {
    }
    zipper::destroy(reducer);
  }
}
