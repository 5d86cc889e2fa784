// The books of a CUDA device that computes nothing: its streams, captures, memory and calls.
//
// The functions of CUDA in runtime.cpp, driver.cpp and cublas.cpp are thin: what they have to obey
// is in books.cpp.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace null_gpu {

constexpr size_t TOTAL_BYTES = size_t(79) << 30;  // Of an H100 with 80 GB, what CUDA reports.
constexpr unsigned MOST_SHARED_BYTES = 232448;    // That one block may use on an H100.
constexpr unsigned MULTIPROCESSORS = 132;

struct Node {
  std::string name;
  std::set<int> after;  // Nodes that must have ended before this one starts.
};

using Graph = std::vector<Node>;

struct Capture {
  Graph* graph;
  unsigned long long id;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  bool invalid = false;
};

struct Stream {
  bool blocking = true;  // Waits for the legacy stream, and that one for it.
  int priority = 0;
  Capture* capture = nullptr;
  std::set<int> last;  // While capturing: the nodes that the next one comes after.
};

struct Event {
  bool recorded = false;
  double milliseconds = 0;           // When it was recorded, by the host's clock.
  unsigned long long capture_id = 0;  // The capture in which it was recorded; 0 outside of one.
  std::set<int> last;
};

using Lock = std::lock_guard<std::recursive_mutex>;
extern std::recursive_mutex mutex;
extern std::map<unsigned long long, Capture*> captures;  // Those that have begun and not ended.
extern thread_local cudaStreamCaptureMode thread_mode;
extern thread_local cudaError_t last_error;
extern size_t used_bytes;

Stream& stream_of(void* handle);
void make_stream(void* handle, bool blocking, int priority);
void drop_stream(void* handle);

void count(const std::string& what);

// Record that the program broke a rule of CUDA, and return the error that CUDA returns.
cudaError_t violation(cudaError_t error, const std::string& call, const std::string& why);

// Work for a stream: a node if it captures, and otherwise only counted.
cudaError_t work(void* stream, const std::string& name);

// Whether a call that captures forbid may be made by this thread now. If not, the capture is
// invalid from here on.
cudaError_t permitted(const std::string& call);

// The host waits for a stream, or asks it; neither is allowed while it captures.
cudaError_t host_wait(const std::string& call);
cudaError_t ask_stream(void* stream, const std::string& call, bool waits);

bool on_device(const void* address);
bool is_pinned(const void* address);
cudaError_t allocate(void** address, size_t bytes);
cudaError_t release(void* address);
void pin(void* address, size_t bytes);
void unpin(void* address);
cudaError_t copy(void* to, const void* from, size_t bytes, void* stream);
cudaError_t fill(void* address, int value, size_t bytes, void* stream);

cudaError_t begin_capture(void* stream, cudaStreamCaptureMode mode);
cudaError_t end_capture(void* stream, cudaGraph_t* graph);
cudaError_t wait_event(void* stream, const Event& event);
void record_event(Event& event, void* stream);
void keep_nodes(const Graph& graph);

int attribute(int which);
cudaError_t check_launch(const std::string& name, dim3 grid, dim3 block, size_t shared_bytes);

}  // namespace null_gpu
