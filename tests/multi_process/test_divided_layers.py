"""Exact inference by ranks together: the bits of one process, on one machine or two."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

LAYERS = """
    import torch
    from torch_geometric.nn import GraphSAGE
    from gnnsys.loaders import CSC
    from gnnsys.training.exact_inference import run_layers
    from gnnsys.training.layer_reads import LayerReads
    from gnnsys.training.model_layers import model_layers

    NODES, COLUMNS = 3000, 8
    draw = torch.Generator().manual_seed(3)
    edge_index = torch.randint(0, NODES - 10, (2, 4000), generator=draw)
    hub = torch.stack([torch.arange(300), torch.zeros(300, dtype=torch.int64)])
    graph = CSC.from_edge_index(torch.cat([edge_index, hub], 1), NODES)
    x = torch.randn(NODES, COLUMNS, generator=draw)
    torch.manual_seed(1)
    net = GraphSAGE(COLUMNS, 16, num_layers=3, out_channels=5).eval()
    layers = model_layers(net, graph)
    few = torch.arange(0, NODES, 7)
    near = torch.cat([few, *(graph.indices[graph.indptr[v]:graph.indptr[v + 1]] for v in few)])
    last = (near.unique().long(), few)

    def outputs(chain=layers, **options):
        options = {"block_bytes": 20_000, "threads": 1, "device": torch.device("cpu")} | options
        return [rows[:].clone() for rows in run_layers(chain, x, graph, **options)]

    def in_sequence(memory=1, **options):
        return outputs(reads=LayerReads(("sequential",) * 3, memory), **options)

    def scoped(**options):
        return outputs(layers[:2], only=last, **options)
"""
ON_RANKS = (
    LAYERS
    + """
    import os
    from gnnsys.errors import StorageError
    from gnnsys.ranks import machine
    from gnnsys.training import inference_reads, sequential_inference
    from gnnsys.ranks.group import group_transport, join_ranks
    from gnnsys.training.divided_layers import DividedLayers
    from gnnsys.training.steps import AskedToEndError

    join_ranks("cpu", lambda: None)
    transport = group_transport()
    rank, found = transport.rank, {}
    inference_reads.GROUP = sequential_inference.GROUP = 512
    inference_reads._PIECE = 1
    for machines in (1, 2):
        machine._kernel = lambda: str(rank * machines // 3)
        ranks = DividedLayers()
        own = "".join(map(str, ranks._machines.own))
        before = transport.ledger.bytes["evaluation"]
        found[machines, "memory"] = outputs(ranks=ranks)
        place = f"out{own}.npy" if ranks.leads else None
        found[machines, "files"] = outputs(ranks=ranks, out=place)
        found[machines, "scope"] = scoped(ranks=ranks)
        found[machines, "in sequence"] = in_sequence(ranks=ranks, memory=1 + 100_000 * rank)
        found[machines, "one block"] = outputs(ranks=ranks, block_bytes=1 << 30)
        found[machines, "sent"] = transport.ledger.bytes["evaluation"] - before
        assert {each for each in os.listdir() if each.startswith("out")} <= {
            "out012.npy", "out01.npy", "out2.npy"
        }

    def fails(error, at, when):
        def layer(block):
            if rank == at and int(block.nodes[0]) >= when:
                raise error
            return layers[1](block)
        try:
            outputs([layers[0], layer], ranks=ranks)
        except type(error) as raised:
            return str(raised), raised.on_all_ranks
    found["first block"] = fails(StorageError("disk full"), 0, 0)
    found["later"] = fails(AskedToEndError("asked"), 2, 2900)
    told = []
    outputs(ranks=ranks, progress=lambda what, done, total: told.append((done, total)))
    found["progress"] = told
    torch.save(found, f"{rank}.pt")
"""
)


def test_ranks_compute_the_bits_of_one_process_wherever_layers_lie(
    start_ranks: Any, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gnnsys.training import inference_reads, sequential_inference

    monkeypatch.setattr(inference_reads, "GROUP", 512)
    monkeypatch.setattr(sequential_inference, "GROUP", 512)
    started = start_ranks(ON_RANKS, 3)
    one: dict[str, Any] = {}
    exec(dedent(LAYERS), one)
    whole, scoped = one["outputs"](), one["scoped"]()
    block, in_sequence = one["outputs"](block_bytes=1 << 30), one["in_sequence"](1 << 30)
    for rank, (status, _, errors) in enumerate(started.outputs()):
        assert status == 0, errors
        found = torch.load(tmp_path / "0" / f"{rank}.pt")
        for machines in (1, 2):
            for way, expected in (
                ("memory", whole), ("files", whole), ("scope", scoped), ("one block", block),
                ("in sequence", in_sequence),
            ):  # fmt: skip
                pairs = zip(found[machines, way], expected, strict=True)
                assert all(torch.equal(*pair) for pair in pairs), (rank, machines, way)
        assert found[1, "sent"] < 100_000 < found[2, "sent"]  # rows to the other machine alone
        assert found["first block"] == ("rank 0: disk full", True)
        assert found["later"] == ("rank 2: asked", True)
        assert found["progress"][-1] == (3000, 3000)


@pytest.mark.parametrize("groups", [((0, 1), (2,)), ((0, 2), (1, 3, 4)), ((0,), (1,), (2,))])
def test_rows_go_once_to_each_other_machine(
    groups: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gnnsys.memory import HostStore
    from gnnsys.ranks.local_hub import LocalHub
    from gnnsys.ranks.machine import Machines
    from gnnsys.training import divided_layers

    monkeypatch.setattr(divided_layers, "_SENT", 5 * 12)
    world, columns = sum(map(len, groups)), 3
    draw = torch.Generator().manual_seed(world)
    sizes = torch.randint(0, 20, (world,), generator=draw).tolist()
    sizes[1] = 0  # a rank without a block
    ends = torch.tensor(sizes).cumsum(0).tolist()
    ranges = [(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    whole = torch.randn(ends[-1], columns, generator=draw)
    tables = {group: torch.zeros_like(whole) for group in groups}
    stores = {}
    for group, table in tables.items():
        for rank in group:
            table[slice(*ranges[rank])] = whole[slice(*ranges[rank])]
            stores[rank] = HostStore(table, writable=True)
    hub = LocalHub(world)
    hub.drive(
        [
            divided_layers.send_rows(each, Machines(each.rank, groups), stores[each.rank], ranges)
            for each in hub.transports
        ]
    )
    assert all(torch.equal(table, whole) for table in tables.values())
    sent = sum(each.ledger.bytes["evaluation"] for each in hub.transports)
    assert sent == (len(groups) - 1) * whole.nbytes
