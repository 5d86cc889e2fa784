// The CUDA runtime, as far as torch calls it.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "books.h"

using namespace null_gpu;

namespace {

// By their functions of the host. There are thousands of kernels, so names are made readable when
// they are first needed.
std::unordered_map<const void*, std::string> kernel_names, readable_names;
thread_local std::vector<std::tuple<dim3, dim3, size_t, void*>> configurations;

// Enough to recognise a kernel, whose arguments' types may fill pages.
std::string readable(const char* name) {
  int status;
  char* demangled = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string text = demangled ? demangled : name;
  free(demangled);
  return text.substr(0, 300);
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, size_t shared, void* stream) {
  Lock lock(mutex);
  std::string& name = readable_names[function];
  if (name.empty()) {
    auto found = kernel_names.find(function);
    name = found == kernel_names.end() ? "unknown kernel" : readable(found->second.c_str());
  }
  if (cudaError_t error = check_launch(name, grid, block, shared)) return error;
  return work(stream, name);
}

Event& event_of(cudaEvent_t event) { return *reinterpret_cast<Event*>(event); }

Graph& graph_of(void* graph) { return *static_cast<Graph*>(graph); }

cudaError_t ask_event(cudaEvent_t event, const char* call, bool waits) {
  if (event_of(event).capture_id)
    return violation(cudaErrorCapturedEvent, call, "the event was recorded in a capture");
  return waits ? host_wait(call) : permitted(call);
}

}  // namespace

// ---- the device

EXPORT cudaError_t cudaGetDeviceCount(int* number) {
  *number = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int device) {
  if (device == 0) return cudaSuccess;
  return violation(cudaErrorInvalidDevice, "cudaSetDevice", "there is only device 0");
}
EXPORT cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }
EXPORT const char* cudaGetErrorName(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) return "cudaErrorMemoryAllocation";
  return error == cudaErrorStreamCaptureUnsupported ? "cudaErrorStreamCaptureUnsupported"
                                                    : "cudaError";
}
EXPORT const char* cudaGetErrorString(cudaError_t error) {
  static thread_local char text[80];
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  if (error == cudaErrorStreamCaptureUnsupported)
    return "operation not permitted when stream is capturing";
  snprintf(text, sizeof text, "error %d of the null GPU", int(error));
  return text;
}
EXPORT cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDA_VERSION;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int) {
  snprintf(text, size_t(size), "0000:00:00.0");
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() { return host_wait("cudaDeviceSynchronize"); }

// ---- memory

EXPORT cudaError_t cudaMalloc(void** address, size_t bytes) {
  if (cudaError_t error = permitted("cudaMalloc")) return error;
  return allocate(address, bytes);
}
EXPORT cudaError_t cudaFree(void* address) {
  if (cudaError_t error = permitted("cudaFree")) return error;
  return release(address);
}
EXPORT cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
  Lock lock(mutex);
  *left = TOTAL_BYTES - used_bytes;
  *total = TOTAL_BYTES;
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  if (cudaError_t error = permitted("cudaHostAlloc")) return error;
  *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  pin(*address, bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFreeHost(void* address) {
  unpin(address);
  free(address);
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
  pin(address, bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostUnregister(void* address) {
  unpin(address);
  return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes,
                                            const void* address) {
  memset(attributes, 0, sizeof *attributes);
  auto writable = const_cast<void*>(address);
  if (on_device(address)) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->devicePointer = writable;
  } else if (is_pinned(address)) {
    attributes->type = cudaMemoryTypeHost;
    attributes->devicePointer = attributes->hostPointer = writable;
  } else {
    attributes->type = cudaMemoryTypeUnregistered;
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (cudaError_t error = host_wait("cudaMemcpy")) return error;
  return copy(to, from, bytes, nullptr);
}
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t stream) {
  return copy(to, from, bytes, stream);
}
EXPORT cudaError_t cudaMemset(void* address, int value, size_t bytes) {
  return fill(address, value, bytes, nullptr);
}
EXPORT cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream) {
  return fill(address, value, bytes, stream);
}
EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  *address = const_cast<void*>(symbol);
  return cudaSuccess;
}

// ---- streams and events

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags,
                                                int priority) {
  // Only its address counts, which must differ from that of every other stream.
  *stream = static_cast<cudaStream_t>(malloc(1));
  make_stream(*stream, !(flags & cudaStreamNonBlocking), priority);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  drop_stream(stream);
  free(stream);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  Lock lock(mutex);
  *priority = stream_of(stream).priority;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return ask_stream(stream, "cudaStreamSynchronize", true);
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return ask_stream(stream, "cudaStreamQuery", false);
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return wait_event(stream, event_of(event));
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete &event_of(event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  record_event(event_of(event), stream);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) {
  return ask_event(event, "cudaEventQuery", false);
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return ask_event(event, "cudaEventSynchronize", true);
}
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t first,
                                        cudaEvent_t second) {
  *milliseconds = float(event_of(second).milliseconds - event_of(first).milliseconds);
  return cudaSuccess;
}

// ---- captures and graphs

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return begin_capture(stream, mode);
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return end_capture(stream, graph);
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Lock lock(mutex);
  Capture* capture = stream_of(stream).capture;
  *status = !capture           ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                            unsigned long long* id, cudaGraph_t* graph,
                                            const cudaGraphNode_t** nodes,
                                            const cudaGraphEdgeData** edges, size_t* number) {
  Lock lock(mutex);
  cudaStreamIsCapturing(stream, status);
  if (Capture* capture = stream_of(stream).capture) {
    if (id) *id = capture->id;
    if (graph) *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
  }
  // The dependencies, which torch does not read.
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (number) *number = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* number) {
  *number = graph_of(graph).size();
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                                 unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(graph_of(graph)));
  keep_nodes(graph_of(graph));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete &graph_of(graph);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete &graph_of(executable);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t stream) {
  return work(stream, "graph");
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  if (cudaError_t error = work(stream, "function of the host")) return error;
  bool captures_now;
  {
    Lock lock(mutex);
    captures_now = stream_of(stream).capture != nullptr;
  }
  if (!captures_now) function(data);
  return cudaSuccess;
}

// ---- kernels

EXPORT cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**,
                                    size_t shared, cudaStream_t stream) {
  return launch(function, grid, block, shared, stream);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                       void**) {
  return launch(function, config->gridDim, config->blockDim, config->dynamicSmemBytes,
                config->stream);
}
EXPORT cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks,
                                                                          const void*, int,
                                                                          size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

// What the host code of compiled kernels calls: it registers them when a library is loaded.
EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT char __cudaInitModule(void**) { return 1; }
EXPORT void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int,
                                   uint3*, uint3*, dim3*, dim3*, int*) {
  Lock lock(mutex);
  kernel_names[function] = name;
}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configurations.emplace_back(grid, block, shared, stream);
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared,
                                              void** stream) {
  std::tie(*grid, *block, *shared, *stream) = configurations.back();
  configurations.pop_back();
  return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**,
                                      size_t shared, cudaStream_t stream) {
  return launch(kernel, grid, block, shared, stream);
}

// Functions of the driver by name. One that does not exist here does nothing and says so.
static int missing() {
  count("calls of missing functions");
  return 0;
}
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) *function = reinterpret_cast<void*>(missing);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
