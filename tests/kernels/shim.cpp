#include "shim.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <ucontext.h>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;
extern char __start_shared_memory[], __stop_shared_memory[];

namespace shim {
namespace {

constexpr size_t STACK = 64 << 10;
constexpr unsigned WARP = 32;

enum class State { Ready, AtBarrier, AtShuffle, Done };

struct Fibre {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    State state = State::Ready;
    int line = 0;
    uint64_t values[2] = {}; // of this shuffle and of the one before, which a slower lane may not have read yet
    unsigned shuffles = 0;
};

std::vector<Fibre> fibres;
ucontext_t scheduler;
const std::function<void()> *body;
unsigned current;

[[noreturn]] void fail(const char *what, int line) {
    fprintf(stderr, "block %u, line %d: %s\n", blockIdx.x, line, what);
    exit(1);
}

void wait_as(State state, int line) {
    Fibre &me = fibres[current];
    me.state = state, me.line = line;
    swapcontext(&me.context, &scheduler);
}

void run_fibre() {
    (*body)();
    fibres[current].state = State::Done;
    swapcontext(&fibres[current].context, &scheduler);
}

void begin(unsigned thread) {
    Fibre &fibre = fibres[thread];
    fibre.state = State::Ready, fibre.shuffles = 0;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, run_fibre, 0);
}

// Lets threads `from..to` go on if all of them wait in this way; they must wait at one line.
bool release(State state, unsigned from, unsigned to) {
    for (unsigned t = from; t < to; t++)
        if (fibres[t].state != state) return false;
    for (unsigned t = from; t < to; t++) {
        if (fibres[t].line != fibres[from].line) fail("threads meet at different lines", fibres[t].line);
        fibres[t].state = State::Ready;
    }
    return true;
}

std::vector<unsigned> sequence(unsigned n, Order order) {
    static std::mt19937 random(7);
    std::vector<unsigned> all(n);
    std::iota(all.begin(), all.end(), 0);
    if (order == Order::Backward) std::reverse(all.begin(), all.end());
    if (order == Order::Shuffled) std::shuffle(all.begin(), all.end(), random);
    return all;
}

// A warp runs until all its lanes wait for the block or are done, and then the next: whoever may run ahead of a barrier that is missing
// does so.
void run_warp(unsigned from, unsigned to, Order order) {
    do {
        for (unsigned lane : sequence(to - from, order)) {
            if (fibres[from + lane].state != State::Ready) continue;
            current = threadIdx.x = from + lane;
            swapcontext(&scheduler, &fibres[current].context);
        }
    } while (to - from == WARP && release(State::AtShuffle, from, to));
}

void run_block(unsigned threads, Order order) {
    memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    for (unsigned t = 0; t < threads; t++) begin(t);
    do {
        for (unsigned warp : sequence((threads + WARP - 1) / WARP, order)) run_warp(warp * WARP, std::min(threads, (warp + 1) * WARP), order);
    } while (release(State::AtBarrier, 0, threads));
    for (unsigned t = 0; t < threads; t++)
        if (fibres[t].state != State::Done) fail("a thread waits for one that never comes", fibres[t].line);
}

} // namespace

void launch(unsigned blocks, unsigned threads, Order order, const std::function<void()> &kernel) {
    if (fibres.size() < threads) fibres.resize(threads);
    body = &kernel, blockDim.x = threads, gridDim.x = blocks;
    for (unsigned block : sequence(blocks, order)) blockIdx.x = block, run_block(threads, order);
}

void meet_block(int line) { wait_as(State::AtBarrier, line); }

uint64_t exchange(unsigned mask, uint64_t value, int from, int line) {
    if (mask != 0xffffffffu) fail("a shuffle of a part of a warp", line);
    unsigned me = current, turn = fibres[me].shuffles++ % 2;
    fibres[me].values[turn] = value;
    wait_as(State::AtShuffle, line);
    return fibres[me / WARP * WARP + from].values[turn];
}

} // namespace shim
