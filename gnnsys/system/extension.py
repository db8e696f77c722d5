"""The compiled extension, or one error that says how to build it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnsys.errors import BuildError

if TYPE_CHECKING:
    from gnnsys import _core as core
else:
    try:
        from gnnsys import _core as core
    except ImportError as error:
        raise BuildError(
            f"the compiled extension gnnsys._core cannot be imported ({error}): "
            "run `pip install .` (or `pip install -e .`) at the top of the checkout, and Python "
            "from another folder or with the editable install"
        ) from error

__all__ = ["core"]
