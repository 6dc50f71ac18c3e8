#include "matrix.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>
#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif

namespace shoal {

namespace {

constexpr int64_t kHugePage = 2 << 20, kArena = 16 << 20;

std::shared_ptr<uint8_t> pages(int64_t bytes) {
#if defined(_WIN32)
  void* p = _aligned_malloc(static_cast<size_t>(bytes), static_cast<size_t>(kHugePage));
  const auto release = [](uint8_t* q) { _aligned_free(q); };
#else
  void* p = std::aligned_alloc(static_cast<size_t>(kHugePage), static_cast<size_t>(bytes));
  const auto release = [](uint8_t* q) { std::free(q); };
#endif
  if (p == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // only advice: it may be refused
#endif
  return {static_cast<uint8_t*>(p), release};
}

}  // namespace

Buffer allocate(int64_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<uint8_t> current;  // lives as long as a matrix in it
  static int64_t used = 0;
  const int64_t size = (bytes + 63) / 64 * 64;
  if (size > kArena / 2) return pages((size + kHugePage - 1) / kHugePage * kHugePage);
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<uint8_t> arena = current.lock();
  if (!arena || used + size > kArena) current = arena = pages(kArena), used = 0;
  uint8_t* at = arena.get() + used;
  used += size;
  return {arena, at};
}

float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  uint32_t exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else if (mantissa == 0) {
    bits = sign;
  } else {
    exponent = 113;
    while (!(mantissa & 1024)) mantissa <<= 1, --exponent;
    bits = sign | (exponent << 23) | ((mantissa & 1023) << 13);
  }
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint16_t float_to_half(float f) {  // round to nearest even
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffffu;
  if (bits >= 0x47800000u) return sign | (bits > 0x7f800000u ? 0x7e00 : 0x7c00);
  if (bits < 0x38800000u) {  // subnormal halves: let the float adder round
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &magnitude, 4);
    return sign | static_cast<uint16_t>(rounded - 0x3f000000u);
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return sign | static_cast<uint16_t>((bits - 0x38000000u) >> 13);
}

namespace {

struct Block {  // 32 weights of one output row: scale * (q - zero) + minimum
  uint8_t q[kBlock];
  float scale, minimum;
};

float half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return half_to_float(h);
}

void nibbles(const uint8_t* packed, uint8_t* q) {
  for (int i = 0; i < 16; ++i) q[i] = packed[i] & 15, q[i + 16] = packed[i] >> 4;
}

void read_q4_0(const uint8_t* row, int64_t b, Block& out) {
  const uint8_t* p = row + b * 18;
  out.scale = half_at(p), out.minimum = 0;
  nibbles(p + 2, out.q);
}

void read_q4_1(const uint8_t* row, int64_t b, Block& out) {
  const uint8_t* p = row + b * 20;
  out.scale = half_at(p), out.minimum = half_at(p + 2);
  nibbles(p + 4, out.q);
}

void fifth_bits(const uint8_t* high, uint8_t* q) {
  uint32_t bits;
  std::memcpy(&bits, high, 4);
  for (int i = 0; i < 32; ++i) q[i] |= ((bits >> i) & 1) << 4;
}

void read_q5_0(const uint8_t* row, int64_t b, Block& out) {
  const uint8_t* p = row + b * 22;
  out.scale = half_at(p), out.minimum = 0;
  nibbles(p + 6, out.q);
  fifth_bits(p + 2, out.q);
}

void read_q5_1(const uint8_t* row, int64_t b, Block& out) {
  const uint8_t* p = row + b * 24;
  out.scale = half_at(p), out.minimum = half_at(p + 2);
  nibbles(p + 8, out.q);
  fifth_bits(p + 4, out.q);
}

void read_q8_0(const uint8_t* row, int64_t b, Block& out) {
  const uint8_t* p = row + b * 34;
  out.scale = half_at(p), out.minimum = 0;
  for (int i = 0; i < 32; ++i) out.q[i] = p[2 + i] ^ 0x80;
}

// The six-bit scale and minimum of sub-block j, from a K-quant's twelve bytes (llama.cpp, ggml-quants.c, get_scale_min_k4).
void k4_scale(const uint8_t* s, int64_t j, float d, float dmin, Block& out) {
  int scale, minimum;
  if (j < 4) {
    scale = s[j] & 63, minimum = s[j + 4] & 63;
  } else {
    scale = (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
    minimum = (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
  }
  out.scale = d * static_cast<float>(scale), out.minimum = -dmin * static_cast<float>(minimum);
}

void read_q4_k(const uint8_t* row, int64_t b, Block& out) {
  const uint8_t* p = row + b / 8 * 144;
  const int64_t j = b % 8;
  k4_scale(p + 4, j, half_at(p), half_at(p + 2), out);
  const uint8_t* qs = p + 16 + j / 2 * 32;
  for (int i = 0; i < 32; ++i) out.q[i] = j % 2 ? qs[i] >> 4 : qs[i] & 15;
}

void read_q5_k(const uint8_t* row, int64_t b, Block& out) {
  const uint8_t* p = row + b / 8 * 176;
  const int64_t j = b % 8;
  k4_scale(p + 4, j, half_at(p), half_at(p + 2), out);
  const uint8_t *high = p + 16, *qs = p + 48 + j / 2 * 32;
  for (int i = 0; i < 32; ++i) {
    out.q[i] = static_cast<uint8_t>((j % 2 ? qs[i] >> 4 : qs[i] & 15) | (((high[i] >> j) & 1) << 4));
  }
}

void read_f32(const uint8_t* row, int64_t b, float* w) { std::memcpy(w, row + b * kBlock * 4, kBlock * 4); }

// Six bits and a scale per 16 weights; the kernels have no such format (ggml-quants.c, dequantize_row_q6_K).
void read_q6_k(const uint8_t* row, int64_t b, float* w) {
  const uint8_t* p = row + b / 8 * 210;
  const int64_t j = b % 8, half = j / 4, quarter = j % 4;
  const uint8_t *low = p + half * 64 + quarter % 2 * 32, *high = p + 128 + half * 32;
  const auto* scales = reinterpret_cast<const int8_t*>(p + 192) + half * 8 + quarter * 2;
  const float d = half_at(p + 208);
  for (int i = 0; i < kBlock; ++i) {
    const int nibble = quarter < 2 ? low[i] & 15 : low[i] >> 4, top = (high[i] >> (2 * quarter)) & 3;
    w[i] = d * static_cast<float>(scales[i / 16]) * static_cast<float>((nibble | (top << 4)) - 32);
  }
}

// Symmetric rounding; the stored half is the same scale that was used for rounding.
void round_block(const float* w, int levels, Block& out) {
  float peak = 0, extreme = 0;
  for (int i = 0; i < kBlock; ++i) {
    if (std::fabs(w[i]) > peak) peak = std::fabs(w[i]), extreme = w[i];
  }
  // Four bits reach from -8 to 7: put the extreme value at -8, as llama.cpp's Q4_0 does.
  const float wanted = levels == 8 ? extreme / -8.f : peak / 127.f;
  out.scale = half_to_float(float_to_half(wanted)), out.minimum = 0;
  const float inverse = out.scale != 0 ? 1.f / out.scale : 0.f;
  for (int i = 0; i < kBlock; ++i) {
    const float q = std::nearbyint(w[i] * inverse);
    const float low = levels == 8 ? -8.f : -127.f, high = levels == 8 ? 7.f : 127.f;
    out.q[i] = static_cast<uint8_t>(static_cast<int>(q < low ? low : q > high ? high : q) + levels);
  }
}

struct Format {
  const char* name;
  Kind kind;
  int32_t zero;
  bool has_min;
  int64_t block_bytes, blocks_together;
  void (*read)(const uint8_t*, int64_t, Block&);
};

const Format kFormats[] = {
    {"q4_0", Kind::Q4, 8, false, 18, 1, read_q4_0},   {"q4_1", Kind::Q4, 0, true, 20, 1, read_q4_1},
    {"q4_k", Kind::Q4, 0, true, 144, 8, read_q4_k},   {"q5_0", Kind::Q8, 16, false, 22, 1, read_q5_0},
    {"q5_1", Kind::Q8, 0, true, 24, 1, read_q5_1},    {"q5_k", Kind::Q8, 0, true, 176, 8, read_q5_k},
    {"q8_0", Kind::Q8, 128, false, 34, 1, read_q8_0},
};

void store(Matrix& m, int64_t panel, int64_t lane, int64_t b, const Block& block) {
  uint8_t* base = m.data.get() + panel * m.panel_bytes;
  if (m.kind == Kind::Q8) {
    for (int64_t i = 0; i < kBlock; ++i) base[b * 512 + (i / 4) * 64 + lane * 4 + i % 4] = block.q[i];
  } else {
    for (int64_t i = 0; i < 16; ++i) {
      base[b * 256 + (i / 4) * 64 + lane * 4 + i % 4] = static_cast<uint8_t>(block.q[i] | (block.q[i + 16] << 4));
    }
  }
  uint16_t* scales = const_cast<uint16_t*>(m.scales(panel)) + b * kPanel + lane;
  *scales = float_to_half(block.scale);
  if (m.has_min) scales[m.blocks() * kPanel] = float_to_half(block.minimum);
}

}  // namespace

std::shared_ptr<Matrix> pack(const std::string& format, const std::string& target, const uint8_t* rows, int64_t row_bytes,
                             int64_t n, int64_t k, const int64_t* order) {
  auto m = std::make_shared<Matrix>();
  m->n = n, m->k = k;
  const auto row = [&](int64_t i) { return rows + (order ? order[i] : i) * row_bytes; };

  if (format == "f32" && target == "f32") {
    if (row_bytes != k * 4) throw std::invalid_argument("f32 rows have the wrong length");
    m->kind = Kind::F32;
    m->panel_bytes = k * kPanel * 4;
    m->data = allocate(m->bytes());
    std::memset(m->data.get(), 0, static_cast<size_t>(m->bytes()));
    auto* out = reinterpret_cast<float*>(m->data.get());
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t* from = row(i);
      for (int64_t j = 0; j < k; ++j) std::memcpy(out + (i / kPanel * k + j) * kPanel + i % kPanel, from + j * 4, 4);
    }
    return m;
  }

  if (k % kBlock) throw std::invalid_argument("a quantised matrix needs a multiple of 32 inputs");
  const Format* stored = nullptr;
  for (const Format& f : kFormats) {
    if (format == f.name) stored = &f;
  }
  if (stored) {
    m->kind = stored->kind, m->zero = stored->zero, m->has_min = stored->has_min;
    if (k % (kBlock * stored->blocks_together) || row_bytes != k / kBlock / stored->blocks_together * stored->block_bytes) {
      throw std::invalid_argument(format + " rows have the wrong length");
    }
    if (target != (m->kind == Kind::Q8 ? "q8" : "q4")) throw std::invalid_argument(format + " does not pack to " + target);
  } else if ((format == "f32" || format == "q6_k") && (target == "q8" || target == "q4")) {
    if (format == "q6_k" && k % 256) throw std::invalid_argument("q6_k rows have the wrong length");
    if (row_bytes != (format == "f32" ? k * 4 : k / 256 * 210)) throw std::invalid_argument(format + " rows have the wrong length");
    m->kind = target == "q8" ? Kind::Q8 : Kind::Q4;
    m->zero = target == "q8" ? 128 : 8;
  } else {
    throw std::invalid_argument("no packing from " + format + " to " + target);
  }
  const int64_t bytes = m->blocks() * ((m->kind == Kind::Q8 ? 512 : 256) + 32 * (m->has_min ? 2 : 1));
  m->panel_bytes = (bytes + 63) / 64 * 64;
  m->data = allocate(m->bytes());
  std::memset(m->data.get(), 0, static_cast<size_t>(m->bytes()));
  Block block;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t b = 0; b < m->blocks(); ++b) {
      if (stored) {
        stored->read(row(i), b, block);
      } else {
        float w[kBlock];
        (format == "f32" ? read_f32 : read_q6_k)(row(i), b, w);
        round_block(w, target == "q8" ? 128 : 8, block);
      }
      store(*m, i / kPanel, i % kPanel, b, block);
    }
  }
  return m;
}

}  // namespace shoal
