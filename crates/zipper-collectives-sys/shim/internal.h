// What the files of the shim share: the objects behind the opaque pointers, and the way from exceptions to statuses.
#pragma once

#include "c10d.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/exception.h>

struct zipper_c10d_store {
  c10::intrusive_ptr<c10d::Store> store;
};

namespace zipper {

// What all copies of a group share; outlives their references to the backend.
struct Connections {
  c10::intrusive_ptr<c10d::Backend> backend;
  // Whether they were closed, so that every operation ends. Not all do: see `wait_for_end`.
  std::atomic<bool> closed{false};
  // Sends and receives under way that are waited for without the backend's own threads.
  std::mutex transfers_lock;
  std::vector<c10::intrusive_ptr<c10d::Work>> transfers;

  Connections() = default;
  explicit Connections(c10::intrusive_ptr<c10d::Backend> of) : backend(std::move(of)) {}
  Connections(const Connections&) = delete;
  Connections& operator=(const Connections&) = delete;

  // The destructor of a closed backend may wait for an operation that does not end: not in this thread.
  ~Connections() {
    if (closed && backend) {
      try {
        std::thread([last = std::move(backend)]() mutable {
          try {
            last.reset();
          } catch (...) {
            // Nobody to tell.
          }
        }).detach();
      } catch (...) {
        // No thread: it is destroyed here.
      }
    }
  }
};

}  // namespace zipper

struct zipper_c10d_group {
  // Before `backend`, so that it is destroyed after it.
  std::shared_ptr<zipper::Connections> connections;
  c10::intrusive_ptr<c10d::Backend> backend;
  // Closes this rank's connections, so that every collective of every rank fails.
  void (*abort)(c10d::Backend& backend);
  // Waiting for a work of this backend only orders streams of the device: its end has to be polled for.
  bool waits_on_device;
};

namespace zipper {

// Held while an operation is handed to a backend, never while waiting for it. c10d's flight recorder, one for the whole
// process, inserts into a map without a lock there, so two groups in two threads would corrupt it.
inline std::mutex handing_over;

inline zipper_c10d_status report(zipper_c10d_status status, const char* message, char** error) noexcept {
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

// Hands one operation over.
template <class Launch>
c10::intrusive_ptr<c10d::Work> hand_over(Launch&& launch) {
  std::lock_guard<std::mutex> lock(handing_over);
  return launch();
}

// How often a wait looks whether the connections were closed.
constexpr std::chrono::milliseconds GLANCE{200};

// Waits until `work` has ended; what it computed can then be used on the current stream of its device.
inline void wait_for_end(const zipper_c10d_group& group, c10d::Work& work, std::chrono::milliseconds timeout) {
  if (group.waits_on_device) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (!work.isCompleted()) {
      if (std::chrono::steady_clock::now() > deadline) {
        TORCH_CHECK_WITH(DistBackendError, false, "timed out waiting ", timeout.count(), "ms for the device");
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    if (auto exception = work.exception()) {
      std::rethrow_exception(exception);
    }
    work.wait();
    return;
  }
  // Gloo tells a send nothing of the end of its connection while it is being written (gloo/transport/tcp/pair.cc,
  // signalException): it would wait until its timeout. So an operation of closed connections is left behind when it has not ended
  // after a while; its memory lives as long as it does.
  for (bool had_its_time = false; !work.isCompleted();) {
    TORCH_CHECK_WITH(DistNetworkError, !had_its_time, "its connections were closed");
    had_its_time = group.connections->closed;
    try {
      work.wait(GLANCE);
    } catch (const std::exception&) {
      // Not yet, or a failure that the wait below throws.
    }
  }
  work.wait();
}

inline at::Tensor& tensor_at(void* tensor) {
  return *static_cast<at::Tensor*>(tensor);
}

}  // namespace zipper
