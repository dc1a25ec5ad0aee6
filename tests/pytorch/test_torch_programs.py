"""run_glue.py and run_squad.py for PyTorch, calibration, and files that both frameworks read."""

from __future__ import annotations

import inspect
import json
import sys

import numpy as np
import pytest
import tolerances
from absl import flags
from conftest import shared_path
from torch_support import REPOSITORY, run_python, torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
for package in ("bert", "scipy", "sklearn", "rich", "safetensors"):
    pytest.importorskip(package, reason=f"{package}, which the programs need, is not installed")

import fastertransformer_torch  # noqa: E402
from fastertransformer_tf import spec  # noqa: E402
from fastertransformer_tf.errors import UserError  # noqa: E402
from fastertransformer_tf.quantization import calibrating, points, scale_list  # noqa: E402
from fastertransformer_torch import calibration, loading  # noqa: E402

sys.path.insert(0, str(REPOSITORY / "sample" / "pytorch"))
import bert_programs  # noqa: E402
import run_glue  # noqa: E402
import run_squad  # noqa: E402

WORDS = "the a cat dog sat ran fast slow big small is was on in under red blue no yes it".split()
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def run(program, **arguments):
    values = flags.FlagValues()
    program.define_flags(values)
    values(["program", *(f"--{name}={value}" for name, value in arguments.items())])
    return program.run(values)


def write_model(folder, model_class):
    """A Hugging Face folder with random weights that make an error in attention show."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=3,
        intermediate_size=48,
        max_position_embeddings=40,
        hidden_act="gelu_pytorch_tanh",
        initializer_range=0.5,
    )
    model = model_class(config).eval()
    layers = spec.random_layers(np.random.default_rng(1), 3, 32, 48)
    state = spec.hugging_face_state(layers)
    model.bert.encoder.load_state_dict({name: torch.tensor(a) for name, a in state.items()})
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCAB))
    return model


def write_mrpc(folder):
    pairs = [("the cat sat", "a dog ran"), ("it is red", "yes"), ("no", "the big dog")]
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    rows = [header] + [[str(i % 2), "1", "2", *pairs[i % 3]] for i in range(9)]
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("".join("\t".join(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def mrpc(tmp_path_factory):
    """Arguments of run_glue on a small model and task."""
    folder = tmp_path_factory.mktemp("mrpc")
    write_model(folder / "model", transformers.BertForSequenceClassification)
    write_mrpc(folder)
    return {
        "model_name_or_path": folder / "model",
        "data_dir": folder,
        "task_name": "MRPC",
        "max_seq_length": 12,
        "per_gpu_eval_batch_size": 4,
        "no_cuda": True,
    }


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    """Arguments of run_squad on a small model and two questions."""
    folder = tmp_path_factory.mktemp("squad")
    write_model(folder / "model", transformers.BertForQuestionAnswering)
    context = "the cat big dog sat on a small red cat"
    qas = [
        {"id": f"q{i}", "question": f"is the cat {word}", "answers": [answer]}
        for i, (word, answer) in enumerate(
            [
                ("fast", {"text": "big", "answer_start": 8}),
                ("red", {"text": "red", "answer_start": 31}),
            ]
        )
    ]
    file = folder / "squad.json"
    paragraphs = [{"context": context, "qas": qas}]
    file.write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": paragraphs}]}))
    return {
        "model_name_or_path": folder / "model",
        "predict_file": file,
        "train_file": file,
        "max_seq_length": 24,
        "max_query_length": 8,
        "doc_stride": 4,
        "no_cuda": True,
    }


MODELS = [
    {"model_type": "ori"},
    {"model_type": "ths"},
    {"model_type": "thsext"},
    {"model_type": "thsext", "remove_padding": True},
]


@pytest.mark.parametrize("more", MODELS)
def test_all_forms_of_the_model_agree(mrpc, tmp_path, capsys, more):
    plain = run(run_glue, **mrpc, do_eval=True, output_dir=tmp_path / "plain")
    found = run(run_glue, **mrpc, **more, do_eval=True, output_dir=tmp_path / "out")
    assert found["accuracy"] == plain["accuracy"]
    assert found["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    text = (tmp_path / "out" / "eval_results.txt").read_text()
    assert text.splitlines() == [f"{name} = {found[name]}" for name in ("accuracy", "f1", "loss")]
    shown = capsys.readouterr().out
    assert "MRPC evaluation" in shown and "examples/s" in shown


@pytest.mark.parametrize("data_type", ["fp16", "bf16"])
@pytest.mark.parametrize("model_type", ["ori", "thsext"])
def test_other_types(mrpc, tmp_path, data_type, model_type):
    plain = run(run_glue, **mrpc, do_eval=True, output_dir=tmp_path / "plain")
    arguments = {**mrpc, "data_type": data_type, "model_type": model_type}
    found = run(run_glue, **arguments, do_eval=True, output_dir=tmp_path / "out")
    assert 0 < abs(found["loss"] - plain["loss"]) < 0.1


@pytest.mark.parametrize("more", MODELS)
def test_squad(squad, tmp_path, more):
    arguments = {**squad, "do_eval": True, "output_dir": tmp_path / "plain"}
    scores = run(run_squad, **arguments)
    assert set(scores) == {"exact match", "F1"}
    assert run(run_squad, **arguments | more | {"output_dir": tmp_path / "out"}) == scores
    plain, found = (
        json.loads((tmp_path / name / "nbest_predictions.json").read_text())
        for name in ("plain", "out")
    )
    assert set(found) == {"q0", "q1"}
    for question, answers in found.items():
        for mine, other in zip(answers, plain[question], strict=True):
            assert mine["text"] == other["text"]
            assert mine["start_logit"] == pytest.approx(other["start_logit"], abs=1e-4)


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("method", ["layer_error", *calibrating.histograms.METHODS])
def test_calibrate_then_run_int8(mrpc, tmp_path, mode, method):
    plain = run(run_glue, **mrpc, do_eval=True, output_dir=tmp_path / "plain")
    run(
        run_glue,
        **mrpc,
        do_calib=True,
        quant_mode=f"ft{mode}",
        calib_method=method,
        train_batch_size=3,
        output_dir=tmp_path,
    )
    calibrated = tmp_path / "calibrated"
    assert {file.name for file in calibrated.iterdir()} == {
        "calibrated_ranges.csv",
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.txt",
    }
    arguments = {**mrpc, "model_name_or_path": calibrated, "do_eval": True}
    # As a float model it answers as before, and as int8 nearly so.
    floats = run(run_glue, **arguments, output_dir=tmp_path / "float")
    assert floats["loss"] == pytest.approx(plain["loss"], abs=1e-4)
    int8 = arguments | {"model_type": "thsext", "int8_mode": mode, "remove_padding": True}
    found = run(run_glue, **int8, output_dir=tmp_path / "int8")
    assert 0 < abs(found["loss"] - plain["loss"]) < 0.3


def test_calibrate_and_evaluate_in_one_run(squad, tmp_path):
    arguments = {**squad, "do_calib": True, "do_eval": True, "output_dir": tmp_path}
    scores = run(run_squad, **arguments, model_type="thsext", int8_mode=2)
    assert set(scores) == {"exact match", "F1"}
    assert (tmp_path / "calibrated" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"int8_mode": 2}, "--int8_mode is of --model_type=thsext, but --model_type=ori"),
        ({"remove_padding": True}, "--remove_padding is of --model_type=thsext"),
        ({"model_type": "thsext", "int8_mode": 4}, "--int8_mode=4, expected 0, 1, 2 or 3"),
        ({"model_type": "thsext", "int8_mode": 1}, "has no ranges: calibrate it with --do_calib"),
        ({"max_seq_length": 41}, "--max_seq_length=41, expected 1 to 40"),
        ({"task_name": "mnli"}, "has 2 outputs, expected 3 of --task_name=mnli"),
        ({"task_name": "mrcp"}, "--task_name=mrcp, expected cola, "),
        ({"do_eval": False}, "nothing to do"),
        ({"data_dir": ""}, "required flags are missing: --data_dir"),
    ],
)
def test_bad_command_lines(mrpc, tmp_path, more, message):
    arguments = {**mrpc, "do_eval": True, "output_dir": tmp_path, **more}
    with pytest.raises(UserError, match=message):
        run(run_glue, **arguments)


def test_another_tasks_model_is_refused(mrpc, squad, tmp_path):
    arguments = {**mrpc, "do_eval": True, "output_dir": tmp_path}
    wrong = arguments | {"model_name_or_path": squad["model_name_or_path"]}
    with pytest.raises(UserError, match="does not fit BertForSequenceClassification: .*missing"):
        run(run_glue, **wrong)


def test_no_tensorflow_is_loaded(mrpc, tmp_path):
    script = (
        "import sys; sys.modules['tensorflow'] = None\n"
        f"sys.path.insert(0, {str(REPOSITORY / 'sample' / 'pytorch')!r})\n"
        "import run_glue, run_squad\nfrom absl import flags\n"
        "values = flags.FlagValues()\nrun_glue.define_flags(values)\nvalues(sys.argv)\n"
        "print(run_glue.run(values)['accuracy'])"
    )
    arguments = {**mrpc, "do_calib": True, "do_eval": True, "output_dir": tmp_path}
    more = {"model_type": "thsext", "int8_mode": 1, "quant_mode": "ft1"}
    given = [f"--{name}={value}" for name, value in (arguments | more).items()]
    assert "0." in run_python("-c", script, *given)


def test_a_checkpoint_without_tensorflow_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for name in [n for n in sys.modules if n.startswith("fastertransformer_tf.checkpoints")]:
        monkeypatch.delitem(sys.modules, name)
    # A package keeps what was imported from it.
    monkeypatch.delattr("fastertransformer_tf.checkpoints.reading", raising=False)
    with pytest.raises(UserError, match="a checkpoint of TensorFlow, which is not installed"):
        loading.load_model(tmp_path / "model.ckpt", transformers.BertForQuestionAnswering)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches is empty"),
        ([{"attention_mask": torch.ones(1, 2)}], r"batches\[0\] has no input_ids, only attention"),
        (
            [{"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.ones(1, 3)}],
            r"batches\[0\]: attention_mask has shape \[1, 3\], expected \[B,S\] as input_ids",
        ),
    ],
)
def test_bad_batches(mrpc, batches, message):
    model = loading.load_model(
        mrpc["model_name_or_path"], transformers.BertForSequenceClassification
    ).model
    with pytest.raises(UserError, match=message):
        calibration.calibrate(model, batches)
    with pytest.raises(UserError, match="Linear holds 0 of transformers' BertModel"):
        calibration.calibrate(torch.nn.Linear(2, 2), batches)


# ---- Checkpoints of TensorFlow -------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small BERT as google's checkpoint, and a task, both with the arguments of either runner."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    from tiny_bert import make_tiny_bert

    folder = tmp_path_factory.mktemp("google")
    write_mrpc(folder)
    return make_tiny_bert(folder / "tiny")


def torch_arguments(tiny, source, **more):
    return {
        "model_name_or_path": source,
        "data_dir": tiny.folder.parent,
        "task_name": "mrpc",
        "max_seq_length": 12,
        "no_cuda": True,
        "do_eval": True,
        **more,
    }


def run_tensorflow(tiny, source, output_dir, **more):
    from fastertransformer_tf.programs import classification

    return run(
        classification,
        task_name="mrpc",
        data_dir=tiny.folder.parent,
        vocab_file=tiny.vocab_file,
        bert_config_file=tiny.config_file,
        init_checkpoint=source,
        max_seq_length=12,
        output_dir=output_dir,
        **more,
    )


def test_a_google_checkpoint_gives_the_tensorflow_figures(tiny, tmp_path):
    theirs = run_tensorflow(tiny, tiny.checkpoint, tmp_path / "tf", do_eval=True)
    for number, more in enumerate(MODELS):
        arguments = torch_arguments(tiny, tiny.checkpoint, **more)
        ours = run(run_glue, **arguments, output_dir=tmp_path / str(number))
        assert ours["accuracy"] == theirs["eval_accuracy"]
        assert ours["loss"] == pytest.approx(theirs["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("calibrated_by", ["tensorflow", "pytorch"])
def test_one_quantized_file_serves_both_frameworks(tiny, tmp_path, mode, calibrated_by):
    """The encoder's bits are equal, whoever calibrated; ckpt_quantization makes the file."""
    import tensorflow as tf

    from fastertransformer_tf import ops
    from fastertransformer_tf.checkpoints import reading
    from fastertransformer_tf.quantization import conversion

    calib = {"do_calib": True, "quant_mode": f"ft{mode}", "train_batch_size": 3}
    if calibrated_by == "tensorflow":
        run_tensorflow(tiny, tiny.checkpoint, tmp_path / "calib", **calib)
        source = tmp_path / "calib" / "model.ckpt-calibrated"
    else:
        arguments = torch_arguments(tiny, tiny.checkpoint, **calib, calib_format="tensorflow")
        run(run_glue, **{**arguments, "do_eval": False}, output_dir=tmp_path / "calib")
        source = tmp_path / "calib" / "calibrated" / "bert_model.ckpt"
    folder = tmp_path / "int8"
    conversion.quantize_checkpoint(source, folder / "model.ckpt", mode)
    for file in (tiny.vocab_file, tiny.config_file):
        (folder / file.rpartition("/")[2]).write_text(open(file).read())

    checkpoint = reading.Checkpoint(folder / "model.ckpt")
    model_class = transformers.BertForSequenceClassification
    loaded = loading.load_model(folder, model_class)
    model = fastertransformer_torch.optimize(loaded.model, int8_mode=mode, amax=loaded.amax)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 12, 32)).astype(np.float32)
    lengths = np.array([12, 5, 7], np.int32)
    layers, lists = [], []
    for index in range(3):
        layers.append(
            {
                weight.op_input: checkpoint.load(points.full_name(index, weight.google))
                for weight in spec.LAYER_WEIGHTS
            }
        )
        lists.append(checkpoint.load(points.full_name(index, "amaxList")))
    theirs = ops.bert_encoder(
        tf.constant(x),
        lengths,
        None,
        [{key: tf.constant(value) for key, value in layer.items()} for layer in layers],
        head_num=4,
        size_per_head=8,
        remove_padding=True,
        int8_mode=mode,
        amax_list=lists,
    )[-1].numpy()
    keys = torch.arange(12) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        ours = model.bert.encoder(torch.tensor(x), keys).last_hidden_state.numpy()
    np.testing.assert_array_equal(ours, theirs)

    more = {"do_eval": True, "int8_mode": mode}
    expected = run_tensorflow(tiny, folder / "model.ckpt", tmp_path / "tf", **more)
    arguments = torch_arguments(tiny, folder, model_type="thsext", int8_mode=mode)
    found = run(run_glue, **arguments, output_dir=tmp_path / "torch")
    assert found["loss"] == pytest.approx(expected["eval_loss"], abs=1e-3)


def test_both_frameworks_calibrate_alike(tiny, tmp_path):
    """From one checkpoint and the same examples come nearly the same ranges."""
    from fastertransformer_tf.checkpoints import reading

    calib = {"do_calib": True, "calib_method": "max", "train_batch_size": 3}
    run_tensorflow(tiny, tiny.checkpoint, tmp_path / "tf", **calib)
    arguments = torch_arguments(tiny, tiny.checkpoint, **calib, calib_format="tensorflow")
    run(run_glue, **{**arguments, "do_eval": False}, output_dir=tmp_path / "torch")
    theirs = reading.Checkpoint(tmp_path / "tf" / "model.ckpt-calibrated")
    ours = reading.Checkpoint(tmp_path / "torch" / "calibrated" / "bert_model.ckpt")
    assert set(ours.shapes) == set(theirs.shapes)
    for name in ours.shapes:
        np.testing.assert_allclose(ours.load(name), theirs.load(name), atol=1e-4, err_msg=name)


def test_scale_lists_survive(tiny, tmp_path):
    """What `optimize` makes of a quantized checkpoint's ranges are its scale lists."""
    from fastertransformer_tf.checkpoints import reading
    from fastertransformer_tf.quantization import conversion

    calib = {"do_calib": True, "quant_mode": "ft2", "train_batch_size": 3}
    run_tensorflow(tiny, tiny.checkpoint, tmp_path / "calib", **calib)
    folder = tmp_path / "int8"
    source = tmp_path / "calib" / "model.ckpt-calibrated"
    conversion.quantize_checkpoint(source, folder / "model.ckpt", 2)
    (folder / "bert_config.json").write_text(open(tiny.config_file).read())
    checkpoint = reading.Checkpoint(folder / "model.ckpt")
    loaded = loading.load_model(folder, transformers.BertForSequenceClassification)
    model = fastertransformer_torch.optimize(loaded.model, int8_mode=2, amax=loaded.amax)
    for index, scales in enumerate(model.bert.encoder._scales):
        name = points.full_name(index, points.SCALE_LIST)
        np.testing.assert_array_equal(scales.to_array(), checkpoint.load(name))
        parsed = scale_list.parse(checkpoint.load(name), 32, 48)
        np.testing.assert_array_equal(parsed.activations, scales.activations)


# ---- Real data -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_mrpc(shared_data):
    pytest.importorskip("tensorflow", reason="TensorFlow, which reads the checkpoint, is missing")
    return {
        "model_name_or_path": shared_path(shared_data, "minilm_mrpc"),
        "data_dir": shared_path(shared_data, "glue_data", "MRPC"),
        "task_name": "mrpc",
        "do_eval": True,
        "model_type": "thsext",
        "remove_padding": True,
        "no_cuda": True,
    }


@pytest.mark.parametrize("data_type", ["fp32", "fp16", "bf16"])
def test_mrpc(real_mrpc, tmp_path, data_type):
    found = run(run_glue, **real_mrpc, data_type=data_type, output_dir=tmp_path)
    if data_type == "bf16":
        assert found["accuracy"] == pytest.approx(0.8063725, abs=0.01)
        return
    assert found["accuracy"] == pytest.approx(0.8063725, abs=1e-6)
    assert found["loss"] == pytest.approx(0.5116268, abs=1e-3)


@pytest.mark.parametrize("mode", [1, 2])
def test_mrpc_int8(real_mrpc, tmp_path, mode):
    arguments = {**real_mrpc, "do_calib": True, "quant_mode": f"ft{mode}", "int8_mode": mode}
    found = run(run_glue, **arguments, output_dir=tmp_path)
    assert found["accuracy"] == pytest.approx(0.8063725, abs=tolerances.MRPC_INT8)


def test_squad_of_google(shared_data, tmp_path):
    """The first questions: the whole file takes minutes."""
    pytest.importorskip("tensorflow", reason="TensorFlow, which reads the checkpoint, is missing")
    source = json.loads(shared_path(shared_data, "squad", "eval-v1.1.json").read_text())
    source["data"] = [{**source["data"][0], "paragraphs": source["data"][0]["paragraphs"][:3]}]
    file = tmp_path / "squad.json"
    file.write_text(json.dumps(source))
    arguments = {
        "model_name_or_path": shared_path(shared_data, "minilm_squad"),
        "predict_file": file,
        "do_eval": True,
        "no_cuda": True,
    }
    op = run(
        run_squad,
        **arguments,
        model_type="thsext",
        remove_padding=True,
        output_dir=tmp_path / "op",
    )
    plain = run(run_squad, **arguments, output_dir=tmp_path / "plain")
    assert op == plain and op["F1"] > 40


def test_names_of_inputs_are_bertmodels():
    parameters = inspect.signature(transformers.BertModel.forward).parameters
    assert set(bert_programs.INPUTS.values()) <= set(parameters)
    assert tuple(bert_programs.INPUTS) == spec.MODEL_INPUTS
