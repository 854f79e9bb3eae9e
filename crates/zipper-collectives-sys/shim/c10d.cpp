#include "c10d.h"

#include <cstring>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/exception.h>

namespace {

using std::chrono::milliseconds;

// ProcessGroupGloo has no abort of its own, but what it needs is inside it.
class AbortableGloo final : public c10d::ProcessGroupGloo {
 public:
  using c10d::ProcessGroupGloo::ProcessGroupGloo;

  // contexts_ does not change after construction, and closing a Gloo connection takes that connection's lock.
  void abort() override {
    for (const auto& context : contexts_) {
      context->closeConnections();
    }
  }
};

zipper_c10d_status report(zipper_c10d_status status, const char* message, char** error) noexcept {
  // Null when memory has run out: the caller then has the status alone.
  *error = strdup(message);
  return status;
}

// Runs `body` and turns every exception into a status and a message.
template <class Body>
zipper_c10d_status guarded(char** error, Body&& body) noexcept {
  try {
    body();
    return ZIPPER_C10D_OK;
  } catch (const c10d::TimeoutError& e) {
    return report(ZIPPER_C10D_TIMEOUT, e.what_without_backtrace(), error);
  } catch (const c10::DistNetworkError& e) {
    return report(ZIPPER_C10D_NETWORK, e.what_without_backtrace(), error);
  } catch (const c10::DistStoreError& e) {
    return report(ZIPPER_C10D_STORE, e.what_without_backtrace(), error);
  } catch (const c10::DistBackendError& e) {
    return report(ZIPPER_C10D_BACKEND, e.what_without_backtrace(), error);
  } catch (const c10::Error& e) {
    return report(ZIPPER_C10D_OTHER, e.what_without_backtrace(), error);
  } catch (const std::exception& e) {
    return report(ZIPPER_C10D_OTHER, e.what(), error);
  } catch (...) {
    return report(ZIPPER_C10D_OTHER, "an exception that is not a std::exception", error);
  }
}

// Destructors of libtorch may throw, and there is nobody to tell.
template <class T>
void destroy(T* object) noexcept {
  try {
    delete object;
  } catch (...) {
  }
}

at::Tensor& tensor_at(void* tensor) {
  return *static_cast<at::Tensor*>(tensor);
}

}  // namespace

struct zipper_c10d_store {
  c10::intrusive_ptr<c10d::Store> store;
};

struct zipper_c10d_group {
  c10::intrusive_ptr<AbortableGloo> group;
};

uint32_t zipper_c10d_abi_version() {
  return ZIPPER_C10D_ABI_VERSION;
}

void zipper_c10d_string_free(char* string) {
  free(string);
}

zipper_c10d_status zipper_c10d_store_serve(
    int listen_fd, const char* host, uint16_t port, int64_t timeout_ms, zipper_c10d_store** out, char** error) {
  return guarded(error, [&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = true;
    options.waitWorkers = false;
    options.masterListenFd = listen_fd;
    options.timeout = milliseconds(timeout_ms);
    *out = new zipper_c10d_store{c10::make_intrusive<c10d::TCPStore>(host, options)};
  });
}

zipper_c10d_status zipper_c10d_store_connect(
    const char* host, uint16_t port, int64_t timeout_ms, zipper_c10d_store** out, char** error) {
  return guarded(error, [&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    *out = new zipper_c10d_store{c10::make_intrusive<c10d::TCPStore>(host, options)};
  });
}

zipper_c10d_status zipper_c10d_store_prefix(
    const zipper_c10d_store* store, const char* prefix, zipper_c10d_store** out, char** error) {
  return guarded(error, [&] {
    *out = new zipper_c10d_store{c10::make_intrusive<c10d::PrefixStore>(prefix, store->store)};
  });
}

void zipper_c10d_store_free(zipper_c10d_store* store) {
  destroy(store);
}

zipper_c10d_status zipper_c10d_group_gloo(
    const zipper_c10d_store* store, int rank, int world_size, const char* host, int64_t timeout_ms,
    zipper_c10d_group** out, char** error) {
  return guarded(error, [&] {
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(host));
    *out = new zipper_c10d_group{c10::make_intrusive<AbortableGloo>(store->store, rank, world_size, options)};
  });
}

zipper_c10d_status zipper_c10d_group_abort(zipper_c10d_group* group, char** error) {
  return guarded(error, [&] { group->group->abort(); });
}

void zipper_c10d_group_free(zipper_c10d_group* group) {
  destroy(group);
}

zipper_c10d_status zipper_c10d_all_reduce_sum(zipper_c10d_group* group, void* tensor, char** error) {
  return guarded(error, [&] {
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    group->group->allreduce(tensors)->wait();
  });
}

zipper_c10d_status zipper_c10d_broadcast(zipper_c10d_group* group, void* tensor, int root, char** error) {
  return guarded(error, [&] {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    group->group->broadcast(tensors, options)->wait();
  });
}

zipper_c10d_status zipper_c10d_all_gather(
    zipper_c10d_group* group, void* const* outputs, uint32_t num_outputs, void* tensor, char** error) {
  return guarded(error, [&] {
    std::vector<std::vector<at::Tensor>> gathered(1);
    for (uint32_t i = 0; i < num_outputs; ++i) {
      gathered[0].push_back(tensor_at(outputs[i]));
    }
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    group->group->allgather(gathered, tensors)->wait();
  });
}

zipper_c10d_status zipper_c10d_barrier(zipper_c10d_group* group, char** error) {
  return guarded(error, [&] { group->group->barrier()->wait(); });
}
