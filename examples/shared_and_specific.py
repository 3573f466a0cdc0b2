"""Three tasks in one run: an adapter that all share, and one of each task's own, of other ranks and
other layers.

Every batch holds rows of all tasks; `route` sends each row to the shared adapter and to that of its
task.
"""

import torch
from torch import nn

import lorakit

torch.manual_seed(0)
base = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
common, own = torch.randn(8), {task: 0.5 * torch.randn(8) for task in ("red", "green", "blue")}
TASKS = (
    "red",
    "green",
    "blue",
    "red",
    "green",
    "red",
)  # one batch: as many rows of a task as one likes


def batch(rows: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (tasks, rows, 8), and what is wanted: what the base gives, the same for all
    tasks, and its own part.
    """
    x = torch.randn(len(TASKS), rows, 8)
    with torch.no_grad():
        plain = base_alone(x)
    wanted = [row @ (common + own[task]) for row, task in zip(x, TASKS, strict=True)]
    return x, plain + torch.stack(wanted).unsqueeze(-1)


def base_alone(x: torch.Tensor) -> torch.Tensor:
    lorakit.enable(base, None)
    return base(x)


specs = {
    "shared": lorakit.Spec(rank=8, targets=["0", "2"]),
    "red": lorakit.Spec(rank=4, targets=["2"]),
    "green": lorakit.Spec(rank=2, targets=["0"]),
    "blue": lorakit.Spec(rank=3, targets=["0", "2"]),
}
adapters = {name: lorakit.attach(base, spec, name=name) for name, spec in specs.items()}
optimizer = torch.optim.Adam(
    [p for adapter in adapters.values() for p in adapter.parameters()], lr=5e-3
)
for step in range(401):
    x, wanted = batch()
    with lorakit.route(base, [["shared", task] for task in TASKS]):
        loss = nn.functional.mse_loss(base(x), wanted)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 100 == 0:
        print(f"step {step:3}  loss {loss.item():.3f}")

x, wanted = batch(256)
for what, rows in {
    "the base": [None] * 6,
    "shared alone": ["shared"] * 6,
    "its own alone": list(TASKS),
    "shared + own": [["shared", task] for task in TASKS],
    "shared + another's": [
        ["shared", task] for task in ("green", "blue", "red", "green", "blue", "blue")
    ],
}.items():
    with torch.no_grad(), lorakit.route(base, rows):
        print(f"{what:<20}error {nn.functional.mse_loss(base(x), wanted).item():.3f}")
for name, adapter in adapters.items():
    adapter.save(f"{name}-adapter")  # each is a file of its own
