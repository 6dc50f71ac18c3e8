// Weights in the kernels' layout.
//
// A matrix [n, k] is cut into panels of 16 output rows. A panel is contiguous in memory and is read front to back:
//
//   F32   [k][16] float
//   Q8    [k/32][8][16][4] u8, then [k/32][16] f16 scales, then the offsets in the same layout if the format has them
//   Q4    [k/32][4][16][4] u8 (low nibble: the first 16 of the block, high nibble: the last 16), scales, offsets
//   Q5    as Q4, but each block's nibbles are followed by the fifth bits, [16][4] u8: bit j is that of weight 4 * j + i of the block,
//         where i is the byte's place among the four
//   Q6    [k/32][2][3][16][4] u8, then factors: each 64 bytes have four weights of every row in their low six bits, and the 192 bytes of a
//         half of the block have its last four in their high two bits, the lowest two in the first 64 bytes
//
// A weight is scale * (q - zero) + minimum; or, with a zero point in each block in the minimum's place, scale * (q - zero point); or,
// with a table, unit * scale * table[q]. The unit is a power of two that brings a table's scales into the range of a half. Four
// consecutive inputs of one output row are adjacent, because a dot-product instruction takes them together.
//
// With Scaling::Factors there are, in place of the scales and the offsets, [k/32][2][16] i8 factors, each of 16 weights, as many of the
// minimums if there are any, [k/256][16] f16, and as many for the minimums; a scale is the product of its factor and its half, and so is
// a minimum. Q6 is always like that; Q4 may be, with a table, and only it has minimums then. Stored formats map onto all this
// without rounding a weight again.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace shoal {

constexpr int64_t kPanel = 16;   // output rows of a panel
constexpr int64_t kBlock = 32;   // inputs that share a scale
constexpr int64_t kSuper = 256;  // inputs that share a half, where scales are products

enum class Kind : uint8_t { F32, Q8, Q4, Q5, Q6 };
enum class Offset : uint8_t { None, Minimum, Zero };  // what a block has beside its scale
enum class Scaling : uint8_t { Halves, Factors };      // a half for 32 weights; a byte for 16 times a half for 256

// 64-byte aligned memory from large blocks of huge pages, so that reading weights front to back is not slowed by a page
// walk every 4 KiB; matrices packed one after another are stored one after another. Throws std::bad_alloc.
using Buffer = std::shared_ptr<uint8_t>;
Buffer allocate(int64_t bytes);

// Bytes of a block's codes, of the 16 rows of a panel.
constexpr int64_t code_bytes(int bits) { return kPanel * kBlock * bits / 8; }

struct Matrix {
  Kind kind = Kind::F32;
  Offset offset = Offset::None;
  Scaling scaling = Scaling::Halves;
  bool has_table = false;
  int8_t table[16] = {};
  float unit = 1;
  int32_t zero = 0;
  int64_t n = 0, k = 0;
  int64_t panel_bytes = 0;
  Buffer data;

  // What `panel_bytes` follows from. Throws std::invalid_argument if there can be no such matrix.
  void lay_out();
  int64_t panels() const { return (n + kPanel - 1) / kPanel; }
  int64_t blocks() const { return k / kBlock; }
  int64_t bytes() const { return panels() * panel_bytes; }
  const uint8_t* panel(int64_t p) const { return data.get() + p * panel_bytes; }
  int64_t block_bytes() const { return code_bytes(kind == Kind::Q8 ? 8 : kind == Kind::Q6 ? 6 : kind == Kind::Q5 ? 5 : 4); }
  const uint16_t* scales(int64_t p) const { return reinterpret_cast<const uint16_t*>(panel(p) + blocks() * block_bytes()); }
  const uint16_t* offsets(int64_t p) const { return scales(p) + blocks() * kPanel; }
  const int8_t* factors(int64_t p) const { return reinterpret_cast<const int8_t*>(scales(p)); }
  const int8_t* minimum_factors(int64_t p) const { return factors(p) + blocks() * 2 * kPanel; }
  const uint16_t* supers(int64_t p) const { return scales(p) + blocks() * kPanel * (offset == Offset::Minimum ? 2 : 1); }
  const uint16_t* minimum_supers(int64_t p) const { return supers(p) + k / kSuper * kPanel; }
};

// Packs rows [n, k] of a stored format ("f32", "f16", "bf16", a GGUF type's name, or "s4g<group>" and "u4g<group>" of formats.cpp) with
// so many threads. The target is "f32", "q8", "q4", or, if that is the format's own, "q5" or "q6": a format that runs as it is stored keeps
// its blocks where the target is its own, everything else is rounded from floats. `order`, if not null, gives for each
// output row the stored row that it comes from. Throws std::invalid_argument.
std::shared_ptr<Matrix> pack(const std::string& format, const std::string& target, const uint8_t* rows, int64_t row_bytes,
                             int64_t n, int64_t k, const int64_t* order, int threads = 1);

float half_to_float(uint16_t h);
uint16_t float_to_half(float f);

}  // namespace shoal
