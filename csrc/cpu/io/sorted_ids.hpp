#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace gnnsys {

// The distinct ids of a list, ascending, and where each stands in it.
struct SortedIds {
  struct Entry {
    int64_t position;  // in the list
    int64_t rank;      // of its id among the distinct ones
  };

  // Id is int32_t or int64_t; none is below 0.
  template <class Id>
  SortedIds(const Id* list, int64_t n);

  std::vector<int64_t> ids;     // distinct, ascending
  std::vector<int64_t> starts;  // (ids + 1) the first entry of each id
  std::vector<Entry> entries;   // by id, then by position
};

template <class Id>
SortedIds::SortedIds(const Id* list, int64_t n) {
  constexpr int kBits = 11;
  constexpr std::size_t kDigits = std::size_t{1} << kBits;
  struct Item {
    int64_t id;
    int64_t position;
  };
  std::vector<Item> items(static_cast<std::size_t>(n)), other(items.size());
  int64_t largest = 0;
  bool ascending = true;
  for (int64_t i = 0; i < n; ++i) {
    items[static_cast<std::size_t>(i)] = {static_cast<int64_t>(list[i]), i};
    largest |= static_cast<int64_t>(list[i]);
    ascending = ascending && (i == 0 || list[i - 1] <= list[i]);
  }
  // A radix sort from the lowest digit on, each pass stable.
  for (int shift = 0; !ascending && shift < 63 && (largest >> shift) != 0; shift += kBits) {
    std::array<std::size_t, kDigits> places{};
    const auto digit = [&](const Item& item) {
      return static_cast<std::size_t>(item.id >> shift) & (kDigits - 1);
    };
    for (const Item& item : items) ++places[digit(item)];
    std::size_t sum = 0;
    for (std::size_t& place : places) sum += std::exchange(place, sum);
    for (const Item& item : items) other[places[digit(item)]++] = item;
    items.swap(other);
  }
  entries.reserve(items.size());
  for (const Item& item : items) {
    if (ids.empty() || ids.back() != item.id) {
      ids.push_back(item.id);
      starts.push_back(static_cast<int64_t>(entries.size()));
    }
    entries.push_back({item.position, static_cast<int64_t>(ids.size()) - 1});
  }
  starts.push_back(n);
}

}  // namespace gnnsys
