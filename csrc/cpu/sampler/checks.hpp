#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gnnsys/sampler/graph_sampler.hpp"

namespace gnnsys {

// What GraphSampler refuses; each check throws what the class says.

bool has_times(const TypedGraph& graph);

void check_graph(const TypedGraph& graph);
void check_request(const TypedGraph& graph, const GraphSampleRequest& request);
void check_nodes(const TypedGraph& graph, const std::vector<std::span<const int64_t>>& nodes);

}  // namespace gnnsys
