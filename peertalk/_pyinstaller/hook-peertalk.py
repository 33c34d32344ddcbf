"""What a program in one file needs of peertalk beside what its imports say: what the compiled core
itself imports, and the metadata that peertalk.__version__ reads."""

from PyInstaller.utils.hooks import copy_metadata

hiddenimports = ["_cffi_backend"]
datas = copy_metadata("peertalk-lan")
