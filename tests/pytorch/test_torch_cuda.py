"""The ops for PyTorch on a GPU: right, on PyTorch's streams, in its graphs, clear in refusing.

FT_TEST_DEVICE=/CPU:0 rehearses on a CPU what is not about streams and graphs.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import reference
import reference_int8
import tolerances
from conftest import GPU_TEST_DEVICE
from torch_support import DTYPES, as_tensors, torch

import fastertransformer_torch
from fastertransformer_tf import spec
from fastertransformer_torch import bert_encoder, prepare_encoder

pytestmark = pytest.mark.gpu

IS_CUDA = "GPU" in GPU_TEST_DEVICE
DEVICE = "cuda" if IS_CUDA else "cpu"
needs_cuda = pytest.mark.skipif(not IS_CUDA, reason="rehearsed on a CPU, which has no streams")

# Heads of 64 have kernels of their own, others take the general ones.
HEADS = {"fast": (4, 64), "general": (2, 24)}
LENGTHS = [40, 3, 0, 17]


class Case:
    """Random weights and a batch on the device."""

    def __init__(self, rng, heads="fast", dtype="float32", num_layers=2, lengths=LENGTHS, **more):
        self.heads, size = HEADS[heads]
        hidden, inner = self.heads * size, 2 * self.heads * size
        self.lengths = np.array(lengths)
        self.layers = reference.random_layers(rng, num_layers, hidden, inner)
        self.tensors = moved(as_tensors(self.layers, dtype))
        shape = (len(lengths), max(lengths), hidden)
        self.x = torch.tensor(rng.normal(size=shape)).to(getattr(torch, dtype)).to(DEVICE)
        self.sizes = {"head_num": self.heads, "size_per_head": size}
        self.prepared = prepare_encoder(self.tensors, **self.sizes)
        self.arguments = {**self.sizes, "inner_size": inner, "num_layers": num_layers, **more}

    def run(self, x=None, **arguments):
        x = self.x if x is None else x
        return bert_encoder(x, self.prepared, **{**self.arguments, **arguments})

    def expected(self, **arguments):
        layers = [{k: v.double().cpu().numpy() for k, v in layer.items()} for layer in self.tensors]
        x = self.x.double().cpu().numpy()
        return reference.encoder(x, layers, self.heads, **arguments)

    @property
    def real(self):
        return reference.valid_rows(self.lengths, self.x.shape[1])

    @property
    def keys(self):
        return torch.tensor(self.real).to(DEVICE)


def moved(layers, device=DEVICE):
    return [{key: value.to(device) for key, value in layer.items()} for layer in layers]


def numbers(tensor):
    return tensor.double().cpu().numpy()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("remove_padding", [False, True])
@pytest.mark.parametrize("said_by", ["host", "device", "mask"])
def test_every_layer_is_the_references(rng, heads, dtype, remove_padding, said_by):
    case = Case(rng, heads, dtype)
    lengths = torch.tensor(case.lengths)
    said = {
        "host": {"sequence_length": lengths},
        "device": {"sequence_length": lengths.to(DEVICE)},
        "mask": {"attention_mask": case.keys},
    }[said_by]
    # Of one address the second call is captured, the third replayed, by the library's own graphs.
    for _ in range(3):
        outputs = case.run(**said, num_outputs=2, remove_padding=remove_padding)
    expected = case.expected(lengths=case.lengths)
    for output, layer in zip(outputs, expected, strict=True):
        assert output.dtype == case.x.dtype and output.device == case.x.device
        got = numbers(output)
        tolerances.assert_close(got[case.real], layer[case.real], dtype)
        if remove_padding:
            assert not got[~case.real].any()


@pytest.mark.parametrize("remove_padding", [False, True])
def test_no_padding_and_no_mask(rng, remove_padding):
    case = Case(rng, lengths=[9, 9])
    (output,) = case.run(remove_padding=remove_padding)
    tolerances.assert_close(numbers(output), case.expected()[-1], "float32")


def _masks(case):
    """One mask in every form in which PyTorch's models say it."""
    keys = case.keys.clone()
    keys[0, 5] = False  # A gap.
    batch, seq_len = keys.shape
    square = keys[:, None, None, :].expand(batch, 1, seq_len, seq_len)
    added = torch.zeros(square.shape, device=DEVICE).masked_fill(~square, float("-inf"))
    return {
        "keys": keys,
        "expanded": square,
        "contiguous": square.contiguous(),
        "three dimensions": square[:, 0].contiguous(),
        "columns first": square[:, 0].contiguous().transpose(1, 2).contiguous().transpose(1, 2),
        "float": added,
        "float minimum": added.clamp_min(torch.finfo(torch.float32).min),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("remove_padding", [False, True])
def test_all_forms_of_a_mask_say_the_same(rng, dtype, remove_padding):
    case = Case(rng, dtype=dtype, lengths=[40, 3, 17])
    masks = _masks(case)
    keys = masks["keys"].cpu().numpy()
    square = np.broadcast_to(keys[:, None, :], (3, 40, 40))
    expected = case.expected(lengths=case.lengths, mask=square)[-1]
    for name, mask in masks.items():
        got = numbers(case.run(attention_mask=mask, remove_padding=remove_padding)[0])
        message = f"mask {name}"
        tolerances.assert_close(got[case.real], expected[case.real], dtype, message=message)


@pytest.mark.parametrize("remove_padding", [False, True])
def test_a_mask_for_each_query(rng, remove_padding):
    case = Case(rng, lengths=[24, 24, 24])
    mask = rng.integers(0, 2, (3, 24, 24)).astype(bool)
    mask[:, :, 0] = True
    (output,) = case.run(
        attention_mask=torch.tensor(mask).to(DEVICE), remove_padding=remove_padding
    )
    tolerances.assert_close(numbers(output), case.expected(mask=mask)[-1], "float32")


@pytest.mark.parametrize("mode", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("remove_padding", [False, True])
def test_int8_is_that_of_the_cpu(rng, mode, dtype, remove_padding):
    layers, lists = reference_int8.random_model(rng, 2, 256, 512)
    x = torch.tensor(rng.normal(size=(4, 40, 256))).to(getattr(torch, dtype))
    sizes = {"head_num": 4, "size_per_head": 64}
    outputs = {}
    for device in {"cpu", DEVICE}:
        prepared = prepare_encoder(
            moved(as_tensors(layers, dtype), device),
            **sizes,
            int8_mode=mode,
            amax_lists=[torch.tensor(scales) for scales in lists],
        )
        outputs[device] = numbers(
            bert_encoder(
                x.to(device),
                prepared,
                **sizes,
                inner_size=512,
                num_layers=2,
                sequence_length=torch.tensor(LENGTHS),
                remove_padding=remove_padding,
                int8_mode=mode,
            )[0]
        )
    real = reference.valid_rows(LENGTHS, 40)
    error = np.abs(outputs["cpu"] - outputs[DEVICE])[real].mean()
    assert error < tolerances.INT8_MEAN[dtype]


def test_scales_may_lie_on_the_device(rng):
    layers, lists = reference_int8.random_model(rng, 1, 256, 512)
    sizes = {"head_num": 4, "size_per_head": 64, "int8_mode": 2}
    tensors = moved(as_tensors(layers))
    x = torch.tensor(rng.normal(size=(2, 9, 256)), dtype=torch.float32).to(DEVICE)
    outputs = []
    for device in ("cpu", DEVICE):
        prepared = prepare_encoder(tensors, **sizes, amax_lists=[torch.tensor(lists[0]).to(device)])
        outputs += bert_encoder(x, prepared, **sizes, inner_size=512, num_layers=1)
    assert torch.equal(*outputs) and outputs[0].isfinite().all()


def test_any_strides_and_empty_batches(rng):
    case = Case(rng, lengths=[9, 5])
    (expected,) = case.run(attention_mask=case.keys)
    strided = torch.stack([case.x, case.x], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(case.run(strided, attention_mask=case.keys)[0], expected)
    (output,) = case.run(case.x[:0], attention_mask=case.keys[:0])
    assert output.shape == (0, 9, 256) and output.device == case.x.device


@needs_cuda
def test_runs_on_the_current_stream(rng):
    """What is enqueued on a stream before and after a call comes before and after it."""
    case = Case(rng, dtype="float16")
    (expected,) = case.run(attention_mask=case.keys)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            x = torch.zeros_like(case.x)
            x += case.x
            outputs = case.run(x, sequence_length=torch.tensor(LENGTHS))
            copied = outputs[0].clone()
            del x, outputs
        stream.synchronize()
        assert torch.equal(copied[case.keys], expected[case.keys])


@needs_cuda
def test_streams_at_once(rng):
    """Calls on two streams share no memory: neither waits for the other."""
    case = Case(rng, lengths=[40] * 4)
    (expected,) = case.run()
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    results = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(case.run()[0])
    torch.cuda.synchronize()
    assert all(torch.equal(result, expected) for result in results)


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_captured_into_a_graph_of_pytorch(rng, dtype, masked):
    case = Case(rng, dtype=dtype, remove_padding=False)
    arguments = {"attention_mask": case.keys} if masked else {}
    x = case.x.clone()
    for _ in range(3):  # On this stream the library has a graph of its own by now.
        case.run(x, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (output,) = case.run(x, **arguments)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(output, case.run(x, **arguments)[0])


@needs_cuda
def test_lengths_of_the_host_are_captured(rng):
    case = Case(rng)
    lengths = torch.tensor(LENGTHS)
    (expected,) = case.run(sequence_length=lengths)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (output,) = case.run(sequence_length=lengths)
    graph.replay()
    tolerances.assert_close(numbers(output), numbers(expected), "float32")


@needs_cuda
@pytest.mark.parametrize("which", ["remove_padding", "float mask", "lengths", "weights"])
def test_what_a_capture_cannot_do_is_refused(rng, which):
    case = Case(rng)
    added = torch.zeros(case.keys.shape, device=DEVICE)
    arguments, message = {
        "remove_padding": ({"attention_mask": case.keys}, "attention_mask would have to be read"),
        "float mask": (
            {"attention_mask": added, "remove_padding": False},
            "attention_mask would have to be read",
        ),
        "lengths": (
            {"sequence_length": torch.tensor(LENGTHS).to(DEVICE)},
            "sequence_length would have to be read",
        ),
        "weights": ({}, r"prepared has \d+ bytes, expected \d+: it was prepared for another type"),
    }[which]
    prepared = case.prepared
    if which == "weights":
        prepared = prepare_encoder(moved(as_tensors(case.layers, "float16")), **case.sizes)
    error = ValueError if which == "weights" else RuntimeError
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        try:
            with pytest.raises(error, match=message):
                bert_encoder(case.x, prepared, **{**case.arguments, **arguments})
        finally:
            graph.capture_end()
    (output,) = case.run()
    assert torch.isfinite(output).all()


@needs_cuda
def test_memory_comes_back(rng):
    case = Case(rng)
    for _ in range(5):
        case.run(attention_mask=case.keys)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        case.run(attention_mask=case.keys)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


@needs_cuda
def test_wrong_devices_are_refused(rng):
    case = Case(rng)
    with pytest.raises(ValueError, match="prepared is on cpu, expected cuda:0"):
        bert_encoder(case.x, case.prepared.cpu(), **case.arguments)
    with pytest.raises(ValueError, match="attention_mask is on cpu, expected cuda:0"):
        case.run(attention_mask=case.keys.cpu())
    layers = [dict(layer) for layer in case.tensors]
    layers[1]["inter_bias"] = layers[1]["inter_bias"].cpu()
    with pytest.raises(ValueError, match="inter_bias is on cpu, expected cuda:0"):
        prepare_encoder(layers, **case.sizes)


@needs_cuda
def test_prepared_of_something_else_is_refused(rng):
    case = Case(rng)
    half = Case(rng, dtype="float16")
    with pytest.raises(ValueError, match="prepared is for cuda, float32, .*expected cuda, float16"):
        bert_encoder(half.x, case.prepared, **case.arguments)
    on_cpu = prepare_encoder(moved(case.tensors, "cpu"), **case.sizes)
    with pytest.raises(ValueError, match="prepared is for cpu .*; expected cuda"):
        bert_encoder(case.x, on_cpu.to(DEVICE), **case.arguments)
    for wrong in (case.prepared[:-64], torch.zeros(4096, dtype=torch.uint8, device=DEVICE)):
        with pytest.raises(ValueError, match="prepared (has .* bytes, expected|does not begin as)"):
            bert_encoder(case.x, wrong, **case.arguments)
    other = case.prepared.clone()
    assert torch.equal(bert_encoder(case.x, other, **case.arguments)[0], case.run()[0])


def test_a_bias_is_refused(rng):
    case = Case(rng, lengths=[9, 5])
    for shape in ((2, 9), (2, 1, 9, 9)):
        mask = torch.zeros(shape, device=DEVICE)
        mask[1, ..., 3] = -0.5
        with pytest.raises(ValueError, match="a bias on the scores is not supported"):
            case.run(attention_mask=mask)


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_second_gpu(rng):
    case = Case(rng)
    (expected,) = case.run(attention_mask=case.keys)
    other = torch.device("cuda:1")
    prepared = prepare_encoder(moved(case.tensors, other), **case.sizes)
    for _ in range(3):
        (output,) = bert_encoder(
            case.x.to(other), prepared, **case.arguments, attention_mask=case.keys.to(other)
        )
    assert output.device == other and torch.cuda.current_device() == 0
    assert torch.equal(output.cpu(), expected.cpu())
    with pytest.raises(ValueError, match="prepared is on cuda:0, expected cuda:1"):
        bert_encoder(case.x.to(other), case.prepared, **case.arguments)


# ---- Models --------------------------------------------------------------------------------------


@pytest.fixture
def bert(rng):
    """A BERT of transformers with random weights, and a batch."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=128,
        num_attention_heads=2,
        num_hidden_layers=3,
        intermediate_size=256,
        max_position_embeddings=64,
    )
    model = transformers.BertModel(config).eval()
    state = spec.hugging_face_state(spec.random_layers(rng, 3, 128, 256))
    model.encoder.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    mask = torch.tensor(reference.valid_rows([33, 7, 20], 33)).long()
    batch = {
        "input_ids": torch.tensor(rng.integers(0, 50, (3, 33))),
        "attention_mask": mask,
    }
    return model, {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def _exact(model, batch):
    exact = copy.deepcopy(model).double().cpu()
    exact.config._attn_implementation = "eager"
    with torch.no_grad():
        return exact(**{name: t.cpu() for name, t in batch.items()}).last_hidden_state.numpy()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("remove_padding", [False, True])
@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_a_model(bert, attention, remove_padding, dtype):
    model, batch = bert
    expected = _exact(model, batch)
    model.config._attn_implementation = attention
    kind = None if dtype is None else getattr(torch, dtype)
    fastertransformer_torch.optimize(model.to(DEVICE), dtype=kind, remove_padding=remove_padding)
    with torch.no_grad():
        got = numbers(model(**batch).last_hidden_state)
    real = batch["attention_mask"].bool().cpu().numpy()
    tolerances.assert_close(got[real], expected[real], dtype or "float32")


def test_a_model_moves(bert):
    model, batch = bert
    expected = _exact(model, batch)
    fastertransformer_torch.optimize(model)
    real = batch["attention_mask"].bool()
    for device in ("cpu", DEVICE, "cpu"):
        model.to(device)
        given = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.no_grad():
            got = numbers(model(**given).last_hidden_state)
        assert model.encoder.prepared.device.type == device
        tolerances.assert_close(got[real.cpu()], expected[real.cpu()], "float32")


@needs_cuda
def test_a_compiled_model(bert):
    pytest.importorskip("triton", reason="triton is not installed")
    model, batch = bert
    fastertransformer_torch.optimize(model.to(DEVICE), remove_padding=False)
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        got = torch.compile(model, fullgraph=True)(**batch).last_hidden_state
    tolerances.assert_close(numbers(got), numbers(expected), "float32")


def test_calibration(bert):
    from fastertransformer_torch import calibration

    model, batch = bert
    model.to(DEVICE)
    expected = _exact(model, batch)
    amax = calibration.calibrate(model, [batch])
    fastertransformer_torch.optimize(model, int8_mode=2, amax=amax)
    with torch.no_grad():
        got = numbers(model(**batch).last_hidden_state)
    real = batch["attention_mask"].bool().cpu().numpy()
    error = np.abs(got - expected)[real].mean()
    assert 1e-3 < error < tolerances.TORCH_INT8_MEAN
