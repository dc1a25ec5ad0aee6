"""Mutated files of users: refused in one sentence, or read right. The cases: fuzz_files.py.

FT_FUZZ_CASES makes a long run; FT_TEST_SEED repeats one.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from absl import flags
from fuzz_files import REFUSED, Fuzzer, attempt, mutated_json
from mutation import CASES, mutate_bytes, mutate_text
from tiny_bert import CONFIG, TinyBert, make_tiny_bert

from fastertransformer_tf import bert_compat, run_classifier_wrap


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBert:
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def fuzzer(tiny: TinyBert, tmp_path: pathlib.Path) -> Fuzzer:
    return Fuzzer(
        tmp_path,
        bert_compat.tokenization().FullTokenizer(tiny.vocab_file, True),
        CONFIG,
        tiny.weights,
        pathlib.Path(tiny.checkpoint),
        pathlib.Path(tiny.vocab_file).read_bytes(),
    )


@pytest.mark.parametrize("kind", Fuzzer.KINDS)
def test_mutated_files(
    fuzzer: Fuzzer, kind: str, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    seed = int(rng.integers(2**32))
    refused = 0
    for number in range(CASES):
        try:
            refused += getattr(fuzzer, kind)(np.random.default_rng([seed, number])) is REFUSED
        except Exception as error:
            raise AssertionError(f"{kind}: seed {seed}, case {number}: {error!r}") from error
        capsys.readouterr()  # Progress bars.
    print(f"{kind}: {refused} of {CASES} mutated files refused, the others right")
    # Both ways are taken: neither all is refused nor nothing.
    assert 0 < refused < CASES


def test_no_result_from_damaged_input(
    tiny: TinyBert, tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    """The whole program: with one file mutated it ends well with results, or without any."""
    seed = int(rng.integers(2**32))
    ends = set()
    for number in range(max(20, CASES // 20)):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            ends.add(_evaluate_mutated(np.random.default_rng([seed, number]), tiny, folder))
        except Exception as error:
            raise AssertionError(f"seed {seed}, case {number}: {error!r}") from error
    assert ends == {True, False}


def _evaluate_mutated(rng: np.random.Generator, tiny: TinyBert, folder: pathlib.Path) -> bool:
    """Evaluates with one of the program's files mutated; returns whether it gave a result."""
    rows = b"Quality\tID\tID\tS1\tS2\n" + b"1\t1\t2\tthe cat\ta dog\n0\t3\t4\tit\tno\n" * 3
    files = {
        "dev.tsv": rows,
        "vocab.txt": pathlib.Path(tiny.vocab_file).read_bytes(),
        "bert_config.json": json.dumps(CONFIG).encode(),
    }
    for suffix in (".index", ".data-00000-of-00001"):
        files[f"model.ckpt{suffix}"] = pathlib.Path(f"{tiny.checkpoint}{suffix}").read_bytes()
    name = list(files)[rng.integers(len(files))]
    if name == "bert_config.json":
        files[name] = mutated_json(rng, CONFIG)
    else:
        mutate = mutate_bytes if name.startswith("model") else mutate_text
        files[name] = mutate(rng, files[name])
    for file, content in files.items():
        (folder / file).write_bytes(content)
    values = flags.FlagValues()
    run_classifier_wrap.define_flags(values)
    arguments = {
        "task_name": "mrpc",
        "do_eval": True,
        "data_dir": folder,
        "vocab_file": folder / "vocab.txt",
        "bert_config_file": folder / "bert_config.json",
        "init_checkpoint": folder / "model.ckpt",
        "max_seq_length": 16,
        "output_dir": folder / "out",
    }
    values(["program", *(f"--{key}={value}" for key, value in arguments.items())])
    result = attempt(lambda: run_classifier_wrap.run(values))
    written = sorted(path.name for path in (folder / "out").glob("*"))
    assert written == ([] if result is REFUSED else ["eval_results.txt"])
    return result is not REFUSED
