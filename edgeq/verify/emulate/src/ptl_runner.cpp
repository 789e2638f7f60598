// Runs a TorchScript lite archive (.ptl) on torch's lite interpreter, with the QNNPACK engine where it is quantized.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/Dict.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <cpuinfo.h>
#include <torch/csrc/jit/mobile/import.h>
#include <torch/csrc/jit/mobile/module.h>

#include <memory>

#include "runner.h"

namespace {

using edgeq::Array;
using edgeq::Dtype;
using edgeq::Failure;
using edgeq::kBadInputs;
using edgeq::kBadModel;
using edgeq::Sample;

constexpr std::pair<Dtype, at::ScalarType> kTypes[] = {
    {Dtype::Bool, at::kBool},    {Dtype::UInt8, at::kByte},    {Dtype::Int8, at::kChar},
    {Dtype::Int16, at::kShort},  {Dtype::Int32, at::kInt},     {Dtype::Int64, at::kLong},
    {Dtype::Float16, at::kHalf}, {Dtype::Float32, at::kFloat}, {Dtype::Float64, at::kDouble},
};

at::ScalarType scalar_type(Dtype dtype) {
  for (const auto& [ours, theirs] : kTypes) {
    if (ours == dtype) return theirs;
  }
  throw Failure(kBadInputs, "no such type");
}

Dtype dtype_of(at::ScalarType type) {
  for (const auto& [ours, theirs] : kTypes) {
    if (theirs == type) return ours;
  }
  throw Failure(kBadModel, std::string("an output of torch's type ") + c10::toString(type));
}

// c10's messages go on with a stack of frames.
std::string first_lines(const c10::Error& error) {
  const std::string text = error.what_without_backtrace();
  return text.substr(0, text.find("\n\n"));
}

void flatten(const c10::IValue& value, Sample& into) {
  if (value.isTensor()) {
    const at::Tensor tensor = value.toTensor().contiguous();
    Array array;
    array.dtype = dtype_of(tensor.scalar_type());
    array.shape = tensor.sizes().vec();
    const auto* data = static_cast<const uint8_t*>(tensor.data_ptr());
    array.data.assign(data, data + tensor.nbytes());
    into.push_back(std::move(array));
  } else if (value.isTuple()) {
    for (const auto& item : value.toTupleRef().elements()) flatten(item, into);
  } else if (value.isList()) {
    for (const c10::IValue& item : value.toListRef()) flatten(item, into);
  } else if (value.isGenericDict()) {
    for (const auto& item : value.toGenericDict()) flatten(item.value(), into);
  } else if (!value.isNone()) {
    throw Failure(kBadModel, "an output is no tensor but " + value.tagKind());
  }
}

// The operators of the last call: a line each with name, start and end in ns, and one for the call as a whole under
// ExecuTorch's name for it. Operators within operators are their callers'.
class Trace {
 public:
  void begin() {
    lines_.clear();
    depth_ = 0;
    start_ = now();
  }

  void end() { add("Method::execute", start_, now()); }

  void watch() {
    current_ = this;
    at::addGlobalCallback(at::RecordFunctionCallback(enter, leave).scopes({at::RecordScope::FUNCTION}));
  }

  void write(const std::string& path) const {
    std::ofstream file(path);
    for (const std::string& line : lines_) file << line;
    file.close();
    if (!file) throw Failure(edgeq::kBadArguments, "cannot write " + path);
  }

 private:
  struct Entered : at::ObserverContext {
    int64_t start = 0;
    bool outermost = false;
  };

  static int64_t now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
  }

  static std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction&) {
    auto entered = std::make_unique<Entered>();
    entered->outermost = current_->depth_++ == 0;
    if (entered->outermost) entered->start = now();
    return entered;
  }

  static void leave(const at::RecordFunction& function, at::ObserverContext* context) {
    current_->depth_--;
    const auto* entered = static_cast<Entered*>(context);
    if (entered->outermost) current_->add(function.name(), entered->start, now());
  }

  void add(const std::string& name, int64_t start, int64_t end) {
    lines_.push_back(name + "\t" + std::to_string(start) + "\t" + std::to_string(end) + "\n");
  }

  static inline Trace* current_ = nullptr;
  std::vector<std::string> lines_;
  int64_t start_ = 0;
  int depth_ = 0;
};

class LiteInterpreter : public edgeq::Engine {
 public:
  void load(const edgeq::Options& options) override {
    at::set_num_threads(options.threads);
    at::globalContext().setQEngine(at::QEngine::QNNPACK);
    try {
      module_ = torch::jit::_load_for_mobile(options.model);
    } catch (const c10::Error& error) {
      throw Failure(kBadModel, "loading the archive failed: " + first_lines(error));
    }
    tracing_ = !options.etdump.empty();
    if (tracing_) trace_.watch();
  }

  void bind(Sample& sample) override {
    inputs_.clear();
    for (const Array& array : sample) {
      at::Tensor tensor = at::empty(array.shape, scalar_type(array.dtype));
      std::memcpy(tensor.data_ptr(), array.data.data(), array.data.size());
      inputs_.emplace_back(std::move(tensor));
    }
  }

  void call() override {
    if (tracing_) trace_.begin();
    try {
      result_ = module_.forward(inputs_);
      if (tracing_) trace_.end();
    } catch (const c10::Error& error) {
      throw Failure(kBadModel, "running the archive failed: " + first_lines(error));
    }
  }

  Sample outputs() override {
    Sample sample;
    flatten(result_, sample);
    return sample;
  }

  void finish(const edgeq::Options& options) override {
    if (tracing_) trace_.write(options.etdump);
  }

  edgeq::Core core() override {
    edgeq::Core core;
    if (!cpuinfo_initialize()) return core;
    if (const auto* found = cpuinfo_get_uarch(0)) {
      core.uarch = found->uarch;
      core.midr = found->midr;
    }
    const std::pair<const char*, bool> known[] = {
        {"atomics", cpuinfo_has_arm_atomics()}, {"bf16", cpuinfo_has_arm_bf16()}, {"dot", cpuinfo_has_arm_neon_dot()},
        {"fhm", cpuinfo_has_arm_fhm()},         {"fp16", cpuinfo_has_arm_neon_fp16_arith()},
        {"i8mm", cpuinfo_has_arm_i8mm()},       {"rdm", cpuinfo_has_arm_neon_rdm()}, {"sve", cpuinfo_has_arm_sve()},
        {"sve2", cpuinfo_has_arm_sve2()},
    };
    for (const auto& [name, has] : known) {
      if (has) core.features.emplace_back(name);
    }
    return core;
  }

  std::string name() override { return "qnnpack"; }

  int threads() override { return at::get_num_threads(); }

 private:
  c10::InferenceMode inference_;
  torch::jit::mobile::Module module_;
  std::vector<c10::IValue> inputs_;
  c10::IValue result_;
  Trace trace_;
  bool tracing_ = false;
};

}  // namespace

int main(int count, char** values) {
  LiteInterpreter engine;
  return edgeq::run(count, values, engine);
}
