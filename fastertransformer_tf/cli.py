"""What the command-line programs of the package share: flags, `--help`, errors in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import app, flags

# A user's mistake: its message says all. Any other exception is ours and keeps its traceback.
_USER_ERRORS = (
    ValueError,
    OSError,  # A file that is missing, or may not be read or written; a full disk.
    ImportError,
    NotImplementedError,
    FloatingPointError,
    app.UsageError,  # absl would print the whole help.
)


def run_program(
    main: Callable[[list[str]], int | None], doc: str, flag_modules: Sequence[str]
) -> None:
    """Parses the flags, runs `main` and exits.

    absl shows with --help only flags of the script that was started, so an installed console
    script would show none: here the flags of `flag_modules` are shown.

    Args:
      main: Called with the arguments that are not flags (the first is the program's name).
      doc: Text above the flags in --help.
      flag_modules: Modules whose flags are explained, e.g. `fastertransformer_tf.import_hf`.
    """
    program = sys.argv[0]
    if {"--help", "-h", "-help", "--helpshort"} & set(sys.argv[1:]):
        print(f"{doc.strip()}\n\nFlags:\n{explain_flags([program, *flag_modules])}")
        raise SystemExit(0)

    def run(argv: list[str]) -> int | None:
        try:
            return main(argv)
        except _USER_ERRORS as error:
            print(f"{program}: {error}", file=sys.stderr)
            return 1

    app.run(run)


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

    def boolean(self, name: str, text: str) -> None:
        """Defines a flag that is false unless given."""
        flags.DEFINE_boolean(name, False, text, self.flag_values, self.owner)

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
      app.UsageError: There are some.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; every option is a flag")
