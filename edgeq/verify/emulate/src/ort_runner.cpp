// Runs an ONNX file, or one in ONNX Runtime's own format (.ort), on the libonnxruntime of one onnxruntime wheel.
//
// The wheel has no headers. What is used of the C API is declared here: a table of functions whose order never changes
// (onnxruntime_c_api.h: "all members of OrtApi ... are only added at the end").
#include <dlfcn.h>

#include <memory>

#include "runner.h"

namespace {

using edgeq::Array;
using edgeq::Dtype;
using edgeq::Failure;
using edgeq::kBadInputs;
using edgeq::kBadModel;
using edgeq::Sample;

using Status = void;  // OrtStatus; null is success

struct ApiBase {
  const void* const* (*api)(uint32_t version);
  const char* (*version)();
};

constexpr uint32_t kApiVersion = 1;  // everything used here is in the first version

// Places in the table, of version 1.
enum : size_t {
  kGetErrorCode = 1,
  kGetErrorMessage = 2,
  kCreateEnv = 3,
  kCreateSession = 7,
  kRun = 9,
  kCreateSessionOptions = 10,
  kSetSessionLogSeverityLevel = 22,
  kSetIntraOpNumThreads = 24,
  kSetInterOpNumThreads = 25,
  kSessionGetInputCount = 30,
  kSessionGetOutputCount = 31,
  kSessionGetInputTypeInfo = 33,
  kSessionGetInputName = 36,
  kSessionGetOutputName = 37,
  kCreateTensorWithData = 49,
  kIsTensor = 50,
  kGetTensorMutableData = 51,
  kCastTypeInfoToTensorInfo = 55,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kCreateCpuMemoryInfo = 69,
  kGetAllocatorWithDefaultOptions = 78,
  kReleaseValue = 96,
  kReleaseTypeInfo = 98,
  kReleaseTensorTypeAndShapeInfo = 99,
};

constexpr int kErrorsOnly = 3;                       // OrtLoggingLevel
constexpr int kArenaAllocator = 1, kMemDefault = 0;  // OrtAllocatorType, OrtMemType

constexpr std::pair<Dtype, int> kTypes[] = {  // ONNXTensorElementDataType
    {Dtype::Float32, 1}, {Dtype::UInt8, 2}, {Dtype::Int8, 3},     {Dtype::Int16, 5},    {Dtype::Int32, 6},
    {Dtype::Int64, 7},   {Dtype::Bool, 9},  {Dtype::Float16, 10}, {Dtype::Float64, 11},
};

constexpr const char* kErrorNames[] = {
    "OK",        "FAIL",           "INVALID_ARGUMENT",  "NO_SUCHFILE",      "NO_MODEL",     "ENGINE_ERROR",
    "RUNTIME_EXCEPTION", "INVALID_PROTOBUF", "MODEL_LOADED", "NOT_IMPLEMENTED", "INVALID_GRAPH", "EP_FAIL",
};

int element_type(Dtype dtype) {
  for (const auto& [ours, theirs] : kTypes) {
    if (ours == dtype) return theirs;
  }
  throw Failure(kBadInputs, "no such type");
}

Dtype dtype_of(int type) {
  for (const auto& [ours, theirs] : kTypes) {
    if (theirs == type) return ours;
  }
  throw Failure(kBadModel, "a tensor of ONNX's type " + std::to_string(type));
}

class OnnxRuntime : public edgeq::Engine {
 public:
  void load(const edgeq::Options& options) override {
    void* library = dlopen(EDGEQ_LIBRARY, RTLD_NOW);  // found by the runner's own rpath
    if (library == nullptr) throw std::runtime_error(dlerror());
    using GetApiBase = const ApiBase* (*)();
    const auto base = reinterpret_cast<GetApiBase>(dlsym(library, "OrtGetApiBase"));
    if (base == nullptr) throw std::runtime_error(dlerror());
    api_ = base()->api(kApiVersion);
    threads_ = options.threads;
    void *env = nullptr, *settings = nullptr;
    check(call<kCreateEnv>(kErrorsOnly, "edgeq", &env), "starting the runtime");
    check(call<kCreateSessionOptions>(&settings), "starting the runtime");
    check(call<kSetSessionLogSeverityLevel>(settings, kErrorsOnly), "starting the runtime");
    check(call<kSetIntraOpNumThreads>(settings, options.threads), "starting the runtime");
    check(call<kSetInterOpNumThreads>(settings, 1), "starting the runtime");
    check(call<kCreateSession>(env, options.model.c_str(), settings, &session_), "loading the model");
    check(call<kCreateCpuMemoryInfo>(kArenaAllocator, kMemDefault, &memory_), "starting the runtime");
    void* allocator = nullptr;
    check(call<kGetAllocatorWithDefaultOptions>(&allocator), "starting the runtime");
    size_t inputs = 0, outputs = 0;
    check(call<kSessionGetInputCount>(session_, &inputs), "reading the inputs");
    check(call<kSessionGetOutputCount>(session_, &outputs), "reading the outputs");
    for (size_t i = 0; i < inputs; ++i) {
      char* name = nullptr;
      check(call<kSessionGetInputName>(session_, i, allocator, &name), "reading the inputs");
      input_names_.push_back(name);
    }
    for (size_t i = 0; i < outputs; ++i) {
      char* name = nullptr;
      check(call<kSessionGetOutputName>(session_, i, allocator, &name), "reading the outputs");
      output_names_.push_back(name);
    }
  }

  void bind(Sample& sample) override {
    if (input_names_.size() != sample.size()) {
      throw Failure(kBadInputs, "the model takes " + std::to_string(input_names_.size()) + " inputs, got " +
                                    std::to_string(sample.size()));
    }
    release(inputs_);
    for (size_t i = 0; i < sample.size(); ++i) {
      Array& array = sample[i];
      check_fits(i, array);
      void* value = nullptr;
      check(call<kCreateTensorWithData>(memory_, static_cast<void*>(array.data.data()), array.data.size(),
                                        static_cast<const int64_t*>(array.shape.data()), array.shape.size(),
                                        element_type(array.dtype), &value),
            "binding input " + std::to_string(i));
      inputs_.push_back(value);
    }
  }

  void call() override {
    release(results_);
    results_.assign(output_names_.size(), nullptr);
    check(call<kRun>(session_, static_cast<void*>(nullptr), static_cast<const char* const*>(input_names_.data()),
                     static_cast<void* const*>(inputs_.data()), inputs_.size(),
                     static_cast<const char* const*>(output_names_.data()), output_names_.size(), results_.data()),
          "running the model");
  }

  Sample outputs() override {
    Sample sample;
    for (void* value : results_) {
      int is_tensor = 0;
      check(call<kIsTensor>(value, &is_tensor), "reading an output");
      if (!is_tensor) throw Failure(kBadModel, "an output is no tensor");
      void* info = nullptr;
      check(call<kGetTensorTypeAndShape>(value, &info), "reading an output");
      Array array = described(info);
      call_void<kReleaseTensorTypeAndShapeInfo>(info);
      void* data = nullptr;
      check(call<kGetTensorMutableData>(value, &data), "reading an output");
      uint64_t bytes = edgeq::kItemBytes[static_cast<size_t>(array.dtype)];
      for (const int64_t size : array.shape) bytes *= static_cast<uint64_t>(size);
      const auto* first = static_cast<const uint8_t*>(data);
      array.data.assign(first, first + bytes);
      sample.push_back(std::move(array));
    }
    return sample;
  }

  edgeq::Core core() override { return edgeq::core_by_linux(); }  // ONNX Runtime hides what it detected

  std::string name() override { return "onnxruntime"; }

  int threads() override { return threads_; }

 private:
  template <size_t Place, typename... Arguments>
  Status* call(Arguments... arguments) {
    return reinterpret_cast<Status* (*)(Arguments...)>(const_cast<void*>(api_[Place]))(arguments...);
  }

  template <size_t Place, typename... Arguments>
  void call_void(Arguments... arguments) {
    reinterpret_cast<void (*)(Arguments...)>(const_cast<void*>(api_[Place]))(arguments...);
  }

  // Throws in the words of onnxruntime's Python package, which edgeq knows.
  void check(Status* status, const std::string& doing) {
    if (status == nullptr) return;
    const auto code = reinterpret_cast<int (*)(Status*)>(const_cast<void*>(api_[kGetErrorCode]))(status);
    std::string said = reinterpret_cast<const char* (*)(Status*)>(const_cast<void*>(api_[kGetErrorMessage]))(status);
    for (char& c : said) c = c == '\n' ? ' ' : c;
    const bool named = code >= 0 && static_cast<size_t>(code) < std::size(kErrorNames);
    throw Failure(kBadModel, doing + " failed: [ONNXRuntimeError] : " + std::to_string(code) + " : " +
                                 (named ? kErrorNames[code] : "unknown") + " : " + said);
  }

  // Type and shape; sizes that the model leaves open are -1.
  Array described(void* info) {
    int type = 0;
    size_t axes = 0;
    check(call<kGetTensorElementType>(info, &type), "reading a tensor");
    check(call<kGetDimensionsCount>(info, &axes), "reading a tensor");
    Array array;
    array.dtype = dtype_of(type);
    array.shape.resize(axes);
    check(call<kGetDimensions>(info, array.shape.data(), axes), "reading a tensor");
    return array;
  }

  void check_fits(size_t index, const Array& array) {
    void* type = nullptr;
    const void* info = nullptr;
    check(call<kSessionGetInputTypeInfo>(session_, index, &type), "reading the inputs");
    check(call<kCastTypeInfoToTensorInfo>(type, &info), "reading the inputs");
    if (info == nullptr) throw Failure(kBadModel, "input " + std::to_string(index) + " is no tensor");
    const Array wanted = described(const_cast<void*>(info));
    call_void<kReleaseTypeInfo>(type);
    bool fits = wanted.dtype == array.dtype && wanted.shape.size() == array.shape.size();
    for (size_t axis = 0; fits && axis < array.shape.size(); ++axis) {
      fits = wanted.shape[axis] < 0 || wanted.shape[axis] == array.shape[axis];
    }
    if (fits) return;
    throw Failure(kBadInputs,
                  "input " + std::to_string(index) + " wants " + wanted.described() + ", got " + array.described());
  }

  void release(std::vector<void*>& values) {
    for (void* value : values) call_void<kReleaseValue>(value);
    values.clear();
  }

  const void* const* api_ = nullptr;
  void *session_ = nullptr, *memory_ = nullptr;
  int threads_ = 0;
  std::vector<const char*> input_names_, output_names_;
  std::vector<void*> inputs_, results_;
};

}  // namespace

int main(int count, char** values) {
  OnnxRuntime engine;
  return edgeq::run(count, values, engine);
}
