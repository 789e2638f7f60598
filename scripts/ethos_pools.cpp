// What ExecuTorch's runtime takes of the method allocator for a .pte of Ethos-U, beside the planned memory: the
// program's values, tensors and instructions. Built for this host, whose pointers have 8 bytes, twice those of a
// Cortex-M: an upper bound. In place of the NPU's backend stands one that does nothing.
//
// scripts/ethos_pools MODEL.pte

#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include <executorch/extension/data_loader/file_data_loader.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>

using namespace executorch::runtime;

class Nothing final : public BackendInterface {
 public:
  bool is_available() const override { return true; }
  Result<DelegateHandle*> init(BackendInitContext&, FreeableBuffer*, ArrayRef<CompileSpec>) const override {
    return nullptr;
  }
  Error execute(BackendExecutionContext&, DelegateHandle*, Span<EValue*>) const override { return Error::Ok; }
};

static Nothing nothing;

class Counting final : public MemoryAllocator {
 public:
  Counting(uint32_t size, uint8_t* base) : MemoryAllocator(size, base) {}
  void* allocate(size_t size, size_t alignment = kDefaultAlignment) override {
    used = (used + alignment - 1) / alignment * alignment + size;
    return MemoryAllocator::allocate(size, alignment);
  }
  size_t used = 0;
};

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  runtime_init();
  if (register_backend({"EthosUBackend", &nothing}) != Error::Ok) return 1;
  auto loader = executorch::extension::FileDataLoader::from(argv[1]);
  auto program = Program::load(&loader.get());
  auto meta = program->method_meta("forward");
  std::vector<std::unique_ptr<uint8_t[]>> buffers;
  std::vector<Span<uint8_t>> spans;
  size_t planned = 0;
  for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
    size_t size = meta->memory_planned_buffer_size(i).get();
    planned += size;
    buffers.emplace_back(new uint8_t[size]);
    spans.push_back({buffers.back().get(), size});
  }
  HierarchicalAllocator planned_memory({spans.data(), spans.size()});
  std::vector<uint8_t> pool(16 << 20), temp(1 << 20);
  Counting method_allocator(pool.size(), pool.data());
  MemoryAllocator temp_allocator(temp.size(), temp.data());
  MemoryManager manager(&method_allocator, &planned_memory, &temp_allocator);
  auto method = program->load_method("forward", &manager);
  if (!method.ok()) {
    std::fprintf(stderr, "load_method: 0x%x\n", static_cast<unsigned>(method.error()));
    return 1;
  }
  std::printf("planned %zu B, structures %zu B\n", planned, method_allocator.used);
}
