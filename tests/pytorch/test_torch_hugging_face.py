"""`optimize` on Hugging Face's BERTs: right, traceable, and nothing else of the model changed."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import pytest
import tolerances
from torch_support import run_python, torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import fastertransformer_torch  # noqa: E402
from fastertransformer_tf import spec  # noqa: E402
from fastertransformer_tf.errors import UserError  # noqa: E402
from fastertransformer_tf.files import hf_weights  # noqa: E402
from fastertransformer_tf.quantization import scale_list  # noqa: E402

SMALL = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 100,
    "max_position_embeddings": 80,
    "hidden_act": "gelu",
}
CONFIGS = {
    "gelu": SMALL,
    "gelu_new": {
        **SMALL,
        "hidden_act": "gelu_new",
        "num_attention_heads": 2,
        "layer_norm_eps": 1e-6,
    },
    "relu": {**SMALL, "hidden_act": "relu", "hidden_size": 96, "num_hidden_layers": 5},
}


def random_model(rng, changes=None, kind="BertModel", **arguments):
    """A model whose encoder has weights with which an error in attention shows."""
    config = transformers.BertConfig(**{**SMALL, **(changes or {})})
    torch.manual_seed(int(rng.integers(1 << 31)))
    model = getattr(transformers, kind)(config, **arguments).eval()
    encoder = (model.bert if hasattr(model, "bert") else model).encoder
    layers = spec.random_layers(
        rng, config.num_hidden_layers, config.hidden_size, config.intermediate_size
    )
    state = spec.hugging_face_state(layers)
    encoder.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return model


def make_batch(rng, lengths):
    seq_len = max(lengths)
    ids = torch.tensor(rng.integers(0, SMALL["vocab_size"], (len(lengths), seq_len)))
    mask = (torch.arange(seq_len) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def eager_float64(model):
    exact = copy.deepcopy(model).double()
    exact.config._attn_implementation = "eager"
    return exact


def check_hidden_states(model, optimized, batch, real=None, tolerance=tolerances.TORCH_FLOAT32):
    """Compares the hidden states of all layers at the tokens of `real`, by default the mask's."""
    with torch.no_grad():
        expected = eager_float64(model)(**batch, output_hidden_states=True)
        got = optimized(**batch, output_hidden_states=True)
        alone = optimized(**batch)
    real = batch["attention_mask"].bool() if real is None else real
    assert len(got.hidden_states) == len(expected.hidden_states)
    for mine, exact in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert (mine.double() - exact)[real].abs().max() <= tolerance
    assert torch.equal(alone.last_hidden_state, got.last_hidden_state)
    assert alone.hidden_states is None


@pytest.fixture(scope="module")
def minilm():
    try:
        folder = hf_weights.packaged_minilm()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return transformers.BertModel.from_pretrained(folder)


TEXTS = (
    "Yes",
    "A cat sleeps.",
    "It rains on the roof, and nobody is there to hear it.",
    "The encoder is a stack of layers; each has attention and a feed-forward network. " * 8,
)


@pytest.mark.parametrize("remove_padding", [False, True])
@pytest.mark.parametrize("texts", [TEXTS[2:3], TEXTS])
def test_minilm(minilm, texts, remove_padding):
    optimized = fastertransformer_torch.optimize(
        copy.deepcopy(minilm), remove_padding=remove_padding
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf_weights.packaged_minilm())
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    check_hidden_states(minilm, optimized, dict(batch))


@pytest.mark.parametrize("remove_padding", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_random_berts(rng, config, remove_padding):
    model = random_model(rng, CONFIGS[config])
    optimized = fastertransformer_torch.optimize(
        copy.deepcopy(model), remove_padding=remove_padding
    )
    check_hidden_states(model, optimized, make_batch(rng, [3, 17, 64]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("whole", [False, True])
def test_half_types(rng, dtype, whole):
    """The encoder alone computes in the type, or the whole model is converted after or before."""
    model = random_model(rng)
    kind = getattr(torch, dtype)
    optimized = copy.deepcopy(model)
    if whole:
        optimized = fastertransformer_torch.optimize(optimized).to(kind)
        before = fastertransformer_torch.optimize(copy.deepcopy(model).to(kind))
    else:
        fastertransformer_torch.optimize(optimized, dtype=kind)
    batch = make_batch(rng, [3, 17, 64])
    with torch.no_grad():
        got = optimized(**batch).last_hidden_state
        expected = eager_float64(model)(**batch).last_hidden_state
        if whole:
            assert torch.equal(got, before(**batch).last_hidden_state)
    assert got.dtype == (kind if whole else torch.float32)
    real = batch["attention_mask"].bool()
    tolerances.assert_close(got[real].double().numpy(), expected[real].numpy(), dtype)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masks(rng, implementation):
    """Gaps, left padding and masks of queries by keys, as transformers' attentions have them."""
    model = random_model(rng)
    model.set_attn_implementation(implementation)
    optimized = fastertransformer_torch.optimize(copy.deepcopy(model))
    batch = make_batch(rng, [6, 6, 6])
    keys = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    check_hidden_states(model, optimized, {**batch, "attention_mask": keys})
    square = torch.tensor(rng.integers(0, 2, (3, 1, 6, 6))).bool() | torch.eye(6).bool()
    added = torch.zeros(square.shape).masked_fill(~square, torch.finfo(torch.float32).min)
    with torch.no_grad():
        batch["attention_mask"] = added.double()
        expected = eager_float64(model)(**batch).last_hidden_state
        for mask in (added, *([square] if implementation == "sdpa" else [])):
            got = optimized(**{**batch, "attention_mask": mask}).last_hidden_state
            assert (got.double() - expected).abs().max() <= tolerances.TORCH_FLOAT32
    batch.pop("attention_mask")
    check_hidden_states(model, optimized, batch, torch.ones(3, 6, dtype=torch.bool))


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("BertForSequenceClassification", "logits"),
        ("BertForQuestionAnswering", "start_logits"),
        ("BertForTokenClassification", "logits"),
        ("BertForMaskedLM", "logits"),
        ("BertForPreTraining", "seq_relationship_logits"),
    ],
)
def test_task_models(rng, kind, output):
    model = random_model(rng, kind=kind)
    optimized = fastertransformer_torch.optimize(copy.deepcopy(model))
    assert isinstance(optimized.bert.encoder, fastertransformer_torch.OptimizedEncoder)
    batch = make_batch(rng, [5, 30])
    with torch.no_grad():
        expected = getattr(eager_float64(model)(**batch), output)
        got = getattr(optimized(**batch), output)
    if got.dim() > 1 and got.shape[1] == 30:  # A value for each token.
        real = batch["attention_mask"].bool()
        expected, got = expected[real], got[real]
    tolerances.assert_close(got.numpy(), expected.numpy(), "float32", tolerances.LOGITS)


def test_nothing_else_of_the_model_changes(rng, tmp_path):
    model = random_model(rng, kind="BertForSequenceClassification")
    before = copy.deepcopy(model)
    assert fastertransformer_torch.optimize(model) is model
    state, expected = model.state_dict(), before.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in before.named_parameters()
    ]
    assert model.config.to_dict() == before.config.to_dict()
    model.save_pretrained(tmp_path)
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[key], expected[key]) for key in expected)


def _load(model, other):
    model.load_state_dict(other.state_dict())


def _load_assign(model, other):
    model.load_state_dict(other.state_dict(), assign=True)


def _copy_in_place(model, other):
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.copy_(theirs)


def _new_parameters(model, other):
    for name, value in other.named_parameters():
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, torch.nn.Parameter(value.detach().clone()))


def _new_data(model, other):
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.data = theirs.data.clone()


@pytest.mark.parametrize(
    "change", [_load, _load_assign, _copy_in_place, _new_parameters, _new_data]
)
def test_changed_weights_are_followed(rng, change):
    model = fastertransformer_torch.optimize(random_model(rng))
    other = random_model(rng)
    batch = make_batch(rng, [3, 17])
    with torch.no_grad():
        model(**batch)
        change(model, other)
        got = model(**batch).last_hidden_state
        expected = fastertransformer_torch.optimize(other)(**batch).last_hidden_state
    assert torch.equal(got, expected)


def test_copies_and_pickles(rng):
    model = fastertransformer_torch.optimize(random_model(rng))
    batch = make_batch(rng, [3, 17])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert torch.equal(other(**batch).last_hidden_state, expected)
            _copy_in_place(other, random_model(rng))
            assert not torch.equal(other(**batch).last_hidden_state, expected)
        assert torch.equal(model(**batch).last_hidden_state, expected)


def test_weights_of_inference_mode(rng):
    with torch.inference_mode():
        model = fastertransformer_torch.optimize(random_model(rng))
        batch = make_batch(rng, [3, 17])
        assert model(**batch).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("config", ["gelu", "gelu_new"])
def test_compile_without_a_break(rng, grad, config):
    model = fastertransformer_torch.optimize(random_model(rng, CONFIGS[config]))
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for lengths in ([3, 17], [5, 9, 30]):
            batch = make_batch(rng, lengths)
            expected = model(**batch).last_hidden_state
            got = compiled(**batch).last_hidden_state
            # The embeddings are PyTorch's, which adds in another order when compiled.
            assert (got - expected).abs().max() <= tolerances.TORCH_FLOAT32
    if grad:
        with pytest.raises(NotImplementedError, match="has no gradient"):
            got.sum().backward()


def test_compiled_model_sees_refreshed_weights(rng):
    model = fastertransformer_torch.optimize(random_model(rng))
    compiled = torch.compile(model, fullgraph=True)
    batch = make_batch(rng, [3, 17])
    with torch.no_grad():
        compiled(**batch)
        _copy_in_place(model, random_model(rng))
        model.encoder.refresh()
        got = compiled(**batch).last_hidden_state
        expected = model(**batch).last_hidden_state
    assert (got - expected).abs().max() <= tolerances.TORCH_FLOAT32


def test_compiled_model_records_all_layers(rng):
    model = fastertransformer_torch.optimize(random_model(rng))
    batch = make_batch(rng, [3, 17])
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True).hidden_states
        compiled = torch.compile(model, fullgraph=True)
        got = compiled(**batch, output_hidden_states=True).hidden_states
    assert len(got) == len(expected) == 4
    for mine, other in zip(got, expected, strict=True):
        assert (mine - other).abs().max() <= tolerances.TORCH_FLOAT32


def test_export(rng, tmp_path):
    model = fastertransformer_torch.optimize(random_model(rng))
    batch = make_batch(rng, [3, 17])
    dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = {"input_ids": dims, "attention_mask": dims}
    with torch.no_grad():
        program = torch.export.export(model, (), batch, dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
        for lengths in ([3, 17], [5, 9, 30]):
            other = make_batch(rng, lengths)
            expected = model(**other).last_hidden_state
            assert torch.equal(loaded(**other).last_hidden_state, expected)


def test_hooks_on_layers_see_their_outputs(rng):
    model = fastertransformer_torch.optimize(random_model(rng))
    batch = make_batch(rng, [17, 17])
    seen = []
    handle = model.encoder.layer[1].register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output))
    )
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
        model(**batch)
        handle.remove()
        model(**batch)
    assert len(seen) == 2
    for layer_input, output in seen:
        assert torch.equal(layer_input, states[1]) and torch.equal(output, states[2])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"output_attentions": True}, ValueError, "output_attentions is given"),
        ({"encoder_hidden_states": torch.zeros(2, 3, 64)}, ValueError, "encoder_hidden_states is"),
        ({"head_mask": torch.ones(3, 4)}, ValueError, "head_mask is given"),
        (
            {"attention_mask": torch.full((2, 1, 17, 17), -0.5)},
            ValueError,
            "holds -0.5, expected 0",
        ),
        (
            {"attention_mask": torch.ones(2, 4, 17, 17).bool()},
            ValueError,
            r"attention_mask has shape \[2,4,17,17\]",
        ),
    ],
)
def test_what_the_op_does_not_do_is_refused(rng, arguments, error, message):
    model = fastertransformer_torch.optimize(random_model(rng))
    with torch.no_grad(), pytest.raises(error, match=message):
        model(**{**make_batch(rng, [3, 17]), **arguments})


def test_training_is_refused(rng):
    model = fastertransformer_torch.optimize(random_model(rng))
    model.train()
    with pytest.raises(RuntimeError, match=r"is in training mode.* call model\.eval\(\) first"):
        model(**make_batch(rng, [3, 17]))
    model.eval()
    with torch.no_grad():
        model(**make_batch(rng, [3, 17]))


def test_a_layer_by_itself_is_refused(rng):
    model = fastertransformer_torch.optimize(random_model(rng))
    with pytest.raises(RuntimeError, match="called by itself"):
        model.encoder.layer[0](torch.zeros(1, 2, 64))


class _Adapted(torch.nn.Linear):
    """Stands for a layer with an adapter."""


def _adapt(model):
    model.encoder.layer[1].output.dense = _Adapted(100, 64)


def _no_bias(model):
    model.encoder.layer[2].attention.self.query = torch.nn.Linear(64, 64, bias=False)


def _epsilon(model):
    model.encoder.layer[0].output.LayerNorm.eps = 1e-3


@pytest.mark.parametrize(
    ("changes", "edit", "message"),
    [
        ({"is_decoder": True}, None, "is_decoder is True, expected False"),
        (
            {"is_decoder": True, "add_cross_attention": True},
            None,
            "is_decoder is True, expected False",
        ),
        ({"hidden_act": "silu"}, None, "hidden_act is 'silu', expected one of gelu, "),
        ({}, _adapt, "layer.1.output.dense is a _Adapted, expected Linear"),
        ({}, _no_bias, "layer.2.attention.self.query has no bias"),
        ({}, _epsilon, "layer.0.output.LayerNorm.eps is 0.001, expected layer_norm_eps, 1e-12"),
        (
            {},
            lambda model: model.double(),
            "weights are torch.float64, expected one of torch.float32",
        ),
    ],
)
def test_other_encoders_are_refused_and_left_alone(rng, changes, edit, message):
    model = transformers.BertModel(transformers.BertConfig(**{**SMALL, **changes})).eval()
    if edit:
        edit(model)
    encoder = model.encoder
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(UserError, match=message):
        fastertransformer_torch.optimize(model)
    assert model.encoder is encoder
    assert [type(module) for module in model.modules()] == kinds


def test_wrong_arguments(rng):
    with pytest.raises(UserError, match="Linear holds no encoder of transformers' BertModel"):
        fastertransformer_torch.optimize(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"model is a str, expected a torch\.nn\.Module"):
        fastertransformer_torch.optimize("bert-base-uncased")
    model = random_model(rng)
    with pytest.raises(UserError, match="dtype is torch.float64, expected one of torch.float32"):
        fastertransformer_torch.optimize(model, dtype=torch.float64)
    with pytest.raises(UserError, match="int8_mode is 4, expected 0, 1, 2 or 3"):
        fastertransformer_torch.optimize(model, int8_mode=4)
    with pytest.raises(UserError, match="int8_mode is 1 and amax is not given"):
        fastertransformer_torch.optimize(model, int8_mode=1)
    with pytest.raises(UserError, match="int8_mode is 0 and amax is given"):
        fastertransformer_torch.optimize(model, amax={})
    fastertransformer_torch.optimize(model)
    with pytest.raises(UserError, match="not optimized yet"):
        fastertransformer_torch.optimize(model)


def test_float64_model_computes_in_the_type_asked_for(rng):
    model = random_model(rng)
    optimized = fastertransformer_torch.optimize(copy.deepcopy(model).double(), dtype=torch.float32)
    batch = make_batch(rng, [3, 17])
    with torch.no_grad():
        got = optimized(**batch).last_hidden_state
        expected = eager_float64(model)(**batch).last_hidden_state
    assert got.dtype == torch.float64
    real = batch["attention_mask"].bool()
    assert (got - expected)[real].abs().max() <= tolerances.TORCH_FLOAT32


def test_no_tensorflow_is_needed():
    hide = "import sys; sys.modules['tensorflow'] = None; import fastertransformer_torch"
    assert "optimize" in run_python("-c", f"{hide}; print(fastertransformer_torch.optimize)")


def test_pipeline(minilm):
    folder = hf_weights.packaged_minilm()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    texts = list(TEXTS[1:3])

    def scores(model):
        pipeline = transformers.pipeline(
            "text-classification", model=model, tokenizer=tokenizer, device="cpu"
        )
        return [result["score"] for result in pipeline(texts, batch_size=2)]

    expected = scores(copy.deepcopy(model))
    assert scores(fastertransformer_torch.optimize(model)) == pytest.approx(expected, abs=1e-5)


def test_sentence_transformers(minilm):
    sentences = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    model = sentences.SentenceTransformer(str(hf_weights.packaged_minilm()), device="cpu")
    expected = model.encode(TEXTS)
    got = fastertransformer_torch.optimize(model).encode(TEXTS)
    np.testing.assert_allclose(got, expected, atol=tolerances.TORCH_FLOAT32)


# The buffers of NVIDIA's toolkit in a layer, by the slot of the scale list; of the weights in the
# order of its part 2.
ACTIVATIONS = (
    "attention.self.query._input_quantizer",
    "attention.self.query._aftergemm_quantizer",
    "attention.self.matmul_q_input_quantizer",
    "attention.self.key._aftergemm_quantizer",
    "attention.self.matmul_k_input_quantizer",
    "attention.self.value._aftergemm_quantizer",
    "attention.self.matmul_v_input_quantizer",
    "attention.self.softmax_input_quantizer",
    "attention.self.matmul_a_input_quantizer",
    "attention.output.dense._input_quantizer",
    "attention.output.dense._aftergemm_quantizer",
    "intermediate.dense._input_quantizer",
    "intermediate.dense._aftergemm_quantizer",
    "output.dense._input_quantizer",
    "output.dense._aftergemm_quantizer",
)
KERNELS = {
    "attention.self.query": "attr_q_kernel",
    "attention.self.key": "attr_k_kernel",
    "attention.self.value": "attr_v_kernel",
    "attention.output.dense": "attr_output_kernel",
    "intermediate.dense": "inter_kernel",
    "output.dense": "output_kernel",
}


def calibrated_state(model, batch):
    """The state_dict of a model with ranges that represent all numbers of a batch."""
    encoder = model.encoder
    largest = {}

    def watch(name, module):
        def hook(_, inputs, output):
            largest[f"{name}._input_quantizer"] = inputs[0].abs().max()
            largest[f"{name}._aftergemm_quantizer"] = (output - module.bias).abs().max()

        return module.register_forward_hook(hook)

    handles = []
    for index, layer in enumerate(encoder.layer):
        for path in KERNELS:
            handles.append(watch(f"layer.{index}.{path}", layer.get_submodule(path)))
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    state = dict(model.state_dict())
    for index, layer in enumerate(encoder.layer):
        for name in ACTIVATIONS:
            value = largest.get(f"layer.{index}.{name}", torch.tensor(8.0 + index))
            state[f"encoder.layer.{index}.{name}._amax"] = value
        for path in KERNELS:
            weight = layer.get_submodule(path).weight.detach()
            amax = weight.abs().max(dim=1, keepdim=True).values
            state[f"encoder.layer.{index}.{path}._weight_quantizer._amax"] = amax
    return state


def _transposed(parameter):
    return parameter.detach().T.contiguous() if parameter.dim() == 2 else parameter.detach()


def test_amax_becomes_scale_lists_and_int8_kernels(rng):
    """Every buffer ends in its own place: all ranges are different numbers."""
    model = random_model(rng)
    state = calibrated_state(model, make_batch(rng, [9, 17]))
    layers, lists = [], []
    for index, layer in enumerate(model.encoder.layer):
        prefix = f"encoder.layer.{index}."
        slots = rng.uniform(2, 9, 16).astype(np.float32)
        for name, slot in zip(ACTIVATIONS, slots, strict=False):
            state[f"{prefix}{name}._amax"] = torch.tensor(slot)
        parameters = {
            weight.op_input: _transposed(layer.get_parameter(weight.hugging_face))
            for weight in spec.LAYER_WEIGHTS
        }
        kernels = {}
        for path, op_input in KERNELS.items():
            amax = rng.uniform(3, 5, parameters[op_input].shape[1]).astype(np.float32)
            state[f"{prefix}{path}._weight_quantizer._amax"] = torch.tensor(amax)[:, None]
            kernels[op_input] = amax
            integers = torch.round(parameters[op_input] * (127 / torch.tensor(amax)))
            parameters[op_input] = integers.clamp(-127, 127).to(torch.int8)
        layers.append(parameters)
        lists.append(scale_list.ScaleList(slots, kernels))
    for previous, following in zip(lists, lists[1:], strict=False):
        previous.activations[15] = following.activations[0]
    lists[-1].activations[15] = 1.0
    expected = fastertransformer_torch.prepare_encoder(
        layers,
        head_num=4,
        size_per_head=16,
        int8_mode=2,
        amax_lists=[torch.tensor(scales.to_array()) for scales in lists],
    )
    before = copy.deepcopy(model.state_dict())
    fastertransformer_torch.optimize(model, int8_mode=2, amax=state)
    assert torch.equal(model.encoder.prepared, expected)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)


@pytest.mark.parametrize("mode", [1, 2, 3])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_int8_is_near_float(rng, mode, dtype):
    model = random_model(rng)
    batch = make_batch(rng, [9, 17, 64])
    state = calibrated_state(model, batch)
    optimized = fastertransformer_torch.optimize(
        copy.deepcopy(model), dtype=dtype, int8_mode=mode, amax=state
    )
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        got = optimized(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    error = (got - expected)[real].abs().mean()
    # int8 it is, and a number's spread is 1.
    assert 1e-3 < error < tolerances.TORCH_INT8_MEAN


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "layer.1.output.dense._input_quantizer",
            None,
            "output.dense._input_quantizer._amax is mis",
        ),
        (
            "layer.0.output.dense._weight_quantizer",
            None,
            "dense._weight_quantizer._amax is missing",
        ),
        (
            "layer.2.intermediate.dense._input_quantizer",
            torch.tensor(0.0),
            r"_amax is \[0.0\], exp",
        ),
        (
            "layer.2.intermediate.dense._input_quantizer",
            torch.ones(2),
            r"_amax is \[1.0, 1.0\], exp",
        ),
        (
            "layer.0.output.dense._weight_quantizer",
            torch.ones(5),
            "output/dense/kernel_quantizer has 5 ranges, expected one or 64",
        ),
    ],
)
def test_ranges_that_cannot_be_used(rng, name, value, message):
    model = random_model(rng)
    state = calibrated_state(model, make_batch(rng, [9, 17]))
    key = f"encoder.{name}._amax"
    del state[key]
    if value is not None:
        state[key] = value
    encoder = model.encoder
    with pytest.raises(UserError, match=message):
        fastertransformer_torch.optimize(model, int8_mode=1, amax=state)
    assert model.encoder is encoder
