"""Batch scoring and the server, with a tiny model."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags
from tiny_bert import WORDS, TinyBert, make_tiny_bert, make_tiny_squad

from fastertransformer_tf.data.text_features import TokenRow
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.scaleout import (
    model_flags,
    requests,
    scorers,
    serving,
    token_batcher,
)

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (extra scale)"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBert:
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"))


def factory(tiny: TinyBert, **changes: object) -> scorers.ClassifierFactory:
    settings = {"remove_padding": True, "max_seq_length": 20} | changes
    return scorers.ClassifierFactory(tiny.checkpoint, tiny.config_file, tiny.vocab_file, **settings)


def texts(count: int, seed: int = 5) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 30))) for _ in range(count)]


def test_tokens_and_scores_do_not_depend_on_the_batch(tiny: TinyBert) -> None:
    scorer = factory(tiny).load(1)
    pairs = [(a, b) for a, b in zip(texts(12), texts(12, 6), strict=True)]
    tokens = scorer.tokenize([*pairs, ("the cat",)])
    assert max(map(len, tokens)) == 20
    assert tokens[-1] == TokenRow([2, 5, 7, 3], 4)
    together = scorer.score(tokens)
    alone = np.concatenate([scorer.score([one]) for one in tokens])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together.sum(axis=-1), 1, atol=1e-5)
    plain = factory(tiny, use_tensorflow=True, remove_padding=False).load(1)
    np.testing.assert_allclose(plain.score(tokens), together, atol=1e-4)


def test_tokens_are_those_of_the_program(tiny: TinyBert) -> None:
    from fastertransformer_tf import google_bert
    from fastertransformer_tf.data import glue_features

    scorer = factory(tiny).load(1)
    first, second = texts(20), texts(20, 6)
    examples = [
        google_bert.run_classifier().InputExample(str(i), a, b, "0")
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    tokenizer = google_bert.tokenization().FullTokenizer(tiny.vocab_file, True)
    features = glue_features.make_features(examples, ["0"], 20, tokenizer)
    found = scorer.tokenize(list(zip(first, second, strict=True)))
    for row, tokens in enumerate(found):
        count = int(features["input_mask"][row].sum())
        assert tokens.ids == features["input_ids"][row, :count].tolist()
        assert tokens.first == count - features["segment_ids"][row].sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 1000}, "max_seq_length is 1000, expected 3 to 40"),
        ({"use_tensorflow": True}, "remove_padding needs the op"),
        ({"int8_mode": 1}, "int8_mode=1 found a float"),
    ],
)
def test_a_factory_is_checked(tiny: TinyBert, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        factory(tiny, **changes).check()


def test_a_factory_of_flags(tiny: TinyBert, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths for workers in another folder; the files beside the checkpoint."""
    monkeypatch.chdir(tiny.folder.parent)
    values = flags.FlagValues()
    model_flags.define_flags(values, "test")
    arguments = ("--remove_padding", "--max_seq_length=20")
    values(["serve", f"--init_checkpoint={tiny.folder.name}", *arguments])
    made = model_flags.factory(values)
    assert made == scorers.ClassifierFactory(
        tiny.checkpoint, tiny.config_file, tiny.vocab_file, remove_padding=True, max_seq_length=20
    )


def test_a_model_without_a_head_is_refused(tmp_path: pathlib.Path) -> None:
    tiny, _ = make_tiny_squad(tmp_path)
    with pytest.raises(UserError, match="has no output_weights, expected a model that was fine-tu"):
        factory(tiny).check()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"no", "is not JSON"),
        (b"[]", "expected an object"),
        (b"{}", "expected an object"),
        (b'{"texts": ["a"], "pairs": []}', "expected an object"),
        (b'{"texts": "a"}', "no list"),
        (b'{"texts": []}', "a list of 0"),
        (b'{"texts": ["a", "b", "c", "d"]}', "list of 1 to 3"),
        (b'{"texts": ["a", 1]}', "texts\\[1\\] is 1"),
        (b'{"pairs": [["a"]]}', "expected a list of two texts"),
        (b'{"pairs": [["a", null]]}', "expected a list of two texts"),
        (b"\xff", "is not JSON"),
    ],
)
def test_wrong_requests(body: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        requests.parse(body, 3)


def test_sixty_four_clients_of_a_replica(tiny: TinyBert) -> None:
    """Each gets its own scores; a wrong request is told, and the others do not notice."""
    limits = token_batcher.Limits(tokens=100, rows=8, wait_s=0.001)
    scorer = factory(tiny).load(1)
    asked = [[text] for text in texts(64)]

    async def client(server: serving.Server, number: int) -> None:
        for turn in range(3):
            if (number + turn) % 8 == 0:
                status, _, text = await server.answer("POST", "/score", b'{"texts": [3]}')
                assert status == 400 and "expected a text" in json.loads(text)["error"]
                continue
            body = json.dumps({"texts": asked[number]}).encode()
            status, _, text = await server.answer("POST", "/score", body)
            assert status == 200
            expected = scorer.score(scorer.tokenize([tuple(asked[number])]))
            np.testing.assert_allclose(json.loads(text)["scores"], expected, atol=1e-4)

    async def main() -> None:
        server = serving.Server(factory(tiny), 1, limits, 16)
        await asyncio.gather(*(client(server, number) for number in range(64)))
        assert (await server.answer("GET", "/healthz", b""))[0] == 200
        assert (await server.answer("GET", "/nothing", b""))[0] == 404
        assert (await server.answer("GET", "/score", b""))[0] == 405
        text = (await server.answer("GET", "/metrics", b""))[2]
        assert f'ft_requests_total{{replica="{os.getpid()}",status="200"}} 168' in text
        assert f'ft_requests_total{{replica="{os.getpid()}",status="400"}} 24' in text
        assert server.counters.batches < 168, "requests were not put together"

    asyncio.run(main())


def scoring_command(tiny: TinyBert, table: pathlib.Path, out: pathlib.Path) -> list[str]:
    return [
        sys.executable, "-m", "fastertransformer_tf.batch_scoring",
        f"--init_checkpoint={tiny.checkpoint}", f"--vocab_file={tiny.vocab_file}",
        f"--bert_config_file={tiny.config_file}", "--max_seq_length=20", "--threads=1",
        f"--input={table}", f"--output_dir={out}", "--shard_rows=7",
    ]  # fmt: skip


@needs_ray
def test_batch_scoring_goes_on_after_a_kill(tiny: TinyBert, tmp_path: pathlib.Path) -> None:
    rows = texts(300)
    table, out = tmp_path / "texts.jsonl", tmp_path / "out"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    command = scoring_command(tiny, table, out)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("part-*"))) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "summary.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [
        json.loads(line)
        for part in sorted(out.glob("part-*.jsonl"))
        for line in part.read_text().splitlines()
    ]
    assert [line["row"] for line in lines] == list(range(300))
    scorer = factory(tiny).load(1)
    for line, text in zip(lines[::10], rows[::10], strict=True):
        np.testing.assert_allclose(
            line["scores"], scorer.score(scorer.tokenize([(text,)]))[0], atol=1e-4
        )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows"] == 300 and 0 < summary["scored_in_this_run"] <= 300 - 5 * 7
    # Another table in the same folder is refused.
    table.write_text(table.read_text() + '{"text": "the cat"}\n')
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "holds the results of another job: its files is" in done.stderr


@needs_ray
def test_a_row_that_is_no_text_is_told_in_one_line(tiny: TinyBert, tmp_path: pathlib.Path) -> None:
    table = tmp_path / "texts.jsonl"
    table.write_text('{"text": "the cat"}\n{"text": 5}\n')
    done = subprocess.run(
        scoring_command(tiny, table, tmp_path / "out"),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"batch_scoring: {table}, row 1: text is 5, expected a text"
