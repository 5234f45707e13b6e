// A pool of threads that share out numbered tasks. Which thread does which task is left to chance, so tasks must write
// only what they own: then the result does not depend on the number of threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace raster {

class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    // Runs task(0) .. task(count - 1), the caller's thread among the workers, and returns when all are done. A worker
    // that wakes too late to find a task left is not waited for: on a busy machine that could take milliseconds.
    void run(int count, const std::function<void(int)>& task);
    int size() const { return (int)workers_.size() + 1; }

private:
    void work();
    void drain();

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> round_{0};
    std::atomic<int> asleep_{0};
    bool stop_ = false;            // guarded by mutex_
    const std::function<void(int)>* task_ = nullptr;
    int count_ = 0;
    bool open_ = false;            // guarded by mutex_: whether workers may still join the round
    std::atomic<int> next_{0};
    std::atomic<int> working_{0};  // workers that have joined and not left
};

// The process's pool, made at the first use and again in a child after fork or when `set_threads` asked for another
// size. Hold the lock while running: one job at a time.
struct Shared {
    std::unique_lock<std::mutex> lock;
    Pool& pool;
};
Shared shared_pool();
void set_threads(int threads);

}  // namespace raster
