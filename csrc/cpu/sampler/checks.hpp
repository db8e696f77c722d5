#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gnnsys/sampler/sampler.hpp"

namespace gnnsys {

// What Sampler refuses; each check throws what the class says.

bool has_times(const TypedGraph& graph);

void check_graph(const TypedGraph& graph);
void check_request(const TypedGraph& graph, const SampleRequest& request);
void check_nodes(const TypedGraph& graph, const std::vector<std::span<const int64_t>>& nodes);

}  // namespace gnnsys
