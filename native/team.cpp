#include "team.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace shoal {
namespace {

// The processor that runs this thread; -1: not known.
int processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

constexpr int kSpins = 1000;  // about 20 us: longer than a gap between phases, much shorter than a scheduler tick

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Awaited {
  uint32_t value;
  bool slept;
};

// Waits until the value differs from `old`. It spins longer than the usual gap between two phases, then sleeps, which frees the core
// for a member that the system has queued behind this one.
Awaited wait_past(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return {now, false};
    relax();
  }
  value.wait(old, std::memory_order_acquire);
  return {value.load(std::memory_order_acquire), true};
}

}  // namespace

Team::Team(int threads) : size_(threads), places_(static_cast<size_t>(threads)) {
  for (auto& place : places_) place.store(-1, std::memory_order_relaxed);
  for (int member = 1; member < size_; ++member) threads_.emplace_back([this, member] { work(member); });
}

Team::~Team() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    round_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Team::part(int member) {
  const int here = processor();
  places_[static_cast<size_t>(member)].store(here, std::memory_order_relaxed);
#if defined(__linux__)
  bool shared = false;
  for (int other = 0; other < member; ++other) {
    shared |= here >= 0 && places_[static_cast<size_t>(other)].load(std::memory_order_relaxed) == here;
  }
  cpu_set_t allowed;
  if (!shared || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t free = allowed;
  for (const auto& place : places_) {
    if (const int taken = place.load(std::memory_order_relaxed); taken >= 0) CPU_CLR(taken, &free);
  }
  if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof free, &free) != 0) return;
  places_[static_cast<size_t>(member)].store(processor(), std::memory_order_relaxed);
  sched_setaffinity(0, sizeof allowed, &allowed);  // from now on the system may move it again
#endif
}

void Team::run(const std::function<void(int)>& body) {
  if (size_ == 1) return body(0);
  part(0);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    done_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  body(0);
  uint32_t done = done_.load(std::memory_order_acquire);
  while (done != static_cast<uint32_t>(size_ - 1)) done = wait_past(done_, done).value;
}

void Team::work(int member) {
  uint64_t seen = 0;
  for (;;) {
    for (int i = 0; i < kSpins && round_.load(std::memory_order_acquire) == seen; ++i) relax();
    const std::function<void(int)>* body;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
      if (stop_) return;
      seen = round_.load(std::memory_order_acquire);
      body = body_;
    }
    part(member);
    (*body)(member);
    done_.fetch_add(1, std::memory_order_release);
    done_.notify_one();
  }
}

void Team::barrier(int member) {
  if (size_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    // The count restarts before the phase opens: until then nobody can arrive at the next barrier.
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
    return;
  }
  if (wait_past(phase_, phase).slept) part(member);
}

}  // namespace shoal
