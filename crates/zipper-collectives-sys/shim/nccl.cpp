#include "internal.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

namespace {

void abort_nccl(c10d::Backend& backend) {
  static_cast<c10d::ProcessGroupNCCL&>(backend).abort();
}

}  // namespace

zipper_c10d_status zipper_c10d_group_nccl(
    const zipper_c10d_store* store, int rank, int world_size, int device_index, int64_t timeout_ms,
    zipper_c10d_group** out, char** error) {
  return zipper::guarded(error, [&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store->store, rank, world_size, options);
    backend->setBoundDeviceId(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device_index)));
    *out = new zipper_c10d_group{std::make_shared<zipper::Connections>(backend), backend, abort_nccl, true};
  });
}

zipper_c10d_status zipper_cuda_peak_bytes(int device_index, int64_t* out, char** error) {
  return zipper::guarded(error, [&] {
    auto device = static_cast<c10::DeviceIndex>(device_index);
    auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device);
    *out = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
  });
}
