// The scheduler behind cuda_on_cpu.h. Compiled without ThreadSanitizer, so that its own bookkeeping orders nothing and
// is no race; it tells the sanitizers about every switch of fibers. Nothing that a thread could see is reused within
// a launch, neither stacks nor shared memory: two blocks on one address would look like a race between them.
#include "cuda_on_cpu.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#define WEAK __attribute__((weak))  // null where that sanitizer is not linked in
extern "C" {
void* __tsan_get_current_fiber() WEAK;
void* __tsan_create_fiber(unsigned flags) WEAK;
void __tsan_destroy_fiber(void* fiber) WEAK;
void __tsan_switch_to_fiber(void* fiber, unsigned flags) WEAK;
void __tsan_acquire(void* tag) WEAK;
void __tsan_release(void* tag) WEAK;
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t size) WEAK;
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size) WEAK;
}

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

long warp_shuffles = 0;

namespace {

constexpr std::size_t STACK = 256 << 10;
constexpr std::size_t SHARED_LIMIT = 48 << 10;  // what CUDA gives a block without being asked
constexpr int WARP_SIZE = 32;

enum class State { ready, at_block_barrier, at_warp_barrier, at_shuffle, done };

// A tag is an address of its own that the sanitizer attaches a happens-before edge to. Each barrier takes a new one
// each time: with one tag for all of them, a thread would be ordered after barriers that it never passed.
using Tag = std::unique_ptr<char>;

struct Fiber {
  ucontext_t context;
  dim3 index;
  int warp;
  State state = State::ready;
  int line = 0, step = 0;
  unsigned mask = 0;
  float value = 0, received = 0;
  void* stack = nullptr;
  void* tsan = nullptr;
};

std::mt19937 order;
ucontext_t scheduler;
void* scheduler_tsan = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_size = 0;
Fiber* current = nullptr;
const std::function<void()>* body = nullptr;
char* pool = nullptr;                      // the shared memory of the running block, and how much of it is taken
std::size_t taken = 0;
struct { const char* name; char* memory; } arrays[16];  // the arrays in it, the first without a name ends the list
std::vector<Tag> tags;                     // kept until the launch ends
char* begin_tag = nullptr;                 // orders the launch after its caller
char* end_tag = nullptr;                   // and the caller after the launch; with one for both, threads that leave
                                           // would be ordered before threads that start
char* block_tag = nullptr;
std::vector<char*> warp_tags;

void* map_memory(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for %zu bytes", bytes);
  return memory;
}

char* new_tag() {
  tags.emplace_back(new char);
  return tags.back().get();
}

void acquire(void* tag) { if (__tsan_acquire) __tsan_acquire(tag); }
void release(void* tag) { if (__tsan_release) __tsan_release(tag); }

void switch_context(ucontext_t& from, ucontext_t& to, void* tsan, const void* bottom, std::size_t size, bool last) {
  void* fake_stack = nullptr;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack, bottom, size);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(tsan, 1);  // 1: the switch itself orders nothing
  swapcontext(&from, &to);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void back_to_scheduler(State state, int line) {
  current->state = state;
  current->line = line;
  switch_context(current->context, scheduler, scheduler_tsan, scheduler_stack, scheduler_stack_size,
                 state == State::done);
}

void fiber_main() {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
  acquire(begin_tag);
  (*body)();
  release(end_tag);
  back_to_scheduler(State::done, 0);
}

void run(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.index;
  switch_context(scheduler, fiber.context, fiber.tsan, fiber.stack, STACK, false);
}

// Lets the warps go on whose lanes have all arrived at one barrier or shuffle. False if there is none.
bool resolve_warps(std::vector<Fiber>& fibers) {
  bool any = false;
  for (std::size_t start = 0; start < fibers.size(); start += WARP_SIZE) {
    const std::size_t lanes = std::min<std::size_t>(WARP_SIZE, fibers.size() - start);
    Fiber* warp = &fibers[start];
    const State state = warp->state;
    if (state != State::at_warp_barrier && state != State::at_shuffle) continue;
    bool together = true;
    for (std::size_t i = 1; i < lanes; ++i) together = together && warp[i].state == state && warp[i].line == warp->line;
    if (!together) continue;
    warp_shuffles += state == State::at_shuffle;
    for (std::size_t i = 0; state == State::at_shuffle && i < lanes; ++i) {
      if (std::size_t(i ^ warp[i].step) >= lanes) fail("shuffle from a lane that does not exist (line %d)", warp->line);
      warp[i].received = warp[i ^ warp[i].step].value;
    }
    for (std::size_t i = 0; i < lanes; ++i) warp[i].state = State::ready;
    warp_tags[start / WARP_SIZE] = new_tag();
    any = true;
  }
  return any;
}

// Lets the block go on when every thread of it waits at the same __syncthreads; any other standstill is an error.
void resolve_block(std::vector<Fiber>& fibers) {
  for (Fiber& fiber : fibers)
    if (fiber.state != State::at_block_barrier || fiber.line != fibers[0].line)
      fail("divergent barrier: threads wait at line %d while others wait elsewhere or have left",
           std::max(fiber.line, fibers[0].line));
  for (Fiber& fiber : fibers) fiber.state = State::ready;
  block_tag = new_tag();
}

void run_block(std::vector<Fiber>& fibers) {
  for (;;) {
    std::vector<Fiber*> ready;
    std::size_t done = 0;
    for (Fiber& fiber : fibers) {
      if (fiber.state == State::ready) ready.push_back(&fiber);
      done += fiber.state == State::done;
    }
    if (done == fibers.size()) return;
    std::shuffle(ready.begin(), ready.end(), order);
    for (Fiber* fiber : ready) run(*fiber);
    if (ready.empty() && !resolve_warps(fibers)) resolve_block(fibers);
  }
}

void make_fibers(std::vector<Fiber>& fibers, dim3 block) {
  for (std::size_t i = 0; i < fibers.size(); ++i) {
    Fiber& fiber = fibers[i];
    fiber.index = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    fiber.warp = i / WARP_SIZE;
    fiber.stack = map_memory(STACK);
    if (__tsan_create_fiber) fiber.tsan = __tsan_create_fiber(0);
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack, 0, STACK};
    makecontext(&fiber.context, fiber_main, 0);
  }
}

}  // namespace

void seed(unsigned value) { order.seed(value); }

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fprintf(stderr, "cuda_on_cpu: ");
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, "\n");
  std::_Exit(3);
}

void block_barrier(int line) {
  char* tag = block_tag;
  release(tag);
  back_to_scheduler(State::at_block_barrier, line);
  acquire(tag);
}

void warp_barrier(int line) {
  char* tag = warp_tags[current->warp];
  release(tag);
  back_to_scheduler(State::at_warp_barrier, line);
  acquire(tag);
}

float shuffle_xor(unsigned mask, float value, int step, int line) {
  if (mask != 0xffffffffu) fail("a shuffle with a mask of fewer than 32 lanes is not emulated (line %d)", line);
  current->value = value;
  current->step = step;
  back_to_scheduler(State::at_shuffle, line);  // a shuffle moves values and orders no memory
  return current->received;
}

// Called by threads, so nothing that a sanitizer intercepts may happen in here: it would be that thread's access.
void* shared_memory(const char* name, std::size_t bytes) {
  for (auto& array : arrays) {
    if (array.name == name) return array.memory;
    if (array.name) continue;
    if (taken + bytes > SHARED_LIMIT) fail("%s takes more shared memory than a block has", name);
    array = {name, pool + taken};
    taken += (bytes + 15) / 16 * 16;
    return array.memory;
  }
  fail("more than %zu shared arrays", std::size(arrays));
}

void launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
  if (__tsan_get_current_fiber) scheduler_tsan = __tsan_get_current_fiber();
  body = &kernel;
  gridDim = grid;
  blockDim = block;
  std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
  char* pools = static_cast<char*>(map_memory(blocks.size() * SHARED_LIMIT));
  std::memset(pools, 0xff, blocks.size() * SHARED_LIMIT);  // all bits set is a NaN
  begin_tag = new_tag();
  end_tag = new_tag();
  release(begin_tag);
  for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), order);
  const unsigned threads = block.x * block.y * block.z;
  std::vector<std::vector<Fiber>> all;
  all.reserve(blocks.size());
  for (unsigned i : blocks) {
    blockIdx = dim3(i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y));
    all.emplace_back(threads);
    block_tag = new_tag();
    warp_tags.assign((threads + WARP_SIZE - 1) / WARP_SIZE, nullptr);
    for (char*& tag : warp_tags) tag = new_tag();
    for (auto& array : arrays) array.name = nullptr;
    pool = pools + i * SHARED_LIMIT;
    taken = 0;
    make_fibers(all.back(), block);
    run_block(all.back());
  }
  acquire(end_tag);
  munmap(pools, blocks.size() * SHARED_LIMIT);
  for (auto& fibers : all)
    for (Fiber& fiber : fibers) {
      if (__tsan_destroy_fiber) __tsan_destroy_fiber(fiber.tsan);
      munmap(fiber.stack, STACK);
    }
  tags.clear();
}

}  // namespace emulator
