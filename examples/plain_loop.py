"""A plain PyTorch loop: a small network that knows the sine learns another wave, by 6 % of its
parameters.
"""

import math

import torch
from torch import nn

import lorakit

torch.manual_seed(0)
x = torch.linspace(-math.pi, math.pi, 256).unsqueeze(1)
model = nn.Sequential(
    nn.Linear(1, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1)
)


def train(parameters, wanted: torch.Tensor, lr: float, steps: int) -> float:
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), wanted)
        loss.backward()
        optimizer.step()
    return loss.item()


print(
    "the base learns sin(x):            loss "
    f"{train(model.parameters(), torch.sin(x), 3e-3, 300):.5f}"
)
new = torch.sin(x) + 0.5 * torch.cos(2 * x)
with torch.no_grad():
    print(
        "the base on the new wave:          loss "
        f"{nn.functional.mse_loss(model(x), new).item():.5f}"
    )

# "2" is the name of the 128 x 128 layer. The others are 128 x 1 and 1 x 128: a change of rank 1 is
# as large as they are.
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
adapter = lorakit.attach(model, lorakit.Spec(rank=4, alpha=8, targets=["2"]))
print(lorakit.coverage(model))
print(f"the adapter learns the new wave:   loss {train(adapter.parameters(), new, 1e-2, 300):.5f}")
adapter.save("wave")

lorakit.detach(model)
assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
print("detached: every tensor of the base is bit for bit what it was")

lorakit.attach(model, lorakit.Adapter.load("wave"))
lorakit.merge(model)
lorakit.detach(model)  # a merged model keeps its merged weights: a plain network now
with torch.no_grad():
    print(
        "read from disk and merged:         loss "
        f"{nn.functional.mse_loss(model(x), new).item():.5f}"
    )
