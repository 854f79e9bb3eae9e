#include "internal.h"

#include <climits>

#include <c10/util/ScopeExit.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace {

using std::chrono::milliseconds;
using zipper::destroy;
using zipper::guarded;
using zipper::tensor_at;

// A tag that no collective uses: theirs count from zero.
constexpr int ABORT_TAG = INT_MAX;

// Hands one operation over and waits for its end.
template <class Launch>
void run_to_end(const zipper_c10d_group& group, int64_t timeout_ms, Launch&& launch) {
  auto work = zipper::hand_over(launch);
  zipper::wait_for_end(group, *work, milliseconds(timeout_ms));
}

// Gloo has no abort, but a receive that times out fails every other operation of the group and closes its connections.
// So: receive what nobody sends. A connection that is closed already fails at once instead of timing out, and that leaves
// the other connections as they are: so from every peer in turn.
void abort_gloo(c10d::Backend& backend) {
  for (int distance = 1; distance < backend.getSize(); distance++) {
    try {
      auto work = zipper::hand_over([&] {
        std::vector<at::Tensor> nothing{at::empty({1}, at::kByte)};
        return backend.recv(nothing, (backend.getRank() + distance) % backend.getSize(), ABORT_TAG);
      });
      work->wait(milliseconds(1));
    } catch (const std::exception&) {
      // The timeout that was wanted, or a closed connection.
    }
  }
}

}  // namespace

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

zipper_c10d_status zipper_c10d_store_set(
    const zipper_c10d_store* store, const char* key, const char* value, char** error) {
  return guarded(error, [&] { store->store->set(key, std::string(value)); });
}

zipper_c10d_status zipper_c10d_store_get(
    const zipper_c10d_store* store, const char* key, int64_t timeout_ms, char** value, char** error) {
  return guarded(error, [&] {
    store->store->wait({key}, milliseconds(timeout_ms));
    const auto bytes = store->store->get(key);
    *value = strndup(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    TORCH_CHECK(*value != nullptr, "no memory for a value of the store");
  });
}

zipper_c10d_status zipper_c10d_store_has(
    const zipper_c10d_store* store, const char* key, int32_t* found, char** error) {
  return guarded(error, [&] { *found = store->store->check({key}) ? 1 : 0; });
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
    auto backend = c10::make_intrusive<c10d::ProcessGroupGloo>(store->store, rank, world_size, options);
    *out = new zipper_c10d_group{std::make_shared<zipper::Connections>(backend), backend, abort_gloo, false};
  });
}

zipper_c10d_status zipper_c10d_group_abort(zipper_c10d_group* group, char** error) {
  return guarded(error, [&] {
    auto& connections = *group->connections;
    connections.closed = true;
    group->abort(*group->backend);
    std::lock_guard<std::mutex> lock(connections.transfers_lock);
    for (const auto& transfer : connections.transfers) {
      transfer->abort();
    }
  });
}

void zipper_c10d_group_free(zipper_c10d_group* group) {
  destroy(group);
}

zipper_c10d_status zipper_c10d_all_reduce_sum(
    zipper_c10d_group* group, void* tensor, int64_t timeout_ms, char** error) {
  return guarded(error, [&] {
    c10d::AllreduceOptions options;
    options.timeout = milliseconds(timeout_ms);
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    run_to_end(*group, timeout_ms, [&] { return group->backend->allreduce(tensors, options); });
  });
}

zipper_c10d_status zipper_c10d_broadcast(
    zipper_c10d_group* group, void* tensor, int root, int64_t timeout_ms, char** error) {
  return guarded(error, [&] {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.timeout = milliseconds(timeout_ms);
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    run_to_end(*group, timeout_ms, [&] { return group->backend->broadcast(tensors, options); });
  });
}

zipper_c10d_status zipper_c10d_all_gather(
    zipper_c10d_group* group, void* const* outputs, uint32_t num_outputs, void* tensor, int64_t timeout_ms,
    char** error) {
  return guarded(error, [&] {
    std::vector<std::vector<at::Tensor>> gathered(1);
    for (uint32_t i = 0; i < num_outputs; ++i) {
      gathered[0].push_back(tensor_at(outputs[i]));
    }
    c10d::AllgatherOptions options;
    options.timeout = milliseconds(timeout_ms);
    std::vector<at::Tensor> tensors{tensor_at(tensor)};
    run_to_end(*group, timeout_ms, [&] { return group->backend->allgather(gathered, tensors, options); });
  });
}

zipper_c10d_status zipper_c10d_barrier(zipper_c10d_group* group, int64_t timeout_ms, char** error) {
  return guarded(error, [&] {
    c10d::BarrierOptions options;
    options.timeout = milliseconds(timeout_ms);
    run_to_end(*group, timeout_ms, [&] { return group->backend->barrier(options); });
  });
}

zipper_c10d_status zipper_c10d_exchange(
    zipper_c10d_group* group, void* const* sent, const int* to, uint32_t num_sent, void* const* received,
    const int* from, uint32_t num_received, int64_t timeout_ms, char** error) {
  return guarded(error, [&] {
    auto& backend = *group->backend;
    std::vector<c10::intrusive_ptr<c10d::Work>> works;
    // Everything is handed over before anything is waited for: ranks that all sent first would wait for each other. Where a
    // backend needs to be told that operations belong together (NCCL), it is.
    const bool together = backend.supportsCoalescing() && num_sent + num_received > 0;
    const auto hand_over = [&](auto&& launch) {
      auto work = zipper::hand_over(launch);
      if (!together && work) {
        works.push_back(std::move(work));
      }
    };
    if (together) {
      backend.startCoalescing();
    }
    // NCCL counts open groups for each thread: one that stayed open would take in the operations of the next generation.
    auto close_group = c10::make_scope_exit([&] {
      if (together) {
        try {
          zipper::hand_over([&] { return backend.endCoalescing(); });
        } catch (...) {
          // The exception that leads here is the one that counts.
        }
      }
    });
    for (uint32_t i = 0; i < num_received; ++i) {
      std::vector<at::Tensor> tensors{tensor_at(received[i])};
      hand_over([&] { return backend.recv(tensors, from[i], 0); });
    }
    for (uint32_t i = 0; i < num_sent; ++i) {
      std::vector<at::Tensor> tensors{tensor_at(sent[i])};
      hand_over([&] { return backend.send(tensors, to[i], 0); });
    }
    close_group.release();
    if (together) {
      if (auto work = zipper::hand_over([&] { return backend.endCoalescing(); })) {
        works.push_back(std::move(work));
      }
    }
    if (group->waits_on_device) {
      for (const auto& work : works) {
        zipper::wait_for_end(*group, *work, milliseconds(timeout_ms));
      }
      return;
    }
    // Sends and receives of Gloo are waited for by this thread alone, with a timeout of their own: `abort` has to know them.
    auto& connections = *group->connections;
    const auto transfers = [&](std::vector<c10::intrusive_ptr<c10d::Work>> now) {
      std::lock_guard<std::mutex> lock(connections.transfers_lock);
      connections.transfers = std::move(now);
    };
    transfers(works);
    const auto forget = c10::make_scope_exit([&] { transfers({}); });
    for (const auto& work : works) {
      const bool ended = !connections.closed && work->wait(milliseconds(timeout_ms));
      TORCH_CHECK_WITH(DistNetworkError, ended, "its connections were closed");
    }
  });
}
