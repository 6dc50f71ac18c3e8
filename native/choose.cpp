// Chooses the set of kernels that a processor runs.
#include <stdexcept>

#include "kernels.h"
#if SHOAL_X86
#include <cpuid.h>
#elif SHOAL_ARM && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#ifndef HWCAP2_I8MM
#define HWCAP2_I8MM (1 << 13)
#endif
#elif SHOAL_ARM && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace shoal {

namespace portable { const Kernels& kernels(); }
#if SHOAL_X86
namespace avx2 { const Kernels& kernels(); }
namespace avx512 { const Kernels& kernels(); }
#if SHOAL_AVXVNNI
namespace avxvnni { const Kernels& kernels(); }
#endif
#if SHOAL_CHECK
namespace avxvnni_evex { const Kernels& kernels(); }
#endif
#elif SHOAL_ARM
namespace dotprod { const Kernels& kernels(); }
#if SHOAL_I8MM
namespace i8mm { const Kernels& kernels(); }
#endif
#endif

namespace {

#if SHOAL_X86
// Asks the processor itself: not every compiler's __builtin_cpu_supports knows every name, or links everywhere.
struct Has {
  bool avx2 = false, avxvnni = false, avx512 = false;

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
    avxvnni = avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 4);
  }
};
#elif SHOAL_ARM
struct Has {
#if defined(__linux__)
  bool dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP, i8mm = dotprod && getauxval(AT_HWCAP2) & HWCAP2_I8MM;
#elif defined(__APPLE__)
  bool dotprod = true, i8mm = system_has("hw.optional.arm.FEAT_I8MM");  // the first: every Apple processor that runs macOS

  static bool system_has(const char* name) {
    int found = 0;
    size_t size = sizeof found;
    return !sysctlbyname(name, &found, &size, nullptr, 0) && found;
  }
#else
  bool dotprod = false, i8mm = false;
#endif
};
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
#if SHOAL_AVXVNNI
  if (has.avxvnni && (name.empty() || name == "avxvnni")) return avxvnni::kernels();
#endif
#if SHOAL_CHECK
  if (has.avx512 && name == "avxvnni_evex") return avxvnni_evex::kernels();
#endif
  if (has.avx2 && (name.empty() || name == "avx2")) return avx2::kernels();
#elif SHOAL_ARM
  static const Has has;
#if SHOAL_I8MM
  if (has.i8mm && (name.empty() || name == "i8mm")) return i8mm::kernels();
#endif
  if (has.dotprod && (name.empty() || name == "dotprod")) return dotprod::kernels();
#endif
  if (name.empty() || name == "portable") return portable::kernels();
  throw std::invalid_argument("instruction set '" + name + "' is unknown or this processor lacks it");
}

}  // namespace shoal
