"""Two processes shard a quantized layer with FSDP2 under a bf16 policy; not a bit may change."""

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing import assert_close

from lorasmith.quantized import Scheme, quantize_module


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(quantize_module(nn.Linear(96, 50, bias=False), Scheme()), nn.Linear(50, 6))


def shard(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = build()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    fully_shard(model[0], mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    torch.manual_seed(3)
    out = model(torch.randn(4, 96))
    out.float().sum().backward()
    whole = {name: p.full_tensor() for name, p in model[0].named_parameters()}
    if rank == 0:
        torch.save({"stored": whole, "out": out.detach().float()}, Path(folder) / "rank0.pt")
    dist.destroy_process_group()


def test_stored_bits_survive_two_process_sharding_under_a_bf16_policy(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(shard, args=(port, str(tmp_path)), nprocs=2)
    result = torch.load(tmp_path / "rank0.pt", weights_only=True)
    plain = build()
    for name, parameter in plain[0].stored.items():
        assert torch.equal(result["stored"][name], parameter), name
    torch.manual_seed(3)
    # the policy rounds the inputs and the dense layer to bf16: 8 bits
    assert_close(result["out"], plain(torch.randn(4, 96)).detach(), atol=0.05, rtol=0.05)
