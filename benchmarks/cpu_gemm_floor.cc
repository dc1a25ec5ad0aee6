// Times the CPU encoder of one model and batch without TensorFlow, and the floor that its own
// GEMMs set: its four products a layer alone, and the attention's arithmetic at their rate.
//
// cpu_gemm_floor BATCH SEQ LAYERS HEADS SIZE INNER float32|bfloat16 THREADS [INT8_MODE]
// Prints one JSON object; times are medians in milliseconds for one forward pass of all layers.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tf_ops/core/scales.h"
#include "tf_ops/cpu/encoder.h"
#include "tf_ops/cpu/primitives/primitives.h"
#include "tf_ops/cpu/schedules.h"
#include "tf_ops/cpu/thread_pool.h"

namespace {

using ft::cpu::GemmArgs;

double MedianMs(const std::function<void()>& work) {
  std::vector<double> times;
  double total = 0;
  work();
  while (times.size() < 3 || (total < 1500 && times.size() < 200)) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    times.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
            .count());
    total += times.back();
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Random values of `dtype`, as bytes; integers are any bits.
std::vector<char> Random(int64_t count, ft::DataType dtype) {
  std::mt19937 generator(1);
  if (dtype != ft::DataType::kFloat32 && dtype != ft::DataType::kBFloat16) {
    std::vector<char> bytes(count * ft::SizeOf(dtype));
    for (char& byte : bytes) byte = static_cast<char>(generator());
    return bytes;
  }
  std::uniform_real_distribution<float> uniform(-0.05f, 0.05f);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(generator);
  std::vector<char> bytes(count * ft::SizeOf(dtype));
  ft::cpu::Convert(values.data(), ft::DataType::kFloat32, bytes.data(), dtype, count);
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 9 && argc != 10) {
    std::fprintf(stderr,
                 "usage: %s BATCH SEQ LAYERS HEADS SIZE INNER float32|bfloat16 THREADS "
                 "[INT8_MODE]\n",
                 argv[0]);
    return 2;
  }
  const int64_t batch_size = std::atoll(argv[1]), seq_len = std::atoll(argv[2]);
  ft::EncoderConfig config;
  config.num_layers = std::atoll(argv[3]);
  config.num_heads = std::atoll(argv[4]);
  config.head_size = std::atoll(argv[5]);
  config.inner_size = std::atoll(argv[6]);
  config.dtype =
      std::string(argv[7]) == "bfloat16" ? ft::DataType::kBFloat16 : ft::DataType::kFloat32;
  const int threads = std::atoi(argv[8]);
  config.int8_mode = argc == 10 ? std::atoi(argv[9]) : 0;
  const int64_t hidden = config.hidden_size(), inner = config.inner_size;
  const int64_t tokens = batch_size * seq_len;
  std::unique_ptr<ft::Encoder> encoder;
  ft::Status status = ft::cpu::CreateCpuEncoder(config, &encoder);
  if (!status.ok() || tokens <= 0 || threads <= 0) {
    std::fprintf(stderr, "bad arguments: %s\n", status.message().c_str());
    return 2;
  }
  const int64_t most = hidden * std::max(inner, hidden);
  const auto weight = Random(most, config.dtype), matrix = Random(most, config.matrix_dtype());
  const std::vector<float> ranges(ft::ScaleListSize(config), 1.0f);
  std::vector<ft::LayerWeights> layers(config.num_layers);
  for (ft::LayerWeights& layer : layers) {
    for (int f = 0; f < ft::kWeightsPerLayer; ++f) {
      const bool is_matrix = ft::WeightFields()[f].is_quantized;
      layer.*ft::WeightFields()[f].view = {is_matrix ? matrix.data() : weight.data(),
                                           is_matrix ? config.matrix_dtype() : config.dtype,
                                           ft::WeightShape(config, f)};
    }
    if (config.int8_mode != 0) {
      layer.amax_list = {ranges.data(), ft::DataType::kFloat32, {ft::ScaleListSize(config)}};
    }
  }
  ft::cpu::StdThreadPool pool(threads);
  ft::ExecutionContext context;
  context.pool = &pool;
  const auto input = Random(tokens * hidden, config.dtype);
  std::vector<char> output(input.size());
  ft::EncoderBatch batch;
  batch.batch_size = batch_size;
  batch.max_seq_len = seq_len;
  batch.num_tokens = tokens;
  batch.input = input.data();
  batch.outputs = {output.data()};
  const auto aligned = [](int64_t bytes) {
    return std::aligned_alloc(2 << 20, ft::AlignUp(bytes + 1, 2 << 20));
  };
  void* packed = aligned(encoder->PreparedWeightBytes());
  int64_t workspace_bytes;
  if (!encoder->WorkspaceBytes(batch, context, &workspace_bytes).ok()) return 1;
  void* workspace = aligned(workspace_bytes);
  if (!encoder->PrepareWeights(layers, packed, context).ok()) return 1;
  const double encoder_ms =
      MedianMs([&] { status = encoder->Run(batch, packed, workspace, context); });

  // The products alone, on the same primitives: rows in blocks as the encoder takes them.
  const ft::cpu::Primitives& primitives = ft::cpu::GetPrimitives(config);
  const struct {
    int64_t k, n;
  } products[] = {{hidden, 3 * hidden}, {hidden, hidden}, {hidden, inner}, {inner, hidden}};
  double products_ms = 0, flops = 0;
  const char* panels = static_cast<const char*>(packed);
  const ft::DataType left_dtype = primitives.gemm.activation;
  const auto left = Random(tokens * (std::max(inner, hidden) + 64), left_dtype);
  float* sums = static_cast<float*>(aligned(tokens * std::max(inner, 3 * hidden) * 4));
  std::vector<void*> scratch;  // of each thread
  for (int i = 0; i < threads; ++i) {
    scratch.push_back(aligned(primitives.gemm.scratch_bytes(tokens, std::max(inner, hidden))));
  }
  const int64_t per_layer = encoder->PreparedWeightBytes() / config.num_layers;
  for (const auto& product : products) {
    const int64_t panel_bytes = primitives.gemm.PanelBytes(product.k);
    const bool by_rows = tokens >= threads * primitives.schedule.min_rows_per_thread;
    const ft::cpu::Grid grid(primitives, tokens, product.n, threads);
    const int64_t row_block =
        by_rows ? std::min(primitives.schedule.block_rows, (tokens + threads - 1) / threads)
                : grid.rows;
    const int64_t col_block = by_rows ? product.n : grid.columns;
    const int64_t row_tasks = (tokens + row_block - 1) / row_block;
    const int64_t col_tasks = (product.n + col_block - 1) / col_block;
    products_ms += MedianMs([&] {
      for (int64_t layer = 0; layer < config.num_layers; ++layer) {
        std::atomic<int64_t> next{0};
        pool.ParallelFor(threads, [&](int64_t worker) {
          for (int64_t task; (task = next++) < row_tasks * col_tasks;) {
            const int64_t row = task % row_tasks * row_block, col = task / row_tasks * col_block;
            for (int64_t k = 0; k < product.k; k += primitives.gemm.inner_chunk) {
              GemmArgs g;
              g.a = left.data() + (row * product.k + k) * ft::SizeOf(left_dtype);
              g.lda = product.k;
              g.panels =
                  panels + layer * per_layer + col / primitives.gemm.panel_width * panel_bytes;
              g.panel_bytes = panel_bytes;
              g.rows = std::min(row_block, tokens - row);
              g.k = std::min(primitives.gemm.inner_chunk, product.k - k);
              g.cols = std::min(col_block, product.n - col);
              g.c = sums + row * product.n + col;
              g.ldc = product.n;
              g.first_k = k;
              g.scratch = scratch[worker];
              primitives.gemm.gemm(g);
            }
          }
        });
      }
    });
    panels += ft::AlignUp(
        (product.n + primitives.gemm.panel_width - 1) / primitives.gemm.panel_width * panel_bytes,
        ft::kAlignment);
    flops += 2.0 * tokens * product.k * product.n * config.num_layers;
  }
  const double attention_flops = 4.0 * tokens * seq_len * hidden * config.num_layers;
  const double floor_ms = products_ms * (flops + attention_flops) / flops;
  std::printf(
      "{\"isa\": \"%s\", \"encoder_ms\": %.3f, \"products_ms\": %.3f, \"gflops\": %.1f, "
      "\"floor_ms\": %.3f, \"ratio\": %.3f}\n",
      primitives.isa, encoder_ms, products_ms, flops / products_ms / 1e6, floor_ms,
      encoder_ms / floor_ms);
  std::free(packed);
  std::free(workspace);
  std::free(sums);
  for (void* memory : scratch) std::free(memory);
  return status.ok() ? 0 : 1;
}
