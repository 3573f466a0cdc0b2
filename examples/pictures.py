"""A plain PyTorch loop on pictures: a small convolutional network that knows upright digits learns
mirrored ones.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import lorakit

torch.manual_seed(0)
digits = load_digits()  # 1,797 pictures of 8 x 8 pixels, in the package
x, labels = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(2),
    nn.Flatten(),
    nn.Linear(128, 10),
)


def learn(parameters, pictures: torch.Tensor, epochs: int, lr: float) -> None:
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(epochs):
        for rows in torch.randperm(1400).split(64):
            loss = F.cross_entropy(model(pictures[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def right(pictures: torch.Tensor) -> float:
    return (model.eval()(pictures[test]).argmax(-1) == labels[test]).float().mean().item()


learn(model.train().parameters(), x, 6, 3e-3)
mirrored = x.flip(-1)
print(f"the base, upright digits:      {right(x):.1%}")
print(f"the base, mirrored digits:     {right(mirrored):.1%}")

# In eval mode: batch normalisation keeps the statistics of the base, which an adapter does not
# hold.
model.eval()
layers = [
    *lorakit.select(model, "conv", exclude=["0"]),
    "10",
]  # the first convolution has one channel: little to adapt
adapter = lorakit.attach(model, lorakit.Spec(rank=4, alpha=8, targets=layers))
assert lorakit.check(model, mirrored[:2]) == layers  # all of it takes part in the forward
print(lorakit.coverage(model))
learn(adapter.parameters(), mirrored, 6, 1e-2)
print(f"with adapter, mirrored digits: {right(mirrored):.1%}")
learned = right(mirrored)
lorakit.enable(model, None)
print(f"switched off, upright digits:  {right(x):.1%}")

adapter.save("mirrored")
lorakit.detach(model)
lorakit.attach(model, lorakit.Adapter.load("mirrored"))
undo = lorakit.merge(model)
assert abs(right(mirrored) - learned) < 0.01
