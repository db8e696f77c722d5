// Compiles the file GNNSYS_KERNEL once for each instruction set, into a namespace of its own.
// GNNSYS_CHOOSE(isa, function) then is that function of the instruction set's namespace.
#if defined(__x86_64__)

#define GNNSYS_NAMESPACE generic
#define GNNSYS_TARGET [[gnu::target("sse2")]]
#include GNNSYS_KERNEL
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#define GNNSYS_NAMESPACE avx2
#define GNNSYS_TARGET [[gnu::target("avx2,fma,bmi,bmi2")]]
#include GNNSYS_KERNEL
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

// gcc would choose vectors of half the width; clang takes no such word, and leaves out the whole
// attribute where it stands.
#ifdef __clang__
#define GNNSYS_WIDE ""
#else
#define GNNSYS_WIDE ",prefer-vector-width=512"
#endif
#define GNNSYS_NAMESPACE avx512
#define GNNSYS_TARGET [[gnu::target("avx512f,avx512dq,avx512bw,avx512vl,bmi,bmi2" GNNSYS_WIDE)]]
#include GNNSYS_KERNEL
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET
#undef GNNSYS_WIDE

#define GNNSYS_CHOOSE(isa, ...)               \
  ((isa) == Isa::avx512 ? avx512::__VA_ARGS__ \
                        : ((isa) == Isa::avx2 ? avx2::__VA_ARGS__ : generic::__VA_ARGS__))

#else

#define GNNSYS_NAMESPACE generic
#define GNNSYS_TARGET
#include GNNSYS_KERNEL
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#define GNNSYS_CHOOSE(isa, ...) (generic::__VA_ARGS__)

#endif
