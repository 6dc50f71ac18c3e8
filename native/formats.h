// Readers of stored formats: GGUF's, and groups of four-bit codes as GPTQ and AWQ have them.
#pragma once
#include <cstdint>
#include <string>

#include "matrix.h"

namespace shoal {

// 32 weights of one output row: scale * code + offset, where the code is q - zero, or what the matrix's table has at q; if the
// format has a zero point in each block, that is the offset, and a weight is scale * (q - offset). With Scaling::Factors the scale is
// that of 256 weights, times the factor of each 16; and so is the offset.
struct Weights32 {
  uint8_t q[kBlock];
  float scale, offset;
  int8_t factors[2], minimums[2];
};

// A reader is given the stored block and which 32 of its weights are meant.
struct Format {
  int64_t weights, bytes;  // of a stored block
  // Formats that run as they are stored: as Q8, Q6, Q5 or Q4.
  void (*codes)(const uint8_t* stored, int64_t part, Weights32& out) = nullptr;
  Kind kind = Kind::F32;
  int32_t zero = 0;
  Offset offset = Offset::None;
  const int8_t* table = nullptr;
  int (*exponent)(const uint8_t* stored) = nullptr;  // with a table: no scale of the block is above 2^it; INT_MIN: none matters
  bool exact = false;                                // a scale that is no half is not rounded, but refused
  // The others, as floats.
  void (*floats)(const uint8_t* stored, int64_t part, float* w) = nullptr;
  Scaling scaling = Scaling::Halves;
  float unit = 1;  // with a table, if there is no exponent
};

// Throws std::invalid_argument if it is unknown, or if its grid has not been set.
Format format_of(const std::string& name);

// The IQ formats choose groups of weights from a grid. The grids are data of the format, and whoever packs such a matrix sets its grid
// first: values [count, width]. Setting it again changes nothing. Throws std::invalid_argument for sizes that the format does not have.
bool needs_grid(const std::string& format);
void set_grid(const std::string& format, const int8_t* values, int64_t count, int64_t width);

}  // namespace shoal
