"""Mutates the files that users give, and tells what is right for each of them.

A case is one mutated file: the code under test either refuses it (UserError or OSError, one line
that is not empty) or gives what an independent oracle says. Any other exception is a fault. The
cases of a kind are numbered; kind, seed and number make a case again.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np

from fastertransformer_tf import google_bert
from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.data import glue, glue_features, squad_answers, squad_files, squad_windows
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import bert_config, text_files

REFUSED = object()

# Pieces that have broken readers before.
BYTES = [
    *(
        b"",
        b"\n",
        b"\r\n",
        b"\r",
        b"\0",
        b"\t",
        b"\t" * 5,
        b'"',
        b"'",
        b",",
        b" ",
        b"\xff",
        b"\xc3",
    ),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc2\x85", b"\x0b", b"\x1c", b"a" * 300),
    *(
        b"[UNK]",
        b"0",
        b"1",
        b"-1",
        b"1e400",
        b"NaN",
        b"null",
        b"true",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
    ),
    *(b"\\u0000", b"\\ud800", "\u4e2d\u6587".encode(), "\u0301".encode(), b"##"),
]
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 2**31, 2**63, 10**400, 0.0, 0.5, 1.0, -0.1, 1e308),
    *(math.nan, math.inf, -math.inf, "", " ", "a", "0", "gelu", "GELU", "\0", "\ud800", "\u2028"),
    *("a" * 1000, [], [0], {}, {"a": 0}, [[]], [None]),
]


def mutate_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Changes, inserts, removes, repeats or swaps a few pieces of a file."""
    result = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(result) + 1))
        end = min(len(result), at + int(rng.choice([1, 2, 8, 64, 1000])))
        match rng.integers(0, 7):
            case 0:
                result[at:at] = BYTES[rng.integers(len(BYTES))]
            case 1:
                result[at:end] = BYTES[rng.integers(len(BYTES))]
            case 2:
                del result[at:end]
            case 3:
                result[at:at] = result[at:end]
            case 4:
                del result[at:]
            case 5 if at < len(result):
                result[at] ^= 1 << int(rng.integers(8))
            case 6:
                lines = bytes(result).split(b"\n")
                i, j = rng.integers(0, len(lines), 2)
                lines[i] = lines[j]
                result = bytearray(b"\n".join(lines))
    return bytes(result)


def mutate_json(rng: np.random.Generator, text: str) -> str:
    """Replaces, removes, adds or doubles members anywhere in a JSON file."""
    content = json.loads(text)
    for _ in range(rng.integers(1, 3)):
        places: list[tuple[list | dict, object]] = []

        def walk(node: object, places: list = places) -> None:
            keys = (
                node
                if isinstance(node, dict)
                else range(len(node) if isinstance(node, list) else 0)
            )
            for key in list(keys):
                places.append((node, key))
                walk(node[key], places)  # type: ignore[index]

        walk(content)
        if not places:
            break
        parent, key = places[rng.integers(len(places))]
        match rng.integers(0, 5):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.append(json.loads(json.dumps(parent[key])))
            case 2 if isinstance(parent[key], str):
                piece = BYTES[rng.integers(len(BYTES))].decode("utf-8", "replace")
                at = int(rng.integers(0, len(parent[key]) + 1))
                parent[key] = parent[key][:at] + piece + parent[key][at:]
            case _:
                parent[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return json.dumps(content, ensure_ascii=bool(rng.integers(2)))


def attempt(function: Callable[[], object]) -> object:
    """What a function returns, or REFUSED; fails where a refusal is not one line."""
    try:
        return function()
    except (UserError, OSError) as error:
        message = str(error)
        assert message.strip(), f"{error!r} has no message"
        assert len(message.splitlines()) == 1, f"{message!r} is more than one line"
        return REFUSED


@dataclasses.dataclass
class Fuzzer:
    """Runs the cases of every kind in a folder of its own."""

    folder: pathlib.Path
    tokenizer: object
    config: dict
    weights: dict[str, np.ndarray]
    prefix: pathlib.Path
    vocabulary: bytes

    def tsv(self, rng: np.random.Generator) -> object:
        """MRPC, CoLA and MNLI: google's processor reads the same examples, if we accept."""
        task, rows = [
            (
                "mrpc",
                b"Quality\tID\tID\tS1\tS2\n" + b"1\t1\t2\tthe cat\ta dog\n0\t3\t4\tit\tno\n" * 3,
            ),
            ("cola", b"x\t1\t\tthe cat\nx\t0\t*\ta dog\n" * 3),
            ("mnli", b"h\n" + (b"1\t" + b"x\t" * 7 + b"the cat\ta dog\tz\tneutral\n") * 3),
        ][rng.integers(3)]
        name = {"mnli": "dev_matched.tsv"}.get(task, "dev.tsv")
        (self.folder / name).write_bytes(mutate_bytes(rng, rows))
        examples = attempt(lambda: glue.TASKS[task].get_dev_examples(str(self.folder)))
        if examples is REFUSED:
            return REFUSED
        features = glue_features.make_features(
            examples, glue.TASKS[task].get_labels(), 12, self.tokenizer
        )
        assert features["input_mask"].sum(1).min() >= 2
        # A byte-order mark and a lone \r are all that google's reader sees otherwise.
        data = (self.folder / name).read_bytes().removeprefix(b"\xef\xbb\xbf")
        if b"\r" not in data.replace(b"\r\n", b"") and b"\0" not in data:
            (self.folder / name).write_bytes(data)
            module = google_bert.run_classifier()
            processor = getattr(module, f"{task.capitalize()}Processor")()
            theirs = processor.get_dev_examples(str(self.folder))
            for ours, expected in zip(examples, theirs, strict=True):
                for field in ("text_a", "text_b", "label"):
                    assert getattr(ours, field) == getattr(expected, field)
        return features

    def vocab(self, rng: np.random.Generator) -> object:
        """The id of a token is the number of the last line that holds it."""
        file = self.folder / "vocab.txt"
        file.write_bytes(mutate_bytes(rng, self.vocabulary))
        make = google_bert.tokenization().FullTokenizer
        tokenizer = attempt(lambda: make(str(file), True))
        if tokenizer is REFUSED:
            return REFUSED
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        for token, number in tokenizer.vocab.items():
            assert lines[number].decode().strip() == token
            assert token not in [line.decode().strip() for line in lines[number + 1 :] if line]
        return tokenizer

    def config_file(self, rng: np.random.Generator) -> object:
        """What is accepted has whole sizes and numbers in range, and is what the file says."""
        file = self.folder / "bert_config.json"
        text = json.dumps(self.config)
        if rng.integers(4):
            file.write_text(mutate_json(rng, text), encoding="utf-8", errors="surrogatepass")
        else:
            file.write_bytes(mutate_bytes(rng, text.encode()))
        config = attempt(lambda: bert_config.load(file))
        if config is REFUSED:
            return REFUSED
        said = json.loads(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
        for key, value in config.items():
            if key == "hidden_act":
                assert value in bert_config.ACTIVATIONS
                continue
            assert value == said.get(key, value)
            assert type(value) in ((float, int) if "prob" in key or "range" in key else (int,))
            assert 0 <= value < 2**31
        assert config["hidden_size"] % config["num_attention_heads"] == 0
        return config

    def squad_file(self, rng: np.random.Generator) -> object:
        """Reads, cuts and answers; google's reader sees the same examples, if we accept."""
        file = self.folder / "squad.json"
        text = json.dumps(_squad_data())
        if rng.integers(4):
            file.write_text(mutate_json(rng, text), encoding="utf-8", errors="surrogatepass")
        else:
            file.write_bytes(mutate_bytes(rng, text.encode()))
        options = squad_files.SquadOptions(
            24,
            4,
            8,
            n_best_size=int(rng.integers(1, 5)),
            version_2_with_negative=bool(rng.integers(2)),
        )
        is_training = bool(rng.integers(2))
        read = attempt(lambda: squad_files.read_examples(file, options, is_training=is_training))
        if read is REFUSED:
            return REFUSED
        content = text_files.read_json(file)
        file.write_text(json.dumps(content), encoding="utf-8")
        with squad_answers._module_flags(options):
            theirs = google_bert.run_squad().read_squad_examples(str(file), is_training)
        if is_training:  # google's drops an answer that begins in the blanks before all words.
            named = {example.qas_id: vars(example) for example in theirs}
            ours = {example.qas_id: vars(example) for example in read[0]}
            assert named.items() <= ours.items() or named == ours
        else:
            assert [vars(e) for e in read[0]] == [vars(e) for e in theirs]
        return attempt(lambda: self._answer(rng, read, options, is_training))

    def _answer(self, rng, read, options, is_training: bool) -> object:
        data = squad_windows.make_windows(*read, self.tokenizer, options, is_training=is_training)
        if is_training:
            for part in ("start_positions", "end_positions"):
                assert (data.arrays[part] < data.arrays["input_mask"].sum(1)).all()
            return data
        logits = rng.normal(0, 3, (2, *data.arrays["input_ids"].shape)).astype(np.float32)
        out = self.folder / "out"
        answers = squad_answers.write_predictions(data, *logits, options, out)
        nbest = json.loads((out / squad_answers.NBEST_FILE).read_text())
        assert list(nbest) == list(answers) == [example.qas_id for example in data.examples]
        for name, entries in nbest.items():
            assert abs(sum(entry["probability"] for entry in entries) - 1) < 1e-6
            texts = [entry["text"] for entry in entries]
            assert answers[name] in texts
            assert not options.version_2_with_negative or "" in texts
        return answers

    def checkpoint_file(self, rng: np.random.Generator) -> object:
        """What can be read of a damaged checkpoint is what was written."""
        suffixes = (".index", ".data-00000-of-00001")
        damaged = suffixes[rng.integers(2)]
        for suffix in suffixes:
            data = pathlib.Path(f"{self.prefix}{suffix}").read_bytes()
            if suffix == damaged:
                data = mutate_bytes(rng, data)
            (self.folder / f"model.ckpt{suffix}").write_bytes(data)

        def read() -> dict[str, np.ndarray]:
            source = reading.Checkpoint(self.folder / "model.ckpt")
            return {name: source.load(name, "float32") for name in source.shapes}

        values = attempt(read)
        if values is REFUSED:
            return REFUSED
        for name, value in values.items():
            np.testing.assert_array_equal(value, self.weights[name], err_msg=name)
        return values

    KINDS = ("tsv", "vocab", "config_file", "squad_file", "checkpoint_file")


def _squad_data() -> dict:
    context = "the big dog sat on the small red cat ; it ran under a slow blue dog"
    questions = [
        {
            "id": f"q{i}",
            "question": "is it a dog",
            "answers": [{"text": "big dog", "answer_start": 4}],
            "is_impossible": False,
        }
        for i in range(2)
    ]
    return {
        "version": "v2.0",
        "data": [
            {"title": "t", "paragraphs": [{"context": context, "qas": questions[:1]}]},
            {"paragraphs": [{"context": context * 2, "qas": questions[1:]}]},
        ],
    }
