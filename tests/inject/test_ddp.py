"""Two processes of DistributedDataParallel train an attached adapter as one process does on both
halves.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import os, sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import lorakit

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.set_num_threads(1)
meeting = "file://" + sys.argv[1] + "/meet"
torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
adapter = lorakit.attach(model, lorakit.Spec(rank=2, alpha=2, bias="adapted"))
wrapped = DistributedDataParallel(model)
optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
x, y = torch.randn(8, 6), torch.randn(8, 3)
share = slice(rank * 8 // world, (rank + 1) * 8 // world)
for _ in range(5):
    optimizer.zero_grad()
    nn.functional.mse_loss(wrapped(x[share]), y[share]).backward()
    optimizer.step()
if rank == 0:
    adapter.save(sys.argv[1] + f"/world{world}")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    import os

    from lorakit import Adapter

    (tmp_path / "ddp.py").write_text(SCRIPT)
    for world in (1, 2):
        (tmp_path / "meet").unlink(missing_ok=True)
        command = [sys.executable, str(tmp_path / "ddp.py"), str(tmp_path)]
        runs = [
            subprocess.Popen(command, env={**os.environ, "RANK": str(r), "WORLD_SIZE": str(world)})
            for r in range(world)
        ]
        assert [run.wait() for run in runs] == [0] * world
    one, two = (
        dict(Adapter.load(tmp_path / f"world{world}").named_parameters()) for world in (1, 2)
    )
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)
    assert one["2.B"].abs().max() > 1e-3
