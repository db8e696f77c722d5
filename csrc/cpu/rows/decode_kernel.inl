// What makes float32 of stored rows: included by the gather loop, inside GNNSYS_NAMESPACE. Each has
// `operator()`, for columns [first, first + n) of a row; `first` is even.

struct DecodeFloat16 {
  GNNSYS_TARGET void operator()(const char* __restrict from, int64_t first, int64_t n,
                                float* __restrict to) const {
    const char* const halves = from + 2 * first;
    for (int64_t i = 0; i < n; ++i) {
      uint16_t half;
      std::memcpy(&half, halves + 2 * i, sizeof half);
      // Without branches, so that the compiler makes vectors of it: the top bit of a difference
      // tells which of two is greater.
      constexpr uint32_t kBias = 112u << 23;
      const uint32_t size = half & 0x7fffu;
      const uint32_t is_special = (0x7bffu - size) >> 31;       // infinite or NaN
      const uint32_t is_nan = (0x7c00u - size) >> 31;           // becomes quiet
      const uint32_t is_small = 0u - ((size - 0x0400u) >> 31);  // a mask of 0 and subnormal ones
      const uint32_t normal = ((size << 13) + kBias + is_special * kBias) | is_nan << 22;
      const float value = static_cast<float>(static_cast<int32_t>(size)) * 0x1p-24f;
      uint32_t small;
      std::memcpy(&small, &value, sizeof small);
      const uint32_t bits = (small & is_small) | (normal & ~is_small) | (half & 0x8000u) << 16;
      std::memcpy(to + i, &bits, sizeof bits);
    }
  }
};

struct DecodeBFloat16 {
  GNNSYS_TARGET void operator()(const char* __restrict from, int64_t first, int64_t n,
                                float* __restrict to) const {
    const char* const halves = from + 2 * first;
    for (int64_t i = 0; i < n; ++i) {
      uint16_t half;
      std::memcpy(&half, halves + 2 * i, sizeof half);
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      std::memcpy(to + i, &bits, sizeof bits);
    }
  }
};

struct RowScale {
  float scale;
  GNNSYS_TARGET explicit RowScale(const char* row) { std::memcpy(&scale, row, sizeof scale); }
  GNNSYS_TARGET float operator[](int64_t) const { return scale; }
};

template <class Scales>
GNNSYS_TARGET inline void decode_int8(const char* __restrict codes, Scales scales, int64_t n,
                                      float* __restrict to) {
  for (int64_t i = 0; i < n; ++i) {
    to[i] = static_cast<float>(static_cast<int8_t>(codes[i])) * scales[i];
  }
}

template <class Scales>
GNNSYS_TARGET inline void decode_int4(const char* __restrict codes, Scales scales, int64_t n,
                                      float* __restrict to) {
  for (int64_t i = 0; i < n / 2; ++i) {
    const int32_t pair = static_cast<int8_t>(codes[i]);
    to[2 * i] = static_cast<float>(static_cast<int8_t>(pair * 16) >> 4) * scales[2 * i];
    to[2 * i + 1] = static_cast<float>(pair >> 4) * scales[2 * i + 1];
  }
  if (n % 2) {
    const int32_t pair = static_cast<int8_t>(codes[n / 2]);
    to[n - 1] = static_cast<float>(static_cast<int8_t>(pair * 16) >> 4) * scales[n - 1];
  }
}

struct DecodeInt8 {
  const float* scales;
  GNNSYS_TARGET void operator()(const char* __restrict from, int64_t first, int64_t n,
                                float* __restrict to) const {
    if (scales != nullptr) {
      decode_int8(from + first, scales + first, n, to);
    } else {
      decode_int8(from + sizeof(float) + first, RowScale(from), n, to);
    }
  }
};

struct DecodeInt4 {
  const float* scales;
  GNNSYS_TARGET void operator()(const char* __restrict from, int64_t first, int64_t n,
                                float* __restrict to) const {
    if (scales != nullptr) {
      decode_int4(from + first / 2, scales + first, n, to);
    } else {
      decode_int4(from + sizeof(float) + first / 2, RowScale(from), n, to);
    }
  }
};
