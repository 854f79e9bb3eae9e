// Declarations of the few Gloo types that libtorch's ProcessGroupGloo.hpp names.
//
// libtorch contains Gloo but its wheel ships none of Gloo's headers. Everything here is only declared: the definitions
// are inside libtorch_cpu.so. The order and kind of the virtual functions of Store must stay as in Gloo, and no object
// of these types may be made on our side.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace transport {

class Device;

class UnboundBuffer {
 public:
  virtual ~UnboundBuffer();
};

}  // namespace transport

namespace rendezvous {

class Store {
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& data) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) = 0;
};

}  // namespace rendezvous

}  // namespace gloo
