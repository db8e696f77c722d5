"""The generated graphs that the examples run on: small, with something in them to learn."""

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData


def communities(
    nodes: int = 2000,
    classes: int = 5,
    features: int = 32,
    degree: int = 8,
    skew: float = 1.0,
    train_share: float = 0.5,
) -> Data:
    """Undirected; four of five edges join nodes of one class, and features tell classes faintly.

    With a ``skew`` above 1 few nodes have most of the edges.
    """
    draw = torch.Generator().manual_seed(0)
    nodes -= nodes % classes
    y = torch.arange(nodes) % classes
    source = pick(nodes * degree // 2, nodes, draw, skew)
    in_class = pick(len(source), nodes // classes, draw, skew) * classes + y[source]
    anywhere = pick(len(source), nodes, draw, skew)
    target = torch.where(torch.rand(len(source), generator=draw) < 0.8, in_class, anywhere)
    edges = torch.stack([torch.cat([source, target]), torch.cat([target, source])])
    x = faint(y, classes, features, draw)
    train_mask = torch.rand(nodes, generator=draw) < train_share
    return Data(x=x, edge_index=edges, y=y, train_mask=train_mask, test_mask=~train_mask)


def publications(papers: int = 1500) -> HeteroData:
    """Authors, papers, terms and conferences, joined as in DBLP; authors have labels."""
    draw, areas = torch.Generator().manual_seed(0), 4
    sizes = {"author": papers // 3, "paper": papers, "term": papers // 2, "conference": 2 * areas}
    area = {name: torch.arange(size) % areas for name, size in sizes.items()}
    data = HeteroData()
    for name in ("author", "paper", "term"):
        data[name].x = faint(area[name], areas, 32, draw)
    data["conference"].num_nodes = sizes["conference"]
    data["author"].y = area["author"]
    data["author"].train_mask = torch.rand(sizes["author"], generator=draw) < 0.5
    data["author"].test_mask = ~data["author"].train_mask
    for other, edges_each in (("author", 2), ("term", 5), ("conference", 1)):
        paper = torch.arange(papers).repeat(edges_each)
        of_area = pick(len(paper), sizes[other] // areas, draw) * areas + area["paper"][paper]
        anyone = pick(len(paper), sizes[other], draw)
        end = torch.where(torch.rand(len(paper), generator=draw) < 0.8, of_area, anyone)
        data["paper", "to", other].edge_index = torch.stack([paper, end])
        data[other, "to", "paper"].edge_index = torch.stack([end, paper])
    return data


def purchases(users: int = 300, items: int = 200, each: int = 20) -> HeteroData:
    """Users who rate the items that they buy, from 1 to 5, one after the other in time.

    Users buy what is of their own taste, and like it better. Edges are sorted by time.
    """
    draw, tastes = torch.Generator().manual_seed(0), 5
    user = torch.randperm(users * each, generator=draw) % users
    of_taste = pick(len(user), items // tastes, draw, skew=2) * tastes + user % tastes
    anything = pick(len(user), items, draw, skew=2)
    item = torch.where(torch.rand(len(user), generator=draw) < 0.7, of_taste, anything)
    likes = (item % tastes == user % tastes).float()
    noise = torch.randn(len(user), generator=draw)
    rating = (2.5 + 1.5 * likes + 0.5 * noise).round().clamp(1, 5)
    time = torch.arange(len(user))
    data = HeteroData()
    data["user"].x = faint(torch.arange(users) % tastes, tastes, 16, draw)
    data["item"].x = faint(torch.arange(items) % tastes, tastes, 16, draw)
    for kind, ends in (
        (("user", "buys", "item"), [user, item]),
        (("item", "bought_by", "user"), [item, user]),
    ):
        data[kind].edge_index, data[kind].time = torch.stack(ends), time
    data["user", "buys", "item"].rating = rating
    return data


def pick(count: int, among: int, draw: torch.Generator, skew: float = 1.0) -> Tensor:
    """(count,) numbers below ``among``, the small ones more often if there is a ``skew``."""
    return (among * torch.rand(count, generator=draw) ** skew).long().clamp(max=among - 1)


def faint(kind: Tensor, kinds: int, features: int, draw: torch.Generator) -> Tensor:
    """(nodes, features) noise, in which each node's kind shows a little."""
    directions = torch.randn(kinds, features, generator=draw)
    return 0.3 * directions[kind] + torch.randn(len(kind), features, generator=draw)
