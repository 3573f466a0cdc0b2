"""A task with a known rank: a random network writes text, after one of its matrices was changed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import lorakit
from lorakit import Spec
from lorakit.data.encode import Example
from lorakit.train.config import TrainSpec
from lorakit.train.job import Job

WORDS = 64
WIDTH = 32
LONG = 16
# Each singular value of the planted change; those of the matrix itself reach to about 2.
SIZE = 3.0


class Network(nn.Module):
    """The next token from the one before: an embedding, one matrix, tanh, and an output layer.

    All of it is random and frozen.
    """

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WORDS)
        with torch.no_grad():
            for parameter in self.parameters():
                values = torch.randn(parameter.shape, generator=draw)
                size = WIDTH**0.5 if parameter.ndim > 1 else 10
                parameter.copy_(values / size)
            self.embed.weight.mul_(WIDTH**0.5)

    @property
    def base_model(self) -> nn.Module:
        return self

    def get_output_embeddings(self) -> None:  # the loss is taken of its logits
        return None

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, use_cache: bool = False
    ) -> Any:
        hidden = torch.tanh(self.middle(self.embed(input_ids)) / 2)
        return SimpleNamespace(logits=self.out(3 * hidden))


def teacher(rank: int) -> Network:
    """Return the network with a change of this rank, all of whose singular values are SIZE."""
    network = Network()
    draw = torch.Generator().manual_seed(1)
    U, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))
    V, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))
    with torch.no_grad():
        network.middle.weight.add_(SIZE * U[:, :rank] @ V[:, :rank].T)
    return network


def rows(network: Network, count: int, seed: int) -> list[Example]:
    """Return sequences that the network wrote."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (count, 1), generator=draw)
    with torch.no_grad():
        for _ in range(LONG):
            chance = network(ids[:, -1:]).logits[:, 0].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chance, 1, generator=draw)], 1)
    return [Example(ids=row, labels=row, row=i) for i, row in enumerate(ids.tolist())]


def job(rank: int, folder: Path, *, highest: int = 8, steps: int = 300, **more: Any) -> Job:
    """Return a run that learns the change of this rank with an adapter of the highest."""
    network = teacher(rank)
    model = Network()
    adapter = lorakit.attach(model, Spec(rank=highest, alpha=8, targets=("middle",)))
    settings = TrainSpec(
        model="planted",
        data="planted",
        output=str(folder),
        steps=steps,
        batch_size=32,
        lr=1e-2,
        threads=1,
        eval_every=steps,
        **more,
    )
    return Job(
        model,
        adapter,
        "causal-lm",
        rows(network, 2000, 2),
        rows(network, 250, 3),
        0,
        0,
        settings,
        1e-2,
        folder,
    )
