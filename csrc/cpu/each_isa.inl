// Compiles the file GNNSYS_KERNEL once for each instruction set, into a namespace of its own.
// GNNSYS_CHOOSE(function, isa) then is one of its function templates of <Value, Id>.
#if defined(__x86_64__)

#define GNNSYS_NAMESPACE generic
#define GNNSYS_TARGET [[gnu::target("sse2")]]
#include GNNSYS_KERNEL
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#define GNNSYS_NAMESPACE avx2
#define GNNSYS_TARGET [[gnu::target("avx2")]]
#include GNNSYS_KERNEL
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#define GNNSYS_NAMESPACE avx512
#define GNNSYS_TARGET [[gnu::target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")]]
#include GNNSYS_KERNEL
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#define GNNSYS_CHOOSE(function, isa) \
  ((isa) == Isa::avx512              \
       ? avx512::function<Value, Id> \
       : ((isa) == Isa::avx2 ? avx2::function<Value, Id> : generic::function<Value, Id>))

#else

#define GNNSYS_NAMESPACE generic
#define GNNSYS_TARGET
#include GNNSYS_KERNEL
#undef GNNSYS_NAMESPACE
#undef GNNSYS_TARGET

#define GNNSYS_CHOOSE(function, isa) (generic::function<Value, Id>)

#endif
