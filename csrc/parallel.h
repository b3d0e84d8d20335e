// Work on ranges in parallel: OpenMP where the build has torch's runtime (libgomp), threads of our own elsewhere, since
// a second OpenMP runtime in one process fights the first for the cores.
#pragma once

#include <cstdint>
#ifndef _OPENMP
#include <thread>
#include <vector>
#endif

namespace lorasmith {

// Calls work(first, last) on disjoint ranges that make up 0 <= i < count, on at most `threads` threads, each with at
// least `least` items.
template <class Work>
void for_ranges(int64_t count, int64_t least, int threads, const Work& work) {
    const int64_t most = count / (least > 0 ? least : 1);
    const int64_t ranges = most < threads ? most : threads;
    if (ranges <= 1) {
        work(int64_t(0), count);
        return;
    }
    const auto run = [&](int64_t range) { work(count * range / ranges, count * (range + 1) / ranges); };
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(ranges))
    for (int64_t range = 0; range < ranges; ++range) run(range);
#else
    std::vector<std::thread> others;
    for (int64_t range = 1; range < ranges; ++range) others.emplace_back(run, range);
    run(0);
    for (std::thread& other : others) other.join();
#endif
}

}  // namespace lorasmith
