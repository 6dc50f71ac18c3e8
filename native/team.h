// A team of threads that goes through the phases of a stage together.
//
// Between two phases of a decode step there are only a few microseconds, so members spin briefly, then sleep; between
// steps they sleep in the kernel. A team of one is only the calling thread and costs nothing.
#pragma once
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
  void barrier();

 private:
  void work(int member);

  int size_;
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

// Hands out [0, count) in chunks: members take the next free one, so a member that the system has stopped delays little.
class Share {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  template <class F>
  void each(int64_t count, int64_t chunk, F&& f) {
    for (;;) {
      const int64_t begin = next_.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= count) return;
      const int64_t end = begin + chunk < count ? begin + chunk : count;
      for (int64_t i = begin; i < end; ++i) f(i);
    }
  }

 private:
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace shoal
