#include "pool.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace raster {

namespace {

// A stage of a frame takes a fraction of a millisecond: waking a sleeping thread costs more than waiting this long.
constexpr int SPINS = 4000;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

int process() {
#if defined(__unix__) || defined(__APPLE__)
    return (int)getpid();
#else
    return 0;
#endif
}

std::mutex shared_mutex;
std::unique_ptr<Pool> shared;
int shared_process = 0;
int wanted_threads = 0;

}  // namespace

Pool::Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> guard(mutex_);
        stop_ = true;
        ++round_;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::run(int count, const std::function<void(int)>& task) {
    if (count <= 0) return;
    if (workers_.empty() || count == 1) {
        for (int i = 0; i < count; ++i) task(i);
        return;
    }
    {
        std::lock_guard<std::mutex> guard(mutex_);
        task_ = &task;
        count_ = count;
        next_ = 0;
        open_ = true;
        ++round_;
    }
    if (asleep_.load() > 0) wake_.notify_all();
    drain();
    {
        std::lock_guard<std::mutex> guard(mutex_);
        open_ = false;
    }
    for (int spins = 0; working_.load() > 0; ++spins) spins < SPINS ? relax() : std::this_thread::yield();
}

void Pool::drain() {
    for (int i = next_++; i < count_; i = next_++) (*task_)(i);
}

void Pool::work() {
    uint64_t seen = 0;
    for (;;) {
        for (int spins = 0; round_.load() == seen && spins < SPINS; ++spins) relax();
        {
            std::unique_lock<std::mutex> lock(mutex_);
            ++asleep_;
            wake_.wait(lock, [&] { return round_.load() != seen; });
            --asleep_;
            if (stop_) return;
            seen = round_.load();
            if (!open_) continue;
            ++working_;
        }
        drain();
        --working_;
    }
}

Shared shared_pool() {
    std::unique_lock<std::mutex> lock(shared_mutex);
    const int threads = wanted_threads > 0 ? wanted_threads : (int)std::thread::hardware_concurrency();
    if (!shared || shared_process != process() || shared->size() != (threads > 1 ? threads : 1)) {
        // After a fork the old pool's threads do not exist: joining them would wait for ever.
        if (shared && shared_process != process()) (void)shared.release();
        shared.reset(new Pool(threads > 1 ? threads : 1));
        shared_process = process();
    }
    return Shared{std::move(lock), *shared};
}

void set_threads(int threads) {
    std::lock_guard<std::mutex> lock(shared_mutex);
    wanted_threads = threads;
}

}  // namespace raster
