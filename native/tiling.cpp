#include "block.h"

namespace shoal {
namespace {

constexpr int32_t kSplit = 512;       // tokens of context processed in one piece; fixed, so that results do not depend on the threads
constexpr int64_t kTileQueries = 12;  // query vectors of a tile, about
constexpr int64_t kTilesOfThread = 8;  // that a thread should have at least, to be busy until the others are, too

}  // namespace

Tiling::Tiling(const Heads& shape, const Batch& batch, int threads) : heads(shape) {
  splits_.assign(static_cast<size_t>(batch.sequences), 0);
  int32_t longest = 1;
  const int32_t group = static_cast<int32_t>(heads.q / heads.kv);
  const int32_t rows_at_once = static_cast<int32_t>(std::max<int64_t>(1, kTileQueries / group));
  const int32_t cuts = static_cast<int32_t>((group + kTileQueries - 1) / kTileQueries), heads_at_once = (group + cuts - 1) / cuts;
  const auto splits_of = [&](int32_t s) { return (batch.positions[s] + batch.starts[s + 1] - batch.starts[s] + kSplit - 1) / kSplit; };
  int64_t all = 0;  // splits of all tiles
  for (int32_t s = 0; s < batch.sequences; ++s) {
    all += (batch.starts[s + 1] - batch.starts[s] + rows_at_once - 1) / rows_at_once * splits_of(s) * heads.kv * cuts;
  }
  for (int32_t s = 0; s < batch.sequences; ++s) {
    const int32_t rows = batch.starts[s + 1] - batch.starts[s], splits = splits_of(s);
    // A decode row whose tiles are more than a small part of what each thread has to do: its splits become separate tasks. Otherwise a
    // thread that goes from split to split has the next blocks fetched already.
    const bool apart = rows == 1 && splits > 1 && threads > 1 && splits * threads * kTilesOfThread > all;
    if (apart) splits_[static_cast<size_t>(s)] = splits, most_splits_ = std::max<int64_t>(most_splits_, splits);
    longest = std::max(longest, splits);
    for (int32_t head = 0; head < heads.kv; ++head) {
      for (int32_t first = 0; first < group; first += heads_at_once) {
        for (int32_t row = 0; row < rows; row += rows_at_once) {
          for (int32_t split = apart ? 0 : -1; split < (apart ? splits : 0); ++split) {
            tiles_.push_back({s, head, first, std::min(heads_at_once, group - first), batch.starts[s] + row,
                              std::min(rows_at_once, rows - row), split});
          }
        }
      }
    }
  }
  const int64_t part = heads.value + 2;
  partial_.resize(static_cast<size_t>(batch.sequences * heads.q * most_splits_ * part));
  scratch_size_ = std::max<int64_t>(heads_at_once, kTileQueries) * longest * part;
  scratch_.resize(static_cast<size_t>(scratch_size_ * threads));
}

void Tiling::join(const Kernels& kernels, const Batch& batch, const Work& work, int64_t seq) {
  const int64_t splits = splits_[static_cast<size_t>(seq)], d = heads.value;
  for (int64_t h = 0; splits && h < heads.q; ++h) {
    kernels.merge(partial_.data() + (seq * heads.q + h) * most_splits_ * (d + 2), splits, d, work.sinks ? work.sinks + h : nullptr,
                  work.out + (batch.starts[seq] * heads.q + h) * d);
  }
}

void Tiling::attend(const Kernels& kernels, const Batch& batch, const Work& work, int64_t index, int member) {
  const Tile& tile = tiles_[static_cast<size_t>(index)];
  const int64_t d = heads.value, group = heads.q / heads.kv, part = d + 2;
  const int32_t* table = batch.tables + tile.sequence * batch.width;
  const int32_t position = batch.positions[tile.sequence] + tile.row - batch.starts[tile.sequence];
  const int32_t high = position + tile.rows;
  const int32_t splits = (high + kSplit - 1) / kSplit;
  float* scratch = scratch_.data() + member * scratch_size_;
  std::vector<Query> queries(static_cast<size_t>(tile.rows * tile.heads));
  const int64_t begin = tile.head * group + tile.first;
  size_t at = 0;
  for (int32_t r = 0; r < tile.rows; ++r) {
    const int32_t end = position + r + 1;
    const int32_t first = work.window > 0 && end > work.window ? end - work.window : 0;
    for (int64_t g = 0; g < tile.heads; ++g, ++at) {
      const int64_t head = begin + g;
      queries[at].q = work.queries + (tile.row + r) * work.stride + head * heads.key;
      queries[at].out = work.out + ((tile.row + r) * heads.q + head) * d;
      queries[at].partial = nullptr;
      queries[at].sink = work.sinks ? work.sinks + head : nullptr;
      queries[at].first = first, queries[at].end = end;
    }
  }
  const int count = static_cast<int>(queries.size());
  if (splits == 1) {
    kernels.attend(work.pool, tile.head, table, 0, kSplit, work.scoring, queries.data(), count);
    return;
  }
  if (tile.split >= 0) {  // rows of one: partials [sequence][q head][split]
    for (int g = 0; g < count; ++g) {
      queries[static_cast<size_t>(g)].partial =
          partial_.data() + ((tile.sequence * heads.q + begin + g) * most_splits_ + tile.split) * part;
    }
    kernels.attend(work.pool, tile.head, table, tile.split * kSplit, (tile.split + 1) * kSplit, work.scoring, queries.data(), count);
    return;
  }
  for (int32_t split = 0; split < splits; ++split) {
    for (int i = 0; i < count; ++i) queries[static_cast<size_t>(i)].partial = scratch + (i * splits + split) * part;
    kernels.attend(work.pool, tile.head, table, split * kSplit, (split + 1) * kSplit, work.scoring, queries.data(), count);
  }
  for (int i = 0; i < count; ++i) {
    const Query& query = queries[static_cast<size_t>(i)];
    kernels.merge(scratch + i * splits * part, splits, d, query.sink, query.out);
  }
}

}  // namespace shoal
