"""What is installed: its tags, its files, and what its compiled part shows to other libraries."""

from __future__ import annotations

import ctypes
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.tags import parse_tag, sys_tags

from gnnsys import _core


def test_one_wheel_serves_all_pythons_from_3_12_on() -> None:
    text = distribution("gnnsys").read_text("WHEEL")
    assert text is not None
    lines = [line.split(": ", 1) for line in text.splitlines() if line]
    tags = {tag for key, value in lines if key == "Tag" for tag in parse_tag(value)}
    assert tags & set(sys_tags())
    stable = sys.version_info >= (3, 12)
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    expected = ("cp312", "abi3") if stable else (own, own)
    assert {(tag.interpreter, tag.abi) for tag in tags} == {expected}
    assert Path(_core.__file__).name.endswith(".abi3.so") == stable


def test_the_compiled_part_shows_its_entry_alone() -> None:
    # Names that it would have of itself: a look-up goes on in the libraries that it needs.
    library = ctypes.CDLL(_core.__file__)
    assert hasattr(library, "PyInit__core")
    needed = Path("/proc/self/maps").read_text()
    names = ["_ZTIN8nanobind4abi112python_errorE", "_ZTIN8nanobind12python_errorE"]
    if "liburing" not in needed:
        names.append("io_uring_queue_init_params")
    assert [name for name in names if hasattr(library, name)] == []
