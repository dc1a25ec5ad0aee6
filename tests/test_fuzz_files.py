"""Mutated files of users: refused in one sentence, or read right. The cases: fuzz_files.py.

--fuzz-cases=10000 makes a long run, --fuzz-seed another one.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from absl import flags
from fuzz_files import REFUSED, Fuzzer, attempt, mutate_bytes, mutate_json
from tiny_bert import CONFIG, TinyBert, make_tiny_bert

from fastertransformer_tf import google_bert
from fastertransformer_tf.programs import classification


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBert:
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def fuzzer(tiny: TinyBert, tmp_path: pathlib.Path) -> Fuzzer:
    return Fuzzer(
        tmp_path,
        google_bert.tokenization().FullTokenizer(tiny.vocab_file, True),
        CONFIG,
        tiny.weights,
        pathlib.Path(tiny.checkpoint),
        pathlib.Path(tiny.vocab_file).read_bytes(),
    )


@pytest.mark.parametrize("kind", Fuzzer.KINDS)
def test_mutated_files(
    fuzzer: Fuzzer, kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    seed = request.config.getoption("--fuzz-seed")
    refused = 0
    cases = request.config.getoption("--fuzz-cases")
    for number in range(cases):
        rng = np.random.default_rng([seed, Fuzzer.KINDS.index(kind), number])
        try:
            refused += getattr(fuzzer, kind)(rng) is REFUSED
        except Exception as error:
            raise AssertionError(f"{kind}, --fuzz-seed={seed}, case {number}: {error!r}") from error
        capsys.readouterr()  # Progress bars.
    with capsys.disabled():
        print(f"\n{kind}: {refused} of {cases} mutated files refused, the others right")
    # Both ways are taken: neither all is refused nor nothing.
    assert 0 < refused < cases


def test_no_result_from_damaged_input(
    tiny: TinyBert, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    """The whole program: with one file mutated it ends well with results, or without any."""
    seed = request.config.getoption("--fuzz-seed")
    ends = set()
    for number in range(max(15, request.config.getoption("--fuzz-cases") // 20)):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            ends.add(_evaluate_mutated(np.random.default_rng([seed, 99, number]), tiny, folder))
        except Exception as error:
            raise AssertionError(f"--fuzz-seed={seed}, case {number}: {error!r}") from error
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
        files[name] = mutate_json(rng, files[name].decode()).encode("utf-8", "surrogatepass")
    else:
        files[name] = mutate_bytes(rng, files[name])
    for file, content in files.items():
        (folder / file).write_bytes(content)
    values = flags.FlagValues()
    classification.define_flags(values)
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
    result = attempt(lambda: classification.run(values))
    written = sorted(path.name for path in (folder / "out").glob("*"))
    assert written == ([] if result is REFUSED else ["eval_results.txt"])
    return result is not REFUSED
