"""What describes a generated graph: one dataclass for function, command and graph.json."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import numpy as np
import pytest

from gnnsys.config.generate import CommunityConfig, RmatConfig
from gnnsys.generate import generate_community, generate_rmat
from gnnsys.generate.graphs import CommunityGraph, RmatGraph

KINDS: list[Any] = [
    (generate_rmat, RmatGraph, RmatConfig),
    (generate_community, CommunityGraph, CommunityConfig),
]


@pytest.mark.parametrize(("write", "graph", "config"), KINDS)
def test_function_and_command_take_the_fields_of_the_graph(
    write: Any, graph: Any, config: Any
) -> None:
    fields = {each.name for each in dataclasses.fields(graph)}
    parameters = inspect.signature(write).parameters
    assert parameters.keys() == {"path", "memory", "threads", "progress"} | fields
    assert {each.name for each in dataclasses.fields(config)} == {
        "out",
        "memory",
        "threads",
    } | fields
    for each in dataclasses.fields(graph):
        wanted = inspect.Parameter.empty if each.default is dataclasses.MISSING else each.default
        assert parameters[each.name].default == wanted


def test_numbers_of_numpy_become_those_that_json_has() -> None:
    graph = RmatGraph(scale=np.int64(5), a=np.float32(0.5), undirected=np.bool_(True))  # type: ignore[arg-type]
    about = json.loads(json.dumps(graph.about()))
    assert (about["kind"], about["scale"], about["a"]) == ("rmat", 5, 0.5)


@pytest.mark.parametrize("write", [generate_rmat, generate_community])
def test_an_unknown_parameter_is_refused(write: Any, tmp_path: Any) -> None:
    with pytest.raises(TypeError, match="degrees"):
        write(tmp_path / "g", degrees=3)
    assert not any(tmp_path.iterdir())
