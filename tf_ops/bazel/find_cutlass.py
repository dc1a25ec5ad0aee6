"""Prints the folder of CUTLASS's headers in this interpreter's package nvidia-cutlass, version 4.2.

It holds include/cutlass and tools/util/include/cutlass. Builds with CUDA for compute capability 9.0
need it; nothing imports the package.
"""

import importlib.metadata
import importlib.util
import pathlib
import sys

VERSION = "4.2.0.0"


def main() -> None:
    """Prints the folder, or exits with a sentence that says what to install."""
    spec = importlib.util.find_spec("cutlass_library")
    version = importlib.metadata.version("nvidia-cutlass") if spec is not None else "missing"
    if spec is None or spec.origin is None or version != VERSION:
        sys.exit(
            f"nvidia-cutlass is {version} in {sys.executable}, expected {VERSION}, whose headers a "
            "CUDA build for compute capability 9.0 needs: run scripts/setup.sh, or "
            f"pip install --no-deps nvidia-cutlass=={VERSION}"
        )
    print(pathlib.Path(spec.origin).parent / "source")


if __name__ == "__main__":
    main()
