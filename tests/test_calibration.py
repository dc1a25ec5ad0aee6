"""Calibration: histograms, ranges, what counts, and --do_calib of both runners."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import reference
import tensorflow as tf
from absl import flags
from tiny_bert import make_tiny_bert, make_tiny_squad
from tolerances import assert_close

from fastertransformer_tf.checkpoints import reading, writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import bert_compat, modeling, point_encoder
from fastertransformer_tf.programs import (
    calibration,
    classification,
    layer_errors,
    question_answering,
)
from fastertransformer_tf.quantization import (
    calibrated,
    calibrating,
    collecting,
    conversion,
    fold_shift,
    histograms,
    points,
    range_search,
)

# ---- Histograms ----------------------------------------------------------------------------------


def _histogram(*batches):
    result = histograms.Histogram.for_values_up_to(float(np.abs(batches[0]).max()))
    for values in batches:
        magnitudes = np.abs(values)
        counts = np.bincount((magnitudes / result.width).astype(int))
        result.add(counts, magnitudes.max())
    return result


def test_a_histogram_grows_by_bins_of_its_width(rng):
    first, second = rng.normal(size=5000), 3 * rng.normal(size=5000)
    both = _histogram(first, second)
    assert both.width == np.abs(first).max() / 2048 and len(both.counts) > 2049
    assert both.counts.sum() == 10000
    values = np.abs(np.concatenate([first, second]))
    assert both.largest == values.max()
    edges = np.arange(len(both.counts) + 1) * both.width
    expected, _ = np.histogram(values, edges)
    # A value on an edge may be counted on either side.
    assert np.abs(both.counts - expected).sum() <= 2
    assert both.share_within(1.0) == pytest.approx((values <= 1).mean(), abs=0.01)


@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9, 100])
def test_percentile_is_that_of_the_values(rng, percentile):
    values = rng.normal(size=19997)  # No percentile falls between two of them.
    histogram = _histogram(values)
    expected = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    ours = histograms.choose_range(histogram, "percentile", percentile)
    assert expected - 1e-9 <= ours <= expected + histogram.width + 1e-9


def test_mse_is_near_the_least_error_of_the_values_themselves(rng):
    values = rng.standard_t(4, size=20000)
    histogram = _histogram(values)

    def error(amax):
        q = np.clip(np.rint(values * 127 / amax), -128, 127)
        return np.mean((q * amax / 127 - values) ** 2)

    ours = histograms.choose_range(histogram, "mse")
    least = min(error(amax) for amax in np.linspace(1, np.abs(values).max(), 400))
    assert error(ours) < 1.05 * least <= 1.05 * error(np.abs(values).max())
    assert histograms.squared_error(histogram, ours) == pytest.approx(error(ours), rel=0.1)


def _naive_divergence(counts, end):
    """The definition, with loops: KL of the clipped counts from their 128 levels."""
    p = [float(c) for c in counts[:end]]
    q = [0.0] * end
    for level in range(128):
        members = [i for i in range(end) if i * 128 // end == level]
        occupied = [i for i in members if counts[i] > 0]
        for i in occupied:
            q[i] = sum(counts[j] for j in members) / len(occupied)
    p[-1] += float(counts[end:].sum())
    if p[-1] > 0 and q[-1] == 0:
        return np.inf
    total_p, total_q = sum(p), sum(q)
    pairs = [(a / total_p, b / total_q) for a, b in zip(p, q, strict=True) if b]
    return sum(a * np.log(a / b) for a, b in pairs)


def test_entropy_is_the_least_divergence(rng):
    counts = rng.poisson(2000 * np.exp(-(np.arange(300) ** 2) / 5000)).astype(np.int64)
    counts[290] = 3  # A few outliers.
    histogram = histograms.Histogram(0.5, counts, 145.2)
    smoothed = counts.astype(float)
    smoothed[0] = smoothed[1]
    divergences = [_naive_divergence(smoothed, end) for end in range(129, 301)]
    best = 129 + np.flatnonzero(np.isclose(divergences, min(divergences), rtol=1e-12))[-1]
    assert best < 291
    assert histograms.choose_range(histogram, "entropy") == pytest.approx(0.5 * best)


def test_max_and_a_tensor_of_zeros(rng):
    values = rng.normal(size=100)
    assert histograms.choose_range(_histogram(values), "max") == np.abs(values).max()
    for method in histograms.METHODS:
        assert histograms.choose_range(_histogram(np.zeros(5)), method) == 1
    assert histograms.Histogram.for_values_up_to(3).share_within(1) == 1


# ---- What is collected ---------------------------------------------------------------------------

LENGTHS = [7, 3, 1]
S = 7


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"))


def _features(rng, rows=3, lengths=LENGTHS):
    return {
        "input_ids": rng.integers(0, 64, (rows, S)).astype(np.int32),
        "input_mask": reference.valid_rows(lengths, S).astype(np.int32),
        "segment_ids": np.zeros((rows, S), np.int32),
        "label_ids": np.zeros(rows, np.int32),
    }


def _build(tiny):
    def build(source, encoder):
        config = bert_compat.modeling().BertConfig.from_dict(tiny.config)
        return classification.Classifier(config, 2, source, encoder)

    return build


def _collected(tiny, batches, names=None):
    """Both collectors' results, and all tensors of the first batch as arrays."""
    recorder = collecting.Recorder()
    options = modeling.EncoderOptions(use_tensorflow=True, taps=point_encoder.Taps(recorder))
    source = reading.Checkpoint(tiny.checkpoint)
    with _build(tiny)(source, options) as model, model.graph.as_default():
        mask = model.inputs["input_mask"]
        counter = collecting.HistogramCollector(recorder.tensors, mask)
        names = names or fold_shift.shift_points(3)
        extremes = collecting.ChannelCollector({n: recorder.tensors[n] for n in names}, mask)
        for batch in batches:
            feeds = layer_errors.feed_dict(model, batch)
            counter.run(model.session, feeds)
            extremes.run(model.session, feeds)
        first = model.session.run(recorder.tensors, layer_errors.feed_dict(model, batches[0]))
    return counter.histograms, extremes, first


def test_padding_does_not_count(tiny, rng):
    batch = _features(rng)
    counted, extremes, tensors = _collected(tiny, [batch])
    assert set(counted) | {n for n in tensors if "kernel" in n} == set(points.all_names(3))
    is_real = batch["input_mask"] > 0
    pairs = is_real[:, None, :, None] & is_real[:, None, None, :]
    for name, histogram in counted.items():
        tensor = tensors[name]
        over_keys = tensor.ndim == 4
        real = tensor[np.broadcast_to(pairs, tensor.shape)] if over_keys else tensor[is_real]
        assert histogram.counts.sum() == real.size, name
        assert histogram.largest == np.abs(real).max()
        half = histogram.largest / 2
        share = (np.abs(real) <= half).mean()
        assert abs(histogram.share_within(half) - share) <= 4 / real.size + 1e-3
    for name, centre in extremes.centres().items():
        real = tensors[name][is_real].astype(np.float64)
        np.testing.assert_allclose(centre, (real.min(axis=0) + real.max(axis=0)) / 2, atol=1e-6)


def test_batches_add_up(tiny, rng):
    one, two = _features(rng), _features(rng, lengths=[2, 7, 5])
    both, extremes, _ = _collected(tiny, [one, two])
    alone, extremes_alone, _ = _collected(tiny, [two])
    name = points.full_name(1, "output/dense/input_quantizer")
    assert both[name].counts.sum() == (one["input_mask"].sum() + two["input_mask"].sum()) * 48
    assert both[name].largest >= alone[name].largest
    for name, low in extremes.lowest.items():
        assert (low <= extremes_alone.lowest[name]).all()


def test_values_that_are_not_finite_are_told(tmp_path, rng):
    tiny = make_tiny_bert(tmp_path)
    name = points.full_name(1, "output/LayerNorm/beta")
    broken = dict(tiny.weights)
    broken[name] = np.full(32, 3e38, np.float32)
    broken[points.full_name(1, "output/LayerNorm/gamma")] = np.full(32, 3e38, np.float32)
    writing.save_checkpoint(tiny.checkpoint, broken)
    with pytest.raises(UserError, match="not finite, expected a trained one: .*layer_2/"):
        _collected(tiny, [_features(rng)])


# ---- Ranges --------------------------------------------------------------------------------------


def test_fusing_gives_query_key_and_value_one_range():
    names = points.all_names(2)
    amax = {name: float(index + 1) for index, name in enumerate(names)}
    fused = calibrated.fuse_qkv(amax)
    groups = [
        ("query/aftergemm", "key/aftergemm", "value/aftergemm"),
        ("matmul_q_input", "matmul_k_input", "matmul_v_input"),
        ("query/kernel", "key/kernel", "value/kernel"),
    ]
    changed = set()
    for layer in range(2):
        for group in groups:
            members = [points.full_name(layer, f"attention/self/{m}_quantizer") for m in group]
            assert {fused[m] for m in members} == {max(amax[m] for m in members)}
            changed |= set(members)
    assert all(fused[name] == amax[name] for name in set(names) - changed)
    by_column = amax | {name: np.ones(4) for name in names if "kernel" in name}
    assert calibrated.fuse_qkv(by_column)[names[21]] is by_column[names[21]]


def test_slots_go_to_the_points_that_share_their_tensor():
    amax = dict.fromkeys(points.all_names(2), 1.0)
    slots = calibrated.activation_slots(amax, 2)
    slots[1] = np.arange(100, 116)
    changed = calibrated.with_slots(amax, slots, 2)
    for scope, slot in (
        ("attention/self/key/input_quantizer", 0),
        ("attention/output/add_residual_input_quantizer", 0),
        ("output/add_residual_input_quantizer", 11),
        ("output/dense/aftergemm_quantizer", 14),
    ):
        assert changed[points.full_name(1, scope)] == 100 + slot
    kept = points.full_name(1, "attention/self/matmul_q_input_quantizer")
    assert changed[kept] == 1
    only_mode_1 = calibrated.with_slots(amax, slots, 1)
    assert only_mode_1[points.full_name(1, "output/dense/aftergemm_quantizer")] == 1


@pytest.mark.parametrize("mode", [1, 2])
def test_the_search_lessens_the_error_of_layers(tiny, rng, mode):
    batch = _features(rng)
    counted, _, _ = _collected(tiny, [batch])
    source = reading.Checkpoint(tiny.checkpoint)
    kernels = calibrated.kernels_by_layer(calibrated.kernel_ranges(tiny.weights, by_column=True))
    amax = {name: 0.3 * histogram.largest for name, histogram in counted.items()}
    start = calibrated.activation_slots(amax, 3)

    def total(slots):
        with layer_errors.LayerErrors(
            lambda encoder: _build(tiny)(source, encoder), kernels, mode, [batch]
        ) as errors:
            found = []
            for layer in range(3):
                found.append(errors.error(layer, slots))
                errors.advance(layer, slots)
            return found

    with layer_errors.LayerErrors(
        lambda encoder: _build(tiny)(source, encoder), kernels, mode, [batch]
    ) as errors:
        chosen = range_search.search(counted, start, mode, errors)
    before, after = total(start), total(chosen)
    assert all(new < 0.5 * old for old, new in zip(before, after, strict=True))
    searched = range_search.searched_slots(mode)
    assert searched == ([0, 9, 11, 13] if mode == 1 else [0, 9, 10, 11, 13, 14])
    changed = set(np.flatnonzero((chosen != start).any(axis=0)))
    assert changed <= {*searched, 15}
    np.testing.assert_array_equal(chosen[:-1, 15], chosen[1:, 0])


# ---- The programs --------------------------------------------------------------------------------


def _run(program, **arguments):
    values = flags.FlagValues()
    program.define_flags(values)
    values(["program", *(f"--{k}={v}" for k, v in arguments.items())])
    return program.run(values)


@pytest.fixture(scope="module")
def mrpc(tiny):
    """The arguments of run_classifier_wrap on a small task."""
    pairs = [("the cat sat", "a dog ran"), ("it is red", "yes"), ("no", "the big dog")]
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    rows = [header] + [[str(i % 2), "1", "2", *pairs[i % 3]] for i in range(9)]
    text = "".join("\t".join(row) + "\n" for row in rows)
    folder = tiny.folder / "mrpc"
    folder.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text(text)
    return {
        "task_name": "mrpc",
        "data_dir": folder,
        "vocab_file": tiny.vocab_file,
        "bert_config_file": tiny.config_file,
        "init_checkpoint": tiny.checkpoint,
        "max_seq_length": 12,
        "train_batch_size": 2,
        "calib_batch": 3,
        "do_calib": True,
    }


def _read(prefix):
    source = reading.Checkpoint(prefix)
    return {name: np.asarray(source.load(name)) for name in source.shapes}


@pytest.mark.parametrize(
    ("quant_mode", "method", "more"),
    [
        ("ft1", "layer_error", {}),
        ("ft2", "layer_error", {}),
        ("ft2", "percentile", {"percentile": 99, "per_tensor_kernels": True}),
        ("ft3", "max", {"fold_shift": False}),
        ("ft1", "mse", {}),
        ("ft2", "entropy", {}),
    ],
)
def test_a_calibrated_checkpoint(tiny, mrpc, tmp_path, capsys, quant_mode, method, more):
    more = {"quant_mode": quant_mode, "calib_method": method, **more}
    _run(classification, **mrpc, **more, output_dir=tmp_path / "out")
    assert "calibrated: " in capsys.readouterr().out
    written = _read(tmp_path / "out" / calibration.CHECKPOINT)
    names = points.all_names(3)
    variables = {f"{name}/quant_{end}" for name in names for end in ("max", "min")}
    assert set(written) == set(tiny.weights) | variables
    by_column = not more.get("per_tensor_kernels")
    for name in names:
        high, low = (written[f"{name}/quant_{end}"] for end in ("max", "min"))
        kernel = written.get(name.removesuffix("_quantizer"))
        np.testing.assert_array_equal(high, -low)
        assert high.dtype == np.float32 and np.isfinite(high).all() and (high > 0).all()
        if kernel is None or not by_column:
            assert high.shape == ()
        else:
            np.testing.assert_array_equal(high, np.abs(kernel).max(axis=0))
    _check_fused(written, quant_mode, by_column)
    changed = {
        name for name in tiny.weights if not np.array_equal(written[name], tiny.weights[name])
    }
    assert bool(changed) == more.get("fold_shift", True)
    assert all(name.endswith(("beta", "bias")) for name in changed)
    with open(tmp_path / "out" / calibration.RANGES_CSV) as file:
        rows = {row["point"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(names)
    name = points.full_name(1, "output/dense/input_quantizer")
    assert float(rows[name]["range"]) == pytest.approx(float(written[f"{name}/quant_max"]), 1e-6)
    assert 50 < float(rows[name]["percent_within"]) <= 100
    quantized = conversion.quantize_tensors(written)
    assert quantized["bert/encoder/int8_format"] == 1


def _check_fused(written, quant_mode, by_column):
    scopes = ["query/aftergemm", "key/aftergemm", "value/aftergemm"]
    kinds = [scopes, ["matmul_q_input", "matmul_k_input", "matmul_v_input"]]
    if not by_column:
        kinds.append(["query/kernel", "key/kernel", "value/kernel"])
    for layer in range(3):
        for kind in kinds:
            values = {
                float(written[points.full_name(layer, f"attention/self/{s}_quantizer/quant_max")])
                for s in kind
            }
            assert (len(values) == 1) == (quant_mode != "ft1")


@pytest.mark.parametrize("quant_mode", ["ft1", "ft2"])
def test_a_calibrated_checkpoint_answers_as_before(mrpc, tmp_path, quant_mode):
    evaluate = {"do_eval": True, "quant_mode": quant_mode}
    out = tmp_path / "out"
    plain = {**mrpc, **evaluate, "do_calib": False, "use_tensorflow_transformer": True}
    _run(classification, **plain, output_dir=out, output_logits=tmp_path / "exact.npy")
    exact = np.load(tmp_path / "exact.npy")
    # In the same run, and of the checkpoint that it left; a float model is what it was.
    simulated = {**mrpc, **evaluate, "if_quant": True}
    _run(classification, **simulated, output_dir=out, output_logits=tmp_path / "first.npy")
    again = simulated | {"do_calib": False, "init_checkpoint": out / calibration.CHECKPOINT}
    _run(classification, **again, output_dir=out, output_logits=tmp_path / "again.npy")
    floats = plain | {"init_checkpoint": out / calibration.CHECKPOINT}
    _run(classification, **floats, output_dir=out, output_logits=tmp_path / "float.npy")
    first, again, floats = (np.load(tmp_path / f"{n}.npy") for n in ("first", "again", "float"))
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert_close(floats, exact, "float32", message="the folded shift changes nothing")
    error = np.abs(first - exact).max()
    assert 1e-4 < error < 0.25 * np.abs(exact).max()


def test_calibrating_again_replaces_the_ranges(mrpc, tmp_path):
    more = {"calib_method": "max", "fold_shift": False}
    _run(classification, **mrpc, **more, output_dir=tmp_path / "one")
    first = tmp_path / "one" / calibration.CHECKPOINT
    again = {**mrpc, **more, "init_checkpoint": first, "output_dir": tmp_path / "two"}
    _run(classification, **again)
    one, two = _read(first), _read(tmp_path / "two" / calibration.CHECKPOINT)
    assert all(np.array_equal(one[name], two[name]) for name in one | two)


def test_what_cannot_be_calibrated_is_refused(mrpc, tmp_path):
    out = {"output_dir": tmp_path / "out"}
    with pytest.raises(UserError, match="--do_calib with --do_train --if_quant"):
        _run(classification, **mrpc, **out, do_train=True, if_quant=True)
    for flag, value in (("floatx", "float16"), ("remove_padding", True), ("export_dir", "x")):
        with pytest.raises(UserError, match=f"--if_quant simulates .*--{flag}"):
            _run(classification, **mrpc, **out, if_quant=True, **{flag: value})
    with pytest.raises(UserError, match="--per_tensor_kernels is of ft2 and ft3"):
        _run(classification, **mrpc, **out, quant_mode="ft1", per_tensor_kernels=True)
    with pytest.raises(UserError, match="ranges cannot be used.*--do_calib"):
        plain = {**mrpc, "do_calib": False, "do_eval": True, "if_quant": True}
        _run(classification, **plain, **out)
    with pytest.raises(flags.IllegalFlagValueError, match="percentile"):
        _run(classification, **mrpc, **out, percentile=101)
    _run(classification, **mrpc, **out, calib_method="max")
    quantized = tmp_path / "int8.ckpt"
    conversion.quantize_checkpoint(tmp_path / "out" / calibration.CHECKPOINT, quantized)
    with pytest.raises(UserError, match="int8.ckpt is quantized, expected a float one"):
        _run(classification, **{**mrpc, "init_checkpoint": quantized}, **out)


def test_squad_is_calibrated_on_its_train_file(tmp_path):
    tiny, data = make_tiny_squad(tmp_path)
    answers = _run(
        question_answering,
        vocab_file=tiny.vocab_file,
        bert_config_file=tiny.config_file,
        init_checkpoint=tiny.checkpoint,
        train_file=data,
        predict_file=data,
        output_dir=tmp_path / "out",
        max_seq_length=12,
        max_query_length=4,
        doc_stride=2,
        train_batch_size=2,
        calib_batch=2,
        do_calib=True,
        do_predict=True,
        if_quant=True,
    )
    assert list(answers) == ["q1"]
    written = _read(tmp_path / "out" / calibration.CHECKPOINT)
    assert set(tiny.weights) < set(written)
    assert conversion.quantize_tensors(written)["bert/encoder/layer_2/amaxList"].dtype == np.float32


def test_examples_are_chosen_the_same_each_time():
    examples = list(range(50))
    few = calibrating.choose_examples(examples, 6)
    assert few == calibrating.choose_examples(examples, 6)
    assert len(set(few)) == 6 and few != examples[:6]
    assert sorted(calibrating.choose_examples(examples[:4], 6)) == examples[:4]


def test_the_search_is_given_few_tokens(rng):
    features = {"input_mask": np.ones((100, 100), np.int32), "label_ids": np.arange(100)}
    (batch,) = calibrating.few_tokens(features)
    assert batch["input_mask"].shape == (20, 100) and len(batch["label_ids"]) == 20
    long = {"input_mask": np.ones((2, 5000), np.int32)}
    (batch,) = calibrating.few_tokens(long)
    assert batch["input_mask"].shape == (1, 5000)
    assert tf.executing_eagerly()
