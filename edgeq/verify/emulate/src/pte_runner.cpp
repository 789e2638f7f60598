// Runs an ExecuTorch program (.pte) on the runtime of one executorch wheel, with its XNNPACK delegate.
#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <memory>

#include "runner.h"

// The wheel ships libexecutorch_threadpool without these headers; its symbols are exported.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

// pytorch/cpuinfo, linked into the thread pool's library; the layout is that of the version in executorch 1.5.
extern "C" {
struct cpuinfo_uarch_info {
  uint32_t uarch;
  uint32_t midr;
  uint32_t processor_count;
  uint32_t core_count;
};
#if defined(__aarch64__)
struct cpuinfo_arm_isa {
  bool atomics, bf16, sve, sve2, i8mm, sme, sme2, sme2p1, sme_i16i32, sme_bi32i32, sme_b16b16, sme_f16f16;
  uint32_t svelen, smelen;
  bool rdm, fp16arith, dot, jscvt, fcma, fhm, aes, sha1, sha2, pmull, crc32;
};
extern cpuinfo_arm_isa cpuinfo_isa;
#endif
bool cpuinfo_initialize();
const cpuinfo_uarch_info* cpuinfo_get_uarch(uint32_t index);
}

namespace {

using edgeq::Array;
using edgeq::Dtype;
using edgeq::Failure;
using edgeq::kBadInputs;
using edgeq::kBadModel;
using edgeq::Sample;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using executorch::runtime::EValue;

constexpr std::pair<Dtype, ScalarType> kTypes[] = {
    {Dtype::Bool, ScalarType::Bool},       {Dtype::UInt8, ScalarType::Byte},    {Dtype::Int8, ScalarType::Char},
    {Dtype::Int16, ScalarType::Short},     {Dtype::Int32, ScalarType::Int},     {Dtype::Int64, ScalarType::Long},
    {Dtype::Float16, ScalarType::Half},    {Dtype::Float32, ScalarType::Float}, {Dtype::Float64, ScalarType::Double},
};

ScalarType scalar_type(Dtype dtype) {
  for (const auto& [ours, theirs] : kTypes) {
    if (ours == dtype) return theirs;
  }
  throw Failure(kBadInputs, "no such type");
}

Dtype dtype_of(ScalarType type) {
  for (const auto& [ours, theirs] : kTypes) {
    if (theirs == type) return ours;
  }
  throw Failure(kBadModel, "a tensor of ExecuTorch's type " + std::to_string(static_cast<int>(type)));
}

void check(Error error, const std::string& doing) {
  if (error == Error::Ok) return;
  char code[16];
  std::snprintf(code, sizeof code, "0x%x", static_cast<unsigned>(error));
  throw Failure(kBadModel, doing + " failed with code " + code + " (" + executorch::runtime::to_string(error) + ")");
}

class ExecuTorch : public edgeq::Engine {
 public:
  void load(const edgeq::Options& options) override {
    using executorch::runtime::Program;
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(options.threads);
    std::unique_ptr<executorch::etdump::ETDumpGen> tracer;
    if (!options.etdump.empty()) tracer = std::make_unique<executorch::etdump::ETDumpGen>();
    module_ = std::make_unique<Module>(options.model, Module::LoadMode::Mmap, std::move(tracer));
    check(module_->load(Program::Verification::InternalConsistency), "loading the program");
    check(module_->load_method("forward"), "loading the method forward");
  }

  void bind(Sample& sample) override {
    auto meta = module_->method_meta("forward");
    check(meta.error(), "reading the inputs");
    if (meta->num_inputs() != sample.size()) {
      throw Failure(kBadInputs, "the program takes " + std::to_string(meta->num_inputs()) + " inputs, got " +
                                    std::to_string(sample.size()));
    }
    tensors_.clear();
    values_.clear();
    smaller_.clear();
    for (size_t i = 0; i < sample.size(); ++i) {
      auto info = meta->input_tensor_meta(i);
      check(info.error(), "reading input " + std::to_string(i));
      Array wanted;
      wanted.dtype = dtype_of(info->scalar_type());
      wanted.shape.assign(info->sizes().begin(), info->sizes().end());
      // where sizes vary, the program states the largest ones, and not that they do: it refuses others itself
      bool fits = wanted.dtype == sample[i].dtype && wanted.shape.size() == sample[i].shape.size();
      for (size_t axis = 0; fits && axis < wanted.shape.size(); ++axis) {
        fits = sample[i].shape[axis] <= wanted.shape[axis];
      }
      if (wanted.described() != sample[i].described()) {
        smaller_ = "input " + std::to_string(i) + " wants " + wanted.described() + ", got " + sample[i].described();
      }
      if (!fits) throw Failure(kBadInputs, smaller_);
      std::vector<executorch::aten::SizesType> sizes(sample[i].shape.begin(), sample[i].shape.end());
      tensors_.push_back(
          executorch::extension::from_blob(sample[i].data.data(), std::move(sizes), scalar_type(sample[i].dtype)));
      values_.emplace_back(tensors_.back());
    }
  }

  void call() override {
    auto result = module_->forward(values_);
    if (!result.ok() && !smaller_.empty()) throw Failure(kBadInputs, smaller_);
    check(result.error(), "running the program");
    results_ = std::move(*result);
  }

  Sample outputs() override {
    Sample sample;
    for (const EValue& value : results_) {
      if (!value.isTensor()) throw Failure(kBadModel, "an output is no tensor");
      const Tensor& tensor = value.toTensor();
      Array array;
      array.dtype = dtype_of(tensor.scalar_type());
      array.shape.assign(tensor.sizes().begin(), tensor.sizes().end());
      const auto* data = static_cast<const uint8_t*>(tensor.const_data_ptr());
      array.data.assign(data, data + tensor.nbytes());
      sample.push_back(std::move(array));
    }
    return sample;
  }

  void finish(const edgeq::Options& options) override {
    if (options.etdump.empty()) return;
    auto* tracer = static_cast<executorch::etdump::ETDumpGen*>(module_->event_tracer());
    const auto dump = tracer->get_etdump_data();
    std::ofstream file(options.etdump, std::ios::binary);
    file.write(static_cast<const char*>(dump.buf), static_cast<std::streamsize>(dump.size));
    file.close();
    if (!file) throw Failure(edgeq::kBadArguments, "cannot write " + options.etdump);
  }

  edgeq::Core core() override {
    edgeq::Core core;
    if (!cpuinfo_initialize()) return core;
    if (const auto* found = cpuinfo_get_uarch(0)) {
      core.uarch = found->uarch;
      core.midr = found->midr;
    }
#if defined(__aarch64__)
    const auto& isa = cpuinfo_isa;
    const std::pair<const char*, bool> known[] = {
        {"atomics", isa.atomics}, {"bf16", isa.bf16}, {"dot", isa.dot}, {"fhm", isa.fhm}, {"fp16", isa.fp16arith},
        {"i8mm", isa.i8mm},       {"rdm", isa.rdm},   {"sme", isa.sme}, {"sve", isa.sve}, {"sve2", isa.sve2},
    };
#else
    const std::pair<const char*, bool> known[] = {
        {"avx", __builtin_cpu_supports("avx")},         {"avx2", __builtin_cpu_supports("avx2")},
        {"avx512f", __builtin_cpu_supports("avx512f")}, {"avx512vnni", __builtin_cpu_supports("avx512vnni")},
        {"fma", __builtin_cpu_supports("fma")},
    };
#endif
    for (const auto& [name, has] : known) {
      if (has) core.features.emplace_back(name);
    }
    return core;
  }

  std::string name() override { return "executorch"; }

  int threads() override {
    return static_cast<int>(executorch::extension::threadpool::get_threadpool()->get_thread_count());
  }

 private:
  std::unique_ptr<Module> module_;
  std::vector<TensorPtr> tensors_;
  std::string smaller_;  // what to say of inputs that the program refuses
  std::vector<EValue> values_, results_;
};

}  // namespace

int main(int count, char** values) {
  ExecuTorch engine;
  return edgeq::run(count, values, engine);
}
