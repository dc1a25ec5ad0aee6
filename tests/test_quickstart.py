"""sample/quickstart.py: the engines side by side, and status 1 where they disagree."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from tiny_bert import TinyBert, make_tiny_bert

SAMPLE = REPOSITORY / "sample" / "quickstart.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBert:
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"))


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the sample in a process of its own, after some code that sees it as `quickstart`."""
    start = f"""
import sys
sys.path.insert(0, {str(SAMPLE.parent)!r})
import quickstart
{code}
quickstart.cli.run_program(quickstart.main, quickstart.__doc__, ["quickstart"])
"""
    return subprocess.run(
        [sys.executable, "-c", start, *map(str, arguments)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_engines_side_by_side(tiny: TinyBert, tmp_path: pathlib.Path) -> None:
    rows = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    rows += [f"{i % 2}\t1\t2\tthe [bold] cat {i}\ta dog" for i in range(9)]
    (tmp_path / "dev.tsv").write_text("\n".join(rows))
    done = run(
        "", f"--model={tiny.folder}", "--pairs=7", f"--data_dir={tmp_path}",
        f"--output_dir={tmp_path}/out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for text in ("7 sentence pairs of", "6 of 7 pairs", "14 sentences", "all engines agree"):
        assert text in done.stdout
    assert "the [bold] cat 5" in done.stdout and "the [bold] cat 6" not in done.stdout
    for engine in ("TensorFlow, float32", "op, float32", "op, bfloat16"):
        assert re.search(rf"^ *{engine} +[\d.]+ +[\d.]+ +[\d.]+x +", done.stdout, re.M)
    assert (tmp_path / "out" / "quickstart.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("quickstart.VECTOR_TOLERANCE = 0", "op, float32: a sentence's vector differs from"),
        ("quickstart.SIMILARITY_TOLERANCE = 0", "op, bfloat16: a similarity differs from"),
    ],
)
def test_a_difference_fails(
    tiny: TinyBert, tmp_path: pathlib.Path, code: str, message: str
) -> None:
    done = run(code, f"--model={tiny.folder}", f"--data_dir={tmp_path}", f"--output_dir={tmp_path}")
    assert done.returncode == 1
    assert f"[quickstart] FAILED: {message}" in done.stderr
    assert "not found: taking 8 built-in sentence pairs" in done.stdout
    assert "all engines agree" not in done.stdout
