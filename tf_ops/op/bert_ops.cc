// Registration, shape functions and doc strings of the ops. Kernels are in *_op.cc and *_ops.cc.
#include <vector>

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tf_ops/core/weights.h"

namespace ft {
namespace {

using ::tensorflow::shape_inference::DimensionHandle;
using ::tensorflow::shape_inference::InferenceContext;
using ::tensorflow::shape_inference::ShapeHandle;

// H = head_num * size_per_head, from the attributes.
absl::Status HiddenSize(InferenceContext* c, int64_t* hidden_size) {
  int64_t head_num, size_per_head;
  TF_RETURN_IF_ERROR(c->GetAttr("head_num", &head_num));
  TF_RETURN_IF_ERROR(c->GetAttr("size_per_head", &size_per_head));
  // The kernels' limit; the product of larger ones may overflow.
  constexpr int64_t kMaxSize = 1 << 20;
  if (head_num > kMaxSize || size_per_head > kMaxSize) {
    return absl::InvalidArgumentError(StrCat("head_num and size_per_head are ", head_num, " and ",
                                             size_per_head, ", expected at most ", kMaxSize,
                                             " each"));
  }
  *hidden_size = head_num * size_per_head;
  return absl::OkStatus();
}

// The mask is [B,S,S] or [B,1,S,S]; `optional`: or rank 1, when it is empty.
absl::Status CheckMaskRank(InferenceContext* c, ShapeHandle mask, bool optional) {
  if (!c->RankKnown(mask)) return absl::OkStatus();
  const int32_t rank = c->Rank(mask);
  if (rank == 3 || rank == 4 || (optional && rank == 1)) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat("attention mask has shape ", c->DebugString(mask),
                                           ", expected [B,1,S,S] or [B,S,S]",
                                           optional ? " or [0] for none" : ""));
}

absl::Status BertTransformerShape(InferenceContext* c) {
  int64_t hidden_size;
  TF_RETURN_IF_ERROR(HiddenSize(c, &hidden_size));
  ShapeHandle from = c->input(0);
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(from, 2, &from));
  TF_RETURN_IF_ERROR(c->WithRankAtMost(from, 3, &from));
  if (c->RankKnown(from)) {
    DimensionHandle last;
    TF_RETURN_IF_ERROR(c->WithValue(c->Dim(from, -1), hidden_size, &last));
    TF_RETURN_IF_ERROR(c->ReplaceDim(from, -1, last, &from));
  }
  TF_RETURN_IF_ERROR(CheckMaskRank(c, c->input(8), /*optional=*/false));
  ShapeHandle unused;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(19), 1, &unused));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(21), 1, &unused));
  c->set_output(0, from);
  return absl::OkStatus();
}

absl::Status BertEncoderShape(InferenceContext* c) {
  int64_t hidden_size;
  TF_RETURN_IF_ERROR(HiddenSize(c, &hidden_size));
  ShapeHandle hidden;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &hidden));
  DimensionHandle last;
  TF_RETURN_IF_ERROR(c->WithValue(c->Dim(hidden, 2), hidden_size, &last));
  TF_RETURN_IF_ERROR(c->ReplaceDim(hidden, 2, last, &hidden));
  ShapeHandle unused;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &unused));
  TF_RETURN_IF_ERROR(CheckMaskRank(c, c->input(2), /*optional=*/true));
  for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, hidden);
  return absl::OkStatus();
}

absl::Status BuildMaskRemovePaddingShape(InferenceContext* c) {
  ShapeHandle from, lengths;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &from));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &lengths));
  DimensionHandle batch;
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(from, 0), c->Dim(lengths, 0), &batch));
  const DimensionHandle tokens = c->UnknownDim();
  c->set_output(0, c->Matrix(tokens, c->Dim(from, 2)));
  c->set_output(1, c->Vector(tokens));
  return absl::OkStatus();
}

absl::Status RebuildPaddingShape(InferenceContext* c) {
  ShapeHandle from, offsets;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &from));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &offsets));
  DimensionHandle tokens;
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(from, 0), c->Dim(offsets, 0), &tokens));
  const ShapeHandle mask = c->input(2);
  TF_RETURN_IF_ERROR(CheckMaskRank(c, mask, /*optional=*/false));
  DimensionHandle batch = c->UnknownDim(), length = c->UnknownDim();
  if (c->RankKnown(mask)) {
    batch = c->Dim(mask, 0);
    length = c->Dim(mask, -1);
  }
  c->set_output(0, c->MakeShape({batch, length, c->Dim(from, 1)}));
  return absl::OkStatus();
}

}  // namespace

REGISTER_OP("BertTransformer")
    .Input("from_tensor: T")
    .Input("to_tensor: T")
    .Input("attr_q_kernel: W")
    .Input("attr_q_bias: T")
    .Input("attr_k_kernel: W")
    .Input("attr_k_bias: T")
    .Input("attr_v_kernel: W")
    .Input("attr_v_bias: T")
    .Input("attr_mask: T")
    .Input("attr_output_kernel: W")
    .Input("attr_output_bias: T")
    .Input("attr_output_layernorm_beta: T")
    .Input("attr_output_layernorm_gamma: T")
    .Input("inter_kernel: W")
    .Input("inter_bias: T")
    .Input("output_kernel: W")
    .Input("output_bias: T")
    .Input("output_layernorm_beta: T")
    .Input("output_layernorm_gamma: T")
    .Input("sequence_id_offset: int32")
    .Input("amax_list: float")
    .Input("trt_seqlen_offset: int32")
    .Output("output: T")
    .Attr("T: {float, half, bfloat16}")
    // Any: the kernel checks it, as float8_e4m3fn is no word of the list syntax.
    .Attr("W: type")
    .Attr("head_num: int >= 1")
    .Attr("size_per_head: int >= 1")
    .Attr("remove_padding: bool = true")
    .Attr("int8_mode: int = 0")
    .Attr("layer_idx: int = 0")
    .Attr("layer_num: int = 12")
    .Attr("allow_gemm_test: bool = false")
    .Attr("layernorm_epsilon: float = 1e-12")
    .Attr("activation: {'gelu_tanh', 'gelu_erf', 'relu'} = 'gelu_tanh'")
    .Attr("is_weight_const: bool = false")
    .Attr("cache_weights: bool = true")
    .Attr("fp8_mode: int = 0")
    .SetShapeFn(BertTransformerShape)
    .Doc(R"doc(
One post-layer-norm BERT layer (google-research/bert, modeling.py, transformer_model).

Shape letters: B batch, S padded length, T tokens, H = head_num * size_per_head hidden size,
I inner size (taken from inter_kernel). The six matrices have a type of their own, W: int8 with
int8_mode or fp8_mode, else that of all other floating-point tensors, T.

from_tensor: Hidden states: [B,S,H] or [B*S,H]; with remove_padding packed, [T,H].
to_tensor: The same tensor as from_tensor; another one is refused.
attr_q_kernel: [H,H], in x out.
attr_q_bias: [H].
attr_k_kernel: [H,H].
attr_k_bias: [H].
attr_v_kernel: [H,H].
attr_v_bias: [H].
attr_mask: [B,1,S,S] or [B,S,S]; 1: query may attend to key, 0: may not. (1 - mask) * -10000 is
  added to the scaled scores. Gives B and S. Always honoured.
attr_output_kernel: [H,H].
attr_output_bias: [H].
attr_output_layernorm_beta: [H].
attr_output_layernorm_gamma: [H].
inter_kernel: [H,I].
inter_bias: [I].
output_kernel: [I,H].
output_bias: [H].
output_layernorm_beta: [H].
output_layernorm_gamma: [H].
sequence_id_offset: With remove_padding [T]: packed row i is row i + sequence_id_offset[i] of the
  padded layout, as BuildMaskRemovePadding makes it. Otherwise empty or ignored.
amax_list: [80+5*H+I+11], the scales of int8_mode 1 to 3 and fp8_mode 1; else ignored.
trt_seqlen_offset: Row boundaries of the sequences. With remove_padding [B+1]: 0, s1, s1+s2, ..., T.
  Otherwise [2B+1]: 0, s1, S, S+s2, 2S, ... (a real and a padding segment for each sequence).
output: Same shape as from_tensor.
head_num: Attention heads.
size_per_head: Size of one head.
remove_padding: The rows are packed: no padding among them.
int8_mode: 0 off; 1, 2 or 3 (which is 2): the six matrices are int8 (docs/int8.md).
layer_idx: This layer's index. With int8_mode 2 the outputs of all but the last are quantized.
layer_num: Layers of the model.
allow_gemm_test: GPU: search the fastest GEMM algorithm at the first call of each new shape.
layernorm_epsilon: Added to the variance in both layer norms.
activation: Of the feed-forward network; gelu_tanh is google-research BERT's gelu.
is_weight_const: Has no effect any more: weights are prepared once, constant or not.
cache_weights: Keep the prepared weights and find them by their buffers. False where weights may be
  assigned in place, as TensorFlow 1's reference variables are: then they are prepared in every call.
fp8_mode: 0 off; 1: products of float8 from the int8 matrices, int8_mode is 0 (docs/fp8.md).
)doc");

REGISTER_OP("BertEncoder")
    .Input("hidden_states: T")
    .Input("sequence_length: Tlengths")
    .Input("attention_mask: T")
    .Input("attr_q_kernel: num_layers * W")
    .Input("attr_q_bias: num_layers * T")
    .Input("attr_k_kernel: num_layers * W")
    .Input("attr_k_bias: num_layers * T")
    .Input("attr_v_kernel: num_layers * W")
    .Input("attr_v_bias: num_layers * T")
    .Input("attr_output_kernel: num_layers * W")
    .Input("attr_output_bias: num_layers * T")
    .Input("attr_output_layernorm_beta: num_layers * T")
    .Input("attr_output_layernorm_gamma: num_layers * T")
    .Input("inter_kernel: num_layers * W")
    .Input("inter_bias: num_layers * T")
    .Input("output_kernel: num_layers * W")
    .Input("output_bias: num_layers * T")
    .Input("output_layernorm_beta: num_layers * T")
    .Input("output_layernorm_gamma: num_layers * T")
    .Input("amax_list: num_amax_lists * float")
    .Output("output: num_outputs * T")
    .Attr("T: {float, half, bfloat16}")
    // Any: the kernel checks it, as float8_e4m3fn is no word of the list syntax.
    .Attr("W: type")
    .Attr("Tlengths: {int32, int64} = DT_INT32")
    .Attr("num_layers: int >= 1")
    .Attr("num_amax_lists: int >= 0")
    // Without a default: a default is left out when a graph is saved, and a loader cannot count the
    // outputs of a function's node without it.
    .Attr("num_outputs: int >= 1")
    .Attr("head_num: int >= 1")
    .Attr("size_per_head: int >= 1")
    .Attr("remove_padding: bool = true")
    .Attr("int8_mode: int = 0")
    .Attr("allow_gemm_test: bool = false")
    .Attr("layernorm_epsilon: float = 1e-12")
    .Attr("activation: {'gelu_tanh', 'gelu_erf', 'relu'} = 'gelu_tanh'")
    .Attr("is_weight_const: bool = false")
    .Attr("cache_weights: bool = true")
    .Attr("fp8_mode: int = 0")
    .SetShapeFn(BertEncoderShape)
    .Doc(R"doc(
A stack of post-layer-norm BERT layers in one call (google-research/bert, modeling.py,
transformer_model): QKV weights are fused, padding is removed and rebuilt inside.

Shape letters as for BertTransformer; L = num_layers.

hidden_states: [B,S,H], the embeddings.
sequence_length: [B], each in [0,S]: the first sequence_length[b] tokens of sequence b are real. Or
  empty, [0]: all S are (then remove_padding must be false, or B 0).
attention_mask: [B,1,S,S] or [B,S,S], 1: query may attend to key, 0: may not; on top of the lengths.
  Or empty, [0]: the lengths alone decide. (1 - mask) * -10000 is added to the scaled scores.
attr_q_kernel: L times [H,H], in x out.
attr_q_bias: L times [H].
attr_k_kernel: L times [H,H].
attr_k_bias: L times [H].
attr_v_kernel: L times [H,H].
attr_v_bias: L times [H].
attr_output_kernel: L times [H,H].
attr_output_bias: L times [H].
attr_output_layernorm_beta: L times [H].
attr_output_layernorm_gamma: L times [H].
inter_kernel: L times [H,I].
inter_bias: L times [I].
output_kernel: L times [I,H].
output_bias: L times [H].
output_layernorm_beta: L times [H].
output_layernorm_gamma: L times [H].
amax_list: L times [80+5*H+I+11], the scales of int8_mode 1 to 3 and fp8_mode 1; else none.
output: [B,S,H]: the last layer's, or with num_outputs = num_layers every layer's. With
  remove_padding the rows past a sequence's length are 0.
num_layers: L.
num_outputs: 1 or num_layers.
head_num: Attention heads.
size_per_head: Size of one head.
remove_padding: Compute only the real tokens.
int8_mode: 0 off; 1, 2 or 3 (which is 2): the six matrices are int8 (docs/int8.md).
allow_gemm_test: GPU: search the fastest GEMM algorithm at the first call of each new shape.
layernorm_epsilon: Added to the variance in both layer norms.
activation: Of the feed-forward network; gelu_tanh is google-research BERT's gelu.
is_weight_const: Has no effect any more: weights are prepared once, constant or not.
cache_weights: Keep the prepared weights and find them by their buffers. False where weights may be
  assigned in place, as TensorFlow 1's reference variables are: then they are prepared in every call.
fp8_mode: 0 off; 1: products of float8 from the int8 matrices, int8_mode is 0 (docs/fp8.md).
)doc");

REGISTER_OP("BuildMaskRemovePadding")
    .Input("from_tensor: T")
    .Input("sequence_length: Tlengths")
    .Output("output: T")
    .Output("sequence_id_offset: int32")
    .Attr("T: {float, half, bfloat16}")
    .Attr("Tlengths: {int32, int64} = DT_INT32")
    .SetShapeFn(BuildMaskRemovePaddingShape)
    .Doc(R"doc(
Removes the padding of a batch: vectors the first sequence_length[b] rows of every sequence.

from_tensor: [B,S,H].
sequence_length: [B], each in [0,S].
output: [T,H], T the sum of sequence_length.
sequence_id_offset: [T]: packed row i is row i + sequence_id_offset[i] of the [B*S,H] input.
)doc");

REGISTER_OP("RebuildPadding")
    .Input("from_tensor: T")
    .Input("sequence_id_offset: int32")
    .Input("atten_mask: T")
    .Output("output: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("isCOL32: bool = false")
    .Attr("int8_mode: int = 0")
    .SetShapeFn(RebuildPaddingShape)
    .Doc(R"doc(
Undoes BuildMaskRemovePadding: puts packed rows where they were, zeros elsewhere.

from_tensor: [T,H].
sequence_id_offset: [T], as BuildMaskRemovePadding returned it.
atten_mask: [B,1,S,S] or [B,S,S]; only its shape is used.
output: [B,S,H].
isCOL32: The INT8 tile order of the original; rows are never in it.
int8_mode: Has no effect: rows of all modes are of type T.
)doc");

REGISTER_OP("GradientNotAvailable")
    .Output("output: T")
    .Attr("T: type")
    .Attr("message: string")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->UnknownShape());
      return absl::OkStatus();
    })
    .Doc(R"doc(
Fails with `message` when it runs. It stands for the gradients of the other ops: in a graph it runs
only if somebody needs them, so that a head over a frozen encoder trains.

output: Never produced.
T: Type of the missing gradient.
message: The error.
)doc");

}  // namespace ft
