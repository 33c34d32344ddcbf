import os
import warnings
from runpy import run_path  # this folder is not on sys.path in an isolated build

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

modules = [f"build_ffi.py:{name.lstrip('_')}" for name in run_path("build_ffi.py")["modules"]()]


class BuildIfPossible(build_ext):
    """Without a C compiler, or the headers of Python, the package is the plain Python core. Who
    names a kind of build by PEERTALK_BUILD gets it or an error."""

    def build_extensions(self):
        try:
            super().build_extensions()
        except (BaseError, CCompilerError, OSError) as error:
            if os.environ.get("PEERTALK_BUILD"):
                raise
            # what follows looks for no module that is not there, and the wheel is a pure one
            self.extensions = self.distribution.ext_modules = []
            self.get_finalized_command("bdist_wheel").root_is_pure = True
            warnings.warn(
                f"the C core was not built ({error}): peertalk will run on its plain Python core, "
                "which is much slower; it needs a C compiler and the headers of Python",
                stacklevel=1,
            )


# one wheel for 3.11 and all later; without modules it is pure
setup(
    cffi_modules=modules,
    cmdclass={"build_ext": BuildIfPossible},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
