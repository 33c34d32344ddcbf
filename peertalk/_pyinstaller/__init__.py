"""For PyInstaller, which asks each installed package where its hooks are (entry point
pyinstaller40)."""

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folders with hooks."""
    return [str(Path(__file__).parent)]
