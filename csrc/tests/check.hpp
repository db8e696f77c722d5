#pragma once

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

// CHECK(condition) ends the program with the place of the first condition that does not hold.
#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

namespace gnnsys::test {

// What the exception of type Error says that f() throws; ends the program where it throws none.
template <class Error, class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  std::fprintf(stderr, "an exception was expected\n");
  std::exit(1);
}

inline bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace gnnsys::test
