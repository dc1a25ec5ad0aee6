// Tests of the CUDA backend without TensorFlow: kernels and whole layers against float64 on the
// CPU. Runs wherever there is a GPU: `cuda_test [name, or a part of names]`. Prints one line per
// case; exit code 1 if any failed, 77 without a GPU. `cuda_test bench_attention` measures the
// attention kernels instead, `cuda_test bench_half` the encoder by the kernels of its products in
// 16 bits, `cuda_test bench_int8` the products of INT8, `cuda_test bench_split` those of float32.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "tests/cuda_half.h"
#include "tests/cuda_int8.h"
#include "tests/cuda_norm.h"
#include "tests/cuda_split.h"
#include "tests/cuda_support.h"
#include "tests/reference_layer.h"
#include "tests/runner_checks.h"
#include "tf_ops/core/encoder.h"
#include "tf_ops/cuda/attention/attention.h"
#include "tf_ops/cuda/attention/projection.h"
#include "tf_ops/cuda/backend.h"
#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/encoder.h"
#include "tf_ops/cuda/gemm/gemm.h"
#include "tf_ops/cuda/gemm/half/half_kinds.h"
#include "tf_ops/cuda/gemm/split/split_kinds.h"
#include "tf_ops/cuda/graph_cache.h"
#include "tf_ops/cuda/layer_plan.h"
#include "tf_ops/cuda/norm/layer_norm.h"
#include "tf_ops/cuda/rows/padding.h"

namespace {

using namespace ft;                 // NOLINT
using namespace ft::cuda;           // NOLINT
using namespace ft::cuda::testing;  // NOLINT
using namespace ft::reference;      // NOLINT

std::string gemm_config_dir;  // of the encoders that TestLayer makes

// ---- Whole layers -------------------------------------------------------------------------------

struct LayerCase {
  DataType dtype;
  int64_t heads, size, seq_len;
  std::vector<int32_t> lengths;
  bool packed = false, mask = false;
  int64_t layers = 1;
  Activation activation = Activation::kGeluTanh;
  int64_t inner = 0;  // 0: 4H
  int64_t few_rows = -1;
  bool mask_of_keys = false;  // masks that are numbers of keys, and others beside them
  bool ieee_float32 = false;  // no split products
  bool cublaslt_only = false;
};

std::string Describe(const LayerCase& c) {
  std::string text = StrCat("layer ", Name(c.dtype), " ", c.heads, "x", c.size, " S=", c.seq_len,
                            " L=", c.layers, " lengths");
  for (int32_t length : c.lengths) text += StrCat(" ", length);
  if (c.packed) text += " packed";
  if (c.mask) text += c.mask_of_keys ? " masks of keys" : " mask";
  if (c.activation == Activation::kGeluErf) text += " erf";
  if (c.activation == Activation::kRelu) text += " relu";
  if (c.few_rows >= 0) text += StrCat(" few_rows=", c.few_rows);
  if (c.ieee_float32) text += " IEEE";
  if (c.cublaslt_only) text += " cuBLASLt";
  return text;
}

void TestLayer(const LayerCase& c) {
  EncoderConfig config;
  config.dtype = c.dtype;
  config.num_heads = c.heads;
  config.head_size = c.size;
  config.inner_size = c.inner ? c.inner : 4 * c.heads * c.size;
  config.num_layers = c.layers;
  config.activation = c.activation;
  const int64_t h = config.hidden_size();
  const Sequences s = MakeSequences(c.seq_len, c.lengths, c.packed);
  const int64_t batch_size = s.batch_size;

  // Weights on device and host.
  std::vector<Layer> layers(c.layers);
  std::vector<LayerWeights> views(c.layers);
  std::vector<std::unique_ptr<Device>> memory;
  for (int64_t l = 0; l < c.layers; ++l) {
    for (int f = 0; f < kWeightsPerLayer; ++f) {
      const Shape shape = WeightShape(config, f);
      Doubles& v = layers[l].values[f];
      const int64_t elems = NumElements(shape);
      if (f == 9 || f == 15) {
        v = Random(elems, 0.1, 1.0);
      } else {
        // Sharp enough for the softmax to matter.
        v = Random(elems, shape.size() == 2 ? 1.0 / std::sqrt(static_cast<double>(shape[0])) : 0.1);
      }
      memory.push_back(std::make_unique<Device>(&v, c.dtype));
      TensorView& view = views[l].*WeightFields()[f].view;
      view.data = memory.back()->data();
      view.dtype = c.dtype;
      view.shape = shape;
    }
  }
  Doubles x = Random(s.num_tokens * h, 1.0);
  Device input(&x, c.dtype);
  // Padding rows are NaN: they may not reach any row with tokens. The rows themselves are not
  // compared.
  Doubles poisoned = x;
  if (!c.packed) {
    for (int64_t b = 0; b < batch_size; ++b) {
      for (int64_t r = s.first[b] + s.keys[b]; r < s.first[b] + s.rows[b]; ++r) {
        for (int64_t e = 0; e < h; ++e) poisoned[r * h + e] = NAN;
      }
    }
  }
  const bool poison = !c.packed;
  Device poisoned_input(&poisoned, c.dtype);
  Doubles mask;
  if (c.mask) {
    mask = Doubles(batch_size * c.seq_len * c.seq_len, 1.0);
    std::bernoulli_distribution coin(0.3);
    for (int64_t row = 0; row < batch_size * c.seq_len; ++row) {
      // Each fifth row is masked altogether.
      for (int64_t j = 0; j < c.seq_len; ++j) {
        if (row % 5 == 3 || coin(generator)) mask[row * c.seq_len + j] = 0;
      }
    }
    for (int64_t b = 0; c.mask_of_keys && b < std::min<int64_t>(4, batch_size); ++b) {
      // Some keys, all, none; as in the first, but for one element; the rest stays as it is.
      const int64_t keys[] = {c.lengths[b] * 2 / 3, c.seq_len, 0, c.lengths[b] / 2};
      double* const of_sequence = &mask[b * c.seq_len * c.seq_len];
      for (int64_t e = 0; e < c.seq_len * c.seq_len; ++e) {
        of_sequence[e] = e % c.seq_len < keys[b] ? 1 : 0;
      }
      if (b == 3) of_sequence[(c.lengths[b] - 2) * c.seq_len + keys[b]] = 1;
    }
  }
  Device mask_memory(&mask, c.dtype);
  std::vector<int32_t> offsets = {0};
  for (int32_t length : c.lengths) offsets.push_back(offsets.back() + length);
  Device offsets_memory(offsets), lengths_memory(c.lengths);

  CudaEncoderOptions options;
  options.few_rows = c.few_rows;
  options.ieee_float32 = c.ieee_float32;
  options.cublaslt_only = c.cublaslt_only;
  options.gemm_config_dir = gemm_config_dir;
  std::unique_ptr<Encoder> encoder;
  const std::string name = Describe(c);
  MustBeOk(CreateCudaEncoder(config, options, &encoder), name);
  Device packed(encoder->PreparedWeightBytes());
  cudaStream_t stream;
  MustBeOk(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  ExecutionContext execution;
  execution.stream = stream;
  // The stream does not wait for what a Device puts on the default stream.
  MustBeOk(cudaDeviceSynchronize(), "before packing");
  MustBeOk(encoder->PrepareWeights(views, packed.data(), execution), name);

  EncoderBatch batch;
  batch.batch_size = batch_size;
  batch.max_seq_len = c.seq_len;
  batch.num_tokens = s.num_tokens;
  batch.packed = c.packed;
  if (c.packed) {
    batch.seq_offsets = static_cast<int32_t*>(offsets_memory.data());
  } else {
    batch.key_lengths = static_cast<int32_t*>(lengths_memory.data());
  }
  if (c.mask) batch.attention_mask = mask_memory.data();
  batch.input = poison ? poisoned_input.data() : input.data();
  int64_t workspace_bytes = 0;
  MustBeOk(encoder->WorkspaceBytes(batch, execution, &workspace_bytes), name);
  Device workspace(workspace_bytes);

  Doubles expected = x;
  for (const Layer& layer : layers) expected = RunLayer(expected, layer, config, s, mask);
  const auto keep_tokens = [&](const Doubles& y) {
    Doubles kept;
    for (int64_t b = 0; b < batch_size; ++b) {
      const int64_t rows = poison ? s.keys[b] : s.rows[b];
      kept.insert(kept.end(), y.begin() + s.first[b] * h, y.begin() + (s.first[b] + rows) * h);
    }
    return kept;
  };
  // The first run is launched kernel by kernel, the second captures a graph, the third replays it.
  double worst = 0;
  Doubles first;
  bool repeatable = true;
  Device output(s.num_tokens * h * SizeOf(c.dtype));
  for (int run = 0; run < 3; ++run) {
    MustBeOk(cudaMemset(output.data(), 0xff, s.num_tokens * h * SizeOf(c.dtype)), "poison");
    batch.outputs = {output.data()};
    MustBeOk(cudaDeviceSynchronize(), "before run");
    MustBeOk(encoder->Run(batch, packed.data(), workspace.data(), execution), name);
    MustBeOk(cudaStreamSynchronize(stream), "run");
    const Doubles y = keep_tokens(output.Read(s.num_tokens * h, c.dtype));
    worst = std::max(worst, RelativeError(y, keep_tokens(expected)));
    if (run == 0) first = y;
    repeatable = repeatable && first == y;
  }
  // In a row that is masked altogether float32 keeps score - 10000 to 1e-3 only, as in TensorFlow.
  const double mask_bound = c.mask ? 1e-4 : 0;
  // A layer norm over a few numbers is worse conditioned: three of them may nearly be one.
  const double norm_factor = h < 8 ? 16 : h < 32 ? 4 : 1;
  const double bound =
      std::max(mask_bound, norm_factor * Bound(c.dtype) * std::sqrt(static_cast<double>(c.layers)));
  char text[64];
  snprintf(text, sizeof(text), " error %.2e <= %.1e%s", worst, bound,
           repeatable ? "" : " NOT REPEATABLE");
  Check(worst <= bound && repeatable, name + text);
  cudaStreamDestroy(stream);
}

void TestLayers() {
  const DataType types[] = {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16};
  for (DataType dtype : types) {
    // Sequence lengths, ragged, with 0 and S.
    for (int64_t s : {1, 7, 97, 384}) {
      const int32_t n = static_cast<int32_t>(s);
      for (bool packed : {false, true})
        TestLayer({dtype, 12, 64, s, {n, 0, (n + 1) / 2, n}, packed});
    }
    TestLayer({dtype, 4, 32, 1024, {1024, 333}, true});
    TestLayer({dtype, 4, 32, 1024, {1000, 0}, false});
    // Head sizes, with a fast kernel or without.
    for (auto [heads, size] : std::vector<std::pair<int64_t, int64_t>>{
             {16, 64}, {4, 32}, {8, 96}, {12, 32}, {2, 64}, {3, 40}, {2, 128}, {2, 20}, {2, 160}}) {
      for (bool packed : {false, true})
        TestLayer({dtype, heads, size, 50, {50, 17, 0, 33}, packed});
    }
    // Sizes that are no multiple of 8, or of anything.
    for (auto [heads, size, inner] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
             {1, 7, 13}, {1, 26, 200}, {3, 1, 13}, {2, 100, 200}, {1, 256, 13}, {5, 3, 31}}) {
      for (bool packed : {false, true}) {
        for (bool mask : {false, true}) {
          LayerCase c{dtype, heads, size, 37, {37, 5, 0, 20}, packed, mask};
          c.inner = inner;
          TestLayer(c);
        }
      }
    }
    // Masks, with rows that are masked altogether.
    TestLayer({dtype, 12, 64, 97, {97, 50}, false, true});
    TestLayer({dtype, 12, 64, 97, {97, 0, 31}, true, true});
    TestLayer({dtype, 3, 40, 30, {30, 11}, false, true});
    TestLayer({dtype, 2, 160, 30, {30, 11}, false, true});
    for (auto [heads, size] :
         std::vector<std::pair<int64_t, int64_t>>{{2, 64}, {2, 96}, {1, 160}}) {
      for (int64_t seq_len : {200, 203}) {
        for (bool packed : {false, true}) {
          LayerCase c{dtype, heads, size, seq_len, {200, 150, 199, 180, 120}, packed, true};
          c.mask_of_keys = true;
          TestLayer(c);
        }
      }
    }
    // Activations, inner size, several layers.
    for (Activation activation : {Activation::kGeluErf, Activation::kRelu}) {
      TestLayer({dtype, 4, 32, 40, {40, 9}, false, false, 1, activation});
      LayerCase c{dtype, 4, 32, 100, {100, 90}, false, false, 1, activation};
      TestLayer(c);
      c.cublaslt_only = true;
      if (dtype != DataType::kFloat32) TestLayer(c);
    }
    TestLayer({dtype, 12, 64, 32, {32}, false, false, 3});
    TestLayer({dtype, 12, 64, 32, {16}, true, false, 3});
    TestLayer({dtype, 4, 32, 64, {64, 20, 3}, true, false, 4, Activation::kGeluTanh, 200});
    // All GEMM paths at the same sizes.
    for (int64_t rows : {1, 16, 20, 32, 50, 64, 100, 200}) {
      LayerCase c{dtype, 12, 64, rows, {static_cast<int32_t>(rows)}, true};
      for (int64_t few_rows : {1000, 0}) {
        c.few_rows = few_rows;
        TestLayer(c);
      }
      c.cublaslt_only = true;
      if (dtype != DataType::kFloat32) TestLayer(c);
    }
  }
  // float32 without split products.
  for (auto [heads, size] :
       std::vector<std::pair<int64_t, int64_t>>{{12, 64}, {2, 128}, {3, 40}, {5, 3}}) {
    for (bool packed : {false, true}) {
      LayerCase c{DataType::kFloat32, heads, size, 50, {50, 17, 0, 33}, packed};
      c.ieee_float32 = true;
      TestLayer(c);
    }
  }
}

// Each kernel of a layer once, for tools that follow every access to shared memory.
void TestEachKernel() {
  for (DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    TestLayer({dtype, 2, 64, 20, {20}, true});
    TestLayer({dtype, 2, 64, 40, {40, 9}, false});
    LayerCase masks{dtype, 2, 64, 130, {130, 100, 129, 70, 30}, false, true};
    masks.mask_of_keys = true;
    TestLayer(masks);
    if (dtype != DataType::kFloat32) continue;
    LayerCase ieee{dtype, 2, 64, 40, {40, 9}, false};
    ieee.ieee_float32 = true;
    TestLayer(ieee);
  }
}

// ---- Kernels ------------------------------------------------------------------------------------

// Every attention kernel that can do a size, also where the selector prefers another.
void TestAttentionKernels() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  for (DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    for (int64_t d : {32, 64, 96, 128, 24, 72}) {
      const int64_t heads = 3, s_max = 150;
      const std::vector<int32_t> lengths = {150, 0, 64, 65, 1};
      const Sequences s = MakeSequences(s_max, lengths, true);
      Doubles qkv = Random(s.num_tokens * 3 * heads * d, 1.5);
      Device input(&qkv, dtype);
      const Doubles expected = Attention(qkv, s, heads, d, {});
      std::vector<int32_t> offsets = {0};
      for (int32_t length : lengths) offsets.push_back(offsets.back() + length);
      Device offsets_memory(offsets);
      AttentionArgs args;
      args.dtype = dtype;
      args.batch_size = 5;
      args.max_seq_len = s_max;
      args.num_heads = heads;
      args.head_size = d;
      args.qkv = input.data();
      args.seq_offsets = static_cast<int32_t*>(offsets_memory.data());
      // What the selector would take with a mask: never kWarpgroup, which has its own test.
      args.mask = input.data();
      const AttentionChoice best = SelectAttention(args, context);
      args.mask = nullptr;
      std::vector<AttentionChoice> choices;
      AttentionChoice choice = best;
      choice.kind = AttentionKind::kTiled;
      choices.push_back(choice);
      choice.kind = AttentionKind::kSimple;
      choices.push_back(choice);
      if (best.kind == AttentionKind::kSplit) choices.push_back(best);
      if (best.kind == AttentionKind::kTensorCore) {
        choice = best;
        for (int rows : {32, 64, 128}) {
          choice.rows_per_block = rows;
          choices.push_back(choice);
        }
      }
      for (const AttentionChoice& c : choices) {
        Device output(s.num_tokens * heads * d * SizeOf(dtype));
        args.output = output.data();
        const std::string name = StrCat("attention ", Name(dtype), " D=", d, " kernel ",
                                        static_cast<int>(c.kind), " rows ", c.rows_per_block);
        MustBeOk(LaunchAttention(args, c, context), name);
        MustBeOk(cudaDeviceSynchronize(), name.c_str());
        const double error = RelativeError(output.Read(s.num_tokens * heads * d, dtype), expected);
        const double bound = dtype == DataType::kFloat32   ? 2e-6
                             : dtype == DataType::kFloat16 ? 1e-3
                                                           : 8e-3;
        Check(error <= bound, StrCat(name, " error ", error, " <= ", bound));
      }
    }
  }
}

// Attention and its product in one kernel, against the two of the reference.
void TestAttentionProjection() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  struct {
    int64_t heads, d, n, seq_len;
    int32_t length;  // keys of padded rows, rows of packed ones
    bool packed;
  } cases[] = {
      {12, 64, 768, 32, 32, false}, {12, 64, 768, 32, 9, false}, {12, 64, 768, 17, 17, true},
      {12, 32, 384, 1, 1, false},   {12, 32, 384, 16, 16, true}, {1, 64, 64, 31, 30, false},
      {5, 64, 98, 20, 0, false},    {6, 32, 30, 32, 32, true},   {32, 32, 1024, 8, 8, true}};
  for (auto [dtype, w_dtype] :
       std::vector<std::pair<DataType, DataType>>{{DataType::kFloat16, DataType::kFloat16},
                                                  {DataType::kBFloat16, DataType::kBFloat16},
                                                  {DataType::kFloat16, DataType::kInt8},
                                                  {DataType::kBFloat16, DataType::kInt8},
                                                  {DataType::kFloat16, DataType::kFloat8},
                                                  {DataType::kBFloat16, DataType::kFloat8}}) {
    if (w_dtype == DataType::kFloat8 && !HasFloat8("attention_projection of float8")) continue;
    const bool rounds = w_dtype != dtype, is_float8 = w_dtype == DataType::kFloat8;
    const std::vector<float> scale = {(is_float8 ? 448.0f : 127.0f) / 1.5f};
    const Device scale_memory(scale);
    for (const auto& c : cases) {
      const int64_t hidden = c.heads * c.d, rows = c.packed ? c.length : c.seq_len;
      const Sequences s = MakeSequences(c.seq_len, {c.length}, c.packed);
      Doubles qkv = Random(rows * 3 * hidden, 1.5),
              w = rounds ? RandomIntegers(c.n * hidden) : Random(c.n * hidden, 0.05);
      const Device input(&qkv, dtype), weights(&w, w_dtype);
      const Device numbers(c.packed ? std::vector<int32_t>{0, c.length}
                                    : std::vector<int32_t>{c.length});
      AttentionProjectionArgs args;
      args.attention.dtype = dtype;
      args.attention.batch_size = 1;
      args.attention.max_seq_len = c.seq_len;
      args.attention.num_heads = c.heads;
      args.attention.head_size = c.d;
      args.attention.qkv = input.data();
      const auto* const lengths = static_cast<const int32_t*>(numbers.data());
      (c.packed ? args.attention.seq_offsets : args.attention.key_lengths) = lengths;
      if (rounds) args.attention.out_scale = static_cast<const float*>(scale_memory.data());
      args.w_dtype = w_dtype;
      args.w = weights.data();
      args.n = c.n;
      args.rows = rows;
      const int parts = AttentionProjectionParts(c.heads);
      Device partials(parts * rows * c.n * 4);
      args.partials = partials.data();
      const std::string name = StrCat("attention and product ", Name(dtype), " by ", Name(w_dtype),
                                      " ", c.heads, "x", c.d, " to ", c.n, ", S=", c.seq_len,
                                      ", length ", c.length, c.packed ? " packed" : "");
      MustBeOk(LaunchAttentionProjection(args, context), name);
      MustBeOk(cudaDeviceSynchronize(), name.c_str());
      const Doubles all = partials.Read(
          parts * rows * c.n, w_dtype == DataType::kInt8 ? DataType::kInt32 : DataType::kFloat32);
      Doubles attention = Attention(qkv, s, c.heads, c.d, {});
      if (rounds) {
        for (double& v : attention) {
          v *= scale[0];
          v = is_float8 ? RoundToFloat8(v) : std::nearbyint(std::max(-128.0, std::min(127.0, v)));
        }
      }
      Doubles expected(rows * c.n), got(rows * c.n);
      for (int64_t i = 0; i < rows * c.n; ++i) {
        for (int64_t k = 0; k < hidden; ++k) {
          expected[i] += attention[i / c.n * hidden + k] * w[i % c.n * hidden + k];
        }
        for (int part = 0; part < parts; ++part) got[i] += all[part * rows * c.n + i];
      }
      const double error = RelativeError(got, expected);
      // A context that is another number's neighbour here and there; float8's are 1/16 away.
      const double bound = (dtype == DataType::kFloat16 ? 1e-3 : 8e-3) * (is_float8 ? 10
                                                                          : rounds  ? 4
                                                                                    : 1);
      Check(error <= bound, StrCat(name, " error ", error, " <= ", bound));
    }
    AttentionProjectionArgs args;
    args.attention.dtype = dtype;
    args.attention.batch_size = 1;
    args.attention.max_seq_len = 33;
    args.attention.num_heads = 12;
    args.attention.head_size = 64;
    args.w_dtype = w_dtype;
    args.n = args.rows = 32;
    Check(!LaunchAttentionProjection(args, context).ok(), "33 rows are refused");
  }
}

// ---- The wgmma attention kernels ----------------------------------------------------------------

struct WgmmaCase {
  const char* name;
  int64_t heads, seq_len;
  std::vector<int32_t> lengths;
  bool packed, has_lengths;
  double spread;  // of queries, keys and values; the larger, the further the maximum moves
};

std::string Describe(DataType dtype, int64_t d, const AttentionChoice& choice) {
  return StrCat("wgmma ", Name(dtype), " D=", d, " (", choice.rows_per_block, " rows, ",
                choice.keys_per_tile, " keys)");
}

// Says where a result is wrong: heads, rows modulo 64 and columns tell which layout is to blame.
void PrintDifferences(const Doubles& got, const Doubles& expected, int64_t heads, int64_t d,
                      double bound) {
  const int64_t h = heads * d, rows = expected.size() / h;
  int64_t wrong = 0, nans = 0;
  std::vector<int64_t> by_row(64), by_column(d), by_head(heads);
  for (int64_t i = 0; i < rows * h; ++i) {
    if (std::abs(got[i] - expected[i]) <= bound * 10) continue;
    if (wrong < 6) {
      printf("       row %lld head %lld column %lld: %g, expected %g\n",
             static_cast<long long>(i / h), static_cast<long long>(i % h / d),
             static_cast<long long>(i % d), got[i], expected[i]);
    }
    ++wrong;
    nans += std::isnan(got[i]);
    ++by_row[i / h % 64];
    ++by_column[i % d];
    ++by_head[i % h / d];
  }
  printf("       %lld of %lld wrong, %lld NaN\n", static_cast<long long>(wrong),
         static_cast<long long>(rows * h), static_cast<long long>(nans));
  const auto print = [](const char* what, const std::vector<int64_t>& counts) {
    printf("       by %s:", what);
    for (int64_t count : counts) printf(" %lld", static_cast<long long>(count));
    printf("\n");
  };
  print("row % 64", by_row);
  print("column", by_column);
  print("head", by_head);
}

// One product at a time, where a wrong layout shows at once. With equal scores the output is the
// mean of the values; with values that are unit vectors it is the weights.
void ProbeWgmma(DataType dtype, int64_t d, const AttentionChoice& choice,
                const LaunchContext& context) {
  const int64_t s_max = 64;
  const Sequences s = MakeSequences(s_max, {64}, false);
  for (bool unit_values : {false, true}) {
    Doubles qkv = Random(s_max * 3 * d, 1.0);
    for (int64_t row = 0; row < s_max; ++row) {
      for (int64_t c = 0; c < d; ++c) {
        if (!unit_values) qkv[row * 3 * d + c] = 0;
        if (unit_values) qkv[row * 3 * d + 2 * d + c] = row % d == c;
      }
    }
    Device input(&qkv, dtype), output(s_max * d * SizeOf(dtype));
    AttentionArgs args;
    args.dtype = dtype;
    args.batch_size = args.num_heads = 1;
    args.max_seq_len = s_max;
    args.head_size = d;
    args.qkv = input.data();
    args.output = output.data();
    const std::string name = StrCat(Describe(dtype, d, choice), " probe of ",
                                    unit_values ? "queries x keys" : "weights x values");
    MustBeOk(LaunchAttention(args, choice, context), name);
    MustBeOk(cudaDeviceSynchronize(), name.c_str());
    const Doubles expected = Attention(qkv, s, 1, d, {}), got = output.Read(s_max * d, dtype);
    const double error = RelativeError(got, expected);
    const double bound = dtype == DataType::kFloat16 ? 1e-3 : 8e-3;
    Check(error <= bound, StrCat(name, " error ", error, " <= ", bound));
    if (!(error <= bound)) PrintDifferences(got, expected, 1, d, bound);
  }
}

void TestWgmmaCase(DataType dtype, int64_t d, const WgmmaCase& c, const LaunchContext& context) {
  const Sequences s = MakeSequences(c.seq_len, c.lengths, c.packed);
  const int64_t h = c.heads * d;
  Doubles qkv = Random(s.num_tokens * 3 * h, c.spread);
  {
    Device rounding(&qkv, dtype);
  }
  const Doubles expected = Attention(qkv, s, c.heads, d, {});
  // NaN in padding rows, and by Device's poison in all memory that nothing writes.
  Doubles poisoned = qkv;
  std::vector<int32_t> offsets = {0};
  for (int64_t b = 0; b < s.batch_size; ++b) {
    for (int64_t i = s.keys[b]; i < s.rows[b]; ++i) {
      std::fill_n(&poisoned[(s.first[b] + i) * 3 * h], 3 * h, NAN);
    }
    offsets.push_back(static_cast<int32_t>(offsets.back() + s.keys[b]));
  }
  Device input(&poisoned, dtype), offset_memory(offsets), length_memory(c.lengths);
  const int64_t guard = 64 * h;  // behind the last row
  AttentionArgs args;
  args.dtype = dtype;
  args.batch_size = s.batch_size;
  args.max_seq_len = c.seq_len;
  args.num_heads = c.heads;
  args.head_size = d;
  args.qkv = input.data();
  if (c.packed) {
    args.seq_offsets = static_cast<int32_t*>(offset_memory.data());
    args.num_tokens = s.num_tokens;
  } else if (c.has_lengths) {
    args.key_lengths = static_cast<int32_t*>(length_memory.data());
  }
  for (const AttentionChoice& choice : WarpgroupAttentionChoices(d)) {
    const std::string name = StrCat(Describe(dtype, d, choice), " ", c.name);
    Device output((s.num_tokens * h + guard) * SizeOf(dtype));
    args.output = output.data();
    MustBeOk(LaunchAttention(args, choice, context), name);
    MustBeOk(cudaDeviceSynchronize(), name.c_str());
    Doubles got = output.Read(s.num_tokens * h + guard, dtype), wanted = expected;
    bool untouched = true;
    for (int64_t i = s.num_tokens * h; i < s.num_tokens * h + guard; ++i) {
      untouched = untouched && std::isnan(got[i]);
    }
    got.resize(s.num_tokens * h);
    // Queries of padding rows are NaN and their output is nobody's; without keys it is 0 all the
    // same.
    for (int64_t b = 0; b < s.batch_size; ++b) {
      if (s.keys[b] == 0) continue;
      for (int64_t i = s.keys[b]; i < s.rows[b]; ++i) {
        std::fill_n(&got[(s.first[b] + i) * h], h, 0.0);
        std::fill_n(&wanted[(s.first[b] + i) * h], h, 0.0);
      }
    }
    const double error = RelativeError(got, wanted);
    const double bound = dtype == DataType::kFloat16 ? 1e-3 : 8e-3;
    Check(error <= bound && untouched, StrCat(name, " error ", error, " <= ", bound,
                                              untouched ? "" : " WRITES BEHIND THE LAST ROW"));
    if (!(error <= bound)) PrintDifferences(got, wanted, c.heads, d, bound);
  }
}

void TestWgmmaAttention() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  if (context.compute_capability != 90) {
    printf("skipped: wgmma needs compute capability 9.0\n");
    return;
  }
  AttentionArgs args;
  args.dtype = DataType::kFloat16;
  args.batch_size = 32;
  args.max_seq_len = 384;
  args.num_heads = 12;
  args.head_size = 64;
  const AttentionChoice plain = SelectAttention(args, context);
  LaunchContext blackwell = context;
  blackwell.compute_capability = 100;
  const AttentionChoice newer = SelectAttention(args, blackwell);
  args.mask = &args;  // not read
  const AttentionChoice masked = SelectAttention(args, context);
  Check(masked.kind == AttentionKind::kTensorCore && plain.kind == AttentionKind::kWarpgroup &&
            newer.kind == AttentionKind::kTensorCore,
        StrCat("selector: ", plain.reason, "; ", masked.reason, "; ", newer.reason));
  const WgmmaCase cases[] = {
      {"one tile", 2, 64, {64}, false, false, 1.0},
      {"full 384", 2, 384, {384, 384}, false, false, 1.0},
      {"packed", 3, 150, {150, 0, 64, 65, 1}, true, true, 1.5},
      {"packed, sharp", 2, 384, {384, 128, 129, 255, 17, 320}, true, true, 4.0},
      {"padded, NaN", 3, 384, {384, 0, 1, 383, 129}, false, true, 1.5},
      {"packed 1024", 2, 1024, {1024, 333, 0, 700, 961}, true, true, 1.5},
      {"padded 1000", 1, 1000, {1000, 511}, false, true, 1.0},
  };
  for (int64_t d : {64, 32, 96, 128, 40, 8, 72}) {
    for (DataType dtype : {DataType::kFloat16, DataType::kBFloat16}) {
      for (const AttentionChoice& choice : WarpgroupAttentionChoices(d)) {
        ProbeWgmma(dtype, d, choice, context);
      }
      for (const WgmmaCase& c : cases) TestWgmmaCase(dtype, d, c, context);
    }
  }
}

// ---- Measurements -------------------------------------------------------------------------------

// Microseconds a launch.
double TimeAttention(const AttentionArgs& args, const AttentionChoice& choice,
                     const LaunchContext& context) {
  return TimeLaunches(context, [&](int, const LaunchContext& on) {
    MustBeOk(LaunchAttention(args, choice, on), "attention");
  });
}

// Every kernel for 16-bit types at BERT's and MiniLM's sizes; also whether they agree.
void BenchAttention() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  struct Size {
    int64_t batch_size, seq_len, heads, d;
    bool half;  // packed sequences of S/2 tokens
  };
  std::vector<Size> sizes;
  for (int64_t b : {1, 8, 32}) {
    for (int64_t s : {32, 64, 128, 256, 384, 512}) sizes.push_back({b, s, 12, 64, false});
  }
  sizes.push_back({32, 384, 12, 64, true});
  sizes.push_back({32, 128, 12, 64, true});
  for (int64_t s : {32, 128, 384}) sizes.push_back({32, s, 12, 32, false});
  sizes.push_back({8, 384, 8, 128, false});
  sizes.push_back({8, 384, 8, 96, false});
  printf("microseconds a launch (TFLOP/s); float16; * the selector's choice\n");
  for (const Size& size : sizes) {
    const int64_t h = size.heads * size.d, length = size.half ? size.seq_len / 2 : size.seq_len;
    const int64_t tokens = size.batch_size * length;
    // A block of random numbers, repeated at a period that no size shares.
    Doubles block = Random(100003, 1.0);
    Doubles values(tokens * 3 * h);
    for (size_t i = 0; i < values.size(); ++i) values[i] = block[i % block.size()];
    Device qkv(&values, DataType::kFloat16);
    std::vector<int32_t> offsets;
    for (int64_t b = 0; b <= size.batch_size; ++b)
      offsets.push_back(static_cast<int32_t>(b * length));
    Device offset_memory(offsets), output(tokens * h * 2);
    AttentionArgs args;
    args.dtype = DataType::kFloat16;
    args.batch_size = size.batch_size;
    args.max_seq_len = size.seq_len;
    args.num_heads = size.heads;
    args.head_size = size.d;
    args.qkv = qkv.data();
    args.output = output.data();
    if (size.half) args.seq_offsets = static_cast<int32_t*>(offset_memory.data());
    args.num_tokens = tokens;
    const AttentionChoice best = SelectAttention(args, context);
    std::vector<AttentionChoice> choices;
    AttentionChoice mma = best;
    mma.kind = AttentionKind::kTensorCore;
    for (int rows : {32, 64, 128}) {
      mma.rows_per_block = rows;
      choices.push_back(mma);
    }
    if (context.compute_capability == 90) {
      for (const AttentionChoice& c : WarpgroupAttentionChoices(size.d)) choices.push_back(c);
    }
    printf("%lldx%lld %lldx%lld%s:\n", static_cast<long long>(size.batch_size),
           static_cast<long long>(size.seq_len), static_cast<long long>(size.heads),
           static_cast<long long>(size.d), size.half ? " packed, half" : "");
    Doubles reference;
    for (const AttentionChoice& c : choices) {
      const double us = TimeAttention(args, c, context);
      const Doubles got = output.Read(tokens * h, args.dtype);
      if (reference.empty()) reference = got;
      const double error = RelativeError(got, reference);
      const bool is_wgmma = c.kind == AttentionKind::kWarpgroup;
      const bool chosen = c.kind == best.kind && c.rows_per_block == best.rows_per_block &&
                          c.keys_per_tile == best.keys_per_tile;
      const double flops = 4.0 * size.batch_size * size.heads * length * length * size.d;
      printf("  %s %3d rows %3d keys: %8.2f us (%5.1f)%s%s\n", is_wgmma ? "wgmma" : "mma  ",
             c.rows_per_block, c.keys_per_tile, us, flops / us * 1e-6, chosen ? " *" : "",
             error <= 2e-3 ? "" : " WRONG");
      if (!(error <= 2e-3)) Check(false, StrCat("agreement, error ", error));
    }
    fflush(stdout);
  }
}

void TestLayerNorms() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  for (DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    // One for each way in which rows are dealt out.
    const int64_t few = 3, more = 10 * context.num_multiprocessors + 1,
                  many = 20 * context.num_multiprocessors + 1;
    for (int64_t rows : {few, more, many}) {
      for (int64_t h : {8, 128, 300, 768, 1024, 1536, 2048, 4096, 100, 20000}) {
        if (rows > few && h > 2048) continue;
        for (int parts : {0, 3}) {
          // A mean that is large beside the deviation.
          Doubles x = Random(rows * h, 1.0, 5.0), residual = Random(rows * h, 1.0);
          Doubles gamma = Random(h, 0.1, 1.0), beta = Random(h, 0.1), bias = Random(h, 1.0);
          Doubles sums = Random(parts * rows * h, 1.0);
          Device dx(&x, dtype), dr(&residual, dtype), dg(&gamma, dtype), db(&beta, dtype);
          Device dbias(&bias, dtype), dsums(&sums, DataType::kFloat32);
          Device output(rows * h * SizeOf(dtype));
          LayerNormArgs args;
          args.dtype = dtype;
          args.rows = rows;
          args.hidden_size = h;
          if (parts == 0) args.input = dx.data();
          args.partials = static_cast<float*>(dsums.data());
          args.num_partials = parts;
          args.bias = dbias.data();
          args.residual = dr.data();
          args.gamma = dg.data();
          args.beta = db.data();
          args.epsilon = 1e-12f;
          args.output = output.data();
          const std::string name =
              StrCat("layer norm ", Name(dtype), " ", rows, "x", h, " partials ", parts);
          MustBeOk(LaunchLayerNorm(args, context), name);
          MustBeOk(cudaDeviceSynchronize(), name.c_str());
          Doubles expected(rows * h, 0.0);
          for (int64_t i = 0; i < rows * h; ++i) {
            if (parts == 0) expected[i] = x[i];
            for (int part = 0; part < parts; ++part) expected[i] += sums[part * rows * h + i];
            expected[i] += bias[i % h];
          }
          AddAndNorm(&expected, residual, gamma, beta, 1e-12);
          const double error = RelativeError(output.Read(rows * h, dtype), expected);
          const double bound = dtype == DataType::kFloat32   ? 2e-6
                               : dtype == DataType::kFloat16 ? 5e-4
                                                             : 4e-3;
          Check(error <= bound, StrCat(name, " error ", error, " <= ", bound));
        }
      }
    }
  }
}

void TestStoreIntegers() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  for (int64_t count : {0, 1, 999, 1000, 1001, 4097}) {
    std::vector<int32_t> values(count), got(count + 1);
    for (int32_t& value : values) value = static_cast<int32_t>(generator());
    Device memory((count + 1) * 4);
    MustBeOk(cudaMemset(memory.data(), 0x55, (count + 1) * 4), "poison");
    MustBeOk(
        LaunchStoreIntegers(values.data(), count, static_cast<int32_t*>(memory.data()), context),
        "store");
    MustBeOk(cudaMemcpy(got.data(), memory.data(), (count + 1) * 4, cudaMemcpyDeviceToHost),
             "read");
    values.push_back(0x55555555);
    Check(got == values, StrCat("store ", count, " integers"));
  }
}

void TestPadding() {
  TestStoreIntegers();
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  for (int64_t row_elems : {8, 6, 5, 768}) {
    std::vector<int32_t> lengths;
    const int64_t s_max = 33;
    for (int b = 0; b < 700; ++b) lengths.push_back(b == 5 ? 0 : b == 6 ? 33 : generator() % 34);
    std::vector<int32_t> offsets = {0}, ids;
    for (int32_t length : lengths) {
      for (int32_t i = 0; i < length; ++i) {
        const int32_t sequence = static_cast<int32_t>(offsets.size()) - 1;
        ids.push_back(sequence * 33 + i - (offsets.back() + i));
      }
      offsets.push_back(offsets.back() + length);
    }
    const int64_t padded_rows = 700 * s_max, tokens = offsets.back();
    Doubles x = Random(padded_rows * row_elems, 1.0);
    Device padded(&x, DataType::kFloat16), dids(ids);
    Device doffsets(701 * 4), packed(tokens * row_elems * 2);
    Device rebuilt(padded_rows * row_elems * 2), scattered(padded_rows * row_elems * 2);
    auto* o = static_cast<int32_t*>(doffsets.data());
    MustBeOk(LaunchStoreIntegers(offsets.data(), 701, o, context), "offsets");
    MustBeOk(
        LaunchRemovePadding(padded.data(), o, 700, s_max, row_elems * 2, packed.data(), context),
        "remove");
    MustBeOk(
        LaunchRebuildPadding(packed.data(), o, 700, s_max, row_elems * 2, rebuilt.data(), context),
        "rebuild");
    MustBeOk(LaunchScatterRows(packed.data(), static_cast<int32_t*>(dids.data()), tokens,
                               padded_rows, row_elems * 2, scattered.data(), context),
             "scatter");
    MustBeOk(cudaDeviceSynchronize(), "padding");
    Doubles expected = x;
    for (int64_t row = 0; row < padded_rows; ++row) {
      if (row % s_max >= lengths[row / s_max]) {
        for (int64_t e = 0; e < row_elems; ++e) expected[row * row_elems + e] = 0;
      }
    }
    Check(rebuilt.Read(padded_rows * row_elems, DataType::kFloat16) == expected &&
              scattered.Read(padded_rows * row_elems, DataType::kFloat16) == expected,
          StrCat("remove, rebuild and scatter, row ", row_elems));
  }
}

// ---- Errors, configuration file, limits ---------------------------------------------------------

void TestInterface() {
  EncoderConfig config;
  config.dtype = DataType::kFloat16;
  config.num_heads = 2;
  config.head_size = 64;
  config.inner_size = 512;
  std::unique_ptr<Encoder> encoder;
  MustBeOk(CreateCudaEncoder(config, {}, &encoder), "create");
  EncoderBatch batch;
  Device some(1 << 20);
  batch.outputs = {some.data()};
  Check(encoder->Run(batch, some.data(), some.data(), {}).ok(), "no sequences are no error");
  batch.batch_size = 2;
  batch.max_seq_len = 4;
  batch.num_tokens = 7;
  Check(encoder->Run(batch, some.data(), some.data(), {}).code() == StatusCode::kInvalidArgument,
        "wrong number of tokens is InvalidArgument");
  config.num_heads = 0;
  Check(CreateCudaEncoder(config, {}, &encoder).code() == StatusCode::kInvalidArgument,
        "no heads is InvalidArgument");
}

// core's Runner with memory of cudaMalloc, kept for the next who asks for as much.
class CudaHost : public runner_checks::Host {
 public:
  CudaHost() { MustBeOk(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"); }
  // After everything that it gave memory to.
  ~CudaHost() override {
    cudaStreamDestroy(stream_);
    for (const auto& size : free_) {
      for (void* memory : size.second) cudaFree(memory);
    }
  }
  const Backend& backend() const override { return CudaBackend(); }
  ExecutionContext context() override {
    ExecutionContext context;
    context.stream = stream_;
    context.allocator = this;
    return context;
  }
  void Write(const void* from, int64_t bytes, void* to) override {
    MustBeOk(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "write");
    MustBeOk(cudaDeviceSynchronize(), "write");
  }
  void Read(const void* from, int64_t bytes, void* to) override {
    MustBeOk(cudaDeviceSynchronize(), "read");
    MustBeOk(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "read");
  }

 protected:
  Buffer AllocateMemory(int64_t bytes) override {
    const int64_t rounded = AlignUp(std::max<int64_t>(bytes, 1), 512);
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<void*>& free = free_[rounded];
    void* memory;
    if (free.empty()) {
      MustBeOk(cudaMalloc(&memory, rounded), "cudaMalloc");
    } else {
      memory = free.back();
      free.pop_back();
    }
    return Buffer(memory, [this, rounded](void* pointer) {
      std::lock_guard<std::mutex> lock(mutex_);
      free_[rounded].push_back(pointer);
    });
  }

 private:
  cudaStream_t stream_;
  std::mutex mutex_;
  std::map<int64_t, std::vector<void*>> free_;
};

// A BERT of `dtype` with random weights on the device.
struct RaggedModel {
  EncoderConfig config;
  std::vector<std::unique_ptr<Device>> memory;
  WeightInputs weights;

  explicit RaggedModel(const EncoderConfig& c) : config(c) {
    weights.layers.resize(config.num_layers);
    for (LayerWeights& layer : weights.layers) {
      for (int f = 0; f < kWeightsPerLayer; ++f) {
        const Shape shape = WeightShape(config, f);
        const bool gamma = f == 9 || f == 15;
        Doubles v = Random(NumElements(shape),
                           shape.size() == 2 ? 1 / std::sqrt(static_cast<double>(shape[0])) : 0.1,
                           gamma ? 1.0 : 0.0);
        memory.push_back(std::make_unique<Device>(&v, config.dtype));
        layer.*WeightFields()[f].view = {memory.back()->data(), config.dtype, shape};
      }
    }
    struct Forever : WeightHold {
      bool IsLastOwner() const override { return false; }
    };
    weights.hold = [] { return std::make_unique<Forever>(); };
  }
};

// One call of BertEncoder. `lengths` empty: all S.
void Encode(Runner* runner, CudaHost* host, const RaggedModel& model, int64_t seq_len,
            const std::vector<int32_t>& lengths, bool remove_padding, const void* input,
            void* output) {
  EncoderInputs inputs;
  const int64_t batch_size = lengths.size();
  inputs.hidden_states = {
      input, model.config.dtype, {batch_size, seq_len, model.config.hidden_size()}};
  inputs.sequence_length = {lengths.data(), DataType::kInt32, {batch_size}};
  inputs.attention_mask = {nullptr, model.config.dtype, {0}};
  inputs.remove_padding = remove_padding;
  EncoderPlan plan;
  PreparedEncoder prepared;
  MustBeOk(PlanEncoder(model.config, inputs, &plan), "plan");
  MustBeOk(runner->Prepare(model.weights, host->context(), &prepared), "prepare");
  MustBeOk(runner->Run(prepared, inputs, plan, {output}, host->context()), "run");
}

std::vector<int32_t> RandomLengths(int64_t batch_size, int64_t seq_len) {
  std::vector<int32_t> lengths;
  for (int64_t b = 0; b < batch_size; ++b) lengths.push_back(1 + generator() % seq_len);
  return lengths;
}

std::vector<char> ReadBytes(const void* data, int64_t bytes) {
  std::vector<char> host(bytes);
  MustBeOk(cudaDeviceSynchronize(), "sync");
  MustBeOk(cudaMemcpy(host.data(), data, bytes, cudaMemcpyDeviceToHost), "read");
  return host;
}

// Lengths, addresses and S that change from call to call give, bit for bit, what an encoder gives
// that has never seen another call.
void TestRagged() {
  for (const DataType dtype : {DataType::kFloat16, DataType::kFloat32}) {
    EncoderConfig config;
    config.dtype = dtype;
    config.num_heads = 4;
    config.head_size = 64;
    config.inner_size = 512;
    config.num_layers = 3;
    const RaggedModel model(config), other(config);
    CudaHost host;
    Runner runner(config, {}, &CudaBackend(), std::make_shared<DeviceCaches>(int64_t{1} << 32));
    const int64_t h = config.hidden_size(), size = SizeOf(dtype);
    int wrong = 0, calls = 0;
    for (; calls < 500; ++calls) {
      const int64_t batch_size = 1 + generator() % 8, seq_len = 1 + generator() % 150;
      const bool remove_padding = generator() % 2;
      const auto lengths = RandomLengths(batch_size, seq_len);
      const RaggedModel& weights = generator() % 4 ? model : other;
      Doubles x = Random(batch_size * seq_len * h, 1.0);
      const Device input(&x, dtype);
      Device output(x.size() * size), fresh_output(x.size() * size);
      MustBeOk(cudaDeviceSynchronize(), "inputs");
      Encode(&runner, &host, weights, seq_len, lengths, remove_padding, input.data(),
             output.data());
      CudaHost fresh_host;  // before what takes memory of it
      Runner fresh(config, {}, &CudaBackend(), std::make_shared<DeviceCaches>(int64_t{1} << 32));
      Encode(&fresh, &fresh_host, weights, seq_len, lengths, remove_padding, input.data(),
             fresh_output.data());
      const auto got = ReadBytes(output.data(), x.size() * size);
      const auto want = ReadBytes(fresh_output.data(), x.size() * size);
      // Rows of padding that is kept may hold anything.
      for (int64_t b = 0; b < batch_size; ++b) {
        const int64_t rows = remove_padding ? seq_len : lengths[b];
        wrong += memcmp(&got[b * seq_len * h * size], &want[b * seq_len * h * size],
                        rows * h * size) != 0;
      }
    }
    Check(wrong == 0, StrCat("ragged ", Name(dtype), ": ", wrong, " sequences of ", calls,
                             " calls differ from a fresh encoder's"));
  }
}

// What CUDA graphs may and may not do.
void TestGraphs() {
  cudaStream_t stream;
  MustBeOk(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  ExecutionContext execution;
  execution.stream = stream;
  LaunchContext context;
  MustBeOk(GetLaunchContext(execution, &context), "context");
  Device counter(4);
  int enqueued = 0;
  const auto enqueue = [&](const LaunchContext& given) {
    ++enqueued;
    const int32_t value = enqueued;
    return LaunchStoreIntegers(&value, 1, static_cast<int32_t*>(counter.data()), given);
  };
  const auto stored = [&] {
    int32_t value;
    memcpy(&value, ReadBytes(counter.data(), 4).data(), 4);
    return value;
  };
  {
    GraphCache cache(2);
    for (int i = 0; i < 5; ++i) MustBeOk(cache.Run({1}, context, enqueue), "run");
    Check(enqueued == 2 && stored() == 2, "a key is enqueued, captured, then replayed");
    for (uint64_t key = 2; key < 20; ++key) MustBeOk(cache.Run({key}, context, enqueue), "run");
    Check(stored() == enqueued, "other keys run as they are");
    MustBeOk(cache.Run({1}, context, enqueue), "run");
    Check(stored() == enqueued, "an evicted key runs anew");
  }
  {
    // What cannot be captured: the first call ends well, and so do all others.
    GraphCache cache(2);
    int failed = 0;
    const auto not_capturable = [&](const LaunchContext& given) -> Status {
      cudaStreamCaptureStatus status;
      cudaStreamIsCapturing(given.stream, &status);
      if (status != cudaStreamCaptureStatusNone) {
        ++failed;
        // A call that a capture forbids.
        return cudaStreamSynchronize(given.stream) == cudaSuccess ? OkStatus()
                                                                  : Internal("not in a capture");
      }
      return enqueue(given);
    };
    bool ok = true;
    for (int i = 0; i < 100; ++i) ok = ok && cache.Run({1}, context, not_capturable).ok();
    Check(ok && failed == 1 && stored() == enqueued,
          StrCat("a failed capture fails no call and is not tried again: ", failed));
  }
  // An error that somebody left behind is not ours.
  cudaFree(reinterpret_cast<void*>(8));
  Check(enqueue(context).ok(), "a launch after somebody's failed call");
  cudaGetLastError();
  const Status reported =
      CudaStatus(cudaFree(reinterpret_cast<void*>(8)), "cudaFree", __FILE__, __LINE__);
  Check(!reported.ok() && cudaGetLastError() == cudaSuccess,
        "an error that was reported is cleared");
  // Inside the caller's own capture.
  EncoderConfig config;
  config.dtype = DataType::kFloat16;
  config.num_heads = 2;
  config.head_size = 64;
  config.inner_size = 256;
  const RaggedModel model(config);
  CudaHost host;
  EncoderOptions options;
  options.allow_gemm_test = true;
  Runner runner(config, options, &CudaBackend(), std::make_shared<DeviceCaches>(int64_t{1} << 30));
  Doubles x = Random(2 * 100 * 128, 1.0);
  const Device input(&x, config.dtype);
  Device output(x.size() * 2), again(x.size() * 2);
  const std::vector<int32_t> lengths = {100, 31};
  Encode(&runner, &host, model, 100, lengths, true, input.data(), output.data());
  const auto host_stream = static_cast<cudaStream_t>(host.context().stream);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  MustBeOk(cudaStreamBeginCapture(host_stream, cudaStreamCaptureModeRelaxed), "capture");
  Encode(&runner, &host, model, 100, lengths, true, input.data(), again.data());
  MustBeOk(cudaStreamEndCapture(host_stream, &graph), "end of the caller's capture");
  MustBeOk(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  MustBeOk(cudaGraphLaunch(exec, host_stream), "launch");
  Check(ReadBytes(output.data(), x.size() * 2) == ReadBytes(again.data(), x.size() * 2),
        "inside the caller's capture");
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

// Times Runner on repeated and on changing lengths: `cuda_test bench_ragged`.
void BenchRagged() {
  EncoderConfig config;
  config.dtype = DataType::kFloat16;
  config.num_heads = 12;
  config.head_size = 64;
  config.inner_size = 3072;
  config.num_layers = 12;
  const RaggedModel model(config);
  printf("%-10s %-8s %12s %12s %8s\n", "shape", "padding", "repeated ms", "changing ms", "ratio");
  for (auto [batch_size, seq_len] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 32}, {1, 128}, {8, 32}, {8, 128}, {8, 384}, {32, 128}, {32, 384}}) {
    for (const bool remove_padding : {false, true}) {
      CudaHost host;
      Runner runner(config, {}, &CudaBackend(), std::make_shared<DeviceCaches>(int64_t{1} << 34));
      Doubles x = Random(batch_size * seq_len * 768, 1.0);
      const Device input(&x, config.dtype);
      Device output(x.size() * 2);
      MustBeOk(cudaDeviceSynchronize(), "inputs");
      // The same batches in both orders, so that the work is the same.
      std::vector<std::vector<int32_t>> batches;
      for (int i = 0; i < 64; ++i) batches.push_back(RandomLengths(batch_size, seq_len));
      const auto time = [&](bool changing) {
        const int calls = 640;
        const auto call = [&](int i) {
          Encode(&runner, &host, model, seq_len, batches[changing ? i % 64 : i / 10 % 64],
                 remove_padding, input.data(), output.data());
        };
        for (int i = 0; i < calls; ++i) call(i);
        MustBeOk(cudaDeviceSynchronize(), "warm");
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < calls; ++i) call(i);
        MustBeOk(cudaDeviceSynchronize(), "timed");
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
                   .count() /
               calls;
      };
      const double repeated = time(false), changing = time(true);
      printf("%-10s %-8s %12.4f %12.4f %8.3f\n", StrCat(batch_size, "x", seq_len).c_str(),
             remove_padding ? "removed" : "kept", repeated, changing, changing / repeated);
      fflush(stdout);
      if (batch_size == 8 && seq_len == 32) {
        const int num_threads = 8, calls = 400;
        std::vector<std::thread> threads;
        std::vector<std::unique_ptr<Device>> outputs;
        for (int t = 0; t < num_threads; ++t)
          outputs.push_back(std::make_unique<Device>(x.size() * 2));
        const auto begin = std::chrono::steady_clock::now();
        for (int t = 0; t < num_threads; ++t) {
          threads.emplace_back([&, t] {
            for (int i = 0; i < calls; ++i) {
              Encode(&runner, &host, model, seq_len, batches[(i * 7 + t) % 64], remove_padding,
                     input.data(), outputs[t]->data());
              MustBeOk(cudaStreamSynchronize(static_cast<cudaStream_t>(host.context().stream)),
                       "thread");
            }
          });
        }
        for (std::thread& thread : threads) thread.join();
        printf("           8 threads, ms a forward %.4f\n",
               std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
                       .count() /
                   (num_threads * calls));
      }
    }
  }
}

// BERT-base with random weights, on the device; all layers have the same.
struct HalfModel {
  explicit HalfModel(DataType dtype) : layers(12) {
    config.dtype = dtype;
    config.num_heads = 12;
    config.head_size = 64;
    config.inner_size = 3072;
    config.num_layers = static_cast<int64_t>(layers.size());
    for (int f = 0; f < kWeightsPerLayer; ++f) {
      const Shape shape = WeightShape(config, f);
      const bool gamma = f == 9 || f == 15;
      Doubles values =
          Random(NumElements(shape), shape.size() == 2 ? 0.02 : 0.1, gamma ? 1.0 : 0.0);
      memory.push_back(std::make_unique<Device>(&values, dtype));
      for (LayerWeights& layer : layers) {
        layer.*WeightFields()[f].view = {memory.back()->data(), dtype, shape};
      }
    }
  }

  EncoderConfig config;
  std::vector<LayerWeights> layers;
  std::vector<std::unique_ptr<Device>> memory;
};

// Milliseconds of a forward: the shortest of 4 runs.
double TimeEncoder(const HalfModel& model, const CudaEncoderOptions& options,
                   const EncoderBatch& batch, const void* prepared, void* workspace,
                   cudaStream_t stream) {
  constexpr double kRunMilliseconds = 12;
  std::unique_ptr<Encoder> encoder;
  MustBeOk(CreateCudaEncoder(model.config, options, &encoder), "encoder");
  ExecutionContext execution;
  execution.stream = stream;
  cudaEvent_t begin, end;
  MustBeOk(cudaEventCreate(&begin), "event");
  MustBeOk(cudaEventCreate(&end), "event");
  // The first run captures, the second says how many take long enough.
  double best = INFINITY;
  int forwards = 1;
  for (int run = 0; run < 6; ++run) {
    MustBeOk(cudaEventRecord(begin, stream), "record");
    for (int i = 0; i < forwards; ++i) {
      MustBeOk(encoder->Run(batch, prepared, workspace, execution), "run");
    }
    MustBeOk(cudaEventRecord(end, stream), "record");
    MustBeOk(cudaEventSynchronize(end), "run");
    float milliseconds = 0;
    MustBeOk(cudaEventElapsedTime(&milliseconds, begin, end), "elapsed");
    if (run == 1) forwards = std::max(2, static_cast<int>(kRunMilliseconds / milliseconds));
    if (run > 1) best = std::min(best, static_cast<double>(milliseconds) / forwards);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best;
}

// BERT-base in 16 bits with products by cuBLASLt, by the rule, and with each kernel in the place of
// the rule's for one product: in a layer a kernel that overlaps with its neighbours gains more than
// one launched after itself shows. Without the kernel for few rows. `cuda_test bench_half`.
void BenchHalf() {
  struct {
    const char* name;
    int64_t batch_size, seq_len;
    bool packed;  // sequences of half the length
  } const shapes[] = {{"8x128", 8, 128, false},       {"32x128", 32, 128, false},
                      {"32x384 half", 32, 384, true}, {"32x384", 32, 384, false},
                      {"1x64", 1, 64, false},         {"1x128", 1, 128, false},
                      {"2x128", 2, 128, false},       {"4x128", 4, 128, false},
                      {"16x128", 16, 128, false},     {"32x128 half", 32, 128, true}};
  char directory[] = "/tmp/ft_half_XXXXXX";
  if (mkdtemp(directory) == nullptr) return Check(false, "mkdtemp");
  const std::string path = HalfGemmConfigPath(directory);
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  std::string environment;
  MustBeOk(HalfGemmEnvironment(&environment), "environment");
  for (const DataType dtype : {DataType::kFloat16, DataType::kBFloat16}) {
    const HalfModel model(dtype);
    const WeightLayout layout(model.config, false);
    const int64_t h = model.config.hidden_size();
    Doubles x = Random(int64_t{32} * 384 * h, 1.0);
    const Device input(&x, dtype), output(x.size() * 2),
        prepared(model.config.num_layers * layout.layer_bytes);
    cudaStream_t stream;
    MustBeOk(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    ExecutionContext execution;
    execution.stream = stream;
    MustBeOk(cudaDeviceSynchronize(), "inputs");
    CudaEncoderOptions options;
    options.few_rows = 0;
    std::unique_ptr<Encoder> encoder;
    MustBeOk(CreateCudaEncoder(model.config, options, &encoder), "encoder");
    MustBeOk(encoder->PrepareWeights(model.layers, prepared.data(), execution), "prepare");
    for (const auto& shape : shapes) {
      EncoderBatch batch;
      batch.batch_size = shape.batch_size;
      batch.max_seq_len = shape.seq_len;
      batch.packed = shape.packed;
      const int64_t length = shape.packed ? shape.seq_len / 2 : shape.seq_len;
      batch.num_tokens = shape.batch_size * length;
      std::vector<int32_t> offsets;
      for (int64_t b = 0; b <= shape.batch_size; ++b) {
        offsets.push_back(static_cast<int32_t>(b * length));
      }
      const Device offset_memory(offsets);
      if (shape.packed) batch.seq_offsets = static_cast<const int32_t*>(offset_memory.data());
      batch.input = input.data();
      batch.outputs = {output.data()};
      int64_t workspace_bytes = 0;
      MustBeOk(encoder->WorkspaceBytes(batch, execution, &workspace_bytes), "workspace");
      const Device workspace(workspace_bytes);
      MustBeOk(cudaDeviceSynchronize(), "inputs");
      const auto time = [&](bool cublaslt_only, const std::vector<TunedHalfGemm>& rows) {
        options.cublaslt_only = cublaslt_only;
        options.gemm_config_dir = directory;
        unlink(path.c_str());
        MustBeOk(UpdateHalfGemmConfig(path, environment, rows), "write");
        return TimeEncoder(model, options, batch, prepared.data(), workspace.data(), stream);
      };
      const auto plan = MakeLayerPlan(model.config, layout, batch, PlanOptions{0}, context);
      const double cublaslt = time(true, {}), rule = time(false, {});
      printf("%s %s: cuBLASLt %.4f ms, the rule %.4f ms\n", Name(dtype), shape.name, cublaslt,
             rule);
      fflush(stdout);
      if (dtype != DataType::kFloat16) continue;
      for (const GemmStep& step : Products<GemmStep>(plan)) {
        printf("  %-17s", step.name);
        for (int i = 0; i < kNumHalfGemmKinds; ++i) {
          TunedHalfGemm row;
          row.product = step.shape;
          row.kind = static_cast<HalfGemmKind>(i);
          if (!HalfGemmSupported(step.shape, row.kind, context)) continue;
          printf(" | %s%s %.4f", Name(row.kind),
                 row.kind == SelectHalfGemm(step.shape, context) ? "*" : "", time(false, {row}));
        }
        printf("\n");
        fflush(stdout);
      }
    }
    cudaStreamDestroy(stream);
  }
}

// NaN and infinity in weights, rows and masks come out where float64 has them.
void TestNonFinite() {
  // Always the same numbers: a row whose activation float64 has at 1e-5 and half a type of 16 bits
  // at -1e-5 becomes infinite in one and zero in the other.
  generator.seed(1);
  const auto kind = [](double v) {
    return std::isnan(v) ? 3 : std::isinf(v) ? (v > 0 ? 2 : 1) : 0;
  };
  for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    for (const Activation activation :
         {Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu}) {
      for (auto [head_size, seq_len] : std::vector<std::pair<int64_t, int64_t>>{
               {64, 9}, {64, 150}, {128, 150}, {40, 20}, {160, 20}}) {
        int wrong = 0, special = 0;
        std::string first;
        // A weight, then a row, then an element of the mask.
        for (int where = 0; where < kWeightsPerLayer + 2; ++where) {
          for (const double value : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
            EncoderConfig config;
            config.dtype = dtype;
            config.num_heads = 1;
            config.head_size = head_size;
            config.inner_size = 48;
            config.activation = activation;
            const int64_t h = head_size;
            const Sequences s = MakeSequences(seq_len, {static_cast<int32_t>(seq_len), 5}, true);
            Layer layer;
            WeightInputs weights;
            weights.layers.resize(1);
            std::vector<std::unique_ptr<Device>> memory;
            for (int f = 0; f < kWeightsPerLayer; ++f) {
              const Shape shape = WeightShape(config, f);
              Doubles& v = layer.values[f];
              const bool gamma = f == 9 || f == 15;
              v = Random(NumElements(shape), shape.size() == 2 ? 0.1 : 0.1, gamma ? 1.0 : 0.0);
              if (f == where) v[v.size() / 3] = value;
              memory.push_back(std::make_unique<Device>(&v, dtype));
              weights.layers[0].*WeightFields()[f].view = {memory.back()->data(), dtype, shape};
            }
            Doubles x = Random(2 * seq_len * h, 1.0), mask;
            if (where == kWeightsPerLayer) x[3 * h + 2] = value;
            const bool has_mask = where == kWeightsPerLayer + 1;
            if (has_mask) {
              mask.assign(2 * seq_len * seq_len, 1.0);
              mask[2 * seq_len + 4] = value;
              // All of the first tile of keys is -inf, a later one is not.
              for (int64_t j = 0; j < seq_len - 3; ++j) mask[4 * seq_len + j] = -HUGE_VAL;
            }
            const Device input(&x, dtype), mask_memory(&mask, dtype);
            Device output(x.size() * SizeOf(dtype));
            MustBeOk(cudaDeviceSynchronize(), "inputs");
            CudaHost host;
            Runner runner(config, {}, &CudaBackend(), std::make_shared<DeviceCaches>(0));
            EncoderInputs inputs;
            const int32_t lengths[] = {static_cast<int32_t>(seq_len), 5};
            inputs.hidden_states = {input.data(), dtype, {2, seq_len, h}};
            inputs.sequence_length = {lengths, DataType::kInt32, {2}};
            inputs.attention_mask = {mask_memory.data(), dtype, {0}};
            if (has_mask) inputs.attention_mask.shape = {2, seq_len, seq_len};
            inputs.remove_padding = true;
            EncoderPlan plan;
            PreparedEncoder prepared;
            MustBeOk(PlanEncoder(config, inputs, &plan), "plan");
            MustBeOk(runner.Prepare(weights, host.context(), &prepared), "prepare");
            MustBeOk(runner.Run(prepared, inputs, plan, {output.data()}, host.context()), "run");
            MustBeOk(cudaDeviceSynchronize(), "run");
            const Doubles got = output.Read(x.size(), dtype);
            Doubles rows(x.begin(), x.begin() + seq_len * h);
            rows.insert(rows.end(), x.begin() + seq_len * h, x.begin() + (seq_len + 5) * h);
            const Doubles want = RunLayer(rows, layer, config, s, mask);
            for (size_t i = 0; i < want.size(); ++i) {
              special += kind(want[i]) != 0;
              // The sign of infinity is that of a number which may be next to nothing.
              const bool signs_matter = where != 9 && where != 15;
              if (kind(got[i]) == kind(want[i]) ||
                  (!signs_matter && kind(got[i]) % 3 != 0 && kind(want[i]) % 3 != 0)) {
                continue;
              }
              if (wrong++ == 0) {
                first =
                    StrCat(" first: ",
                           where < kWeightsPerLayer ? WeightFields()[where].op_input
                           : has_mask               ? "mask"
                                                    : "row",
                           " = ", value, ", element ", i, " is ", got[i], ", expected ", want[i]);
              }
            }
          }
        }
        Check(wrong == 0 && special > 0,
              StrCat("non-finite ", Name(dtype), " activation ", static_cast<int>(activation),
                     " head size ", head_size, " S=", seq_len, ": ", wrong, " wrong", first));
      }
    }
  }
}

void TestRunner() {
  CudaHost host;
  runner_checks::CheckAll(&host, [](bool holds, const std::string& what) { Check(holds, what); });
}

void TestGemmConfig() {
  char directory[] = "/tmp/ft_gemm_XXXXXX";
  if (mkdtemp(directory) == nullptr) return Check(false, "mkdtemp");
  const std::string path = std::string(directory) + "/gemm_config.in";
  std::string environment;
  MustBeOk(GemmEnvironment(&environment), "environment");
  TunedGemm row;
  row.shape = {DataType::kFloat16, false, 10, 64, 128, GemmEpilogue::kBiasGelu, false};
  row.algorithm = {1, 2, 3, 4, 5, 6, 7, 0xfedcba9876543210u};
  row.milliseconds = 0.5f;
  MustBeOk(UpdateGemmConfig(path, environment, {row}), "write");
  TunedGemm other = row;
  other.shape.rows = 20;
  MustBeOk(UpdateGemmConfig(path, "another/driver-1/cublasLt-2", {row}), "write");
  // Several writers lose nothing.
  std::vector<std::thread> writers;
  for (int i = 0; i < 8; ++i) {
    writers.emplace_back([&, i] {
      TunedGemm mine = other;
      mine.shape.rows = 100 + i;
      MustBeOk(UpdateGemmConfig(path, environment, {mine}), "write");
    });
  }
  for (std::thread& t : writers) t.join();
  std::vector<TunedGemm> rows;
  int num_foreign = 0;
  MustBeOk(ReadGemmConfig(path, environment, &rows, &num_foreign), "read");
  Check(rows.size() == 9 && num_foreign == 1 && rows[0].algorithm == row.algorithm &&
            rows[0].shape.epilogue == GemmEpilogue::kBiasGelu,
        "GEMM configuration survives writing and reading");
  // Algorithms that no cuBLASLt made: refused by it, and the call goes on.
  const std::string garbage = std::string(directory) + "/garbage";
  mkdir(garbage.c_str(), 0755);
  TunedGemm bad = row;
  std::vector<TunedGemm> all_bad;
  for (const int64_t rows_of : {97, 128, 147, 160, 194, 224}) {
    for (auto [n, k, epilogue, residual] :
         std::vector<std::tuple<int64_t, int64_t, GemmEpilogue, bool>>{
             {2304, 768, GemmEpilogue::kBias, false},
             {768, 768, GemmEpilogue::kBias, true},
             {3072, 768, GemmEpilogue::kBiasGelu, false},
             {768, 3072, GemmEpilogue::kBias, true}}) {
      bad.shape = {DataType::kFloat16, false, rows_of, n, k, epilogue, residual};
      for (uint64_t& part : bad.algorithm) part = generator();
      all_bad.push_back(bad);
    }
  }
  MustBeOk(UpdateGemmConfig(garbage + "/gemm_config.in", environment, all_bad), "write");
  gemm_config_dir = garbage;
  for (bool packed : {false, true}) {
    LayerCase c{DataType::kFloat16, 12, 64, 97, {97, 50}, packed};
    c.cublaslt_only = true;
    TestLayer(c);
  }
  gemm_config_dir.clear();
  // Neither lock nor file follows a link, and nothing waits for a pipe.
  const std::string victim = std::string(directory) + "/victim";
  const std::string links = std::string(directory) + "/links";
  mkdir(links.c_str(), 0755);
  std::ofstream(victim) << "precious";
  Check(symlink(victim.c_str(), (links + "/gemm_config.in.lock").c_str()) == 0, "symlink");
  Check(UpdateGemmConfig(links + "/gemm_config.in", environment, {row}).code() ==
            StatusCode::kFailedPrecondition,
        "a lock that is a link is refused");
  std::stringstream content;
  content << std::ifstream(victim).rdbuf();
  Check(content.str() == "precious", "what a link points to is untouched");
  const std::string pipe = std::string(directory) + "/pipe";
  mkdir(pipe.c_str(), 0755);
  Check(mkfifo((pipe + "/gemm_config.in").c_str(), 0644) == 0, "mkfifo");
  int pipe_foreign = 0;
  std::vector<TunedGemm> pipe_rows;
  Check(ReadGemmConfig(pipe + "/gemm_config.in", environment, &pipe_rows, &pipe_foreign).code() ==
            StatusCode::kInvalidArgument,
        "a pipe is refused");
  std::ofstream(path, std::ios::app) << "8 128 12 64 1 ### 1 768 10\n";
  Check(
      ReadGemmConfig(path, environment, &rows, &num_foreign).code() == StatusCode::kInvalidArgument,
      "damaged GEMM configuration is refused");
  gemm_config_dir = directory;
  TestLayer({DataType::kFloat16, 12, 64, 97, {97, 50}, false});  // is ignored, with a warning
  // A GEMM test replaces it, and its algorithms give right results.
  TuneInto(directory, BertBaseConfig(DataType::kFloat16));
  rows.clear();
  MustBeOk(ReadGemmConfig(path, environment, &rows, &num_foreign), "read");
  Check(rows.size() == 4, "GEMM test writes four rows");
  TestLayer({DataType::kFloat16, 12, 64, 97, {97, 50, 97, 97}, false});
  gemm_config_dir.clear();
}

// half_gemm_config.in: what is tuned is written, read again and used, and each kernel that a row
// may name gives right layers.
void TestHalfGemmConfig() {
  char directory[] = "/tmp/ft_half_XXXXXX";
  if (mkdtemp(directory) == nullptr) return Check(false, "mkdtemp");
  const std::string path = HalfGemmConfigPath(directory);
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  const std::vector<std::string> report = TuneInto(directory, BertBaseConfig(DataType::kFloat16));
  std::string environment;
  MustBeOk(HalfGemmEnvironment(&environment), "environment");
  std::vector<TunedHalfGemm> rows;
  int num_foreign = 0;
  MustBeOk(ReadHalfGemmConfig(path, environment, &rows, &num_foreign), "read");
  Check(rows.size() == 4 && report.size() == 8 && num_foreign == 0,
        "the GEMM test of float16 writes four rows");
  if (rows.size() != 4) return;
  for (int i = 0; i < kNumHalfGemmKinds; ++i) {
    const auto kind = static_cast<HalfGemmKind>(i);
    for (TunedHalfGemm& row : rows) row.kind = kind;
    MustBeOk(UpdateHalfGemmConfig(path, environment, rows), "write");
    HalfKinds kinds(/*cublaslt_only=*/false), limited(/*cublaslt_only=*/true);
    kinds.LoadConfig(directory);
    limited.LoadConfig(directory);
    const bool is_chosen = std::all_of(rows.begin(), rows.end(), [&](const TunedHalfGemm& row) {
      // Not every kernel has every epilogue.
      const HalfGemmKind expected = HalfGemmSupported(row.product, kind, context)
                                        ? kind
                                        : SelectHalfGemm(row.product, context);
      return kinds.IsTuned(row.product) && kinds.Choose(row.product, context) == expected &&
             limited.Choose(row.product, context) == HalfGemmKind::kCublasLt;
    });
    Check(is_chosen, StrCat(Name(kind), " is taken from the file"));
    gemm_config_dir = directory;
    TestLayer({DataType::kFloat16, 12, 64, 97, {97, 50, 97, 97}, false});
    gemm_config_dir.clear();
  }
  for (const char* damage :
       {"8 128 12 64 1 ### 1 768 10\n", "8 128 12 64 0 ### 1 8 8 8 1 0 1 1 x\n",
        "8 128 12 64 1 ### 1 8 8 8 1 0 77 1 x\n"}) {
    std::ofstream(path, std::ios::app) << damage;
    rows.clear();
    Check(ReadHalfGemmConfig(path, environment, &rows, &num_foreign).code() ==
              StatusCode::kInvalidArgument,
          "a damaged half_gemm_config.in is refused");
    MustBeOk(UpdateHalfGemmConfig(path, environment, {}), "a damaged file is replaced");
  }
}

// split_gemm_config.in: what is tuned is written, read again and used, and each kernel that a row
// may name gives right layers.
void TestSplitGemmConfig() {
  char directory[] = "/tmp/ft_split_XXXXXX";
  if (mkdtemp(directory) == nullptr) return Check(false, "mkdtemp");
  const std::string path = SplitGemmConfigPath(directory);
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  const EncoderConfig config = BertBaseConfig(DataType::kFloat32);
  if (!CanSplit(config)) return Check(true, "no split products on this device");
  const std::vector<std::string> report = TuneInto(directory, config);
  std::string environment;
  MustBeOk(SplitGemmEnvironment(&environment), "environment");
  std::vector<TunedSplitGemm> rows;
  int num_foreign = 0;
  MustBeOk(ReadSplitGemmConfig(path, environment, &rows, &num_foreign), "read");
  Check(rows.size() == 4 && report.size() == 4 && num_foreign == 0,
        "the GEMM test of split products writes four rows");
  if (rows.size() != 4) return;
  for (int kind = 0; kind < kNumSplitGemmKinds; ++kind) {
    for (TunedSplitGemm& row : rows) row.kind = static_cast<SplitGemmKind>(kind);
    MustBeOk(UpdateSplitGemmConfig(path, environment, rows), "write");
    SplitKinds kinds(-1);
    kinds.LoadConfig(directory);
    const bool is_chosen = std::all_of(rows.begin(), rows.end(), [&](const TunedSplitGemm& row) {
      return kinds.IsTuned(row.product) && kinds.Choose(row.product, context) == row.kind;
    });
    Check(is_chosen, StrCat(Name(static_cast<SplitGemmKind>(kind)), " is taken from the file"));
    gemm_config_dir = directory;
    TestLayer({DataType::kFloat32, 12, 64, 97, {97, 50, 97, 97}, false});
    gemm_config_dir.clear();
  }
  // Without a row the rule, and with a limit for few rows no row.
  SplitKinds kinds(-1), limited(0);
  limited.LoadConfig(directory);
  Check(
      kinds.Choose(rows[0].product, context) == SelectSplitGemm(rows[0].product, -1, context) &&
          limited.Choose(rows[0].product, context) == SelectSplitGemm(rows[0].product, 0, context),
      "the rule where no row is");
  for (const char* damage : {"8 128 12 64 0 ### 1 768 10\n", "8 128 12 64 1 ### 1 1 1 1 1 0 1 x\n",
                             "8 128 12 64 0 ### 1 1 1 1 1 77 1 x\n"}) {
    std::ofstream(path, std::ios::app) << damage;
    rows.clear();
    Check(ReadSplitGemmConfig(path, environment, &rows, &num_foreign).code() ==
              StatusCode::kInvalidArgument,
          "a damaged split_gemm_config.in is refused");
    MustBeOk(UpdateSplitGemmConfig(path, environment, {}), "a damaged file is replaced");
  }
}

}  // namespace

// cuda_test [PART]: all parts, or those whose name has PART in it, or the one that it is. `list`:
// their names. bench_<what>: times.
int main(int argc, char** argv) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    printf("skipped: no CUDA device\n");
    return 77;
  }
  const char* seed_text = getenv("FT_TEST_SEED");
  const uint64_t seed =
      seed_text != nullptr ? strtoull(seed_text, nullptr, 10) : std::random_device()();
  const std::string part = argc < 2 ? "" : argv[1];
  if (part != "list") printf("FT_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  generator.seed(seed);
  struct Part {
    const char* name;
    void (*run)();
  };
  const Part benchmarks[] = {{"bench_attention", BenchAttention},
                             {"bench_half", BenchHalf},
                             {"bench_int8", BenchInt8Gemms},
                             {"bench_split", BenchSplit},
                             {"bench_ragged", BenchRagged}};
  for (const Part& benchmark : benchmarks) {
    if (part != benchmark.name) continue;
    benchmark.run();
    return failures == 0 ? 0 : 1;
  }
  const Part tests[] = {{"padding", TestPadding},
                        {"layer_norm", TestLayerNorms},
                        {"attention", TestAttentionKernels},
                        {"attention_projection", TestAttentionProjection},
                        {"wgmma", TestWgmmaAttention},
                        {"interface", TestInterface},
                        {"runner", TestRunner},
                        {"ragged", TestRagged},
                        {"graphs", TestGraphs},
                        {"nonfinite", TestNonFinite},
                        {"gemm_config", TestGemmConfig},
                        {"layers", TestLayers},
                        {"half_gemm", TestHalfGemms},
                        {"half_nonfinite", TestHalfNonFinite},
                        {"half_config", TestHalfGemmConfig},
                        {"half_choices", TestHalfChoices},
                        {"half_kernels", TestEachHalfKernel},
                        {"norm_product", TestNormGemms},
                        {"norm_choices", TestNormChoices},
                        {"norm_kernels", TestEachNormKernel},
                        {"split_rows", TestSplitRows},
                        {"split_gemm", TestSplitGemms},
                        {"split_config", TestSplitGemmConfig},
                        {"split_choices", TestSplitChoices},
                        {"split_kernels", TestEachSplitKernel},
                        {"int8_gemm", TestInt8Gemms},
                        {"int8_few_rows", TestInt8FewRows},
                        {"int8_choices", TestInt8Choices},
                        {"int8_norm", TestInt8Norms},
                        {"int8_attention", TestInt8Attention},
                        {"int8_layers", TestInt8Layers},
                        {"int8_config", TestInt8GemmConfig},
                        {"int8_kernels", TestEachInt8Kernel},
                        {"fp8_gemm", TestFp8Gemms},
                        {"fp8_few_rows", TestFp8FewRows},
                        {"fp8_layers", TestFp8Layers},
                        {"fp8_kernels", TestEachFp8Kernel},
                        {"each_kernel", TestEachKernel}};
  if (part == "list") {
    for (const Part& test : tests) printf("%s\n", test.name);
    return 0;
  }
  const bool is_name = std::any_of(std::begin(tests), std::end(tests),
                                   [&](const Part& test) { return test.name == part; });
  for (const Part& test : tests) {
    const std::string name = test.name;
    if (is_name ? name == part : name.find(part) != std::string::npos) test.run();
  }
  printf("%d cases, %d failures\n", cases, failures);
  return failures == 0 && cases > 0 ? 0 : 1;
}
