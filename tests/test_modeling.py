"""BertModel by the op against BertModel by TensorFlow's own transformer."""

from __future__ import annotations

import contextlib
import pathlib

import numpy as np
import pytest
import reference
import tensorflow as tf
from tiny_bert import TinyBert, make_tiny_bert
from tolerances import assert_close

from fastertransformer_tf import google_bert
from fastertransformer_tf.checkpoints import restoring
from fastertransformer_tf.graphs import float_types
from fastertransformer_tf.models import bert_compat, modeling

_tf1 = tf.compat.v1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBert:
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"))


def run_model(
    tiny: TinyBert,
    ids: np.ndarray,
    mask: np.ndarray,
    options: modeling.EncoderOptions,
    scope: str | None = None,
    config: dict | None = None,
) -> dict[str, np.ndarray]:
    """Builds BertModel with unknown dimensions and runs it."""
    bert = bert_compat.modeling()
    with tf.Graph().as_default(), modeling.encoder_options(options), _tf1.Session() as session:
        ids_in = _tf1.placeholder(tf.int32, [None, None])
        mask_in = _tf1.placeholder(tf.int32, [None, None])
        with restoring.restored_variables(tiny.checkpoint, options.floatx) as restored:
            model = bert.BertModel(
                bert.BertConfig.from_dict(config or tiny.config),
                False,
                ids_in,
                mask_in,
                scope=scope,
            )
        fetches = {
            "embeddings": model.get_embedding_output(),
            "layers": model.get_all_encoder_layers(),
            "sequence": model.get_sequence_output(),
            "pooled": model.get_pooled_output(),
        }
        restored.load(session)
        return session.run(fetches, {ids_in: ids, mask_in: mask})


def batch(rng: np.random.Generator, lengths: list[int], seq_len: int) -> tuple[np.ndarray, ...]:
    ids = rng.integers(0, 64, (len(lengths), seq_len)).astype(np.int32)
    return ids, reference.valid_rows(lengths, seq_len).astype(np.int32)


def test_the_epsilon_of_the_configuration_counts(tiny: TinyBert, rng: np.random.Generator) -> None:
    ids, mask = batch(rng, [7, 3], 7)
    config = tiny.config | {"layer_norm_eps": 0.5}
    outputs = {}
    for use_tensorflow in (False, True):
        options = modeling.EncoderOptions(use_tensorflow=use_tensorflow)
        outputs[use_tensorflow] = run_model(tiny, ids, mask, options, config=config)
    valid = reference.valid_rows([7, 3], 7)
    for name in ("embeddings", "sequence"):
        assert_close(outputs[False][name][valid], outputs[True][name][valid], "float32")
        usual = run_model(tiny, ids, mask, options)[name]
        assert np.abs(usual - outputs[True][name])[valid].max() > 0.1
    with pytest.raises(ValueError, match="layer_norm_eps is -1, expected a number above 0"):
        run_model(tiny, ids, mask, options, config=tiny.config | {"layer_norm_eps": -1})


@pytest.mark.parametrize("all_layers", [False, True])
@pytest.mark.parametrize("remove_padding", [False, True])
def test_every_layer_equals_tensorflow(
    tiny: TinyBert, rng: np.random.Generator, remove_padding: bool, all_layers: bool
) -> None:
    lengths = [11, 5, 1, 8]
    ids, mask = batch(rng, lengths, 11)
    ours = run_model(
        tiny,
        ids,
        mask,
        modeling.EncoderOptions(remove_padding=remove_padding, all_layers=all_layers),
    )
    theirs = run_model(tiny, ids, mask, modeling.EncoderOptions(use_tensorflow=True))
    assert len(ours["layers"]) == 3
    valid = reference.valid_rows(lengths, 11)
    for a, b in zip(ours["layers"], theirs["layers"], strict=True):
        assert_close(a[valid], b[valid], "float32")
        if remove_padding:
            assert not a[~valid].any()
        else:
            assert_close(a, b, "float32", message="padding rows are query rows as any other")
    assert_close(ours["pooled"], theirs["pooled"], "float32")
    truth = reference.encoder(ours["embeddings"], tiny.layers, 4, lengths=lengths)
    assert_close(ours["sequence"][valid], truth[-1][valid], "float32")


@pytest.mark.parametrize("remove_padding", [False, True])
def test_masks_with_holes_are_honoured(
    tiny: TinyBert, rng: np.random.Generator, remove_padding: bool
) -> None:
    ids, mask = batch(rng, [10, 10, 10], 10)
    mask[0, [0, 3, 4]] = 0
    mask[1, 7:] = 0
    mask[2, [2, 8, 9]] = 0
    ours = run_model(tiny, ids, mask, modeling.EncoderOptions(remove_padding=remove_padding))
    theirs = run_model(tiny, ids, mask, modeling.EncoderOptions(use_tensorflow=True))
    rows = reference.valid_rows([10, 7, 8], 10)
    assert_close(ours["sequence"][rows], theirs["sequence"][rows], "float32")
    unmasked = run_model(
        tiny, ids, np.ones_like(mask), modeling.EncoderOptions(remove_padding=remove_padding)
    )
    assert np.abs(unmasked["sequence"][rows] - ours["sequence"][rows]).max() > 1e-2


def test_sequence_without_tokens(tiny: TinyBert, rng: np.random.Generator) -> None:
    ids, mask = batch(rng, [6, 0], 6)
    theirs = run_model(tiny, ids, mask, modeling.EncoderOptions(use_tensorflow=True))
    ours = run_model(tiny, ids, mask, modeling.EncoderOptions())
    assert_close(ours["sequence"][0], theirs["sequence"][0], "float32")
    # -10000 on every score leaves float32 three digits of them, on both sides.
    np.testing.assert_allclose(ours["sequence"][1], theirs["sequence"][1], atol=5e-3)
    removed = run_model(tiny, ids, mask, modeling.EncoderOptions(remove_padding=True))
    assert_close(removed["sequence"][0], theirs["sequence"][0], "float32")
    assert not removed["sequence"][1].any()


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"])
@pytest.mark.parametrize("remove_padding", [False, True])
def test_half_types(
    tiny: TinyBert, rng: np.random.Generator, floatx: str, remove_padding: bool
) -> None:
    lengths = [9, 4]
    ids, mask = batch(rng, lengths, 9)
    options = modeling.EncoderOptions(floatx=floatx, remove_padding=remove_padding)
    ours = run_model(tiny, ids, mask, options)
    theirs = run_model(tiny, ids, mask, modeling.EncoderOptions(use_tensorflow=True))
    assert ours["sequence"].dtype == float_types.float_type(floatx).as_numpy_dtype
    valid = reference.valid_rows(lengths, 9)
    assert_close(ours["sequence"][valid], theirs["sequence"][valid], floatx)


@pytest.mark.parametrize("act", ["gelu", "gelu_erf", "relu"])
def test_activations(tiny: TinyBert, rng: np.random.Generator, act: str) -> None:
    ids, mask = batch(rng, [7, 3], 7)
    config = tiny.config | {"hidden_act": act}
    ours = run_model(tiny, ids, mask, modeling.EncoderOptions(), config=config)
    theirs = run_model(tiny, ids, mask, modeling.EncoderOptions(use_tensorflow=True), config=config)
    assert_close(ours["sequence"], theirs["sequence"], "float32")


def test_unknown_activation_is_refused(tiny: TinyBert) -> None:
    ids = np.zeros([1, 2], np.int32)
    with pytest.raises(ValueError, match="hidden_act is 'tanh', expected gelu, gelu_erf or relu"):
        run_model(
            tiny,
            ids,
            ids,
            modeling.EncoderOptions(),
            config=tiny.config | {"hidden_act": "tanh"},
        )


def test_variables_have_google_names_in_any_scope(tiny: TinyBert) -> None:
    bert = bert_compat.modeling()
    names = {}
    for use_tensorflow in (False, True):
        options = modeling.EncoderOptions(use_tensorflow=use_tensorflow)
        with tf.Graph().as_default(), modeling.encoder_options(options):
            ids = _tf1.placeholder(tf.int32, [None, 5])
            bert.BertModel(bert.BertConfig.from_dict(tiny.config), False, ids, scope="my/model")
            names[use_tensorflow] = {v.op.name: v.shape.as_list() for v in _tf1.global_variables()}
    assert names[False] == names[True]
    assert "my/model/encoder/layer_2/attention/self/query/kernel" in names[False]


@pytest.mark.parametrize("restore", [True, False])
def test_weights_are_cached_in_graphs_of_tensorflow_1(tiny: TinyBert, restore: bool) -> None:
    bert = bert_compat.modeling()
    with (
        tf.Graph().as_default() as graph,
        modeling.encoder_options(modeling.EncoderOptions()),
        _tf1.variable_scope(_tf1.get_variable_scope(), use_resource=False),
    ):
        ids = _tf1.placeholder(tf.int32, [None, None])
        config = bert.BertConfig.from_dict(tiny.config)
        with contextlib.ExitStack() as stack:
            if restore:
                stack.enter_context(restoring.restored_variables(tiny.checkpoint, "float32"))
            bert.BertModel(config, False, ids)
        encoders = [op for op in graph.get_operations() if op.type == "BertEncoder"]
        assert encoders and all(op.get_attr("cache_weights") for op in encoders)
        assert not any(v.dtype._is_ref_dtype for v in _tf1.global_variables())


def test_training_is_refused(tiny: TinyBert) -> None:
    bert = bert_compat.modeling()
    with tf.Graph().as_default(), modeling.encoder_options(modeling.EncoderOptions()):
        ids = _tf1.placeholder(tf.int32, [None, 5])
        with pytest.raises(ValueError, match="hidden_dropout_prob is 0.1.*use_tensorflow=True"):
            bert.BertModel(bert.BertConfig.from_dict(tiny.config), True, ids)


def test_gradient_is_refused(tiny: TinyBert) -> None:
    bert = bert_compat.modeling()
    config = bert.BertConfig.from_dict(tiny.config)
    with tf.Graph().as_default(), modeling.encoder_options(modeling.EncoderOptions()):
        model = bert.BertModel(config, False, _tf1.placeholder(tf.int32, [None, 5]))
        with pytest.raises(NotImplementedError, match="has no gradient"):
            tf.gradients(model.get_pooled_output(), _tf1.trainable_variables())


def test_own_mask_needs_lengths_for_remove_padding() -> None:
    with tf.Graph().as_default(), pytest.raises(ValueError, match="needs the lengths"):
        modeling.transformer_model(
            tf.zeros([2, 3, 16]),
            tf.ones([2, 3, 3]),
            16,
            1,
            2,
            32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            options=modeling.EncoderOptions(remove_padding=True),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"floatx": "float64"}, "floatx is 'float64', expected one of float32"),
        ({"int8_mode": 4}, "int8_mode is 4, expected 0, 1, 2 or 3"),
        ({"use_tensorflow": True, "int8_mode": 1}, "int8_mode needs the op"),
        ({"use_tensorflow": True, "remove_padding": True}, "remove_padding needs the op"),
    ],
)
def test_bad_options(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        modeling.EncoderOptions(**arguments)


def test_outside_of_options_google_graph_is_untouched(tiny: TinyBert) -> None:
    modeling_module = bert_compat.modeling()
    with tf.Graph().as_default() as graph:
        ids = _tf1.placeholder(tf.int32, [None, 5])
        modeling_module.BertModel(modeling_module.BertConfig.from_dict(tiny.config), False, ids)
        assert not [op for op in graph.get_operations() if op.type == "BertEncoder"]


def test_all_bert_modules_live_in_one_process(tmp_path: pathlib.Path) -> None:
    squad, classifier = google_bert.run_squad(), google_bert.run_classifier()
    assert squad.FLAGS.max_seq_length == 384
    assert classifier.FLAGS.max_seq_length == 128
    (tmp_path / "vocab.txt").write_text("[UNK]\nhello\nworld\n")
    tokenizer = google_bert.tokenization().FullTokenizer(str(tmp_path / "vocab.txt"))
    assert tokenizer.tokenize("Hello world there") == ["hello", "world", "[UNK]"]
