"""How ``--model`` names a model, and what a model of the user's own cannot be combined with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gnnsys.choices import MODELS
from gnnsys.errors import ArgumentError
from gnnsys.system.names import nearest

if TYPE_CHECKING:
    from gnnsys.config.train import TrainConfig

__all__ = ["check_model", "is_user_model"]

_PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_user_model(model: str) -> bool:
    """Whether a model is named by its place, not by a kind that gnnsys has.

    >>> is_user_model("my.nets:make"), is_user_model("sage")
    (True, False)
    """
    return ":" in model


def check_model(config: TrainConfig) -> None:
    """Raises ArgumentError for a name of no model, or options that do not fit it."""
    model = config.model
    if not is_user_model(model):
        if model not in MODELS:
            raise ArgumentError(
                f"--model {model}: expected one of {', '.join(MODELS)}, or PACKAGE.MODULE:FACTORY "
                f"for one of your own{nearest(model, MODELS)}"
            )
        return
    if not _PLACE.fullmatch(model):
        raise ArgumentError(
            f"--model {model}: expected PACKAGE.MODULE:FACTORY, such as my_models:make"
        )
    for name in ("static_shapes", "cooperative"):
        if getattr(config, name):
            raise ArgumentError(
                f"--{name.replace('_', '-')} --model {model}: takes models of gnnsys, which it "
                f"knows the layers of: {', '.join(MODELS)}; leave it out"
            )
