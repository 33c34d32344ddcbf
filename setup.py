from runpy import run_path  # this folder is not on sys.path in an isolated build

from setuptools import setup

modules = [f"build_ffi.py:{name.lstrip('_')}" for name in run_path("build_ffi.py")["modules"]()]
# one wheel for 3.11 and all later; without modules it is pure
setup(cffi_modules=modules, options={"bdist_wheel": {"py_limited_api": "cp311"}})
