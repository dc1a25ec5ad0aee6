// Tests of tf_ops/core: statuses and the checks of configuration, weights and batch.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/core/status.h"
#include "tf_ops/core/weights.h"

namespace ft {
namespace {

EncoderConfig Config() {
  EncoderConfig config;
  config.num_heads = 2;
  config.head_size = 3;
  config.inner_size = 10;
  return config;
}

const float kData[1] = {0};

// Right shapes for `config`, written out by hand: H = 6, I = 10.
LayerWeights Weights() {
  LayerWeights weights;
  for (int i = 0; i < kWeightsPerLayer; ++i) {
    const std::string name = WeightFields()[i].op_input;
    TensorView& view = weights.*WeightFields()[i].view;
    view.data = kData;
    if (name == "inter_kernel") {
      view.shape = {6, 10};
    } else if (name == "inter_bias") {
      view.shape = {10};
    } else if (name == "output_kernel") {
      view.shape = {10, 6};
    } else if (name.find("kernel") != std::string::npos) {
      view.shape = {6, 6};
    } else {
      view.shape = {6};
    }
  }
  return weights;
}

EncoderBatch Batch() {
  static float input[1], output[1];
  EncoderBatch batch;
  batch.batch_size = 2;
  batch.max_seq_len = 4;
  batch.num_tokens = 8;
  batch.input = input;
  batch.outputs = {output};
  return batch;
}

void ExpectInvalid(const Status& status, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status.message();
  for (const std::string& part : parts) {
    EXPECT_NE(status.message().find(part), std::string::npos)
        << "no '" << part << "' in: " << status.message();
  }
}

TEST(StatusTest, CodesAndMessages) {
  EXPECT_TRUE(OkStatus().ok());
  EXPECT_EQ(OkStatus().message(), "");
  const Status status = InvalidArgument("x is ", 3, ", expected ", 4.5);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "x is 3, expected 4.5");
  EXPECT_EQ(Unimplemented("").code(), StatusCode::kUnimplemented);
  EXPECT_EQ(FailedPrecondition("").code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(ResourceExhausted("").code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Internal("").code(), StatusCode::kInternal);
}

TEST(StatusTest, ReturnIfErrorReturnsTheFirstError) {
  int calls = 0;
  auto run = [&](const Status& first) -> Status {
    FT_RETURN_IF_ERROR(first);
    ++calls;
    return Internal("second");
  };
  EXPECT_EQ(run(Unimplemented("first")).message(), "first");
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(run(OkStatus()).message(), "second");
  EXPECT_EQ(calls, 1);
}

TEST(TypesTest, SizesShapesAndAlignment) {
  EXPECT_EQ(SizeOf(DataType::kFloat32), 4);
  EXPECT_EQ(SizeOf(DataType::kBFloat16), 2);
  EXPECT_EQ(SizeOf(DataType::kInt8), 1);
  EXPECT_EQ(ShapeString({8, 128, 768}), "[8,128,768]");
  EXPECT_EQ(ShapeString({}), "[]");
  EXPECT_EQ(AlignUp(0, 256), 0);
  EXPECT_EQ(AlignUp(1, 256), 256);
  EXPECT_EQ(AlignUp(256, 256), 256);
}

TEST(ConfigTest, AcceptsAndRefuses) {
  EXPECT_TRUE(ValidateConfig(Config()).ok());
  EncoderConfig config = Config();
  config.dtype = DataType::kInt8;
  ExpectInvalid(ValidateConfig(config), {"dtype is int8", "expected float32"});
  config = Config();
  config.num_heads = 0;
  ExpectInvalid(ValidateConfig(config), {"head_num is 0", "at least 1"});
  config = Config();
  config.head_size = -3;
  ExpectInvalid(ValidateConfig(config), {"size_per_head is -3"});
  for (const float epsilon : {-1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    config = Config();
    config.layernorm_epsilon = epsilon;
    ExpectInvalid(ValidateConfig(config), {"layernorm_epsilon is"});
  }
  config = Config();
  config.head_size = (1 << 20) + 1;
  ExpectInvalid(ValidateAttributes(config), {"size_per_head are 2 and 1048577", "at most 1048576"});
}

TEST(ConfigTest, NamesOfActivationsAndNumbersOfOutputs) {
  Activation activation = Activation::kRelu;
  EXPECT_TRUE(ParseActivation("gelu_erf", &activation).ok());
  EXPECT_EQ(activation, Activation::kGeluErf);
  ExpectInvalid(ParseActivation("silu", &activation), {"activation is silu", "gelu_tanh"});
  EncoderConfig config = Config();
  config.num_layers = 3;
  EXPECT_TRUE(ValidateNumOutputs(config, 1).ok() && ValidateNumOutputs(config, 3).ok());
  ExpectInvalid(ValidateNumOutputs(config, 2), {"num_outputs is 2", "1 or num_layers = 3"});
}

TEST(WeightsTest, RightShapesPassAtEveryType) {
  for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    EncoderConfig config = Config();
    config.dtype = dtype;
    LayerWeights weights = Weights();
    for (int i = 0; i < kWeightsPerLayer; ++i) (weights.*WeightFields()[i].view).dtype = dtype;
    const Status status = ValidateWeights(config, {weights});
    EXPECT_TRUE(status.ok()) << status.message();
  }
}

// Every one of the sixteen is checked, and named, for its shape, dtype and pointer.
TEST(WeightsTest, EachFaultNamesItsInput) {
  for (int i = 0; i < kWeightsPerLayer; ++i) {
    const std::string name = WeightFields()[i].op_input;
    LayerWeights weights = Weights();
    TensorView& view = weights.*WeightFields()[i].view;
    const std::string expected = ShapeString(view.shape);
    view.shape[view.shape.size() - 1] += 1;
    ExpectInvalid(ValidateWeights(Config(), {weights}),
                  {name + " has shape " + ShapeString(view.shape) + ", expected " + expected,
                   "head_num 2, size_per_head 3"});

    weights = Weights();
    (weights.*WeightFields()[i].view).dtype = DataType::kFloat16;
    ExpectInvalid(ValidateWeights(Config(), {weights}),
                  {name + " has dtype float16, expected float32"});

    weights = Weights();
    (weights.*WeightFields()[i].view).data = nullptr;
    ExpectInvalid(ValidateWeights(Config(), {weights}), {name + " is null"});
  }
}

TEST(WeightsTest, OneRunShowsAllFaultsWithTheirLayer) {
  EncoderConfig config = Config();
  config.num_layers = 2;
  std::vector<LayerWeights> layers = {Weights(), Weights()};
  layers[0].query_bias.shape = {7};
  layers[1].output_kernel.shape = {6, 10};
  ExpectInvalid(ValidateWeights(config, layers),
                {"attr_q_bias[0] has shape [7], expected [6]",
                 "output_kernel[1] has shape [6,10], expected [10,6]"});
}

TEST(WeightsTest, NumberOfLayers) {
  ExpectInvalid(ValidateWeights(Config(), {}), {"0 layers", "expected 1"});
  ExpectInvalid(ValidateWeights(Config(), {Weights(), Weights()}), {"2 layers", "expected 1"});
}

TEST(BatchTest, PaddedLayout) {
  EXPECT_TRUE(ValidateBatch(Config(), Batch()).ok());
  EncoderBatch batch = Batch();
  batch.num_tokens = 7;
  ExpectInvalid(ValidateBatch(Config(), batch), {"num_tokens is 7", "expected 8"});
  batch = Batch();
  batch.batch_size = -1;
  ExpectInvalid(ValidateBatch(Config(), batch), {"-1", "at least 0"});
}

TEST(BatchTest, PackedLayout) {
  const int32_t offsets[] = {0, 3, 5};
  EncoderBatch batch = Batch();
  batch.packed = true;
  batch.num_tokens = 5;
  ExpectInvalid(ValidateBatch(Config(), batch), {"seq_offsets is null", "[3]"});
  batch.seq_offsets = offsets;
  EXPECT_TRUE(ValidateBatch(Config(), batch).ok());
  batch.num_tokens = 9;
  ExpectInvalid(ValidateBatch(Config(), batch), {"num_tokens is 9", "at most 8"});
}

TEST(BatchTest, PaddedTensorsHavePackedRows) {
  EncoderBatch batch = Batch();
  batch.has_padded_tensors = true;
  ExpectInvalid(ValidateBatch(Config(), batch), {"has_padded_tensors is true", "not packed"});
  const int32_t offsets[] = {0, 3, 5};
  batch.packed = true;
  batch.num_tokens = 5;
  batch.seq_offsets = offsets;
  EXPECT_TRUE(ValidateBatch(Config(), batch).ok());
}

TEST(BatchTest, Pointers) {
  EncoderBatch batch = Batch();
  batch.input = nullptr;
  ExpectInvalid(ValidateBatch(Config(), batch), {"input is null"});
  batch = Batch();
  batch.outputs = {nullptr};
  ExpectInvalid(ValidateBatch(Config(), batch), {"output is null"});
  batch = Batch();
  batch.outputs = {const_cast<void*>(batch.input)};
  ExpectInvalid(ValidateBatch(Config(), batch), {"output is the input"});
  batch = Batch();
  batch.outputs.clear();
  ExpectInvalid(ValidateBatch(Config(), batch), {"number of outputs is 0"});
}

TEST(BatchTest, NoTokensNeedNoPointers) {
  EncoderBatch batch = Batch();
  batch.batch_size = 0;
  batch.num_tokens = 0;
  batch.input = nullptr;
  batch.outputs = {nullptr};
  EXPECT_TRUE(ValidateBatch(Config(), batch).ok());
}

}  // namespace
}  // namespace ft
