// A team of threads that goes through the phases of a stage together.
//
// Between two phases of a decode step there are only a few microseconds, so members spin briefly, then sleep; between
// steps they sleep in the kernel. A team of one is only the calling thread and costs nothing.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace shoal {

class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Runs body(member) on every member, with the caller as member 0, and returns when all are done.
  void run(const std::function<void(int)>& body);

  // Every member of the running body waits here for all others.
  void barrier(int member);

 private:
  void work(int member);

  // A member that has slept leaves a processor on which another one runs. The system often wakes both on one, and moves one of them away
  // only some 25 ms later, which is several steps.
  void part(int member);

  int size_;
  std::vector<std::atomic<int>> places_;  // by member: the processor on which it was last
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* body_ = nullptr;
  std::atomic<uint64_t> round_{0};
  bool stop_ = false;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
};

// Hands out [0, count): members take what is next, so that a slow one does less.
class Share {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  // In chunks of one size.
  template <class F>
  void each(int64_t count, int64_t chunk, F&& f) {
    for (;;) {
      const int64_t begin = next_.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= count) return;
      const int64_t end = begin + chunk < count ? begin + chunk : count;
      for (int64_t i = begin; i < end; ++i) f(i);
    }
  }
  // A long run for each member, then shorter ones: weights that are read front to back come faster from memory, by about a sixth
  // of a step of one row, than the same weights in many chunks.
  template <class F>
  void runs(int64_t count, int64_t members, F&& f) {
    const int64_t first = std::max<int64_t>(1, count / (2 * members)), later = std::max<int64_t>(1, count / (4 * members));
    for (;;) {
      const int64_t turn = next_.fetch_add(1, std::memory_order_relaxed);
      const bool early = turn < members;
      const int64_t begin = early ? turn * first : members * first + (turn - members) * later;
      if (begin >= count) return;
      const int64_t end = std::min(count, begin + (early ? first : later));
      for (int64_t i = begin; i < end; ++i) f(i);
    }
  }

 private:
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace shoal
