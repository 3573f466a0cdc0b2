"""Two adapters on one base: switched, weighted and added, without a weight being written."""

import torch
from torch import nn

import lorakit

torch.manual_seed(0)
base = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 2))
x = torch.randn(512, 8)
with torch.no_grad():
    plain = base(x)
WANTED = {"left": plain + x[:, :2], "right": plain - x[:, 2:4]}  # what each adapter has to learn


def error(wanted: torch.Tensor) -> float:
    with torch.no_grad():
        return nn.functional.mse_loss(base(x), wanted).item()


for name, wanted in WANTED.items():
    adapter = lorakit.attach(base, lorakit.Spec(rank=2, alpha=4), name=name)
    lorakit.enable(base, name)  # this one alone: what else is attached does not count
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.mse_loss(base(x), wanted).backward()
        optimizer.step()

print("on                          distance to left   to right   to the base")
for which in (None, "left", "right", {"left": 0.5}, ["left", "right"], {"left": 0.5, "right": 0.5}):
    lorakit.enable(base, which)
    print(
        f"{which!s:<28}{error(WANTED['left']):16.4f}{error(WANTED['right']):11.4f}{error(plain):14.4f}"
    )
print("on now:", lorakit.enabled(base))

undo = lorakit.merge(base)  # what is on, at its weights, goes into the base
merged = error(WANTED["left"])
lorakit.unmerge(base, undo)
assert abs(merged - error(WANTED["left"])) < 1e-5
lorakit.detach(base, "right")
print("attached now:", list(lorakit.attached(base)))
