"""Says what pyproject.toml cannot: a wheel holds the .so, so it is of one platform."""

import pathlib
import platform

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

LIBRARY = pathlib.Path("fastertransformer_tf/lib/_fastertransformer_tf.so")


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 of this platform; the ops use TensorFlow's C++, not Python's."""

    def finalize_options(self) -> None:
        """Puts the package where platform-specific ones belong."""
        super().finalize_options()
        self.root_is_pure = False

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


setup(cmdclass={"bdist_wheel": PlatformWheel})
