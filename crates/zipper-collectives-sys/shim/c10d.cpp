#include "c10d.h"

#include <climits>
#include <cstring>
#include <mutex>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/exception.h>

namespace {

using std::chrono::milliseconds;

// Held while an operation is handed to Gloo, never while waiting for it. c10d's flight recorder, one for the whole
// process, inserts into a map without a lock there, so two groups in two threads would corrupt it.
std::mutex handing_over;

// A tag that no collective uses: theirs count from zero.
constexpr int ABORT_TAG = INT_MAX;

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

// Hands one operation over and waits for its end.
template <class Launch>
void run_to_end(Launch&& launch) {
  c10::intrusive_ptr<c10d::Work> work;
  {
    std::lock_guard<std::mutex> lock(handing_over);
    work = launch();
  }
  work->wait();
}

at::Tensor& tensor_at(void* tensor) {
  return *static_cast<at::Tensor*>(tensor);
}

}  // namespace

struct zipper_c10d_store {
  c10::intrusive_ptr<c10d::Store> store;
};

struct zipper_c10d_group {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group;
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
    *out = new zipper_c10d_group{c10::make_intrusive<c10d::ProcessGroupGloo>(store->store, rank, world_size, options)};
  });
}

zipper_c10d_status zipper_c10d_group_abort(zipper_c10d_group* group, char** error) {
  return guarded(error, [&] {
    auto& gloo = *group->group;
    if (gloo.getSize() == 1) {
      return;
    }
    // Gloo has no abort, but a receive that times out fails every other operation of the group and closes its
    // connections. So: receive from a neighbour what nobody sends.
    c10::intrusive_ptr<c10d::Work> work;
    {
      std::lock_guard<std::mutex> lock(handing_over);
      std::vector<at::Tensor> nothing{at::empty({1}, at::kByte)};
      work = gloo.recv(nothing, (gloo.getRank() + 1) % gloo.getSize(), ABORT_TAG);
    }
    try {
      work->wait(milliseconds(1));
    } catch (const std::exception&) {
      // The timeout that was wanted.
    }
  });
}

void zipper_c10d_group_free(zipper_c10d_group* group) {
  destroy(group);
}

zipper_c10d_status zipper_c10d_all_reduce_sum(zipper_c10d_group* group, void* tensor, char** error) {
  return guarded(error, [&] {
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    run_to_end([&] { return group->group->allreduce(tensors); });
  });
}

zipper_c10d_status zipper_c10d_broadcast(zipper_c10d_group* group, void* tensor, int root, char** error) {
  return guarded(error, [&] {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    run_to_end([&] { return group->group->broadcast(tensors, options); });
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
    run_to_end([&] { return group->group->allgather(gathered, tensors); });
  });
}

zipper_c10d_status zipper_c10d_barrier(zipper_c10d_group* group, char** error) {
  return guarded(error, [&] { run_to_end([&] { return group->group->barrier(); }); });
}
