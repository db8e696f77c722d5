"""Trains GraphSAGE by several ranks: PyG, DistributedDataParallel, and batches made by gnnsys.

    gnnsys generate community graph --nodes 20000
    torchrun --nproc-per-node 2 scripts/train_multi_gpu.py graph

A rank for each GPU, with NCCL; without GPUs on CPUs, with gloo. docs/ranks.md has two machines.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

import gnnsys

parser = argparse.ArgumentParser()
parser.add_argument("graph", help="a dataset folder, of gnnsys convert or generate")
parser.add_argument("--cache", help="memory for features, of all ranks together: 8GB")
parser.add_argument("--epochs", type=int, default=5)
options = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group()  # gloo for CPU tensors, NCCL for CUDA tensors
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
dataset = gnnsys.open_dataset(options.graph)
shared = {"cache": options.cache, "shared": True} if options.cache else {}
x = gnnsys.unified(f"{options.graph}/features.npy", **shared)  # rows stay in the file
data = Data(x=x, edge_index=dataset.edge_index(), y=dataset.labels())
share = {"batch_size": 512, "rank": rank, "world_size": world}  # its batches of each epoch
train = gnnsys.NeighborLoader(data, [15, 10], dataset.split("train"), shuffle=True, **share)
test = gnnsys.NeighborLoader(data, [15, 10], dataset.split("test"), **share)
sage = GraphSAGE(x.shape[1], 64, 2, int(data.y.max()) + 1, dropout=0.5).to(device)
model = DistributedDataParallel(sage)  # the mean of the ranks' gradients
adam = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(1, options.epochs + 1):
    with model.join():  # some ranks may have a batch less
        for batch in train:
            batch = batch.to(device)
            out = model.train()(batch.x, batch.edge_index)[: batch.batch_size]
            adam.zero_grad()
            F.cross_entropy(out, batch.y[: batch.batch_size]).backward()
            adam.step()
    right = torch.zeros(2, device=device)
    for batch in test:
        with torch.no_grad():
            out = sage.eval()(batch.x.to(device), batch.edge_index.to(device)).cpu()
        found = out[: batch.batch_size].argmax(1) == batch.y[: batch.batch_size].cpu()
        right += torch.tensor([found.sum(), len(found)], device=device)
    dist.all_reduce(right)
    if rank == 0:
        print(f"epoch {epoch}: {int(right[1])} test nodes, accuracy {right[0] / right[1]:.4f}")
dist.barrier()  # gloo's threads let go of what was reduced, before Python ends
dist.destroy_process_group()
