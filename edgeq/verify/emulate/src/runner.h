// What the runners share: options, the container of samples, timing, and the report. C++17, no library.
//
// A runner takes one artifact and a file of samples, runs each sample, and leaves two files: the outputs in the same
// container, and a JSON report. Anything wrong with either file is a line on standard error and an exit status.
#pragma once

#include <signal.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#endif

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace edgeq {

// Exit statuses, which edgeq/verify/emulate/runner.py knows by the same numbers.
constexpr int kBadArguments = 2;
constexpr int kBadInputs = 3;
constexpr int kBadModel = 4;

struct Failure : std::runtime_error {
  Failure(int status_, const std::string& what) : std::runtime_error(what), status(status_) {}
  int status;
};

enum class Dtype : uint8_t { Bool, UInt8, Int8, Int16, Int32, Int64, Float16, Float32, Float64 };
constexpr size_t kDtypes = 9;
constexpr size_t kItemBytes[kDtypes] = {1, 1, 1, 2, 4, 8, 2, 4, 8};
constexpr const char* kDtypeNames[kDtypes] = {"bool",  "uint8",   "int8",    "int16",  "int32",
                                              "int64", "float16", "float32", "float64"};

inline const char* name_of(Dtype dtype) { return kDtypeNames[static_cast<size_t>(dtype)]; }

struct Array {
  Dtype dtype = Dtype::Float32;
  std::vector<int64_t> shape;
  std::vector<uint8_t> data;  // C order

  std::string described() const {
    std::string text = name_of(dtype);
    text += " [";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
  }
};

using Sample = std::vector<Array>;

// --- the container -----------------------------------------------------------------------------------------------
// "EDGEQT1\n", uint32 samples; for each sample uint32 arrays; for each array uint8 dtype, uint8 axes, int64 sizes,
// then the elements. Little-endian, as both the host and the device are.

constexpr char kMagic[8] = {'E', 'D', 'G', 'E', 'Q', 'T', '1', '\n'};
constexpr uint32_t kMaxArrays = 1024;
constexpr uint8_t kMaxAxes = 16;

class SampleReader {
 public:
  explicit SampleReader(const std::string& path) : file_(path, std::ios::binary) {
    if (!file_) throw Failure(kBadInputs, "cannot open " + path);
    file_.seekg(0, std::ios::end);
    left_ = static_cast<uint64_t>(file_.tellg());
    file_.seekg(0);
    char magic[sizeof kMagic];
    take(magic, sizeof magic);
    if (std::memcmp(magic, kMagic, sizeof magic) != 0) throw Failure(kBadInputs, path + " holds no samples");
    samples_ = number<uint32_t>();
  }

  uint32_t samples() const { return samples_; }

  Sample next() {
    const auto count = number<uint32_t>();
    if (count > kMaxArrays) throw Failure(kBadInputs, "a sample of " + std::to_string(count) + " arrays");
    Sample sample(count);
    for (Array& array : sample) read(array);
    return sample;
  }

 private:
  void read(Array& array) {
    const auto code = number<uint8_t>();
    if (code >= kDtypes) throw Failure(kBadInputs, "an array of the unknown type " + std::to_string(code));
    array.dtype = static_cast<Dtype>(code);
    const auto axes = number<uint8_t>();
    if (axes > kMaxAxes) throw Failure(kBadInputs, "an array of " + std::to_string(axes) + " axes");
    uint64_t bytes = kItemBytes[code];
    for (uint8_t axis = 0; axis < axes; ++axis) {
      const auto size = number<int64_t>();
      if (size < 0) throw Failure(kBadInputs, "an array of negative size");
      array.shape.push_back(size);
      if (size != 0 && bytes > left_ / static_cast<uint64_t>(size)) throw short_file();
      bytes *= static_cast<uint64_t>(size);
    }
    array.data.resize(bytes);
    take(reinterpret_cast<char*>(array.data.data()), bytes);
  }

  template <typename T>
  T number() {
    T value;
    take(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }

  void take(char* to, uint64_t bytes) {
    if (bytes > left_ || !file_.read(to, static_cast<std::streamsize>(bytes))) throw short_file();
    left_ -= bytes;
  }

  static Failure short_file() { return Failure(kBadInputs, "the file of samples ends too soon"); }

  std::ifstream file_;
  uint64_t left_ = 0;
  uint32_t samples_ = 0;
};

class SampleWriter {
 public:
  SampleWriter(const std::string& path, uint32_t samples) : file_(path, std::ios::binary), path_(path) {
    file_.write(kMagic, sizeof kMagic);
    number(samples);
    check();
  }

  void write(const Sample& sample) {
    number(static_cast<uint32_t>(sample.size()));
    for (const Array& array : sample) {
      number(static_cast<uint8_t>(array.dtype));
      number(static_cast<uint8_t>(array.shape.size()));
      for (const int64_t size : array.shape) number(size);
      file_.write(reinterpret_cast<const char*>(array.data.data()), static_cast<std::streamsize>(array.data.size()));
    }
    file_.flush();
    check();
  }

 private:
  template <typename T>
  void number(T value) {
    file_.write(reinterpret_cast<const char*>(&value), sizeof value);
  }

  void check() {
    if (!file_) throw Failure(kBadArguments, "cannot write " + path_);
  }

  std::ofstream file_;
  std::string path_;
};

// --- options -----------------------------------------------------------------------------------------------------

struct Options {
  std::string model, inputs, outputs, report, etdump;
  int warmup = 0, runs = 1, threads = 1;
};

inline int whole(const std::string& name, const std::string& text, int least, int most) {
  size_t used = 0;
  long value = 0;
  try {
    value = std::stol(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used == 0 || used != text.size() || value < least || value > most) {
    throw Failure(kBadArguments, name + " wants a number from " + std::to_string(least) + " to " +
                                     std::to_string(most) + ", got '" + text + "'");
  }
  return static_cast<int>(value);
}

inline Options parse(int count, char** values) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    const std::string name = values[i];
    if (i + 1 == count) throw Failure(kBadArguments, name + " wants a value");
    const std::string value = values[i + 1];
    if (name == "--model") options.model = value;
    else if (name == "--inputs") options.inputs = value;
    else if (name == "--outputs") options.outputs = value;
    else if (name == "--report") options.report = value;
    else if (name == "--etdump") options.etdump = value;
    else if (name == "--warmup") options.warmup = whole(name, value, 0, 1000000);
    else if (name == "--runs") options.runs = whole(name, value, 1, 1000000);
    else if (name == "--threads") options.threads = whole(name, value, 1, 64);
    else throw Failure(kBadArguments, "unknown option " + name);
  }
  for (const std::string* needed : {&options.model, &options.inputs, &options.outputs, &options.report}) {
    if (needed->empty()) throw Failure(kBadArguments, "--model, --inputs, --outputs and --report are needed");
  }
  return options;
}

// --- what the process itself takes ---------------------------------------------------------------------------------

// A line of /proc/self/status in bytes; 0 where there is none. Under QEMU it is the emulator's own process.
inline uint64_t status_bytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind(key + ":", 0) == 0) return std::stoull(line.substr(key.size() + 1)) * 1024;
  }
  return 0;
}

// --- the core, as the runtime's own detection (pytorch/cpuinfo) sees it ----------------------------------------------

struct Core {
  uint32_t uarch = 0;
  uint32_t midr = 0;
  std::vector<std::string> features;
};

// What Linux says of the core, where the runtime hides what it detected by the same two sources.
inline Core core_by_linux() {
  Core core;
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  uint32_t implementer = 0, variant = 0, part = 0, revision = 0;
  while (std::getline(file, line) && !line.empty()) {  // an empty line ends the first core
    const auto number = [&] { return static_cast<uint32_t>(std::stoul(line.substr(line.find(':') + 1), nullptr, 0)); };
    if (line.rfind("CPU implementer", 0) == 0) implementer = number();
    if (line.rfind("CPU variant", 0) == 0) variant = number();
    if (line.rfind("CPU part", 0) == 0) part = number();
    if (line.rfind("CPU revision", 0) == 0) revision = number();
  }
  core.midr = implementer << 24 | variant << 20 | 0xFu << 16 | part << 4 | revision;  // MIDR_EL1
#if defined(__aarch64__)
  const auto has = getauxval(AT_HWCAP), has2 = getauxval(AT_HWCAP2);
  const std::pair<const char*, bool> known[] = {
      {"atomics", has & HWCAP_ATOMICS},  {"bf16", has2 & HWCAP2_BF16}, {"dot", has & HWCAP_ASIMDDP},
      {"fhm", has & HWCAP_ASIMDFHM},     {"fp16", has & HWCAP_ASIMDHP}, {"i8mm", has2 & HWCAP2_I8MM},
      {"rdm", has & HWCAP_ASIMDRDM},     {"sve", has & HWCAP_SVE},     {"sve2", has2 & HWCAP2_SVE2},
  };
  for (const auto& [name, present] : known) {
    if (present) core.features.emplace_back(name);
  }
#endif
  return core;
}

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

struct Engine {
  virtual ~Engine() = default;
  virtual void load(const Options& options) = 0;       // throws Failure
  virtual void bind(Sample& sample) = 0;               // its arrays stay until the next one
  virtual void call() = 0;                             // one inference
  virtual Sample outputs() = 0;                        // of the last one
  virtual void finish(const Options&) {}               // what is to be written at the end
  virtual Core core() = 0;
  virtual std::string name() = 0;
  virtual int threads() = 0;
};

using Times = std::vector<std::vector<double>>;

inline double since_ms(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

inline void write_report(const Options& options, Engine& engine, double load_ms, const Times& times, uint64_t peak) {
  std::ostringstream out;
  out.precision(std::numeric_limits<double>::max_digits10);
  const Core core = engine.core();
  out << "{\"engine\": " << quoted(engine.name()) << ", \"threads\": " << engine.threads()
      << ", \"load_ms\": " << load_ms << ", \"peak_memory_bytes\": " << peak << ", \"uarch\": " << core.uarch
      << ", \"midr\": " << core.midr << ", \"features\": [";
  for (size_t i = 0; i < core.features.size(); ++i) out << (i ? ", " : "") << quoted(core.features[i]);
  out << "], \"latencies_ms\": [";
  for (size_t i = 0; i < times.size(); ++i) {
    out << (i ? ", [" : "[");
    for (size_t j = 0; j < times[i].size(); ++j) out << (j ? ", " : "") << times[i][j];
    out << "]";
  }
  out << "]}\n";
  std::ofstream file(options.report);
  file << out.str();
  file.close();
  if (!file) throw Failure(kBadArguments, "cannot write " + options.report);
}

// Run every sample: `warmup` inferences that are not timed, then `runs` that are. A line on standard output after each
// sample tells how far it got.
inline void serve(const Options& options, Engine& engine) {
  SampleReader reader(options.inputs);
  const uint64_t before = status_bytes("VmRSS");
  const auto start = std::chrono::steady_clock::now();
  engine.load(options);
  const double load_ms = since_ms(start);
  SampleWriter writer(options.outputs, reader.samples());
  Times times;
  for (uint32_t i = 0; i < reader.samples(); ++i) {
    Sample sample = reader.next();
    engine.bind(sample);
    for (int run = 0; run < options.warmup; ++run) engine.call();
    times.emplace_back();
    for (int run = 0; run < options.runs; ++run) {
      const auto begin = std::chrono::steady_clock::now();
      engine.call();
      times.back().push_back(since_ms(begin));
    }
    writer.write(engine.outputs());
    std::printf("done %u\n", i + 1);
    std::fflush(stdout);
  }
  const uint64_t peak = status_bytes("VmHWM");
  engine.finish(options);
  write_report(options, engine, load_ms, times, peak > before ? peak - before : 0);
}

inline int run(int count, char** values, Engine& engine) {
  // edgeq may itself be killed; a runner that lived on would keep a core busy for minutes
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    serve(parse(count, values), engine);
    return 0;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "error: %s\n", failure.what());
    return failure.status;
  } catch (const std::exception& other) {
    std::fprintf(stderr, "error: %s\n", other.what());
    return kBadModel;
  }
}

}  // namespace edgeq
