"""What the command-line programs of the package share: flags, `--help`, errors in one sentence.

It does not import TensorFlow, so that a program that needs none starts at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

try:
    from absl import app, flags, logging
except ModuleNotFoundError as error:  # Before there is anything that could tell it as usual.
    raise SystemExit(
        f"{os.path.basename(sys.argv[0])}: absl-py is not installed, which this program needs: "
        "pip install 'fastertransformer_tf[programs]'"
    ) from error

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.loading.import_hook import OpsNotLoadedWarning
from fastertransformer_tf.programs import error_lines

_OWNER = "fastertransformer_tf.programs.cli"
# The exit status of a program that Ctrl-C ended, as shells count it.
_INTERRUPTED = 130


def run_program(
    main: Callable[[list[str]], int | None],
    doc: str,
    flag_modules: Sequence[str],
    define_flags: Callable[[flags.FlagValues], None] | None = None,
) -> None:
    """Parses the flags, runs `main` and exits; an error is told in one line on stderr.

    The line is `program: sentence` and the exit status 1. An exception that no user can have
    caused is marked as a fault of the program. --traceback shows where an error comes from.

    absl shows with --help only flags of the script that was started, so an installed console
    script would show none: here the flags of `flag_modules` are shown.

    Args:
      main: Called with the arguments that are not flags (the first is the program's name); returns
        the exit status, None for 0.
      doc: Text above the flags in --help.
      flag_modules: Modules whose flags are explained, e.g. `fastertransformer_tf.import_hf`.
      define_flags: Defines flags that are not defined yet.
    """
    _define_traceback_flag()
    # Where the ops are needed, that they cannot be loaded is told as an error.
    warnings.simplefilter("ignore", OpsNotLoadedWarning)

    def define() -> None:
        if define_flags is not None:
            define_flags(flags.FLAGS)
        if {"--help", "-h", "-help", "--helpshort"} & set(sys.argv[1:]):
            shown = explain_flags([sys.argv[0], *flag_modules, _OWNER])
            print(f"{doc.strip()}\n\nFlags:\n{shown}")
            sys.stdout.flush()
            raise SystemExit(0)

    def parse(argv: Sequence[str]) -> list[str]:
        arguments: list[str] = []
        status = _told(lambda: arguments.extend(flags.FLAGS(argv)))
        if status:
            raise SystemExit(status)
        return arguments

    def run(argv: list[str]) -> int:
        _let_tuning_follow_the_command_line()

        def flushed_main() -> int | None:
            status = main(argv)
            sys.stdout.flush()  # Here, where a full disk is told as any other error is.
            return status

        return _told(flushed_main)

    status = _told(define)
    if status:
        raise SystemExit(status)
    app.run(run, flags_parser=parse)


def run_flag_program(
    define_flags: Callable[[flags.FlagValues], None],
    run: Callable[[flags.FlagValues], object],
    doc: str | None,
    owners: Sequence[str],
) -> None:
    """The console entry point of a program whose options are all flags.

    Args:
      define_flags: Defines the program's flags.
      run: Runs the program with parsed flags.
      doc: The program's docstring, for --help.
      owners: The modules whose flags --help explains.
    """

    def main(argv: list[str]) -> None:
        no_positional(argv)
        quiet_logs(flags.FLAGS)
        run(flags.FLAGS)

    run_program(main, doc or "", owners, define_flags)


def run_module_program(module: str, doc: str | None, owners: Sequence[str]) -> None:
    """`run_flag_program` with the `define_flags` and `run` of a module.

    The module is imported here, where an import that fails is told in one line.

    Args:
      module: Its name.
      doc: The program's docstring, for --help.
      owners: The modules whose flags --help explains.
    """

    def define_flags(flag_values: flags.FlagValues) -> None:
        importlib.import_module(module).define_flags(flag_values)

    def run(flag_values: flags.FlagValues) -> None:
        importlib.import_module(module).run(flag_values)

    run_flag_program(define_flags, run, doc, owners)


def _told(action: Callable[[], int | None]) -> int:
    """Runs a part of a program; tells its error in one line. Returns the exit status."""
    program = os.path.basename(sys.argv[0]).removesuffix(".py")
    # As an argument, too: the error may come before the flags are parsed.
    shows = "--traceback" in sys.argv or (flags.FLAGS.is_parsed() and flags.FLAGS.traceback)
    try:
        return action() or 0
    except KeyboardInterrupt:
        line, status = "interrupted", _INTERRUPTED
        if shows:
            traceback.print_exc()
    except Exception as error:
        line, status = error_lines.describe_error(error), 1
        if shows:
            traceback.print_exc()
    print(f"{program}: {line}", file=sys.stderr)
    _give_up_stdout_if_broken()
    return status


def _let_tuning_follow_the_command_line() -> None:
    """Lets the ops read and write gemm_config.in as this command line asks for.

    FasterTransformer's guide leaves encoder_gemm's file in the working directory, and its programs
    read it there. The ops themselves look at the environment alone, so that neither the folder that
    a server was started in nor a model that it loads makes them read or write a file.
    """
    os.environ.setdefault("FT_GEMM_CONFIG_DIR", os.curdir)
    # The sample's flag is a text, as the original's.
    if "allow_gemm_test" in flags.FLAGS and flags.FLAGS.allow_gemm_test in (True, "True"):
        os.environ["FT_ALLOW_GEMM_TEST"] = "1"


def _give_up_stdout_if_broken() -> None:
    """Sends what stdout still holds nowhere if it cannot be written.

    Python would try again at its end and add lines of its own (a full disk, a closed pipe).
    """
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _define_traceback_flag() -> None:
    """Defines --traceback, which every program has."""
    if "traceback" not in flags.FLAGS:
        FlagDefiner(flags.FLAGS, _OWNER).boolean(
            "traceback", "Show where in the code an error comes from, for a bug report."
        )


def quiet_logs(flag_values: flags.FlagValues) -> None:
    """Logs warnings and errors only (google's code logs every tensor) unless --verbosity is given.

    Args:
      flag_values: The process's parsed flags.
    """
    if flag_values["verbosity"].present:
        return
    logging.set_verbosity(logging.WARNING)
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None:
        # What TensorFlow warns of here are functions of its own that it finds out of date.
        tensorflow.compat.v1.logging.set_verbosity(tensorflow.compat.v1.logging.ERROR)


def require_flags(flag_values: flags.FlagValues, names: Iterable[str]) -> None:
    """Refuses a command line that lacks flags.

    Raises:
      UserError: Naming all that are missing or empty.
    """
    missing = [f"--{name}" for name in names if flag_values[name].value in (None, "")]
    if missing:
        raise UserError(f"required flags are missing: {', '.join(missing)}")


def explain_flags(modules: Iterable[str]) -> str:
    """Explains the flags that the modules define, in the order of their names.

    Args:
      modules: Names as absl knows them; that of a script started with `python -m` is its path.

    Returns:
      One paragraph a flag: its name, meaning and default.
    """
    known = flags.FLAGS.flags_by_module_dict()
    found = {flag.name: flag for module in modules for flag in known.get(module, ())}
    lines = []
    for name, flag in sorted(found.items()):
        values = f" <{'|'.join(flag.enum_values)}>" if hasattr(flag, "enum_values") else ""
        default = "" if flag.default is None else f" (default: {flag.default})"
        text = f"--{name}:{values} {flag.help or ''}{default}"
        lines.append(flags.text_wrap(text, indent="      ", firstline_indent="  "))
    return "\n".join(lines)


class FlagDefiner:
    """Defines flags for a module, under whose name --help finds them."""

    def __init__(self, flag_values: flags.FlagValues, owner: str) -> None:
        """Takes where to define the flags, and the module's name."""
        self.flag_values = flag_values
        self.owner = owner

    def string(self, name: str, default: str | None, text: str) -> None:
        """Defines a flag of any text."""
        self._define(flags.ArgumentParser[str](), name, default, text)

    def integer(self, name: str, default: int, text: str, minimum: int | None = None) -> None:
        """Defines a flag of a whole number, at least `minimum`."""
        self._define(flags.IntegerParser(lower_bound=minimum), name, default, text)

    def number(self, name: str, default: float, text: str, lowest: float, highest: float) -> None:
        """Defines a flag of a number from `lowest` to `highest`."""
        parser = flags.FloatParser(lower_bound=lowest, upper_bound=highest)
        self._define(parser, name, default, text)

    def several(self, name: str, text: str) -> None:
        """Defines a flag of any text that may be given several times; its value is a list."""
        flags.DEFINE_multi_string(name, [], text, self.flag_values, module_name=self.owner)

    def boolean(self, name: str, text: str, *, default: bool = False) -> None:
        """Defines a flag that is false or true."""
        flags.DEFINE_boolean(name, default, text, self.flag_values, self.owner)

    def enum(self, name: str, default: str, values: Sequence[str], text: str) -> None:
        """Defines a flag that is one of `values`."""
        flags.DEFINE_enum(name, default, list(values), text, self.flag_values, self.owner)

    def _define(
        self, parser: flags.ArgumentParser[Any], name: str, default: object, text: str
    ) -> None:
        serializer = flags.ArgumentSerializer[Any]()
        flags.DEFINE(parser, name, default, text, self.flag_values, serializer, self.owner)


def no_positional(argv: Sequence[str]) -> None:
    """Refuses arguments that are not flags.

    Raises:
      UserError: There are some.
    """
    if len(argv) > 1:
        raise UserError(f"unexpected arguments: {' '.join(argv[1:])}; every option is a flag")
