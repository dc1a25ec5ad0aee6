"""Runs a BERT encoder by transformers and by the op, with and without padding: answers and times.

  python sample/pytorch/encoder_sample.py 8 12 128 12 64 --time [--bf16] [--int8_mode 2]

Random weights, on a GPU where there is one. transformers' encoder is traced by TorchScript. The
outputs are compared (padding rows left out), then each encoder is timed: 100 calls to warm up and
100 that count. INT8 is calibrated on this very batch, and compared on average with the float model.
"""

import argparse
import os
import pathlib
import sys
import warnings
from collections.abc import Callable

import numpy as np
import torch
import transformers

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "torch_ops")]
import fastertransformer_torch  # noqa: E402
from fastertransformer_tf import spec  # noqa: E402
from fastertransformer_tf.errors import UserError  # noqa: E402
from fastertransformer_tf.programs import batch_runs  # noqa: E402
from fastertransformer_tf.quantization import calibrating  # noqa: E402
from fastertransformer_torch import calibration  # noqa: E402

# Largest difference between two encoders of this precision, whose outputs have a spread of 1.
TOLERANCE = {torch.float32: 3e-5, torch.float16: 3e-2, torch.bfloat16: 2.5e-1}
# Mean difference of INT8, whose ranges are those of the batch, from float.
INT8_TOLERANCE = 0.1

# Hidden states [B,S,H] of a call.
Run = Callable[[], torch.Tensor]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line; its names are those of the original sample."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{value} is given, expected at least 1")
        return value

    parser.add_argument("batch_size", type=positive, help="sequences in the batch")
    parser.add_argument("layer_num", type=positive, help="layers")
    parser.add_argument("seq_len", type=positive, help="padded length")
    parser.add_argument("head_num", type=positive, help="attention heads")
    parser.add_argument("head_size", type=positive, help="size of a head")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="float16 instead of float32")
    precision.add_argument("--bf16", action="store_true", help="bfloat16 instead of float32")
    parser.add_argument(
        "--int8_mode",
        type=int,
        default=0,
        choices=range(4),
        help="1, 2 or 3 (which is 2): int8 products; 0: none",
    )
    parser.add_argument("--time", action="store_true", help="measure the times too")
    parser.add_argument(
        "--avg_seq_len", type=int, default=-1, help="tokens of every sequence; -1: half of seq_len"
    )
    parser.add_argument(
        "--remove_padding",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also run the op with its padding removed (EFF-FT)",
    )
    parser.add_argument(
        "--allow_gemm_test",
        action="store_true",
        help="on a GPU search the fastest GEMMs at the first call",
    )
    parser.add_argument(
        "-thread_num",
        "--thread_num",
        type=positive,
        default=1,
        help="time the op in so many Python threads at once",
    )
    parser.add_argument("--iterations", type=positive, default=100, help="timed calls")
    return parser.parse_args(arguments)


def make_runs(arguments: argparse.Namespace, dtype: torch.dtype, length: int) -> dict[str, Run]:
    """The encoders on one batch, by name: transformers' HF, FT and, unless switched off, EFF-FT."""
    hidden_size = arguments.head_num * arguments.head_size
    config = transformers.BertConfig(
        vocab_size=1,
        hidden_size=hidden_size,
        num_attention_heads=arguments.head_num,
        num_hidden_layers=arguments.layer_num,
        intermediate_size=4 * hidden_size,
    )
    rng = np.random.default_rng(1)
    layers = spec.random_layers(rng, arguments.layer_num, hidden_size, 4 * hidden_size)
    state = {name: torch.tensor(a) for name, a in spec.hugging_face_state(layers).items()}
    shape = (arguments.batch_size, arguments.seq_len, hidden_size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden = torch.tensor(rng.standard_normal(shape, dtype=np.float32)).to(device, dtype)
    keys = (torch.arange(arguments.seq_len) < length).expand(shape[:2]).to(device)
    mask = keys[:, None, None, :].expand(-1, 1, arguments.seq_len, -1).contiguous()

    def model() -> transformers.BertModel:
        bert = transformers.BertModel(config, add_pooling_layer=False)
        bert.encoder.load_state_dict(state)
        return bert.eval().to(device, dtype)

    amax = None
    if arguments.int8_mode:
        quant_mode = f"ft{arguments.int8_mode}"
        # Of all tokens: those of the padding are computed, too, where it is not removed.
        ranges = calibration.calibrate_encoder(
            model().float().encoder,
            hidden.float(),
            torch.ones_like(keys),
            calibrating.CalibrationOptions("max", quant_mode=quant_mode, fold_shift=False),
        )
        amax = {f"encoder.{name}": value for name, value in ranges.items()}

    def op(remove_padding: bool) -> Run:
        optimized = fastertransformer_torch.optimize(
            model(), remove_padding=remove_padding, int8_mode=arguments.int8_mode, amax=amax
        )
        return lambda: optimized.encoder(hidden, keys).last_hidden_state

    traced = torch.jit.trace(_HiddenStates(model().encoder), (hidden, mask))
    runs: dict[str, Run] = {"HF": lambda: traced(hidden, mask), "FT": op(remove_padding=False)}
    if arguments.remove_padding:
        runs["EFF-FT"] = op(remove_padding=True)
    return runs


class _HiddenStates(torch.nn.Module):
    """An encoder that returns a tensor, as tracing wants it."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the last layer's hidden states [B,S,H]."""
        return self.encoder(hidden, attention_mask=mask).last_hidden_state


def time_ms(run: Run, iterations: int, threads: int = 1) -> float:
    """Milliseconds of a call, of `threads` at once, after as many calls that do not count.

    Raises:
      Exception: What a call in one of the threads raised.
    """

    def loop() -> None:
        with torch.inference_mode():
            for _ in range(iterations):
                run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()

    loop()
    return 1e3 * batch_runs.seconds_in_threads(loop, threads) / iterations


def main(argv: list[str]) -> None:
    """Compares and times; exits with 1 where an output disagrees."""
    arguments = parse(argv)
    half = max(1, arguments.seq_len // 2)
    length = half if arguments.avg_seq_len == -1 else arguments.avg_seq_len
    if not 1 <= length <= arguments.seq_len:
        raise UserError(f"--avg_seq_len is {length}, expected 1 to seq_len {arguments.seq_len}")
    if arguments.allow_gemm_test:
        # What is found is kept in the working directory, as the guide has it.
        os.environ |= {"FT_ALLOW_GEMM_TEST": "1"}
        os.environ.setdefault("FT_GEMM_CONFIG_DIR", os.curdir)
    print("=============== Argument ===============")
    for name, value in vars(arguments).items():
        print(f"{name}: {value}")
    print("========================================")
    dtype = torch.float16 if arguments.fp16 else torch.bfloat16 if arguments.bf16 else torch.float32
    with warnings.catch_warnings(), torch.inference_mode():
        # TorchScript, which the original compares with, is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        runs = make_runs(arguments, dtype, length)
        outputs = {name: run()[:, :length].float() for name, run in runs.items()}
    agree = True
    for name in list(runs)[1:]:
        difference = (outputs[name] - outputs["HF"]).abs()
        if arguments.int8_mode:
            agree = agree and bool(difference.mean() < INT8_TOLERANCE)
        else:
            agree = agree and torch.allclose(
                outputs[name], outputs["HF"], atol=TOLERANCE[dtype], rtol=1e-5
            )
        print(f"{name} Mean diff: {difference.mean():.3g}")
        print(f"{name} Max diff:  {difference.max():.3g}")
        print(f"{name} Min diff:  {difference.min():.3g}")
    if not agree:
        sys.exit("The outputs disagree, so no time is measured.")
    if arguments.time:
        labels = {
            "HF": "HuggingFaceEnocder",  # The original's spelling, which scripts look for.
            "FT": "FasterTransformer",
            "EFF-FT": "EFF-FasterTransformer",
        }
        for name, run in runs.items():
            threads = 1 if name == "HF" else arguments.thread_num
            milliseconds = time_ms(run, arguments.iterations, threads)
            print(f"[INFO] {labels[name]} time costs: {milliseconds:8.2f} ms")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
