"""squad and run_squad_wrap: padding never takes part, SQuAD 2, files, refusals."""

import copy
import json
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from conftest import REPOSITORY, shared_path
from tiny_bert import make_tiny_bert
from tolerances import LOGITS, assert_close

from fastertransformer_tf import google_bert
from fastertransformer_tf.checkpoints import writing
from fastertransformer_tf.data import squad_answers, squad_files, squad_scores, squad_windows
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import modeling
from fastertransformer_tf.programs import question_answering

VOCAB = "[PAD] [UNK] [CLS] [SEP] who won the race ? anna after bob fell . in 1987".split()
OPTIONS = {"max_seq_length": 24, "max_query_length": 8, "doc_stride": 4}


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("".join(f"{w}\n" for w in VOCAB))
    return google_bert.tokenization().FullTokenizer(str(tmp_path / "vocab.txt"), True)


@pytest.fixture
def dataset(tmp_path):
    qas = [
        {
            "id": "q1",
            "question": "Who won the race?",
            "answers": [{"text": "Anna", "answer_start": 0}],
            "is_impossible": False,
        }
    ]
    paragraph = {"context": "Anna won the race in 1987.", "qas": qas}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": [paragraph]}]}))
    return path


def _tokens(data, row=0):
    return [data.tokens[i] for i in data.arrays["input_ids"][row, : data.windows[row].length]]


def _google(file, tokenizer, options, logits, folder):
    """What run_squad.py itself makes of a file and logits; the texts of its three files."""
    run_squad = google_bert.run_squad()
    with squad_answers._module_flags(options):
        examples = run_squad.read_squad_examples(str(file), False)
        features = []
        run_squad.convert_examples_to_features(
            examples,
            tokenizer,
            options.max_seq_length,
            options.doc_stride,
            options.max_query_length,
            False,
            features.append,
        )
        results = [
            run_squad.RawResult(f.unique_id, *(list(map(float, part)) for part in rows))
            for f, *rows in zip(features, *logits, strict=True)
        ]
        names = [str(folder / f"google{i}.json") for i in range(3)]
        run_squad.write_predictions(
            examples,
            features,
            results,
            options.n_best_size,
            options.max_answer_length,
            options.do_lower_case,
            *names,
        )
    files = names[: 3 if options.version_2_with_negative else 2]
    return examples, features, [json.loads(open(name).read()) for name in files]


def _logits(data, **positions):
    """Logits that are -5 but 5 where a word of the window is named, and 99 in the padding."""
    result = []
    for part in ("start", "end"):
        logits = np.full(data.arrays["input_ids"].shape, -5, np.float32)
        for row, window in enumerate(data.windows):
            logits[row, positions[part]] = 5
            logits[row, window.length :] = 99
        result.append(logits)
    return result


def test_logits_of_padding_never_take_part(tmp_path, tokenizer, dataset):
    options = squad_files.SquadOptions(**OPTIONS, n_best_size=3)
    data = squad_windows.load(dataset, tokenizer, options, is_training=False)
    tokens = _tokens(data)
    assert len(tokens) < 24
    year = tokens.index("1987")
    start, end = _logits(data, start=year - 1, end=year)
    answers = squad_answers.write_predictions(data, start, end, options, tmp_path / "out")
    assert answers == {"q1": "in 1987."} or answers == {"q1": "in 1987"}
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == answers
    nbest = json.loads((tmp_path / "out" / "nbest_predictions.json").read_text())["q1"]
    assert 1 <= len(nbest) <= 3
    assert sum(entry["probability"] for entry in nbest) == pytest.approx(1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "nbest_predictions.json",
        "predictions.json",
    ]
    # Unlike with all logits, where the three best are padding and no span is found.
    assert _google(dataset, tokenizer, options, (start, end), tmp_path)[2][0] == {"q1": "empty"}


def test_squad_2_null_odds_and_no_span_among_the_best(tmp_path, tokenizer, dataset):
    options = squad_files.SquadOptions(**OPTIONS, n_best_size=1, version_2_with_negative=True)
    data = squad_windows.load(dataset, tokenizer, options, is_training=False)
    # The one best start and end are [CLS]: run_squad alone ends in an AttributeError here.
    start, end = _logits(data, start=0, end=0)
    assert squad_answers.write_predictions(data, start, end, options, tmp_path / "out") == {
        "q1": ""
    }
    odds = json.loads((tmp_path / "out" / "null_odds.json").read_text())
    assert odds == {"q1": 20.0}
    year = _tokens(data).index("1987")
    start, end = _logits(data, start=year, end=year)
    answers = squad_answers.write_predictions(data, start, end, options, tmp_path / "out")
    assert answers["q1"].startswith("1987")
    assert json.loads((tmp_path / "out" / "null_odds.json").read_text()) == {"q1": -20.0}


def test_training_features(tokenizer, dataset):
    data = squad_windows.load(
        dataset, tokenizer, squad_files.SquadOptions(**OPTIONS), is_training=True
    )
    row, start = data.arrays["input_ids"][0], data.arrays["start_positions"][0]
    assert VOCAB[row[start]] == "anna"
    assert data.arrays["end_positions"][0] == start


WORDS = "[PAD] [UNK] [CLS] [SEP] a b c d e f g h i j k l m n o p ##x . ,".split()


@pytest.fixture
def long_tokenizer(tmp_path):
    (tmp_path / "words.txt").write_text("".join(f"{w}\n" for w in WORDS))
    return google_bert.tokenization().FullTokenizer(str(tmp_path / "words.txt"), True)


def _random_file(rng, path, is_training=False):
    """Paragraphs of several windows, words of several tokens and unknown ones, odd spaces."""
    articles = []
    for i in range(4):
        words = rng.choice([*"abcdefghijklmnop", "ax", "bxx", "Q\u00e9", ".", "a,b"], 60)
        spaces = rng.choice(
            [" ", "  ", "\n", "\u202f", "\u00a0"], 60, p=[0.8, 0.05, 0.05, 0.05, 0.05]
        )
        context = "".join(w + s for w, s in zip(words, spaces, strict=True))
        qas = []
        for j in range(4):
            start = int(rng.integers(0, len(context) - 8))
            text = context[start : start + 6]
            if not text.strip():
                text = context[start : start + 8]
            if j == 3:
                text = "not in it"
            qas.append(
                {
                    "id": f"{i}-{j}",
                    "question": " ".join(rng.choice(list("abcdefgh"), 5)),
                    "answers": [{"text": text, "answer_start": start}],
                    "is_impossible": False,
                }
            )
        articles.append({"paragraphs": [{"context": context, "qas": qas}]})
    path.write_text(json.dumps({"version": "x", "data": articles}))
    return path


@pytest.mark.parametrize("version_2", [False, True])
def test_the_same_examples_windows_and_files_as_google(tmp_path, long_tokenizer, rng, version_2):
    options = squad_files.SquadOptions(
        **OPTIONS | {"max_seq_length": 32}, n_best_size=20, version_2_with_negative=version_2
    )
    file = _random_file(rng, tmp_path / "random.json")
    data = squad_windows.load(file, long_tokenizer, options, is_training=False)
    assert len(data.windows) > 3 * len(data.examples)
    logits = rng.normal(0, 3, (2, *data.arrays["input_ids"].shape)).astype(np.float32)
    logits[:, data.arrays["input_mask"] == 0] = -1000  # google lets padding take part.
    examples, features, files = _google(file, long_tokenizer, options, logits, tmp_path)
    for ours, theirs in zip(data.examples, examples, strict=True):
        assert vars(ours) == vars(theirs)
    for row, feature in enumerate(features):
        assert _tokens(data, row) == feature.tokens
        for name in ("input_ids", "input_mask", "segment_ids"):
            assert data.arrays[name][row].tolist() == getattr(feature, name)
    squad_answers.write_predictions(data, *logits, options, tmp_path / "out")
    names = ["predictions.json", "nbest_predictions.json", "null_odds.json"]
    for name, content in zip(names, files, strict=False):
        written = json.loads((tmp_path / "out" / name).read_text())
        assert written == content
        assert list(written) == list(content)


def test_the_same_training_questions_as_google_and_the_others_counted(
    tmp_path, long_tokenizer, rng, capsys
):
    options = squad_files.SquadOptions(**OPTIONS | {"max_seq_length": 32})
    file = _random_file(rng, tmp_path / "random.json")
    examples, dropped = squad_files.read_examples(file, options, is_training=True)
    with squad_answers._module_flags(options):
        theirs = google_bert.run_squad().read_squad_examples(str(file), True)
    assert [vars(e) for e in examples] == [vars(e) for e in theirs]
    assert dropped == 16 - len(examples) >= 4
    data = squad_windows.load(file, long_tokenizer, options, is_training=True)
    assert f"{dropped} of 16 questions are left out of training" in capsys.readouterr().out
    features = []
    google_bert.run_squad().convert_examples_to_features(
        data.examples, long_tokenizer, 32, 4, 8, True, features.append
    )
    assert data.arrays["start_positions"].tolist() == [f.start_position for f in features]
    assert data.arrays["end_positions"].tolist() == [f.end_position for f in features]


def test_a_question_about_a_blank_paragraph(tmp_path, tokenizer, dataset):
    content = json.loads(dataset.read_text())
    for number, blank in enumerate(["", " \n ", "\u0007"]):
        qas = [{"id": f"blank{number}", "question": "who ?", "answers": [], "is_impossible": True}]
        content["data"][0]["paragraphs"].insert(0, {"context": blank, "qas": qas})
    dataset.write_text(json.dumps(content))
    for version_2 in (False, True):
        options = squad_files.SquadOptions(**OPTIONS, version_2_with_negative=version_2)
        data = squad_windows.load(dataset, tokenizer, options, is_training=False)
        year = _tokens(data).index("1987")
        logits = _logits(data, start=year, end=year)
        answers = squad_answers.write_predictions(data, *logits, options, tmp_path / "out")
        assert list(answers) == ["blank2", "blank1", "blank0", "q1"]
        assert answers["q1"].startswith("1987")
        # Without "no answer" google's program says "empty".
        assert answers["blank1"] == ("" if version_2 else "empty")
        nbest = json.loads((tmp_path / "out" / "nbest_predictions.json").read_text())
        assert all(sum(e["probability"] for e in n) == pytest.approx(1) for n in nbest.values())
    odds = json.loads((tmp_path / "out" / "null_odds.json").read_text())
    assert list(odds) == list(answers) and odds["blank0"] > 0 > odds["q1"]


@pytest.mark.parametrize("n_best_size", [1, 3])
def test_the_n_best_of_a_question_without_a_span_among_them(
    tmp_path, tokenizer, dataset, n_best_size
):
    options = squad_files.SquadOptions(
        **OPTIONS, n_best_size=n_best_size, version_2_with_negative=True
    )
    data = squad_windows.load(dataset, tokenizer, options, is_training=False)
    logits = np.linspace(1, 2, data.arrays["input_ids"].size, dtype=np.float32)
    logits = logits[::-1].reshape(1, -1).repeat(2, axis=0).reshape(2, 1, -1)  # [CLS] and question.
    squad_answers.write_predictions(data, *logits, options, tmp_path / "out")
    nbest = json.loads((tmp_path / "out" / "nbest_predictions.json").read_text())["q1"]
    texts = [entry["text"] for entry in nbest]
    assert "" in texts and len(set(texts)) == len(texts) <= n_best_size + 1
    assert any(texts)
    assert sum(entry["probability"] for entry in nbest) == pytest.approx(1)
    scores = [entry["start_logit"] + entry["end_logit"] for entry in nbest]
    np.testing.assert_allclose(
        np.diff(np.log([entry["probability"] for entry in nbest])), np.diff(scores), atol=1e-6
    )


def test_windows_are_small(tmp_path, long_tokenizer, rng):
    file = _random_file(rng, tmp_path / "random.json")
    content = json.loads(file.read_text())
    for paragraph in (p for a in content["data"] for p in a["paragraphs"]):
        paragraph["context"] = (paragraph["context"] + " ") * 20
    file.write_text(json.dumps(content))
    for is_training in (False, True):
        options = squad_files.SquadOptions(max_seq_length=384, doc_stride=64, max_query_length=8)
        examples, _ = squad_files.read_examples(file, options, is_training=False)
        for example in examples:
            example.start_position = example.end_position = 0
            example.orig_answer_text = "a"
        squad_windows.make_windows(examples, 0, long_tokenizer, options, is_training=is_training)
        tracemalloc.start()
        data = squad_windows.make_windows(
            examples, 0, long_tokenizer, options, is_training=is_training
        )
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(data.arrays["input_ids"]) > 200
        # 4.6 KB are the arrays themselves; google's features took 63 KB.
        assert peak / len(data.arrays["input_ids"]) < 16e3


def test_refusals(tmp_path, tokenizer, dataset):
    with pytest.raises(UserError, match="max_seq_length is 10, expected more than"):
        squad_files.SquadOptions(max_seq_length=10, max_query_length=8)
    with pytest.raises(UserError, match="doc_stride is 0"):
        squad_files.SquadOptions(doc_stride=0)
    with pytest.raises(UserError, match="null_score_diff_threshold is nan"):
        squad_files.SquadOptions(null_score_diff_threshold=float("nan"))
    options = squad_files.SquadOptions(**OPTIONS)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        squad_windows.load(tmp_path / "none", tokenizer, options, is_training=False)
    data = squad_windows.load(dataset, tokenizer, options, is_training=False)
    with pytest.raises(ValueError, match=r"start_logits is \[1, 3\], expected \[1, 24\]"):
        squad_answers.write_predictions(
            data, np.zeros((1, 3)), np.zeros((1, 24)), options, tmp_path
        )
    with pytest.raises(UserError, match="of a window of question 'q1' are not finite"):
        squad_answers.write_predictions(
            data, np.full((1, 24), np.nan), np.zeros((1, 24)), options, tmp_path
        )


QA = ("data", 0, "paragraphs", 0, "qas", 0)
ANSWER = (*QA, "answers", 0)
REMOVED = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("data",), REMOVED, ": data is missing, expected a list"),
        (("data",), {}, ": data is {}, expected a list"),
        (("data",), [], "holds no question"),
        (("data", 0), 7, ": data[0] is 7, expected an object"),
        (("data", 0, "paragraphs"), None, ": data[0].paragraphs is null, expected a list"),
        (("data", 0, "paragraphs", 0, "context"), 3, "data[0].paragraphs[0].context is 3, expe"),
        ((*QA, "id"), 7, "data[0].paragraphs[0].qas[0].id is 7, expected a text"),
        ((*QA, "question"), None, "qas[0].question is null, expected a text"),
        ((*QA, "answers"), "x", 'qas[0].answers is "x", expected a list'),
        ((*QA, "answers"), [], "answers has 0 answers, expected exactly 1 for training (SQuAD 2:"),
        ((*ANSWER, "text"), ["Anna"], 'answers[0].text is ["Anna"], expected a text'),
        ((*ANSWER, "text"), " ", 'answers[0].text is " ", expected words of the context'),
        ((*ANSWER, "answer_start"), "0", 'answers[0].answer_start is "0", expected a whole number'),
        ((*ANSWER, "answer_start"), True, "answer_start is true, expected a whole number"),
        (
            (*ANSWER, "answer_start"),
            23,
            "answer_start is 23, expected a place in the context, which",
        ),
        ((*ANSWER, "answer_start"), -1, "answer_start is -1, expected a place in the context"),
        ((*ANSWER, "answer_start"), 10**30, "expected a place in the context"),
        ((*ANSWER, "answer_start"), 9, "holds no question whose answer is in the paragraph"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path, dataset, path, value, message):
    content = json.loads(dataset.read_text())
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if value is REMOVED:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    dataset.write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        squad_files.read_examples(dataset, squad_files.SquadOptions(**OPTIONS), is_training=True)
    assert str(caught.value).startswith(str(dataset))


def test_other_wrong_files(dataset):
    v1, v2 = (squad_files.SquadOptions(**OPTIONS, version_2_with_negative=v) for v in (False, True))
    content = json.loads(dataset.read_text())
    with_bom = b"\xef\xbb\xbf" + dataset.read_bytes()
    dataset.write_bytes(with_bom)
    assert len(squad_files.read_examples(dataset, v1, is_training=True)[0]) == 1
    old = copy.deepcopy(content)
    del old["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"]
    dataset.write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"qas\[0\].is_impossible is missing, expected true or f"):
        squad_files.read_examples(dataset, v2, is_training=True)
    qas = content["data"][0]["paragraphs"][0]["qas"]
    qas.append(qas[0])
    dataset.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"qas\[1\].id is \"q1\", expected another than that of d"):
        squad_files.read_examples(dataset, v1, is_training=False)
    for text, message in {
        "": "is not JSON",
        '{"data": [': "is not JSON",
        "[" * 100000: "is not JSON",
        '{"data": [' + "1" * 5000 + "]}": "is ",
        "3": ": the whole is 3, expected an object",
        '{"data": [], "data": []}': "has the key 'data' twice",
    }.items():
        dataset.write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            squad_files.read_examples(dataset, v1, is_training=False)
    dataset.write_bytes(b'{"data":\n "\xff"}')
    with pytest.raises(UserError, match="line 2: the byte 0xff is not UTF-8"):
        squad_files.read_examples(dataset, v1, is_training=False)


def _program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "fastertransformer_tf.run_squad_wrap", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_program_says_what_is_wrong(tmp_path):
    shown = _program("--help")
    assert shown.returncode == 0
    for name in ("predict_file", "doc_stride", "floatx", "remove_padding", "n_best_size"):
        assert f"--{name}" in shown.stdout
    failed = _program("--do_predict", f"--output_dir={tmp_path}")
    assert failed.returncode == 1
    assert "required flags are missing: --vocab_file, --bert_config_file" in failed.stderr
    assert "Traceback" not in failed.stderr


def run(**arguments):
    """Runs the program in this process with its own flags."""
    values = flags.FlagValues()
    question_answering.define_flags(values)
    values(["run_squad_wrap", *(f"--{k}={v}" for k, v in arguments.items())])
    return question_answering.run(values)


@pytest.fixture
def model(tmp_path):
    """Flags of a tiny BERT with a SQuAD head and of a file of its words."""
    tiny = make_tiny_bert(tmp_path / "tiny")
    weights = dict(tiny.weights)
    weights["cls/squad/output_weights"] = weights.pop("output_weights")
    weights["cls/squad/output_bias"] = weights.pop("output_bias")
    writing.save_checkpoint(tiny.checkpoint, weights)
    qas = [
        {
            "id": f"q{i}",
            "question": "is it a dog",
            "answers": [{"text": "big dog", "answer_start": 4}],
            "is_impossible": False,
        }
        for i in range(8)
    ]
    context = "The big dog sat on the small red cat ; it ran and ran under a slow blue dog"
    data = [{"paragraphs": [{"context": context, "qas": qas}]}]
    (tmp_path / "squad.json").write_text(json.dumps({"version": "2.0", "data": data}))
    return {
        "vocab_file": tiny.vocab_file,
        "bert_config_file": tiny.config_file,
        "init_checkpoint": tiny.checkpoint,
        "max_seq_length": 24,
        "max_query_length": 6,
        "doc_stride": 8,
        "output_dir": tmp_path / "out",
    }


def test_export_is_served(model, tmp_path):
    file = tmp_path / "squad.json"
    run(**model, do_predict=True, predict_file=file, export_dir=tmp_path / "saved")
    served = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    values = flags.FlagValues()
    question_answering.define_flags(values)
    values(["p", *(f"--{k}={v}" for k, v in model.items()), "--do_predict",
            f"--predict_file={file}"])  # fmt: skip
    with google_bert.bound_flags(values):
        job = question_answering.prepare(values)
        data = job.windows("predict_file")
        tf_options = modeling.EncoderOptions(use_tensorflow=True)
        with question_answering.QuestionAnswerer(job.config, job.source, tf_options) as answerer:
            expected = answerer.run(data.arrays, 8, "reference").outputs
    outputs = served(**{name: tf.constant(value) for name, value in data.arrays.items()})
    real = data.arrays["input_mask"] != 0
    for name in ("start_logits", "end_logits"):
        assert_close(outputs[name].numpy()[real], expected[name][real], "float32", LOGITS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predict_batch_size": 0}, "--predict_batch_size=0, expected at least 1"),
        ({"predict_file": "gs://b/dev.json"}, "--predict_file=gs://b/dev.json is a URL, expected"),
        ({"output_dir": "gs://b/out"}, "--output_dir=gs://b/out is a URL, expected a path of this"),
        ({"do_train": True}, "required flags are missing: --train_file"),
        ({"init_checkpoint": "s3://b/m"}, "--init_checkpoint=s3://b/m is a URL"),
        ({"doc_stride": -1}, "doc_stride is -1, expected at least 1"),
    ],
)
def test_mistakes_are_found_before_any_work(model, tmp_path, changes, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = model | {"do_predict": True, "predict_file": tmp_path / "squad.json"} | changes
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError, match=re.escape(message)):
        run(**arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


TRAINING = {"do_train": True, "train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 1e-2}


def test_training_and_the_documented_second_pass(model, tmp_path, capsys):
    """As google's README: train, then predict with other thresholds and the first checkpoint."""
    file = tmp_path / "squad.json"
    del model["init_checkpoint"]
    pretrained = make_tiny_bert(tmp_path / "pre").checkpoint
    arguments = model | {"version_2_with_negative": True, "init_checkpoint": pretrained}
    predicting = {"do_predict": True, "predict_file": file}
    first = run(**arguments, **TRAINING, **predicting, train_file=file)
    assert set(first) == {f"q{i}" for i in range(8)}
    odds = json.loads((tmp_path / "out" / "null_odds.json").read_text())
    capsys.readouterr()
    second = run(**arguments, **predicting, do_train=False, null_score_diff_threshold=-1e9)
    assert set(second.values()) == {""}
    assert json.loads((tmp_path / "out" / "null_odds.json").read_text()) == odds
    shown = capsys.readouterr().out
    assert (
        f"checkpoint: {tmp_path}/out/model.ckpt-8 (the latest trained in --output_dir, in" in shown
    )
    # Alone a pre-trained checkpoint has no answers to give.
    with pytest.raises(UserError, match="it has no head|its head is of another kind"):
        run(**arguments | {"output_dir": tmp_path / "new"}, **predicting)


def test_a_training_goes_on_with_the_same_inputs_only(model, tmp_path):
    arguments = model | TRAINING | {"train_file": tmp_path / "squad.json", "num_train_epochs": 1}
    run(**arguments)
    assert run(**arguments) == {}
    for name, value in {
        "doc_stride": 4,
        "max_query_length": 3,
        "max_seq_length": 25,
        "do_lower_case": False,
        "version_2_with_negative": True,
        "learning_rate": 2e-2,
    }.items():
        with pytest.raises(UserError, match=rf"out holds a training with .*{name} "):
            run(**arguments | {name: value})


def test_scores_are_printed_where_answers_are_known(model, tmp_path, capsys):
    file = tmp_path / "squad.json"
    run(**model, do_predict=True, predict_file=file)
    scores = squad_scores.evaluate_files(file, tmp_path / "out/predictions.json")
    shown = dict(re.findall(r"^ *(exact match|F1) +([\d.]+) *$", capsys.readouterr().out, re.M))
    assert {name: float(value) for name, value in shown.items()} == {
        "exact match": scores["exact_match"],
        "F1": scores["f1"],
    }
    dataset = json.loads(file.read_text())
    for answers in ([], [{"text": 7, "answer_start": 0}]):
        dataset["data"][0]["paragraphs"][0]["qas"][0]["answers"] = answers
        file.write_text(json.dumps(dataset))
        run(**model, do_predict=True, predict_file=file)
        out = capsys.readouterr().out
        assert "exact match" not in out and ("no scores: " in out) == bool(answers)


def test_scores_of_squad_2_are_printed(model, tmp_path, capsys):
    file = tmp_path / "squad.json"
    dataset = json.loads(file.read_text())
    qas = dataset["data"][0]["paragraphs"][0]["qas"]
    for number, qa in enumerate(qas):
        qa["question"] = " ".join("is it a big red dog on the cat".split()[number:])
        if number % 2:
            qa |= {"answers": [], "is_impossible": True}
    file.write_text(json.dumps(dataset))
    arguments = model | {"do_predict": True, "predict_file": file, "version_2_with_negative": True}
    # Of the odds of the first pass, so that there are questions on both sides.
    run(**arguments)
    odds = json.loads((tmp_path / "out/null_odds.json").read_text())
    capsys.readouterr()
    answers = run(**arguments, null_score_diff_threshold=np.median(list(odds.values())))
    assert 0 < sum(answer == "" for answer in answers.values()) < 8
    assert json.loads((tmp_path / "out/null_odds.json").read_text()) == odds
    shown = capsys.readouterr().out
    scores = squad_scores.evaluate_v2_files(
        file, tmp_path / "out/predictions.json", tmp_path / "out/null_odds.json", 1e30
    )
    for key, name in squad_scores.NAMES_OF_V2.items():
        (found,) = re.findall(rf"^ *{name} +(-?[\d.e-]+) *$", shown, re.M)
        assert float(found) == scores[key], name
    # A test set says nothing about its answers.
    for qa in qas:
        del qa["answers"], qa["is_impossible"]
    file.write_text(json.dumps(dataset))
    assert run(**arguments).keys() == answers.keys()
    out = capsys.readouterr().out
    assert "exact match" not in out and "no scores" not in out


def test_an_empty_file_to_predict_is_found_before_the_training(model, tmp_path):
    (tmp_path / "empty.json").write_text('{"data": []}')
    with pytest.raises(UserError, match="empty.json holds no question"):
        run(
            **model, **TRAINING, train_file=tmp_path / "squad.json", do_predict=True,
            predict_file=tmp_path / "empty.json",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_the_op_answers_as_tensorflow_does(tmp_path, shared_data):
    file = shared_path(shared_data, "squad", "eval-v1.1.json")
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    paragraph = articles[0]["paragraphs"][0]
    few = [{"title": "few", "paragraphs": [paragraph | {"qas": paragraph["qas"][:4]}]}]
    (tmp_path / "few.json").write_text(json.dumps({"version": "1.1", "data": few}))
    folder = shared_path(shared_data, "minilm_squad")
    common = {
        "vocab_file": folder / "vocab.txt",
        "bert_config_file": folder / "bert_config.json",
        "init_checkpoint": folder / "model.ckpt",
        "predict_file": tmp_path / "few.json",
        "do_predict": True,
        "predict_batch_size": 2,
    }
    answers = {}
    for name, extra in {
        "tf": {"use_tensorflow_transformer": True},
        "op": {},
        "packed": {"remove_padding": True},
    }.items():
        run(**common, output_dir=tmp_path / name, **extra)
        answers[name] = json.loads((tmp_path / name / "nbest_predictions.json").read_text())
    for name in ("op", "packed"):
        for question, expected in answers["tf"].items():
            assert answers[name][question][0]["text"] == expected[0]["text"]
            logit = answers[name][question][0]["start_logit"]
            assert logit == pytest.approx(expected[0]["start_logit"], abs=1e-3)
