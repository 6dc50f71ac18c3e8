#include "formats.h"

#include <atomic>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace shoal {
namespace {

template <class T>
T at(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float half_at(const uint8_t* p) { return half_to_float(at<uint16_t>(p)); }

void nibbles(const uint8_t* packed, uint8_t* q) {
  for (int i = 0; i < 16; ++i) q[i] = packed[i] & 15, q[i + 16] = packed[i] >> 4;
}

// The scales of a block of which the half is the largest factor; `most` is the largest other one.
int exponent_of(float half, float most) {
  int exponent = INT_MIN;
  if (std::isfinite(half) && half != 0) std::frexp(half * most, &exponent);
  return exponent;
}

// Blocks of 32

void read_q4_0(const uint8_t* p, int64_t, Weights32& out) {
  out.scale = half_at(p);
  nibbles(p + 2, out.q);
}

void read_q4_1(const uint8_t* p, int64_t, Weights32& out) {
  out.scale = half_at(p), out.offset = half_at(p + 2);
  nibbles(p + 4, out.q);
}

void fifth_bits(const uint8_t* high, uint8_t* q) {
  const auto bits = at<uint32_t>(high);
  for (int i = 0; i < 32; ++i) q[i] |= ((bits >> i) & 1) << 4;
}

void read_q5_0(const uint8_t* p, int64_t, Weights32& out) {
  out.scale = half_at(p);
  nibbles(p + 6, out.q);
  fifth_bits(p + 2, out.q);
}

void read_q5_1(const uint8_t* p, int64_t, Weights32& out) {
  out.scale = half_at(p), out.offset = half_at(p + 2);
  nibbles(p + 8, out.q);
  fifth_bits(p + 4, out.q);
}

void read_q8_0(const uint8_t* p, int64_t, Weights32& out) {
  out.scale = half_at(p);
  for (int i = 0; i < 32; ++i) out.q[i] = p[2 + i] ^ 0x80;
}

// A sign for each of 128 weights.
void read_q1_0(const uint8_t* p, int64_t part, Weights32& out) {
  out.scale = half_at(p);
  const auto bits = at<uint32_t>(p + 2 + part * 4);
  for (int i = 0; i < 32; ++i) out.q[i] = static_cast<uint8_t>((bits >> i & 1) * 2);
}

// Blocks of 256 with a scale for 32

// The six-bit scale and minimum of a part, from a K-quant's twelve bytes (llama.cpp, ggml-quants.c, get_scale_min_k4).
void k4_scale(const uint8_t* s, int64_t j, float d, float dmin, Weights32& out) {
  int scale, minimum;
  if (j < 4) {
    scale = s[j] & 63, minimum = s[j + 4] & 63;
  } else {
    scale = (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
    minimum = (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
  }
  out.scale = d * static_cast<float>(scale), out.offset = -dmin * static_cast<float>(minimum);
}

void read_q4_k(const uint8_t* p, int64_t j, Weights32& out) {
  k4_scale(p + 4, j, half_at(p), half_at(p + 2), out);
  const uint8_t* qs = p + 16 + j / 2 * 32;
  for (int i = 0; i < 32; ++i) out.q[i] = j % 2 ? qs[i] >> 4 : qs[i] & 15;
}

void read_q5_k(const uint8_t* p, int64_t j, Weights32& out) {
  k4_scale(p + 4, j, half_at(p), half_at(p + 2), out);
  const uint8_t *high = p + 16, *qs = p + 48 + j / 2 * 32;
  for (int i = 0; i < 32; ++i) {
    out.q[i] = static_cast<uint8_t>((j % 2 ? qs[i] >> 4 : qs[i] & 15) | (((high[i] >> j) & 1) << 4));
  }
}

// Five ternary digits in a byte: a fraction of 256, whose leading digit a multiplication by 3 shifts out.
void read_tq1_0(const uint8_t* p, int64_t part, Weights32& out) {
  static constexpr uint8_t kPowers[] = {1, 3, 9, 27, 81};
  out.scale = half_at(p + 52);
  for (int64_t i = 0; i < 32; ++i) {
    int64_t w = part * 32 + i, byte, digit;
    if (w < 160) {
      byte = w % 32, digit = w / 32;
    } else if (w -= 160; w < 80) {
      byte = 32 + w % 16, digit = w / 16;
    } else {
      w -= 80, byte = 48 + w % 4, digit = w / 4;
    }
    const auto rest = static_cast<uint8_t>(p[byte] * kPowers[digit]);
    out.q[i] = static_cast<uint8_t>(rest * 3 >> 8);
  }
}

void two_bits(const uint8_t* packed, int64_t part, uint8_t* q) {
  const uint8_t* from = packed + part / 4 * 32;
  for (int i = 0; i < 32; ++i) q[i] = from[i] >> (2 * (part % 4)) & 3;
}

void read_tq2_0(const uint8_t* p, int64_t part, Weights32& out) {
  out.scale = half_at(p + 64);
  two_bits(p, part, out.q);
}

// Codes with a table

constexpr int8_t kFp4[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // E2M1, doubled
constexpr int8_t kNonlinear[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

bool all_zero(const uint8_t* codes) {  // of E2M1, where two codes are 0
  return ((at<uint64_t>(codes) | at<uint64_t>(codes + 8)) & 0x7777777777777777u) == 0;
}

// E8M0 and half of it, because the table is doubled. A block of zeros may have any scale.
void read_mxfp4(const uint8_t* p, int64_t, Weights32& out) {
  const uint32_t bits = p[0] < 2 ? 0x00200000u << p[0] : static_cast<uint32_t>(p[0] - 1) << 23;
  std::memcpy(&out.scale, &bits, 4);
  if (all_zero(p + 1)) out.scale = 0;
  nibbles(p + 1, out.q);
}

int mxfp4_exponent(const uint8_t* p) { return all_zero(p + 1) ? INT_MIN : p[0] - 128; }

void read_iq4_xs(const uint8_t* p, int64_t j, Weights32& out) {
  const int low = p[4 + j / 2] >> (4 * (j % 2)) & 15, high = at<uint16_t>(p + 2) >> (2 * j) & 3;
  out.scale = half_at(p) * static_cast<float>((low | high << 4) - 32);
  nibbles(p + 8 + j * 16, out.q);
}

// Codes from a grid: an entry has 8 or 4 of them, a byte each, below 8; a sign adds 8, and the table's upper half has the other sign.
struct Grid {
  const char* formats;
  int64_t count, width;
  bool tripled;  // IQ1: the values are -1, 0, 1 and the sign is that of an eighth, which is added
  std::vector<uint64_t> codes;
  int8_t table[16];
  std::atomic<bool> ready{false};
};
enum { kIq1, kIq2Xxs, kIq2Xs, kIq2S, kIq3Xxs, kIq3S };
Grid grids[] = {{"iq1_s iq1_m", 2048, 8, true, {}, {}},  {"iq2_xxs", 256, 8, false, {}, {}},  {"iq2_xs", 512, 8, false, {}, {}},
                {"iq2_s", 1024, 8, false, {}, {}},       {"iq3_xxs", 256, 4, false, {}, {}},  {"iq3_s", 512, 4, false, {}, {}}};

Grid* grid_of(const std::string& format) {
  for (Grid& grid : grids) {
    const std::string names = std::string(" ") + grid.formats + " ";
    if (names.find(" " + format + " ") != std::string::npos) return &grid;
  }
  return nullptr;
}

struct Signs {  // for each byte of signs, the eight to add
  uint64_t add[256];
  uint8_t even[128];  // seven signs and an eighth that makes the minuses even

  Signs() {
    for (int s = 0; s < 256; ++s) {
      add[s] = 0;
      int minuses = 0;
      for (int i = 0; i < 8; ++i) {
        if (s >> i & 1) add[s] |= uint64_t{8} << (8 * i), ++minuses;
      }
      if (s < 128) even[s] = static_cast<uint8_t>(s | (minuses % 2) << 7);
    }
  }
};
const Signs kSigns;

void eight(uint8_t* q, uint64_t codes, int signs) {
  codes |= kSigns.add[signs];
  std::memcpy(q, &codes, 8);
}

void read_iq2_xxs(const uint8_t* p, int64_t j, Weights32& out) {
  const uint8_t* qs = p + 2 + j * 8;
  const auto rest = at<uint32_t>(qs + 4);
  out.scale = half_at(p) * (0.5f + static_cast<float>(rest >> 28)) * 0.25f;
  for (int l = 0; l < 4; ++l) eight(out.q + 8 * l, grids[kIq2Xxs].codes[qs[l]], kSigns.even[rest >> (7 * l) & 127]);
}

void read_iq3_xxs(const uint8_t* p, int64_t j, Weights32& out) {
  const uint8_t* qs = p + 2 + j * 8;
  const auto rest = at<uint32_t>(p + 66 + j * 4);
  const auto& codes = grids[kIq3Xxs].codes;
  out.scale = half_at(p) * (0.5f + static_cast<float>(rest >> 28)) * 0.5f;
  for (int l = 0; l < 4; ++l) eight(out.q + 8 * l, codes[qs[2 * l]] | codes[qs[2 * l + 1]] << 32, kSigns.even[rest >> (7 * l) & 127]);
}

void read_iq3_s(const uint8_t* p, int64_t j, Weights32& out) {
  const uint8_t *qs = p + 2 + j * 8, *signs = p + 74 + j * 4;
  const int high = p[66 + j];
  const auto& codes = grids[kIq3S].codes;
  const auto four = [&](int i) { return codes[static_cast<size_t>(qs[i] | (high >> i & 1) << 8)]; };
  out.scale = half_at(p) * static_cast<float>(1 + 2 * (p[106 + j / 2] >> (4 * (j % 2)) & 15));
  for (int l = 0; l < 4; ++l) eight(out.q + 8 * l, four(2 * l) | four(2 * l + 1) << 32, signs[l]);
}

void read_iq1_s(const uint8_t* p, int64_t j, Weights32& out) {
  const int rest = at<uint16_t>(p + 34 + j * 2);
  out.scale = half_at(p) * static_cast<float>(2 * (rest >> 12 & 7) + 1) * 0.125f;
  for (int l = 0; l < 4; ++l) {
    const int entry = p[2 + j * 4 + l] | (rest >> (3 * l) & 7) << 8;
    eight(out.q + 8 * l, grids[kIq1].codes[static_cast<size_t>(entry)], rest & 0x8000 ? 255 : 0);
  }
}

template <int most_eighths>
int half_first(const uint8_t* p) {
  return exponent_of(half_at(p), static_cast<float>(most_eighths) / 8);
}

// A factor for 16, and a half for 256

constexpr int8_t kCounting[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

void read_q2_k(const uint8_t* p, int64_t j, Weights32& out) {
  two_bits(p + 16, j, out.q);
  out.scale = half_at(p + 80), out.offset = -half_at(p + 82);
  for (int half = 0; half < 2; ++half) {
    const int s = p[2 * j + half];
    out.factors[half] = static_cast<int8_t>(s & 15), out.minimums[half] = static_cast<int8_t>(s >> 4);
  }
}

constexpr int8_t kLessFour[] = {-4, -3, -2, -1, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0};

void read_q3_k(const uint8_t* p, int64_t j, Weights32& out) {
  two_bits(p + 32, j, out.q);
  for (int i = 0; i < kBlock; ++i) out.q[i] |= static_cast<uint8_t>((p[i] >> j & 1) << 2);
  const uint8_t* s = p + 96;
  out.scale = half_at(p + 108);
  for (int half = 0; half < 2; ++half) {
    const int64_t t = 2 * j + half;
    const int low = t < 8 ? s[t] & 15 : s[t - 8] >> 4, high = s[8 + t % 4] >> (2 * (t / 4)) & 3;
    out.factors[half] = static_cast<int8_t>((low | high << 4) - 32);
  }
}

void read_q6_k(const uint8_t* p, int64_t j, Weights32& out) {
  const int64_t half = j / 4, quarter = j % 4;
  const uint8_t *low = p + half * 64 + quarter % 2 * 32, *high = p + 128 + half * 32;
  out.scale = half_at(p + 208);
  std::memcpy(out.factors, p + 192 + half * 8 + quarter * 2, 2);
  for (int i = 0; i < kBlock; ++i) {
    const int nibble = quarter < 2 ? low[i] & 15 : low[i] >> 4, top = (high[i] >> (2 * quarter)) & 3;
    out.q[i] = static_cast<uint8_t>(nibble | top << 4);
  }
}

// The factor of an IQ2 format is that of an eighth of the half.
void iq2_factors(int scales, int8_t* factors) {
  for (int half = 0; half < 2; ++half) factors[half] = static_cast<int8_t>(1 + 2 * (scales >> (4 * half) & 15));
}

void read_iq2_xs(const uint8_t* p, int64_t j, Weights32& out) {
  out.scale = half_at(p);
  iq2_factors(p[66 + j], out.factors);
  for (int l = 0; l < 4; ++l) {
    const int entry = at<uint16_t>(p + 2 + (4 * j + l) * 2);
    eight(out.q + 8 * l, grids[kIq2Xs].codes[static_cast<size_t>(entry & 511)], kSigns.even[entry >> 9]);
  }
}

void read_iq2_s(const uint8_t* p, int64_t j, Weights32& out) {
  out.scale = half_at(p);
  iq2_factors(p[74 + j], out.factors);
  for (int l = 0; l < 4; ++l) {
    const int entry = p[2 + 4 * j + l] | (p[66 + j] >> (2 * l) & 3) << 8;
    eight(out.q + 8 * l, grids[kIq2S].codes[static_cast<size_t>(entry)], p[34 + 4 * j + l]);
  }
}

void read_iq1_m(const uint8_t* p, int64_t j, Weights32& out) {
  uint16_t half = 0;  // in the upper nibbles of the four words of scales
  for (int i = 0; i < 4; ++i) half |= static_cast<uint16_t>(at<uint16_t>(p + 48 + 2 * i) >> 12 << (4 * i));
  out.scale = half_to_float(half);
  for (int l = 0; l < 4; ++l) {
    const int64_t m = 4 * j + l, t = m / 2;
    const int high = p[32 + m / 2] >> (4 * (m % 2)) & 15, scale = at<uint16_t>(p + 48 + t / 4 * 2) >> (3 * (t % 4)) & 7;
    eight(out.q + 8 * l, grids[kIq1].codes[static_cast<size_t>(p[m] | (high & 7) << 8)], high & 8 ? 255 : 0);
    out.factors[l / 2] = static_cast<int8_t>(2 * scale + 1);
  }
}

// What the kernels have no blocks for

// UE4M3, and half of it, because the table is doubled.
float ue4m3(int x) {
  if (x == 0 || x == 127) return 0;
  const int exponent = x >> 3 & 15, mantissa = x & 7;
  return exponent ? std::ldexp(static_cast<float>(8 + mantissa), exponent - 11) : std::ldexp(static_cast<float>(mantissa), -10);
}

void read_nvfp4(const uint8_t* p, int64_t part, float* w) {
  for (int64_t s = 2 * part; s < 2 * part + 2; ++s, w += 16) {
    const uint8_t* codes = p + 4 + s * 8;
    const float d = ue4m3(p[s]);
    for (int i = 0; i < 8; ++i) {
      w[i] = d * static_cast<float>(kFp4[codes[i] & 15]), w[i + 8] = d * static_cast<float>(kFp4[codes[i] >> 4]);
    }
  }
}

// Floats

void read_f32(const uint8_t* p, int64_t, float* w) { std::memcpy(w, p, kBlock * 4); }
void read_f16(const uint8_t* p, int64_t, float* w) {
  typedef uint16_t H __attribute__((vector_size(8)));
  typedef uint32_t U __attribute__((vector_size(16)));
  typedef float F __attribute__((vector_size(16)));
  for (int i = 0; i < kBlock; i += 4) {  // as `halves` in vectors.h, but for infinities and NaNs, too
    const U h = __builtin_convertvector(at<H>(p + 2 * i), U), magnitude = (h & 0x7fff) << 13;
    const F scaled = reinterpret_cast<F>(magnitude) * 5.192296858534828e33f;
    const U beyond = reinterpret_cast<U>((h & 0x7c00) == 0x7c00) & 0x7f800000;
    const U bits = reinterpret_cast<U>(scaled) | beyond | (h & 0x8000) << 16;
    std::memcpy(w + i, &bits, 16);
  }
}
void read_bf16(const uint8_t* p, int64_t, float* w) {
  for (int i = 0; i < kBlock; ++i) {
    const uint32_t bits = static_cast<uint32_t>(at<uint16_t>(p + 2 * i)) << 16;
    std::memcpy(w + i, &bits, 4);
  }
}

// "s4g<group>": a half, the scale, and four-bit codes less 8, the first in the low nibble. "u4g<group>": a half, a zero point in a byte,
// codes. These are no file's formats: models/int4.py makes such rows from those of GPTQ and AWQ.

void pairs(const uint8_t* packed, uint8_t* q) {
  for (int i = 0; i < 16; ++i) q[2 * i] = packed[i] & 15, q[2 * i + 1] = packed[i] >> 4;
}

void read_s4(const uint8_t* p, int64_t part, Weights32& out) {
  out.scale = half_at(p);
  pairs(p + 2 + part * 16, out.q);
}

void read_u4(const uint8_t* p, int64_t part, Weights32& out) {
  out.scale = half_at(p), out.offset = static_cast<float>(p[2]);
  pairs(p + 3 + part * 16, out.q);
}

struct Named {
  const char* name;
  Format format;
};

const Named kFormats[] = {
    {"q1_0", {128, 18, read_q1_0, Kind::Q4, 1}},
    {"q4_0", {32, 18, read_q4_0, Kind::Q4, 8}},
    {"q4_1", {32, 20, read_q4_1, Kind::Q4, 0, Offset::Minimum}},
    {"q4_k", {kSuper, 144, read_q4_k, Kind::Q4, 0, Offset::Minimum}},
    {"q5_0", {32, 22, read_q5_0, Kind::Q5, 16}},
    {"q5_1", {32, 24, read_q5_1, Kind::Q5, 0, Offset::Minimum}},
    {"q5_k", {kSuper, 176, read_q5_k, Kind::Q5, 0, Offset::Minimum}},
    {"q8_0", {32, 34, read_q8_0, Kind::Q8, 128}},
    {"tq1_0", {kSuper, 54, read_tq1_0, Kind::Q4, 1}},
    {"tq2_0", {kSuper, 66, read_tq2_0, Kind::Q4, 1}},
    {"mxfp4", {32, 17, read_mxfp4, Kind::Q4, 0, Offset::None, kFp4, mxfp4_exponent, true}},
    {"iq4_nl", {32, 18, read_q4_0, Kind::Q4, 0, Offset::None, kNonlinear}},
    {"iq4_xs", {kSuper, 136, read_iq4_xs, Kind::Q4, 0, Offset::None, kNonlinear, half_first<256>}},
    {"iq1_s", {kSuper, 50, read_iq1_s, Kind::Q4, 0, Offset::None, grids[kIq1].table, half_first<15>}},
    {"iq2_xxs", {kSuper, 66, read_iq2_xxs, Kind::Q4, 0, Offset::None, grids[kIq2Xxs].table, half_first<31>}},
    {"iq3_xxs", {kSuper, 98, read_iq3_xxs, Kind::Q4, 0, Offset::None, grids[kIq3Xxs].table, half_first<62>}},
    {"iq3_s", {kSuper, 110, read_iq3_s, Kind::Q4, 0, Offset::None, grids[kIq3S].table, half_first<248>}},
};

const struct {
  const char* name;
  int64_t bytes;
  void (*codes)(const uint8_t*, int64_t, Weights32&);
  Kind kind;
  int32_t zero;
  const int8_t* table;
  float unit;
  Offset offset = Offset::None;
} kFactored[] = {
    {"q2_k", 84, read_q2_k, Kind::Q4, 0, kCounting, 1, Offset::Minimum},
    {"q3_k", 110, read_q3_k, Kind::Q4, 0, kLessFour, 1},
    {"q6_k", 210, read_q6_k, Kind::Q6, 32, nullptr, 1},
    {"iq1_m", 56, read_iq1_m, Kind::Q4, 0, grids[kIq1].table, 0.125f},
    {"iq2_xs", 74, read_iq2_xs, Kind::Q4, 0, grids[kIq2Xs].table, 0.125f},
    {"iq2_s", 82, read_iq2_s, Kind::Q4, 0, grids[kIq2S].table, 0.125f},
};

const struct {
  const char* name;
  int64_t weights, bytes;
  void (*floats)(const uint8_t*, int64_t, float*);
} kRounded[] = {{"f32", 32, 128, read_f32}, {"f16", 32, 64, read_f16}, {"bf16", 32, 64, read_bf16}, {"nvfp4", 64, 36, read_nvfp4}};

}  // namespace

Format format_of(const std::string& name) {
  const Grid* grid = grid_of(name);
  if (grid && !grid->ready.load(std::memory_order_acquire)) throw std::invalid_argument(name + " needs its grid, which has not been set");
  for (const Named& known : kFormats) {
    if (name == known.name) return known.format;
  }
  for (const auto& known : kFactored) {
    Format format{kSuper, known.bytes, known.codes, known.kind, known.zero, known.offset, known.table};
    format.scaling = Scaling::Factors, format.unit = known.unit;
    if (name == known.name) return format;
  }
  for (const auto& known : kRounded) {
    Format format{known.weights, known.bytes};
    format.floats = known.floats;
    if (name == known.name) return format;
  }
  const bool zeros = name.rfind("u4g", 0) == 0;
  if ((zeros || name.rfind("s4g", 0) == 0) && name.size() > 3 && name.size() < 12 && name.find_first_not_of("0123456789", 3) == std::string::npos) {
    const int64_t group = std::atoll(name.c_str() + 3);
    if (group > 0 && group % kBlock == 0) {
      if (zeros) return {group, 3 + group / 2, read_u4, Kind::Q4, 0, Offset::Zero};
      return {group, 2 + group / 2, read_s4, Kind::Q4, 8};
    }
  }
  throw std::invalid_argument("there is no packing from " + name);
}

bool needs_grid(const std::string& format) {
  const Grid* grid = grid_of(format);
  return grid && !grid->ready.load(std::memory_order_acquire);
}

void set_grid(const std::string& format, const int8_t* values, int64_t count, int64_t width) {
  Grid* grid = grid_of(format);
  if (!grid || count != grid->count || width != grid->width) throw std::invalid_argument(format + " has no grid of this size");
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  if (grid->ready.load(std::memory_order_relaxed)) return;
  int code[256], next = 0;  // of each value, in ascending order
  bool used[256] = {};
  for (int64_t i = 0; i < count * width; ++i) used[values[i] + 128] = true;
  int8_t table[16] = {};
  for (int v = -128; v < 128; ++v) {
    if (!used[v + 128]) continue;
    if (next == 8 || (grid->tripled ? v < -1 || v > 1 : v < 0)) throw std::invalid_argument(format + " has no such grid");
    table[next] = static_cast<int8_t>(grid->tripled ? 8 * v + 1 : v), table[8 + next] = static_cast<int8_t>(grid->tripled ? 8 * v - 1 : -v);
    code[v + 128] = next++;
  }
  grid->codes.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    uint64_t codes = 0;
    for (int64_t l = 0; l < width; ++l) codes |= static_cast<uint64_t>(code[values[i * width + l] + 128]) << (8 * l);
    grid->codes[static_cast<size_t>(i)] = codes;
  }
  std::memcpy(grid->table, table, sizeof table);
  grid->ready.store(true, std::memory_order_release);
}

}  // namespace shoal
