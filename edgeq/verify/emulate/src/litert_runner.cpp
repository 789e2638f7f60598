// Runs a .tflite file on the libLiteRt.so of one ai-edge-litert wheel, by the API that apps have: CompiledModel, on the
// CPU, where XNNPACK computes what it has kernels for.
//
// The wheel has no headers. What is used of LiteRT's C API (litert/c of google-ai-edge/LiteRT) is declared here.
#include <cstdlib>

#include "runner.h"

extern "C" {

using LiteRtStatus = int;  // 0 is success

struct LiteRtAny {
  int type;
  union {
    int64_t int_value;
    const void* ptr_value;
  };
};

struct LiteRtEnvOption {
  int tag;
  LiteRtAny value;
};

struct LiteRtLayout {
  unsigned int rank : 7;
  unsigned int has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
};

struct LiteRtRankedTensorType {
  int element_type;
  LiteRtLayout layout;
};

static_assert(sizeof(LiteRtEnvOption) == 24 && sizeof(LiteRtRankedTensorType) == 72, "as LiteRT's headers have them");

LiteRtStatus LiteRtCreateEnvironment(int options, const LiteRtEnvOption* values, void** environment);
LiteRtStatus LiteRtCreateModelFromFile(void* environment, const char* path, void** model);
LiteRtStatus LiteRtCreateOptions(void** options);
LiteRtStatus LiteRtSetOptionsHardwareAccelerators(void* options, int accelerators);
LiteRtStatus LiteRtCreateOpaqueOptions(const char* identifier, void* payload, void (*free_it)(void*), void** options);
LiteRtStatus LiteRtAddOpaqueOptions(void* options, void* opaque);
LiteRtStatus LiteRtCreateCompiledModel(void* environment, void* model, void* options, void** compiled);
LiteRtStatus LiteRtGetModelSignature(void* model, size_t index, void** signature);
LiteRtStatus LiteRtGetNumSignatureInputs(void* signature, size_t* count);
LiteRtStatus LiteRtGetNumSignatureOutputs(void* signature, size_t* count);
LiteRtStatus LiteRtGetSignatureInputTensorByIndex(void* signature, size_t index, void** tensor);
LiteRtStatus LiteRtGetSignatureOutputTensorByIndex(void* signature, size_t index, void** tensor);
LiteRtStatus LiteRtGetRankedTensorType(void* tensor, LiteRtRankedTensorType* type);
LiteRtStatus LiteRtCreateManagedTensorBuffer(void* environment, int kind, const LiteRtRankedTensorType* type,
                                             size_t bytes, void** buffer);
LiteRtStatus LiteRtLockTensorBuffer(void* buffer, void** data, int mode);
LiteRtStatus LiteRtUnlockTensorBuffer(void* buffer);
LiteRtStatus LiteRtRunCompiledModel(void* compiled, size_t signature, size_t inputs, void** input_buffers,
                                    size_t outputs, void** output_buffers);

}  // extern "C"

namespace {

using edgeq::Array;
using edgeq::Dtype;
using edgeq::Failure;
using edgeq::kBadInputs;
using edgeq::kBadModel;
using edgeq::Sample;

constexpr int kRegisterAccelerators = 24, kInt = 2;  // LiteRtEnvOptionTag, LiteRtAnyType
constexpr int kCpu = 1;                              // LiteRtHwAccelerators
constexpr int kHostMemory = 1;                       // LiteRtTensorBufferType
constexpr int kRead = 0, kWrite = 1;                 // LiteRtTensorBufferLockMode

constexpr std::pair<Dtype, int> kTypes[] = {  // LiteRtElementType
    {Dtype::Float32, 1}, {Dtype::Int32, 2}, {Dtype::UInt8, 3},    {Dtype::Int64, 4},    {Dtype::Bool, 6},
    {Dtype::Int16, 7},   {Dtype::Int8, 9},  {Dtype::Float16, 10}, {Dtype::Float64, 11},
};

void check(LiteRtStatus status, const std::string& doing) {
  if (status != 0) throw Failure(kBadModel, doing + " failed: LiteRT's status " + std::to_string(status));
}

struct Slot {
  Array array;  // its type and shape
  void* buffer = nullptr;
};

class LiteRt : public edgeq::Engine {
 public:
  void load(const edgeq::Options& options) override {
    threads_ = options.threads;
    LiteRtEnvOption only_cpu{kRegisterAccelerators, {kInt, {kCpu}}};
    void *model = nullptr, *settings = nullptr, *of_cpu = nullptr, *signature = nullptr;
    check(LiteRtCreateEnvironment(1, &only_cpu, &environment_), "starting the runtime");
    check(LiteRtCreateModelFromFile(environment_, options.model.c_str(), &model), "loading the model");
    check(LiteRtCreateOptions(&settings), "starting the runtime");
    check(LiteRtSetOptionsHardwareAccelerators(settings, kCpu), "starting the runtime");
    const std::string text = "num_threads = " + std::to_string(options.threads) + "\n";
    check(LiteRtCreateOpaqueOptions("xnnpack", strdup(text.c_str()), free, &of_cpu), "starting the runtime");
    check(LiteRtAddOpaqueOptions(settings, of_cpu), "starting the runtime");
    check(LiteRtCreateCompiledModel(environment_, model, settings, &compiled_), "loading the model");
    size_t inputs = 0, outputs = 0;
    check(LiteRtGetModelSignature(model, 0, &signature), "reading the inputs");
    check(LiteRtGetNumSignatureInputs(signature, &inputs), "reading the inputs");
    check(LiteRtGetNumSignatureOutputs(signature, &outputs), "reading the outputs");
    for (size_t i = 0; i < inputs; ++i) {
      void* tensor = nullptr;
      check(LiteRtGetSignatureInputTensorByIndex(signature, i, &tensor), "reading the inputs");
      inputs_.push_back(slot(tensor));
    }
    for (size_t i = 0; i < outputs; ++i) {
      void* tensor = nullptr;
      check(LiteRtGetSignatureOutputTensorByIndex(signature, i, &tensor), "reading the outputs");
      outputs_.push_back(slot(tensor));
    }
  }

  void bind(Sample& sample) override {
    if (inputs_.size() != sample.size()) {
      throw Failure(kBadInputs, "the model takes " + std::to_string(inputs_.size()) + " inputs, got " +
                                    std::to_string(sample.size()));
    }
    for (size_t i = 0; i < sample.size(); ++i) {
      const Array &array = sample[i], &wanted = inputs_[i].array;
      if (wanted.dtype != array.dtype || wanted.shape != array.shape) {
        throw Failure(kBadInputs, "input " + std::to_string(i) + " wants " + wanted.described() + ", got " +
                                      array.described());
      }
      void* data = nullptr;
      check(LiteRtLockTensorBuffer(inputs_[i].buffer, &data, kWrite), "writing input " + std::to_string(i));
      std::memcpy(data, array.data.data(), array.data.size());
      check(LiteRtUnlockTensorBuffer(inputs_[i].buffer), "writing input " + std::to_string(i));
    }
  }

  void call() override {
    std::vector<void*> inputs, outputs;
    for (const Slot& one : inputs_) inputs.push_back(one.buffer);
    for (const Slot& one : outputs_) outputs.push_back(one.buffer);
    check(LiteRtRunCompiledModel(compiled_, 0, inputs.size(), inputs.data(), outputs.size(), outputs.data()),
          "running the model");
  }

  Sample outputs() override {
    Sample sample;
    for (Slot& one : outputs_) {
      void* data = nullptr;
      check(LiteRtLockTensorBuffer(one.buffer, &data, kRead), "reading an output");
      std::memcpy(one.array.data.data(), data, one.array.data.size());
      check(LiteRtUnlockTensorBuffer(one.buffer), "reading an output");
      sample.push_back(one.array);
    }
    return sample;
  }

  edgeq::Core core() override { return edgeq::core_by_linux(); }  // LiteRT hides what it detected

  std::string name() override { return "litert"; }

  int threads() override { return threads_; }

 private:
  Slot slot(void* tensor) {
    LiteRtRankedTensorType type{};
    check(LiteRtGetRankedTensorType(tensor, &type), "reading a tensor");
    Slot made;
    made.array.dtype = dtype_of(type.element_type);
    uint64_t bytes = edgeq::kItemBytes[static_cast<size_t>(made.array.dtype)];
    for (unsigned int axis = 0; axis < type.layout.rank; ++axis) {
      const int64_t size = type.layout.dimensions[axis];
      if (size < 0) throw Failure(kBadModel, "a tensor whose size varies");
      made.array.shape.push_back(size);
      bytes *= static_cast<uint64_t>(size);
    }
    made.array.data.resize(bytes);
    check(LiteRtCreateManagedTensorBuffer(environment_, kHostMemory, &type, bytes, &made.buffer), "making a buffer");
    return made;
  }

  static Dtype dtype_of(int type) {
    for (const auto& [ours, theirs] : kTypes) {
      if (theirs == type) return ours;
    }
    throw Failure(kBadModel, "a tensor of LiteRT's type " + std::to_string(type));
  }

  void *environment_ = nullptr, *compiled_ = nullptr;
  std::vector<Slot> inputs_, outputs_;
  int threads_ = 0;
};

}  // namespace

int main(int count, char** values) {
  LiteRt engine;
  return edgeq::run(count, values, engine);
}
