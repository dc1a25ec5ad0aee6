"""models/bert.py: google's BertModel, by the op and by the encoder with points."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
from tiny_bert import make_tiny_bert
from tolerances import assert_close

from fastertransformer_tf.checkpoints import restoring
from fastertransformer_tf.models import bert, bert_compat, build_settings, modeling
from fastertransformer_tf.models.modeling import EncoderOptions
from fastertransformer_tf.models.point_encoder import Taps

_tf1 = tf.compat.v1
S = 9
GOOGLE = EncoderOptions(use_tensorflow=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"), hidden_dropout_prob=0.3)


def _config(tiny, **changes):
    return bert_compat.modeling().BertConfig.from_dict(tiny.config | changes)


def _run(tiny, options, given, **changes):
    """Sequence, pooled output and the names of all variables."""
    with (
        tf.Graph().as_default(),
        modeling.encoder_options(options),
        _tf1.Session() as session,
    ):
        inputs = [_tf1.placeholder(tf.int32, [None, None]) for _ in range(3)]
        with restoring.restored_variables(tiny.checkpoint, options.floatx) as restored:
            model = bert.build(_config(tiny, **changes), *inputs, is_training=False)
        restored.load(session)
        values = session.run([model.sequence, model.pooled], dict(zip(inputs, given, strict=True)))
        return *values, {variable.op.name for variable in _tf1.global_variables()}


def _given(rng):
    ids = rng.integers(0, 64, (3, S)).astype(np.int32)
    mask = reference.valid_rows([S, 4, 1], S).astype(np.int32)
    return ids, mask, rng.integers(0, 2, (3, S)).astype(np.int32)


@pytest.mark.parametrize("changes", [{}, {"layer_norm_eps": 0.1}, {"hidden_act": "gelu_erf"}])
def test_without_rounding_it_is_googles_model(tiny, rng, changes):
    given = _given(rng)
    google = _run(tiny, GOOGLE, given, **changes)
    ours = _run(tiny, EncoderOptions(use_tensorflow=True, taps=Taps()), given, **changes)
    for expected, actual in zip(google[:2], ours[:2], strict=True):
        assert_close(actual, expected, "float32")
    assert ours[2] == google[2] and len(ours[2]) == 5 + 3 * 16 + 2
    if changes:
        plain = _run(tiny, GOOGLE, given)
        assert np.abs(plain[0] - ours[0]).max() > 1e-4


@pytest.mark.parametrize("floatx", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("remove_padding", [False, True])
def test_by_the_op_it_is_googles_model(tiny, rng, floatx, remove_padding):
    given = _given(rng)
    google = _run(tiny, GOOGLE, given)
    ours = _run(tiny, EncoderOptions(floatx=floatx, remove_padding=remove_padding), given)
    real = given[1] != 0
    assert ours[0].dtype == tf.as_dtype(floatx).as_numpy_dtype
    assert_close(ours[0][real].astype(np.float32), google[0][real], floatx)
    assert_close(ours[1].astype(np.float32), google[1], floatx)
    assert ours[2] == google[2]


def test_dropout_drops_where_googles_model_does(tiny, rng):
    """The same numbers at the same places: a training through the one goes on in the other."""
    given = _given(rng)
    found = []
    for options in (GOOGLE, EncoderOptions(use_tensorflow=True, taps=Taps())):
        with (
            tf.Graph().as_default(),
            modeling.encoder_options(options),
            build_settings.dropout_seed(5, tf.constant(2, tf.int64)),
            _tf1.Session() as session,
        ):
            with restoring.restored_variables(tiny.checkpoint, "float32") as restored:
                model = bert.build(_config(tiny), *map(tf.constant, given), is_training=True)
            restored.load(session)
            found.append(session.run(model.sequence))
    assert_close(found[1], found[0], "float32")
    assert np.abs(found[0] - _run(tiny, GOOGLE, given)[0]).max() > 0.1


def test_the_op_is_not_for_training(tiny):
    with tf.Graph().as_default(), modeling.encoder_options(EncoderOptions()):
        ids = tf.ones([1, 3], tf.int32)
        with pytest.raises(ValueError, match="hidden_dropout_prob is 0.3"):
            bert.build(_config(tiny), ids, ids, ids, is_training=True)


def test_more_tokens_than_positions_are_refused(tiny):
    ids = np.ones((1, 41), np.int32)
    with pytest.raises(tf.errors.InvalidArgumentError, match="longer than max_position_embeddings"):
        _run(tiny, EncoderOptions(), (ids, ids, ids))
