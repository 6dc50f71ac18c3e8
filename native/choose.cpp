// Chooses the set of kernels that a processor runs.
#include <stdexcept>

#include "kernels.h"
#if SHOAL_X86
#include <cpuid.h>
#elif SHOAL_ARM && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace shoal {

namespace portable { const Kernels& kernels(); }
#if SHOAL_X86
namespace avx2 { const Kernels& kernels(); }
namespace avx512 { const Kernels& kernels(); }
#elif SHOAL_ARM
namespace dotprod { const Kernels& kernels(); }
#endif

namespace {

#if SHOAL_X86
// Asks the processor itself: not every compiler's __builtin_cpu_supports knows every name, or links everywhere.
struct Has {
  bool avx2 = false, avx512 = false;

  Has() {
    unsigned a, b, c, d, low, high;
    const auto bit = [](unsigned word, int n) { return (word >> n & 1) != 0; };
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return;  // 27: the system says which registers it saves
    const bool fma = bit(c, 12), f16c = bit(c, 29);
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = bit(b, 5) && fma && f16c;
    const bool vnni = bit(c, 11), f = bit(b, 16), dq = bit(b, 17), bw = bit(b, 30), vl = bit(b, 31);
    avx512 = avx2 && (low & 0xe6) == 0xe6 && f && dq && bw && vl && vnni;
  }
};
#elif SHOAL_ARM
bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
  return true;  // every Apple processor that runs macOS
#else
  return false;
#endif
}
#endif

}  // namespace

KvType kv_type(const std::string& name) {
  if (name == "fp32") return KvType::Fp32;
  if (name == "bf16") return KvType::Bf16;
  if (name == "q8") return KvType::Q8;
  if (name == "q4") return KvType::Q4;
  throw std::invalid_argument("keys and values are fp32, bf16, q8 or q4, not '" + name + "'");
}

const Kernels& choose(const std::string& name) {
#if SHOAL_X86
  static const Has has;
  if (has.avx512 && (name.empty() || name == "avx512")) return avx512::kernels();
  if (has.avx2 && (name.empty() || name == "avx2")) return avx2::kernels();
#elif SHOAL_ARM
  if (has_dotprod() && (name.empty() || name == "dotprod")) return dotprod::kernels();
#endif
  if (name.empty() || name == "portable") return portable::kernels();
  throw std::invalid_argument("instruction set '" + name + "' is unknown or this processor lacks it");
}

}  // namespace shoal
