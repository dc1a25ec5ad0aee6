"""cli: whatever goes wrong, a program answers with one line that is never empty."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf
from conftest import REPOSITORY

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.programs import error_lines

OOM = "OOM when allocating tensor with shape[8,8] and type float on /device:GPU:0 by allocator x"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("--a=1, expected 2"), "--a=1, expected 2"),
        (UserError("two faults:\n  one  file\n  two"), "two faults: one  file two"),
        (OSError(28, "No space left on device", "/x"), "/x: No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(18, "Invalid link", "/x", None, "/y"), "/x -> /y: Invalid link"),
        (FileNotFoundError("--vocab_file=x not found"), "--vocab_file=x not found"),
        (OSError(), "OSError"),
        (MemoryError(), "out of memory"),
        (
            tf.errors.ResourceExhaustedError(
                None, None, f"Graph execution error:\n\n{OOM}\n\t [[{{{{node a/b}}}}]]\nHint: x"
            ),
            f"out of memory: {OOM}; a smaller batch size or max_seq_length needs less",
        ),
        (
            tf.errors.PermissionDeniedError(None, None, "/x/m.index; Permission denied\n\t [[n]]"),
            "TensorFlow: permission denied: /x/m.index; Permission denied",
        ),
        (tf.errors.InternalError(None, None, ""), "TensorFlow: internal"),
        (UserError(""), "UserError"),
    ],
)
def test_a_users_mistake_and_the_systems(error: Exception, expected: str) -> None:
    assert error_lines.describe_error(error) == expected


@pytest.mark.parametrize(
    "error", [KeyError("a"), NotImplementedError(), ValueError("x\n\ny"), AssertionError("\n")]
)
def test_any_other_exception_is_called_a_bug(error: Exception) -> None:
    line = error_lines.describe_error(error)
    name = type(error).__name__
    assert line.startswith(f"this is a bug of the program, not a mistake of yours: {name}")
    assert line.endswith("(run again with --traceback to see where)")
    assert "\n" not in line


PROGRAM = """
import sys, time
from fastertransformer_tf.errors import UserError
from absl import flags
from fastertransformer_tf.programs import cli

def define(values):
    cli.FlagDefiner(values, "program").integer("number", 1, "A number to test with.")

def run(values):
    what = {statement!r}
    exec(what)

cli.run_flag_program(define, run, "Doc.", ["program"])
"""


def program(statement: str, *arguments: str, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROGRAM.format(statement=statement), *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, text=True, check=False, stderr=subprocess.PIPE, **options
    )


def last_lines(done: subprocess.CompletedProcess) -> list[str]:
    """The lines of stderr that are not TensorFlow's own."""
    return [line for line in done.stderr.splitlines() if line.startswith("-c: ")]


@pytest.mark.parametrize(
    ("statement", "arguments", "expected"),
    [
        ("raise UserError('no')", [], "-c: no"),
        ("open('/none/x')", [], "-c: /none/x: No such file or directory"),
        ("{}['a']", [], "-c: this is a bug of the program, not a mistake of yours: KeyError: 'a'"),
        ("", ["--number=x"], "-c: flag --number=x: invalid literal for int() with base 10: 'x'"),
        ("", ["--nonsense"], "-c: Unknown command line flag 'nonsense'"),
        ("", ["x"], "-c: unexpected arguments: x; every option is a flag"),
        ("", ["--flagfile=/none"], "-c: "),
    ],
)
def test_one_line_and_status_1(statement: str, arguments: list[str], expected: str) -> None:
    done = program(statement, *arguments)
    assert done.returncode == 1
    (line,) = last_lines(done)
    assert line.startswith(expected)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--traceback"]])
def test_flags_that_cannot_be_defined(arguments: list[str]) -> None:
    code = PROGRAM.replace(
        "cli.FlagDefiner", "raise UserError('bert is missing')\n    cli.FlagDefiner"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.format(statement=""), *arguments],
        cwd=REPOSITORY, text=True, check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert last_lines(done) == ["-c: bert is missing"]
    assert ("Traceback" in done.stderr) == (arguments == ["--traceback"])


def test_traceback_shows_where() -> None:
    done = program("{}['a']", "--traceback")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr and "KeyError: 'a'" in done.stderr
    assert len(last_lines(done)) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_behind_stdout() -> None:
    with open("/dev/full", "w") as full:
        done = program("print('x')", stdout=full)
    assert done.returncode == 1
    assert last_lines(done) == ["-c: No space left on device"]
    assert "Exception ignored" not in done.stderr


def test_interrupt_ends_in_one_line(tmp_path: pathlib.Path) -> None:
    started = tmp_path / "started"
    statement = f"open({str(started)!r}, 'w').close(); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(statement=statement)],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
        # A test run in the background may ignore the signal, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [line for line in stderr.splitlines() if line.startswith("-c: ")] == ["-c: interrupted"]
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ([], {}, ". None"),
        (["--allow_gemm_test"], {}, ". 1"),
        ([], {"FT_GEMM_CONFIG_DIR": "/x"}, "/x None"),
    ],
)
def test_tuning_follows_the_command_line(
    arguments: list[str], variables: dict[str, str], expected: str
) -> None:
    code = """
import os
from absl import flags
from fastertransformer_tf.programs import cli
flags.DEFINE_boolean("allow_gemm_test", False, "As the programs have it.")
names = "FT_GEMM_CONFIG_DIR", "FT_ALLOW_GEMM_TEST"
cli.run_program(lambda argv: print(*map(os.environ.get, names)), "Doc.", [])
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FT_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=kept | variables, cwd=REPOSITORY,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == expected, done.stderr
