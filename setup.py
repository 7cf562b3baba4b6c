"""What pyproject.toml cannot say: the compiled kernels, optional and only where they can be of use."""

import os
import platform
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# MDRN_PURE=1 makes a wheel for every platform, without the kernels.
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


def library(name: str, source: str) -> Extension:
    """Return one of the libraries; without a compiler the package runs on torch's operators."""
    return Extension(
        name,
        [source],
        depends=[f"mdrn_plugin/networks/{name}.h" for name in ("amx", "fan_rows", "fp32_rows", "groups")],
        include_dirs=["mdrn_plugin/networks"],
        # Nobody reads the flags that comparisons of floats raise; with them loops would not be vectorised.
        extra_compile_args=["-std=c11", "-O3", "-g0", "-fno-trapping-math", "-fvisibility=hidden"],
        optional=True,
    )


libraries = [
    library("mdrn_plugin.networks.kernel", "mdrn_plugin/networks/kernel.c"),
    library("mdrn_plugin.networks.fp32_kernel", "mdrn_plugin/networks/fp32_kernel.c"),
    library("mdrn_plugin.networks.non_local_kernel", "mdrn_plugin/networks/non_local_kernel.c"),
    library("mdrn_plugin.networks.fan_kernel", "mdrn_plugin/networks/fan_kernel.c"),
    library("mdrn_plugin.training.kernel", "training/kernel.c"),
]
setup(
    ext_modules=libraries if wanted else [],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPython},
)
