// cuBLAS and cuBLASLt, as far as torch calls them: every product is one node.
//
// Most declarations leave out the arguments after those that are used; by the calling convention of
// C a function need not take all that it is given. So none of cuBLAS's headers is included.
#include <cstdlib>
#include <cstring>

#include "books.h"

using namespace null_gpu;

namespace {

constexpr int SUCCESS = 0, INTERNAL_ERROR = 14;

struct Handle {
  void* stream = nullptr;
  int math_mode = 0;
  int pointer_mode = 0;
};

Handle& handle_of(void* handle) { return *static_cast<Handle*>(handle); }

int product(void* stream, const std::string& name) {
  return work(stream, name) ? INTERNAL_ERROR : SUCCESS;
}

int product(void* handle, const std::string& name, int m, int n, int k) {
  auto sizes = std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k);
  return product(handle_of(handle).stream, name + " " + sizes);
}

// Descriptions of products and layouts are never read.
int make_description(void** description) {
  *description = malloc(1);
  return SUCCESS;
}

int drop_description(void* description) {
  free(description);
  return SUCCESS;
}

}  // namespace

EXPORT int cublasCreate_v2(void** handle) {
  *handle = new Handle;
  return SUCCESS;
}
EXPORT int cublasDestroy_v2(void* handle) {
  delete &handle_of(handle);
  return SUCCESS;
}
EXPORT int cublasSetStream_v2(void* handle, void* stream) {
  handle_of(handle).stream = stream;
  return SUCCESS;
}
EXPORT int cublasSetWorkspace_v2(void*, void*, size_t) { return SUCCESS; }
EXPORT int cublasGetMathMode(void* handle, int* mode) {
  *mode = handle_of(handle).math_mode;
  return SUCCESS;
}
EXPORT int cublasSetMathMode(void* handle, int mode) {
  handle_of(handle).math_mode = mode;
  return SUCCESS;
}
EXPORT int cublasGetPointerMode_v2(void* handle, int* mode) {
  *mode = handle_of(handle).pointer_mode;
  return SUCCESS;
}
EXPORT int cublasSetPointerMode_v2(void* handle, int mode) {
  handle_of(handle).pointer_mode = mode;
  return SUCCESS;
}

EXPORT int cublasSgemm_v2(void* handle, int, int, int m, int n, int k) {
  return product(handle, "cublasSgemm", m, n, k);
}
EXPORT int cublasSgemmStridedBatched(void* handle, int, int, int m, int n, int k) {
  return product(handle, "cublasSgemmStridedBatched", m, n, k);
}
EXPORT int cublasDgemm_v2(void* handle, int, int, int m, int n, int k) {
  return product(handle, "cublasDgemm", m, n, k);
}
EXPORT int cublasGemmEx(void* handle, int, int, int m, int n, int k) {
  return product(handle, "cublasGemmEx", m, n, k);
}
EXPORT int cublasGemmStridedBatchedEx(void* handle, int, int, int m, int n, int k) {
  return product(handle, "cublasGemmStridedBatchedEx", m, n, k);
}
EXPORT int cublasSgemv_v2(void* handle) {
  return product(handle_of(handle).stream, "cublasSgemv");
}
EXPORT int cublasSdot_v2(void* handle) { return product(handle_of(handle).stream, "cublasSdot"); }

EXPORT size_t cublasLtGetVersion() { return 130100; }
EXPORT int cublasLtMatmulDescCreate(void** d) { return make_description(d); }
EXPORT int cublasLtMatmulDescDestroy(void* d) { return drop_description(d); }
EXPORT int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t) { return SUCCESS; }
EXPORT int cublasLtMatmulPreferenceCreate(void** d) { return make_description(d); }
EXPORT int cublasLtMatmulPreferenceDestroy(void* d) { return drop_description(d); }
EXPORT int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) {
  return SUCCESS;
}
EXPORT int cublasLtMatrixLayoutCreate(void** d) { return make_description(d); }
EXPORT int cublasLtMatrixLayoutDestroy(void* d) { return drop_description(d); }
EXPORT int cublasLtMatrixLayoutSetAttribute(void*, int, const void*, size_t) { return SUCCESS; }
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int,
                                          void* results, int* number) {
  constexpr size_t BYTES_OF_A_RESULT = 96;  // sizeof(cublasLtMatmulHeuristicResult_t)
  memset(results, 0, BYTES_OF_A_RESULT);
  *number = 1;
  return SUCCESS;
}
EXPORT int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*,
                          const void*, const void*, void*, const void*, void*, const void*, void*,
                          size_t, void* stream) {
  return product(stream, "cublasLtMatmul");
}
