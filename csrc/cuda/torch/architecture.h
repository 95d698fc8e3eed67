// Which GPUs a build serves. Machine code runs on GPUs with its own major version and the same or a later minor
// version; PTX on every GPU with its version or a later one.
#pragma once

#include <stdlib.h>

#include <optional>
#include <sstream>
#include <string>

namespace nft {
namespace cuda {

// The reason why a build has no code for a GPU of compute capability major.minor; none if it has code. `holds` lists
// the code of the build, such as "sm_80 sm_90 compute_90" (machine code, PTX).
inline std::optional<std::string> why_not_served(int major, int minor, const char* holds) {
  std::istringstream names(holds);
  for (std::string name; names >> name;) {
    const size_t number = name.find('_') + 1;
    const int version = atoi(name.c_str() + number);
    const bool same = version / 10 == major;
    if (name.compare(0, number, "compute_") == 0 ? 10 * major + minor >= version : same && minor >= version % 10)
      return std::nullopt;
  }
  std::ostringstream why;
  why << "has compute capability " << major << "." << minor
      << ", for which this build of nft_ext holds no code: it holds " << holds
      << " (sm: machine code, compute: PTX for later ones)";
  return why.str();
}

}  // namespace cuda
}  // namespace nft
