// What a failed call of torch says. The stable ABI returns a code without a reason; torch 2.13 and later give its text.
#pragma once

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

// Weak: null in torch 2.11 and 2.12, for which this library is built too.
extern "C" __attribute__((weak, visibility("default"))) const char* torch_exception_get_what_without_backtrace();

namespace nft {

// nft_ext/montecarlo/execution/out_of_memory.py looks for "out of memory" and for the text of torch's allocators.
inline std::string reason_of(const char* error) {
  if (!std::strstr(error, "API call failed at")) return error;  // of this library: it says what is wrong
  const char* text = torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : "";
  if (!text || !*text)
    return std::string("nft_ext: a call of torch failed, perhaps out of memory (torch before 2.13 gives no reason): ") +
           error;
  // The arguments have passed every check, so oneDNN has no other reason to refuse a primitive or its memory.
  for (const char* sign : {"bad_alloc", "could not create a ", "could not execute a primitive"})
    if (std::strstr(text, sign)) return std::string("nft_ext: out of memory: ") + text;
  return std::string("nft_ext: torch says: ") + text;
}

// An operator whose errors say why. `release` gives back memory that waits for the next call.
template <auto f, void (*release)()>
struct WithReasons;

template <class Result, class... Arguments, Result (*f)(Arguments...), void (*release)()>
struct WithReasons<f, release> {
  static Result call(Arguments... arguments) {
    try {
      return f(std::move(arguments)...);
    } catch (const std::bad_alloc&) {
      release();
      throw std::runtime_error("nft_ext: out of memory: an operator's memory could not be allocated");
    } catch (const std::runtime_error& error) {
      const std::string reason = reason_of(error.what());
      release();
      throw std::runtime_error(reason);
    }
  }
};

}  // namespace nft
