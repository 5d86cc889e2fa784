#include "books.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

namespace null_gpu {

std::recursive_mutex mutex;
std::map<unsigned long long, Capture*> captures;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
thread_local cudaError_t last_error = cudaSuccess;
size_t used_bytes = 0;

namespace {

// Copies of more bytes are not made, so that large tensors need no memory of the host.
constexpr size_t MOST_COPIED_BYTES = size_t(64) << 20;
constexpr size_t PAGE = 4096;

size_t peak_bytes = 0;
std::map<uintptr_t, size_t> device_blocks, pinned_blocks;  // Address to size.
std::unordered_map<void*, Stream> streams;
std::map<std::string, long> counts;
Graph newest_graph;
unsigned long long next_capture = 1;

// Every process appends to the file that NULL_GPU_LOG names; without it, to standard error.
FILE* log_file() {
  static FILE* file = [] {
    const char* path = getenv("NULL_GPU_LOG");
    FILE* opened = path ? fopen(path, "a") : nullptr;
    if (!opened) return stderr;
    setvbuf(opened, nullptr, _IOLBF, 0);
    return opened;
  }();
  return file;
}

bool lies_in(const std::map<uintptr_t, size_t>& blocks, const void* address) {
  auto next = blocks.upper_bound(uintptr_t(address));
  if (next == blocks.begin()) return false;
  --next;
  return uintptr_t(address) < next->first + next->second;
}

double milliseconds_now() {
  auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(since).count();
}

}  // namespace

// ---- streams and what is sent to them

Stream& stream_of(void* handle) { return streams[handle]; }

void make_stream(void* handle, bool blocking, int priority) {
  Lock lock(mutex);
  Stream& stream = streams[handle] = Stream{};
  stream.blocking = blocking;
  stream.priority = priority;
}

void drop_stream(void* handle) {
  Lock lock(mutex);
  streams.erase(handle);
}

void count(const std::string& what) {
  Lock lock(mutex);
  counts[what]++;
}

cudaError_t violation(cudaError_t error, const std::string& call, const std::string& why) {
  count("violations");
  fprintf(log_file(), "VIOLATION %s: %s (error %d)\n", call.c_str(), why.c_str(), int(error));
  return last_error = error;
}

cudaError_t work(void* handle, const std::string& name) {
  Lock lock(mutex);
  Stream& stream = stream_of(handle);
  if (stream.capture) {
    if (stream.capture->invalid)
      return violation(cudaErrorStreamCaptureInvalidated, name, "the capture is invalid already");
    int node = int(stream.capture->graph->size());
    stream.capture->graph->push_back({name, stream.last});
    stream.last = {node};
    return cudaSuccess;
  }
  // Work for the legacy stream would have to wait for the streams that wait for it.
  if (!handle)
    for (auto& [other, state] : streams)
      if (state.capture && state.blocking)
        return violation(cudaErrorStreamCaptureImplicit, name,
                         "the legacy stream is used while a blocking stream captures");
  counts["launched"]++;
  if (name == "graph") counts["replays"]++;
  return cudaSuccess;
}

cudaError_t permitted(const std::string& call) {
  Lock lock(mutex);
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (auto& [id, capture] : captures) {
    bool own = capture->thread == std::this_thread::get_id();
    bool everywhere = capture->mode == cudaStreamCaptureModeGlobal &&
                      thread_mode == cudaStreamCaptureModeGlobal;
    if (everywhere || (own && capture->mode != cudaStreamCaptureModeRelaxed)) {
      capture->invalid = true;
      return violation(cudaErrorStreamCaptureUnsupported, call, "not permitted during a capture");
    }
  }
  return cudaSuccess;
}

cudaError_t host_wait(const std::string& call) {
  count("host waits");
  count(call);
  return permitted(call);
}

cudaError_t ask_stream(void* handle, const std::string& call, bool waits) {
  Lock lock(mutex);
  if (waits) counts["host waits"]++;
  counts[call]++;
  Stream& stream = stream_of(handle);
  if (stream.capture) {
    stream.capture->invalid = true;
    return violation(cudaErrorStreamCaptureUnsupported, call, "asks a stream that captures");
  }
  return permitted(call);
}

// ---- memory

bool on_device(const void* address) {
  Lock lock(mutex);
  return lies_in(device_blocks, address);
}

bool is_pinned(const void* address) {
  Lock lock(mutex);
  return lies_in(pinned_blocks, address);
}

cudaError_t allocate(void** address, size_t bytes) {
  Lock lock(mutex);
  *address = nullptr;
  size_t size = (std::max<size_t>(bytes, 1) + PAGE - 1) / PAGE * PAGE;
  if (used_bytes + size > TOTAL_BYTES) return last_error = cudaErrorMemoryAllocation;
  // Pages of the host that are reserved and, until something is copied into them, not used. They are
  // shared, since a limit on a process's data, as the rehearsal sets, leaves those out.
  void* block = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED) return last_error = cudaErrorMemoryAllocation;
  device_blocks[uintptr_t(block)] = size;
  used_bytes += size;
  peak_bytes = std::max(peak_bytes, used_bytes);
  *address = block;
  counts["allocations"]++;
  return cudaSuccess;
}

cudaError_t release(void* address) {
  Lock lock(mutex);
  if (!address) return cudaSuccess;
  auto found = device_blocks.find(uintptr_t(address));
  if (found == device_blocks.end())
    return violation(cudaErrorInvalidValue, "cudaFree", "the address was not allocated");
  munmap(address, found->second);
  used_bytes -= found->second;
  device_blocks.erase(found);
  return cudaSuccess;
}

void pin(void* address, size_t bytes) {
  Lock lock(mutex);
  pinned_blocks[uintptr_t(address)] = bytes;
}

void unpin(void* address) {
  Lock lock(mutex);
  pinned_blocks.erase(uintptr_t(address));
}

cudaError_t copy(void* to, const void* from, size_t bytes, void* handle) {
  Lock lock(mutex);
  bool to_device = on_device(to), from_device = on_device(from);
  bool pageable = (!to_device && !is_pinned(to)) || (!from_device && !is_pinned(from));
  std::string name = std::string("copy from ") + (from_device ? "device" : "host") + " to " +
                     (to_device ? "device" : "host") + (pageable ? ", pageable" : "");
  counts[name]++;
  Stream& stream = stream_of(handle);
  if (pageable) {
    if (stream.capture) {
      stream.capture->invalid = true;
      return violation(cudaErrorStreamCaptureUnsupported, name, "in a capture");
    }
    // Such a copy to the host returns when it has ended, whatever the function is called.
    if (from_device) counts["host waits"]++;
  }
  if (cudaError_t error = work(handle, name)) return error;
  if (!stream.capture && bytes <= MOST_COPIED_BYTES) memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t fill(void* address, int value, size_t bytes, void* handle) {
  Lock lock(mutex);
  if (cudaError_t error = work(handle, "memset")) return error;
  if (stream_of(handle).capture) return cudaSuccess;
  auto first = (uintptr_t(address) + PAGE - 1) / PAGE * PAGE;
  auto end = (uintptr_t(address) + bytes) / PAGE * PAGE;
  if (value || first >= end) {
    if (bytes <= MOST_COPIED_BYTES) memset(address, value, bytes);
    return cudaSuccess;
  }
  // Pages that are given back to the host are zero when they are next used.
  madvise(reinterpret_cast<void*>(first), end - first, MADV_REMOVE);
  memset(address, 0, first - uintptr_t(address));
  memset(reinterpret_cast<void*>(end), 0, uintptr_t(address) + bytes - end);
  return cudaSuccess;
}

// ---- captures

cudaError_t begin_capture(void* handle, cudaStreamCaptureMode mode) {
  Lock lock(mutex);
  const char* call = "cudaStreamBeginCapture";
  if (!handle)
    return violation(cudaErrorStreamCaptureUnsupported, call, "the legacy stream cannot capture");
  Stream& stream = stream_of(handle);
  if (stream.capture) return violation(cudaErrorIllegalState, call, "the stream captures already");
  auto id = next_capture++;
  stream.capture = new Capture{new Graph, id, mode, std::this_thread::get_id()};
  stream.last.clear();
  captures[id] = stream.capture;
  counts["captures"]++;
  return cudaSuccess;
}

cudaError_t end_capture(void* handle, cudaGraph_t* graph) {
  Lock lock(mutex);
  const char* call = "cudaStreamEndCapture";
  *graph = nullptr;
  Stream& origin = stream_of(handle);
  Capture* capture = origin.capture;
  if (!capture) return violation(cudaErrorIllegalState, call, "the stream does not capture");
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id())
    return violation(cudaErrorStreamCaptureWrongThread, call, "another thread began the capture");
  std::set<int> unjoined;
  for (int node = 0; node < int(capture->graph->size()); node++) unjoined.insert(node);
  for (auto& node : *capture->graph)
    for (int earlier : node.after) unjoined.erase(earlier);
  for (int node : origin.last) unjoined.erase(node);
  for (auto& [other, state] : streams)
    if (state.capture == capture) {
      state.capture = nullptr;
      state.last.clear();
    }
  captures.erase(capture->id);
  if (capture->invalid)
    return violation(cudaErrorStreamCaptureInvalidated, call, "the capture has become invalid");
  if (!unjoined.empty())
    return violation(cudaErrorStreamCaptureUnjoined, call,
                     "nothing waits for " + (*capture->graph)[*unjoined.begin()].name);
  *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
  delete capture;
  return cudaSuccess;
}

cudaError_t wait_event(void* handle, const Event& event) {
  Lock lock(mutex);
  const char* call = "cudaStreamWaitEvent";
  Stream& stream = stream_of(handle);
  auto found = captures.find(event.capture_id);
  if (found != captures.end()) {
    if (stream.capture && stream.capture != found->second)
      return violation(cudaErrorStreamCaptureMerge, call, "would join two captures");
    // A stream that waits for a captured event takes part in the capture.
    if (!stream.capture) {
      stream.capture = found->second;
      stream.last.clear();
    }
    stream.last.insert(event.last.begin(), event.last.end());
  } else if (stream.capture && event.recorded) {
    stream.capture->invalid = true;
    return violation(cudaErrorStreamCaptureIsolation, call,
                     "a stream that captures waits for an event from outside of the capture");
  }
  return cudaSuccess;
}

void record_event(Event& event, void* handle) {
  Lock lock(mutex);
  Stream& stream = stream_of(handle);
  event.recorded = true;
  event.milliseconds = milliseconds_now();
  event.capture_id = stream.capture ? stream.capture->id : 0;
  event.last = stream.last;
}

void keep_nodes(const Graph& graph) {
  Lock lock(mutex);
  newest_graph = graph;
  counts["graphs"]++;
}

}  // namespace null_gpu

// ---- what library.py reads

using namespace null_gpu;

EXPORT const char* null_gpu_counts() {
  Lock lock(mutex);
  static std::string text;
  text.clear();
  for (auto& [what, number] : counts) text += what + "\t" + std::to_string(number) + "\n";
  text += "used bytes\t" + std::to_string(used_bytes) + "\n";
  text += "peak bytes\t" + std::to_string(peak_bytes) + "\n";
  return text.c_str();
}

EXPORT void null_gpu_forget_counts() {
  Lock lock(mutex);
  counts.clear();
  peak_bytes = used_bytes;
}

EXPORT const char* null_gpu_nodes() {
  Lock lock(mutex);
  static std::string text;
  text.clear();
  for (auto& node : newest_graph) text += node.name + "\n";
  return text.c_str();
}
