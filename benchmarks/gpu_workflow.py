"""Runs the programs of the package on a GPU with real data; keeps their output; prints one table.

    python3 -m benchmarks.gpu_workflow --data=../shared/data --out=benchmarks/results/gpu_workflow

MRPC by run_classifier_wrap, SQuAD by run_squad_wrap and its official evaluation,
sample/encoder_sample.py over nine shapes, the two profile programs. Most important first; what does
not fit into --budget seconds is named. Programs that are run for their accuracy run side by side,
and what they say of their speed is left out; the others run alone. --device=cpu rehearses with the
smallest sizes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks import report

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Of the data's README.md, which PyTorch gave.
MRPC_ACCURACY = 0.8063725
MRPC_FLOAT16_WITHIN = 0.005
SHAPES = [(b, s) for b in (1, 8, 32) for s in (32, 128, 384)]


@dataclasses.dataclass
class Step:
    """One program.

    Attributes:
      name: Of the table's row.
      command: After the interpreter.
      find: From the program's output to what the table shows; raises ValueError where it is wrong.
      alone: Its times are kept, so nothing else may run.
      need: Seconds that it may take.
      env: Beyond this process's environment; an empty value takes a variable out of it.
    """

    name: str
    command: list[str]
    find: Callable[[str], str]
    alone: bool = False
    need: float = 120.0
    env: dict[str, str] = dataclasses.field(default_factory=dict)


def accuracy(folder: pathlib.Path, within: float) -> Callable[[str], str]:
    """Reads and checks MRPC's accuracy."""

    def find(text: str) -> str:
        results = (folder / "eval_results.txt").read_text()
        value = float(re.search(r"eval_accuracy = ([0-9.]+)", results).group(1))
        if abs(value - MRPC_ACCURACY) > within:
            raise ValueError(f"accuracy {value}, expected {MRPC_ACCURACY} within {within}")
        return f"accuracy {value:.7f}"

    return find


def squad_scores(folder: pathlib.Path, data: pathlib.Path) -> Callable[[str], str]:
    """Evaluates the predictions by the official rules."""

    def find(text: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "fastertransformer_tf.squad_evaluate_v1_1",
             str(data / "squad" / "eval-v1.1.json"), str(folder / "predictions.json")],
            capture_output=True, text=True, check=True, cwd=_ROOT,
        )  # fmt: skip
        scores = json.loads(done.stdout[done.stdout.index("{") :])
        # The PyTorch scorer outside this project gave EM 57.24, F1 70.25.
        if abs(scores["exact_match"] - 57.24) > 0.5 or abs(scores["f1"] - 70.25) > 0.5:
            raise ValueError(f"{scores}, expected EM 57.24, F1 70.25 within 0.5")
        return f"EM {scores['exact_match']:.3f} F1 {scores['f1']:.3f}"

    return find


def lines(pattern: str) -> Callable[[str], str]:
    """Everything that matches, joined; at least one."""

    def find(text: str) -> str:
        found = [" ".join(match.split()) for match in re.findall(pattern, text)]
        if not found:
            raise ValueError(f"the output has no {pattern!r}")
        return "; ".join(found)

    return find


def sample_times(text: str) -> str:
    """The cross-checks and times of encoder_sample.py."""
    if "Cross check False" in text or "Cross check True" not in text:
        raise ValueError("the sample's outputs disagree")
    times = re.findall(r"(TF|FT-OP|EFF-OP)-while-time +([0-9.]+) ms( with \d+ threads)?", text)
    errors = re.findall(r"Max diff (\S+)", text)
    return " ".join(f"{n} {ms}{w.replace(' with', '')}" for n, ms, w in times) + (
        f" ms, max diff {' '.join(errors)}"
    )


def make_steps(data: pathlib.Path, work: pathlib.Path, cpu: bool) -> list[Step]:
    """All programs, most important first."""

    def module(name: str, *flags: str) -> list[str]:
        return ["-m", f"fastertransformer_tf.{name}", *flags]

    def model(name: str) -> list[str]:
        folder = data / name
        return [f"--vocab_file={folder}/vocab.txt", f"--bert_config_file={folder}/bert_config.json",
                f"--init_checkpoint={folder}/model.ckpt", "--do_lower_case=True"]  # fmt: skip

    mrpc = [
        "--task_name=MRPC", f"--data_dir={data}/glue_data/MRPC", *model("minilm_mrpc"),
        "--max_seq_length=128", "--eval_batch_size=8",
    ]  # fmt: skip
    squad = [*model("minilm_squad"), "--do_predict", f"--predict_file={data}/squad/eval-v1.1.json",
             "--max_seq_length=384", "--doc_stride=128", "--predict_batch_size=32"]  # fmt: skip
    variants = [
        ("float32", ["--floatx=float32"], 1e-6),
        ("float32 remove_padding", ["--floatx=float32", "--remove_padding"], 1e-6),
        ("float16", ["--floatx=float16"], MRPC_FLOAT16_WITHIN),
        ("float16 remove_padding", ["--floatx=float16", "--remove_padding"], MRPC_FLOAT16_WITHIN),
        ("TensorFlow float32", ["--use_tensorflow_transformer"], 1e-6),
    ]
    first: list[Step] = []
    later: list[Step] = []
    last: list[Step] = []
    for name, flags, within in variants:
        folder = work / f"mrpc_{name.replace(' ', '_')}"
        command = module(
            "run_classifier_wrap", "--do_eval", f"--output_dir={folder}", *mrpc, *flags
        )
        first.append(Step(f"MRPC {name}", command, accuracy(folder, within)))
        folder = work / f"squad_{name.replace(' ', '_')}"
        command = module("run_squad_wrap", f"--output_dir={folder}", *squad, *flags)
        later.append(Step(f"SQuAD {name}", command, squad_scores(folder, data), need=240))
    # What a user gets who leaves TensorFlow's default, which allows TF32, as it is.
    folder = work / "mrpc_tf32"
    command = module("run_classifier_wrap", "--do_eval", f"--output_dir={folder}", *mrpc)
    find = accuracy(folder, MRPC_FLOAT16_WITHIN)
    first.append(Step("MRPC TF32", command, find, env={"NVIDIA_TF32_OVERRIDE": ""}))
    sample = str(_ROOT / "sample" / "encoder_sample.py")
    times = ["-time", "1"]
    if cpu:
        times += ["-l", "1", "-iterations", "2"]
        shapes = [(1, 32)]
    else:
        # XLA compiles three graphs a shape, so the large ones are enough for float32.
        shapes = SHAPES
    timed = []
    for precision, some in (("fp16", shapes), ("fp32", shapes[::4]), ("bf16", shapes[-1:])):
        for batch, seq in some:
            command = [sample, "-batch", str(batch), "-s", str(seq), "-d", precision, *times]
            name = f"sample {precision} {batch}x{seq}"
            timed.append(Step(name, command, sample_times, alone=True, need=90))
    command = [sample, "-batch", "8", "-s", "32", "-d", "fp16", "-thread_num", "8", *times]
    timed.insert(0, Step("sample fp16 8x32, 8 threads", command, sample_times, alone=True, need=90))
    sizes = ["--num_hidden_layers=1", "--num_iter=2"] if cpu else ["--predict_batch_size=32"]
    pattern = r"average time \(seconds\) elapsed ((?:original tensorflow|fast transformer): \S+)"
    for name, flags, _ in variants[:4]:
        kind = name.replace(" ", "_")
        common = [f"--output_dir={work}/profile_{kind}", *flags]
        command = module(
            "profile_transformer_inference", f"--profiling_output_file={kind}.tsv", *sizes, *common
        )
        last.append(Step(f"profile_transformer {name}", command, lines(pattern), alone=True))
    for name, flags, _ in (variants[0], variants[3]):
        kind = name.replace(" ", "_")
        command = module(
            "profile_bert_inference", f"--profiling_output_file=bert_{kind}.tsv",
            f"--output_dir={work}/profile_{kind}", *mrpc, *flags, "--num_iter=20",
        )  # fmt: skip
        last.append(Step(f"profile_bert {name}", command, lines(pattern), alone=True))
    # Threads; FP16 at the smallest, a middle and the largest shape; the rest fills the time.
    front = timed[:2] + timed[5:6] + timed[9:10]
    rest = [step for step in timed if step not in front]
    return [*first, *later, front[0], *last[:4], *front[1:], *last[4:], *rest]


def run_step(step: Step, limit: float) -> dict[str, str | float]:
    """Runs one program."""
    begin = time.time()
    env = dict(os.environ, TF_FORCE_GPU_ALLOW_GROWTH="true")
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # IEEE float32 in NVIDIA's libraries: accuracy is compared with a CPU's, times with the op's.
    env["NVIDIA_TF32_OVERRIDE"] = "0"
    env = {key: value for key, value in (env | step.env).items() if value}
    env["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [env.get("PYTHONPATH")])])
    row: dict[str, str | float] = {"name": step.name, "state": "ok", "result": "", "log": ""}
    try:
        done = subprocess.run(
            [sys.executable, *step.command], capture_output=True, text=True, env=env, cwd=_ROOT,
            timeout=limit,
        )  # fmt: skip
        row["log"] = done.stdout[-6000:] + "\n" + done.stderr[-6000:]
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [""]
            # After a crash Python lists its modules last.
            errors = [line for line in said if "rror" in line and "Extension" not in line]
            row |= {"state": f"FAILED ({done.returncode})", "result": (errors or said)[-1][:300]}
        else:
            row["result"] = step.find(done.stdout)
    except subprocess.TimeoutExpired as error:
        row |= {"state": "cut off", "log": str(error.stdout)[-3000:] + str(error.stderr)[-3000:]}
    except (ValueError, OSError, AttributeError, subprocess.CalledProcessError) as error:
        row |= {"state": "WRONG", "result": f"{type(error).__name__}: {error}"}
    row["seconds"] = round(time.time() - begin, 1)
    print(f"[{row['seconds']:6.1f} s] {step.name}: {row['state']} {row['result']}", flush=True)
    return row


def main() -> None:
    """Runs all steps; exits with 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = pathlib.Path(os.environ.get("FT_TEST_DATA", _ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=pathlib.Path, default=data)
    parser.add_argument("--out", type=pathlib.Path, default=report.RESULTS / "gpu_workflow")
    parser.add_argument("--budget", type=float, default=360, help="seconds for everything")
    parser.add_argument("--jobs", type=int, default=5, help="programs side by side")
    parser.add_argument("--only", default="", help="regular expression of step names")
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    args = parser.parse_args()
    begin = time.time()
    gpu = report.gpu_state()
    work = pathlib.Path(tempfile.mkdtemp(prefix="gpu_workflow."))
    steps = make_steps(args.data.resolve(), work, args.device == "cpu")
    steps = [step for step in steps if re.search(args.only, step.name)]
    rows: list[dict[str, str | float]] = []

    def left() -> float:
        return args.budget - (time.time() - begin)

    def keep() -> str:
        seconds = f"{time.time() - begin:.0f} s"
        content = {
            **report.header(), "gpu": gpu, "device": args.device, "seconds": seconds, "steps": rows,
        }  # fmt: skip
        report.write_json(args.out.with_name(args.out.name + ".json"), content)
        table = report.markdown_table(
            ["program", "state", "s", "result"],
            [[r["name"], r["state"], r["seconds"], str(r["result"]).replace("|", "/")[:160]]
             for r in rows],
        )  # fmt: skip
        text = (
            f"# The package's programs on a GPU, {content['date']}\n\n{gpu['name']}, driver "
            f"{gpu.get('driver_version')}; {content['commit']}.\n\n{table}"
        )
        report.write_text(args.out.with_name(args.out.name + ".md"), text)
        return text

    args.out = args.out.resolve()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_name(args.out.name + ".log").unlink(missing_ok=True)

    def run_some(some: list[Step], jobs: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            futures = [
                pool.submit(
                    lambda s: run_step(s, min(s.need, left())) if left() > 5 else None, step
                )
                for step in some
            ]
            for step, future in zip(some, futures, strict=True):
                row = future.result()
                text = row.pop("log", "") if row else ""
                with args.out.with_name(args.out.name + ".log").open("a") as file:
                    file.write(f"=== {step.name}\n{text}\n")
                row = row or {
                    "name": step.name,
                    "state": "no time left",
                    "seconds": 0,
                    "result": "",
                }
                rows.append(row)
                keep()

    # Accuracy side by side, then what is timed, one at a time.
    run_some([step for step in steps if not step.alone], args.jobs)
    run_some([step for step in steps if step.alone], 1)
    print(keep())
    bad = [row for row in rows if row["state"] != "ok"]
    if bad or not rows:
        sys.exit(f"{len(bad)} of {len(rows)} steps are not ok")


if __name__ == "__main__":
    main()
