#include "tf_ops/cpu/backend.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "tf_ops/cpu/encoder.h"

namespace ft::cpu {
namespace {

// memcpy and memset with null pointers are undefined even for 0 bytes.
void CopyBytes(char* to, const char* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void Clear(char* to, int64_t bytes) {
  if (bytes > 0) std::memset(to, 0, bytes);
}

class Cpu final : public Backend {
 public:
  Status CreateEncoder(const EncoderConfig& config, const EncoderOptions&,
                       std::unique_ptr<Encoder>* encoder) const override {
    return CreateCpuEncoder(config, encoder);
  }

  std::string Describe(const EncoderConfig&, const EncoderBatch&,
                       const ExecutionContext&) const override {
    return "";
  }

  int64_t row_alignment() const override { return 1; }
  bool TakesTurns(const ExecutionContext&) const override { return false; }
  int64_t RoundRows(int64_t num_tokens) const override { return num_tokens; }

  Status MemoryBytes(int64_t* bytes) const override {
    *bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
    return OkStatus();
  }

  Status ToDevice(const int32_t* values, int64_t, int32_t*, const ExecutionContext&,
                  const int32_t** data) const override {
    *data = values;
    return OkStatus();
  }

  Status Copy(const void* from, int64_t bytes, void* to, const ExecutionContext&) const override {
    CopyBytes(static_cast<char*>(to), static_cast<const char*>(from), bytes);
    return OkStatus();
  }

  Status RemovePadding(const void* padded, const int32_t* offsets, int64_t batch_size,
                       int64_t max_seq_len, int64_t row_bytes, void* packed,
                       const ExecutionContext& context) const override {
    context.pool->ParallelFor(batch_size, [&](int64_t b) {
      CopyBytes(static_cast<char*>(packed) + offsets[b] * row_bytes,
                static_cast<const char*>(padded) + b * max_seq_len * row_bytes,
                (offsets[b + 1] - offsets[b]) * row_bytes);
    });
    return OkStatus();
  }

  Status RebuildPadding(const void* packed, const int32_t* offsets, int64_t batch_size,
                        int64_t max_seq_len, int64_t row_bytes, void* padded,
                        const ExecutionContext& context) const override {
    context.pool->ParallelFor(batch_size, [&](int64_t b) {
      char* const to = static_cast<char*>(padded) + b * max_seq_len * row_bytes;
      const int64_t real_bytes = (offsets[b + 1] - offsets[b]) * row_bytes;
      CopyBytes(to, static_cast<const char*>(packed) + offsets[b] * row_bytes, real_bytes);
      Clear(to + real_bytes, max_seq_len * row_bytes - real_bytes);
    });
    return OkStatus();
  }

  Status ScatterRows(const void* packed, const int32_t* id_offsets, int64_t num_tokens,
                     int64_t padded_rows, int64_t row_bytes, void* padded,
                     const ExecutionContext& context) const override {
    char* const target = static_cast<char*>(padded);
    const char* const source = static_cast<const char*>(packed);
    Clear(target, padded_rows * row_bytes);
    // Blocks of rows: a task for each row would cost more than its copy.
    constexpr int64_t kBlock = 64;
    context.pool->ParallelFor((num_tokens + kBlock - 1) / kBlock, [&](int64_t block) {
      const int64_t end = std::min(num_tokens, (block + 1) * kBlock);
      for (int64_t i = block * kBlock; i < end; ++i) {
        CopyBytes(target + (i + id_offsets[i]) * row_bytes, source + i * row_bytes, row_bytes);
      }
    });
    return OkStatus();
  }
};

}  // namespace

const Backend& CpuBackend() {
  static const Cpu* const backend = new Cpu();
  return *backend;
}

}  // namespace ft::cpu
