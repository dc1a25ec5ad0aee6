"""The ops for PyTorch: right, TensorFlow's bit for bit, traceable, and clear where they refuse."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest
import reference
import reference_int8
import tolerances
from torch_support import DTYPES, as_tensors, run_python, torch

from fastertransformer_torch import bert_encoder, library, prepare_encoder

HEADS, SIZE, INNER = 2, 24, 112
SIZES = {"head_num": HEADS, "size_per_head": SIZE}
LENGTHS = [7, 3, 0, 5]


class Case:
    """Random weights and a batch, for torch and for NumPy."""

    def __init__(self, rng, num_layers=2, dtype="float32", batch=4, seq_len=7):
        hidden = HEADS * SIZE
        self.layers = reference.random_layers(rng, num_layers, hidden, INNER)
        self.tensors = as_tensors(self.layers, dtype)
        self.x = torch.tensor(rng.normal(size=(batch, seq_len, hidden))).to(getattr(torch, dtype))
        self.prepared = prepare_encoder(self.tensors, **SIZES)
        self.arguments = {**SIZES, "inner_size": INNER, "num_layers": num_layers}

    def run(self, x=None, **arguments):
        x = self.x if x is None else x
        return bert_encoder(x, self.prepared, **{**self.arguments, **arguments})

    def rounded(self):
        """The weights and the batch in float64, as the type has rounded them."""
        layers = [{k: v.double().numpy() for k, v in layer.items()} for layer in self.tensors]
        return self.x.double().numpy(), layers


def rows(lengths, seq_len):
    return reference.valid_rows(np.array(lengths), seq_len)


def random_mask(rng, batch=4, seq_len=7):
    mask = rng.integers(0, 2, (batch, seq_len, seq_len)).astype(bool)
    mask[:, :, 0] = True
    return mask


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("remove_padding", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_every_layer_is_the_references(rng, dtype, remove_padding, masked):
    case = Case(rng, dtype=dtype)
    mask = random_mask(rng) if masked else None
    outputs = case.run(
        sequence_length=torch.tensor(LENGTHS),
        attention_mask=None if mask is None else torch.tensor(mask),
        num_outputs=2,
        remove_padding=remove_padding,
        activation="gelu_erf",
        layernorm_epsilon=1e-6,
    )
    x, layers = case.rounded()
    expected = reference.encoder(
        x, layers, HEADS, lengths=LENGTHS, mask=mask, activation="gelu_erf", epsilon=1e-6
    )
    real = rows(LENGTHS, 7)
    for output, layer in zip(outputs, expected, strict=True):
        assert output.dtype == case.x.dtype
        got = output.double().numpy()
        tolerances.assert_close(got[real], layer[real], dtype)
        if remove_padding:
            assert not got[~real].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("remove_padding", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_bits_are_those_of_the_tensorflow_op(rng, dtype, remove_padding, masked):
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import tensorflow as tf

    from fastertransformer_tf import ops

    case = Case(rng, dtype=dtype, batch=5, seq_len=33)
    lengths = np.array([33, 1, 17, 0, 20], np.int32)
    mask = random_mask(rng, 5, 33) if masked else None
    ours = case.run(
        sequence_length=torch.tensor(lengths),
        attention_mask=None if mask is None else torch.tensor(mask),
        num_outputs=2,
        remove_padding=remove_padding,
    )
    x, layers = case.rounded()
    theirs = ops.bert_encoder(
        tf.cast(x, dtype),
        lengths,
        None if mask is None else tf.cast(mask, dtype),
        [{key: tf.cast(value, dtype) for key, value in layer.items()} for layer in layers],
        head_num=HEADS,
        size_per_head=SIZE,
        num_outputs=2,
        remove_padding=remove_padding,
    )
    for mine, other in zip(ours, theirs, strict=True):
        other = torch.tensor(tf.cast(other, tf.float32).numpy()).to(mine.dtype)
        assert torch.equal(mine, other)


@pytest.mark.parametrize("mode", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("remove_padding", [False, True])
def test_int8_bits_are_those_of_the_tensorflow_op(rng, mode, dtype, remove_padding):
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import tensorflow as tf

    from fastertransformer_tf import ops

    layers, lists = reference_int8.random_model(rng, 2, HEADS * SIZE, INNER)
    kind = getattr(torch, dtype)
    prepared = prepare_encoder(
        as_tensors(layers, dtype),
        **SIZES,
        int8_mode=mode,
        amax_lists=[torch.tensor(scales) for scales in lists],
    )
    x = torch.tensor(rng.normal(size=(4, 7, HEADS * SIZE))).to(kind)
    common = {**SIZES, "num_outputs": 2, "remove_padding": remove_padding, "int8_mode": mode}
    ours = bert_encoder(
        x,
        prepared,
        inner_size=INNER,
        num_layers=2,
        sequence_length=torch.tensor(LENGTHS),
        **common,
    )
    theirs = ops.bert_encoder(
        tf.cast(x.double().numpy(), dtype),
        np.array(LENGTHS, np.int32),
        None,
        [
            {k: tf.constant(v) if v.dtype == np.int8 else tf.cast(v, dtype) for k, v in y.items()}
            for y in layers
        ],
        amax_list=lists,
        **common,
    )
    for mine, other in zip(ours, theirs, strict=True):
        other = torch.tensor(tf.cast(other, tf.float32).numpy()).to(mine.dtype)
        assert torch.equal(mine, other) and mine.isfinite().all()


def test_masks_of_every_form_say_the_same(rng):
    case = Case(rng)
    keys = torch.tensor(rows(LENGTHS, 7))
    added = torch.zeros(keys.shape).masked_fill(~keys, torch.finfo(torch.float32).min)
    square = keys[:, None, :].expand(4, 7, 7)
    for remove_padding in (False, True):
        (expected,) = case.run(
            sequence_length=torch.tensor(LENGTHS, dtype=torch.int32), remove_padding=remove_padding
        )
        for mask in (
            keys,
            keys[:, None, None, :],
            square,
            square[:, None],
            added,
            added.clamp(min=-10000.0),
            added.masked_fill(~keys, -torch.inf)[:, None, None, :].expand(4, 1, 7, 7),
        ):
            (output,) = case.run(attention_mask=mask, remove_padding=remove_padding)
            assert torch.equal(output, expected), (mask.dtype, mask.shape, remove_padding)


@pytest.mark.parametrize("remove_padding", [False, True])
def test_masks_with_holes(rng, remove_padding):
    """Left padding, gaps, and a sequence of nothing; every real row is right."""
    case = Case(rng)
    keys = np.array([[0, 0, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0, 0], [0] * 7, [1] * 7], bool)
    (output,) = case.run(attention_mask=torch.tensor(keys), remove_padding=remove_padding)
    (expected,) = reference.encoder(
        case.x.numpy(),
        case.layers,
        HEADS,
        lengths=[7, 4, 0, 7],
        mask=np.repeat(keys[:, None], 7, 1),
    )[1:]
    real = rows([7, 4, 0, 7], 7)
    tolerances.assert_close(output.numpy()[real], expected[real], "float32")
    assert remove_padding == (not output.numpy()[~real].any())
    lengths = torch.tensor([7, 4, 0, 7])
    (again,) = case.run(
        sequence_length=lengths, attention_mask=torch.tensor(keys), remove_padding=remove_padding
    )
    assert torch.equal(again, output)


def test_strides_are_no_matter(rng):
    case = Case(rng)
    (expected,) = case.run()
    transposed = case.x.transpose(0, 1).contiguous().transpose(0, 1)
    turned = [
        {k: v.T.contiguous().T if v.dim() == 2 else v for k, v in layer.items()}
        for layer in case.tensors
    ]
    assert not transposed.is_contiguous() and not turned[0]["inter_kernel"].is_contiguous()
    assert torch.equal(prepare_encoder(turned, **SIZES), case.prepared)
    assert torch.equal(case.run(transposed)[0], expected)
    shifted = torch.cat([torch.zeros(1), case.x.flatten()])[1:].view(case.x.shape)
    assert torch.equal(case.run(shifted)[0], expected)


@pytest.mark.parametrize("batch, seq_len", [(0, 7), (4, 0), (0, 0)])
def test_empty_batches(rng, batch, seq_len):
    case = Case(rng)
    x = torch.zeros(batch, seq_len, HEADS * SIZE)
    keys = torch.ones(batch, seq_len, dtype=torch.bool)
    for mask in (None, keys, keys[:, None].expand(batch, seq_len, seq_len)):
        (output,) = case.run(x, attention_mask=mask)
        assert output.shape == x.shape


def test_threads(rng):
    """Many Python threads at once, and any number of intra-op threads, give the same bits."""
    case = Case(rng, batch=4, seq_len=40)
    lengths = torch.tensor([40, 7, 31, 2])
    (expected,) = case.run(sequence_length=lengths)

    def call(_):
        return case.run(sequence_length=lengths)[0]

    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                assert all(torch.equal(output, expected) for output in pool.map(call, range(16)))
    finally:
        torch.set_num_threads(before)


# All of opcheck's tests but the one that runs the gradient, which there is none of.
FORWARD_TESTS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(rng, requires_grad):
    case = Case(rng)
    x = case.x.requires_grad_(requires_grad)
    tests = {"test_utils": FORWARD_TESTS} if requires_grad else {}
    sizes = (HEADS, SIZE, INNER, 2)
    encoder = torch.ops.fastertransformer.bert_encoder.default
    keys = torch.tensor(rows(LENGTHS, 7))
    for arguments in (
        (x, None, None, case.prepared, *sizes),
        (x, torch.tensor(LENGTHS), None, case.prepared, *sizes, 2),
        (x, None, keys, case.prepared, *sizes, 1, False, 1e-6, "gelu_erf"),
    ):
        torch.library.opcheck(encoder, arguments, **tests)
    weights = [weight for layer in case.tensors for weight in layer.values()]
    torch.library.opcheck(
        torch.ops.fastertransformer.prepare_encoder.default, (weights, [], HEADS, SIZE)
    )


def test_there_is_no_gradient(rng):
    case = Case(rng)
    (output,) = case.run(case.x.requires_grad_())
    with pytest.raises(NotImplementedError, match="has no gradient: it is for inference"):
        output.sum().backward()


def _changed(layers, key, value):
    return [{**layers[0], key: value}, *layers[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: [], "layers is empty"),
        (lambda layers: [{}], "lacks the weights"),
        (lambda layers: _changed(layers, "more", None), "unknown"),
        (
            lambda layers: _changed(layers, "attr_q_bias", torch.zeros(5)),
            r"attr_q_bias\[0\] has shape \[5\], expected \[48\]",
        ),
        (
            lambda layers: _changed(layers, "output_bias", torch.zeros(48, dtype=torch.float16)),
            r"output_bias\[0\] has dtype float16, expected float32",
        ),
        (
            lambda layers: [{k: v.double() for k, v in layer.items()} for layer in layers],
            "attr_q_bias has dtype Double",
        ),
        (
            lambda layers: _changed(layers, "inter_kernel", torch.zeros(48)),
            r"inter_kernel has shape \[48\], expected \[48,I\]",
        ),
    ],
)
def test_bad_weights(rng, change, message):
    with pytest.raises(ValueError, match=message):
        prepare_encoder(change(Case(rng).tensors), **SIZES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"int8_mode": 4}, "int8_mode is 4, expected 0, 1, 2 or 3"),
        ({"int8_mode": 1}, "amax_lists has 0 tensors, expected 2 with int8_mode 1"),
        (
            {"amax_lists": [torch.ones(3)] * 2},
            "amax_lists has 2 tensors, expected 0 with int8_mode 0",
        ),
        (
            {"int8_mode": 1, "amax_lists": [torch.ones(3)] * 2},
            r"attr_q_kernel\[0\] has dtype float32, expected int8.*amax_list\[0\] has shape \[3\]",
        ),
    ],
)
def test_bad_int8_weights(rng, arguments, message):
    with pytest.raises(ValueError, match=message):
        prepare_encoder(Case(rng).tensors, **SIZES, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(4, 48)}, r"hidden_states has shape \[4,48\], expected \[B,S,H\]"),
        ({"x": torch.zeros(4, 7, 47)}, r"hidden_states has shape \[4,7,47\], expected \[B,S,48\]"),
        ({"x": torch.zeros(4, 7, 48).double()}, "hidden_states has dtype Double"),
        ({"x": torch.zeros(4, 7, 48).int()}, "dtype is int32, expected float32"),
        ({"x": torch.zeros(4, 7, 48).half()}, "prepared is for cpu .*float32.*expected cpu"),
        ({"head_num": 3, "size_per_head": 16}, "2 heads of 24.*; expected .*3 heads of 16"),
        ({"inner_size": 113}, "inner size 112.*; expected .*inner size 113"),
        ({"num_layers": 3}, "2 layers.*; expected .*3 layers"),
        ({"num_layers": 0}, "number of layers is 0, expected at least 1"),
        ({"head_num": -1}, "head_num is -1, expected at least 1"),
        ({"size_per_head": 1 << 40}, "expected at most 1048576 each"),
        ({"num_outputs": 3}, "num_outputs is 3, expected 1 or num_layers = 2"),
        ({"layernorm_epsilon": -1.0}, "layernorm_epsilon is -1, expected a number >= 0"),
        ({"int8_mode": -1}, "int8_mode is -1, expected 0, 1, 2 or 3"),
        ({"int8_mode": 2}, "int8_mode 0; expected .* int8_mode 2"),
        ({"activation": "silu"}, "activation is silu, expected gelu_tanh, gelu_erf or relu"),
        ({"sequence_length": torch.tensor([7, 3, 8, 1])}, r"sequence_length\[2\] is 8"),
        ({"sequence_length": torch.tensor([7, 3, 1])}, r"sequence_length has shape \[3\]"),
        ({"sequence_length": torch.tensor([1.0] * 4)}, "sequence_length has dtype float32"),
        ({"sequence_length": torch.tensor([True] * 4)}, "sequence_length has dtype Bool"),
        ({"attention_mask": torch.ones(4, 6, dtype=torch.bool)}, r"attention_mask has shape \[4,6"),
        (
            {"attention_mask": torch.ones(4, 2, 7, 7, dtype=torch.bool)},
            r"attention_mask has shape \[4,2,7,7\], expected \[4,7\], \[4,1,1,7\]",
        ),
        ({"attention_mask": torch.ones(4, 7).long()}, "attention_mask has dtype Long"),
        ({"attention_mask": torch.full((4, 7), -0.5)}, "attention_mask holds -0.5, expected 0 or"),
        ({"attention_mask": torch.full((4, 7, 7), torch.nan)}, "attention_mask holds -?nan"),
    ],
)
def test_bad_inputs(rng, arguments, message):
    with pytest.raises(ValueError, match=message):
        Case(rng).run(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:-1], "bytes, expected"),
        (lambda p: p[:100], "expected uint8 as prepare_encoder returns it"),
        (lambda p: p.view(torch.float32), "prepared is float32"),
        (lambda p: torch.zeros_like(p), "does not begin as what prepare_encoder returns"),
        (lambda p: torch.cat([p[:1], p])[1:], "no multiple of 64"),
    ],
)
def test_what_is_not_prepared_is_refused(rng, change, message):
    case = Case(rng)
    case.prepared = change(case.prepared)
    with pytest.raises(ValueError, match=message):
        case.run()


def test_what_another_processor_prepared_is_refused(rng, tmp_path):
    script = tmp_path / "prepare.py"
    script.write_text(
        "import torch\n"
        "from fastertransformer_torch import prepare_encoder\n"
        f"layers = torch.load({str(tmp_path / 'weights')!r})\n"
        f"torch.save(prepare_encoder(layers, **{SIZES}), {str(tmp_path / 'prepared')!r})\n"
    )
    case = Case(rng)
    if b"cpu generic" in case.prepared.numpy().tobytes()[:256]:
        pytest.skip("this processor has no other instructions than the generic ones")
    torch.save(case.tensors, tmp_path / "weights")
    run_python(str(script), FT_CPU_ISA="generic")
    case.prepared = torch.load(tmp_path / "prepared")
    with pytest.raises(ValueError, match="prepared is for cpu generic .*; expected cpu "):
        case.run()


def test_no_tensorflow_is_needed():
    run_python("-c", "import sys; sys.modules['tensorflow'] = None; import fastertransformer_torch")


@pytest.mark.parametrize("order", ["torch tf", "tf torch"])
def test_both_frameworks_in_one_process(order):
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    imports = {"torch": "import fastertransformer_torch", "tf": "import fastertransformer_tf.ops"}
    lines = [imports[name] for name in order.split()]
    lines += [
        "import torch, tensorflow as tf",
        "print(torch.ops.fastertransformer.bert_encoder, tf.__version__)",
    ]
    assert "fastertransformer.bert_encoder" in run_python("-c", "\n".join(lines))


def test_loader_says_what_is_wrong(monkeypatch, tmp_path):
    with pytest.raises(ImportError, match=r"torch is 2\.9\.1, expected at least 2\.10"):
        library.check_torch("2.9.1")
    library.check_torch("3.0.0a1")
    monkeypatch.setenv(library.LIBRARY_VARIABLE, str(tmp_path / "missing.so"))
    with pytest.raises(ImportError, match=r"no op library at .*missing\.so.*build_torch\.sh"):
        library.load()
    (tmp_path / "missing.so").write_bytes(b"no library")
    with pytest.raises(ImportError, match="cannot load"):
        library.load()
