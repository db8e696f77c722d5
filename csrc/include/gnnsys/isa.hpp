#pragma once

#include <string>
#include <vector>

namespace gnnsys {

// Instruction sets that the hot loops are compiled for, slowest first.
enum class Isa { generic, avx2, avx512 };

// Those that this processor runs, slowest first; never empty.
const std::vector<Isa>& supported_isas();

const char* isa_name(Isa isa);

// "auto" is the fastest supported one. Throws std::invalid_argument for a name that is unknown or
// that this processor cannot run.
Isa parse_isa(const std::string& name);

}  // namespace gnnsys
