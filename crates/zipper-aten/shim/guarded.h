// How a failure gets back to Rust: null, or what went wrong in a string that `zipper_aten_string_free` frees.
#pragma once

#include <cstring>
#include <exception>

#include <c10/util/Exception.h>

// Runs `body`, and turns every exception into a message.
template <class Body>
char* guarded(Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception& e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("an exception that is not a std::exception");
  }
}
