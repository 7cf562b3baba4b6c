"""What pyproject.toml cannot say: the compiled kernel, optional and only where it can be of use."""

import os
import platform
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# MDRN_PURE=1 makes a wheel for every platform, without the kernel.
wanted = sys.platform == "linux" and platform.machine() == "x86_64" and not os.environ.get("MDRN_PURE")


class BuildLibrary(build_ext):
    """Build a plain library: it calls nothing of Python's and is no module to import."""

    def get_ext_filename(self, name: str) -> str:
        """Return its place; with a dot in front of the suffix no tool takes it for a module."""
        return os.path.join(*name.split(".")) + ".lib.so"


class AnyPython(bdist_wheel):
    """A wheel of this platform for every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return interpreter, interface and platform."""
        return "py3", "none", super().get_tag()[2]


kernel = Extension(
    "mdrn_plugin.networks.kernel",
    ["mdrn_plugin/networks/kernel.c"],
    extra_compile_args=["-std=c11", "-O3", "-fvisibility=hidden"],
    optional=True,  # without a compiler the package runs on torch's operators
)
setup(
    ext_modules=[kernel] if wanted else [],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPython},
)
