"""Says what pyproject.toml cannot: a wheel holds the .so, so it is of one platform."""

import pathlib
import platform

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

LIBRARY = pathlib.Path("fastertransformer_tf/lib/_fastertransformer_tf.so")


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 of this platform; the ops use TensorFlow's C++, not Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        """Returns the tag, such as py3-none-linux_x86_64."""
        return "py3", "none", super().get_tag()[2]

    def run(self) -> None:
        """Builds the wheel.

        Raises:
          SystemExit: The library is not built.
        """
        if not LIBRARY.is_file():
            raise SystemExit(
                f"{LIBRARY} is missing, expected it built for {platform.machine()} before the "
                "wheel is: run scripts/build.sh"
            )
        super().run()


class PlatformDistribution(Distribution):
    """One whose package belongs where platform-specific ones do."""

    def has_ext_modules(self) -> bool:
        """Returns true: the library is not setuptools' to build, but it is there."""
        return True


setup(cmdclass={"bdist_wheel": PlatformWheel}, distclass=PlatformDistribution)
