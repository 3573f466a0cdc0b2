"""Starts without weights and data: A is random, B zero, so that nothing changes at first."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.spec import Settings


def generator_for(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the layer's name alone.

    So the start of a layer does not depend on the order of attaching, the device or the global
    random state.
    """
    key = f"{seed}:{name}"
    digest = hashlib.sha256(key.encode()).digest()
    number = int.from_bytes(digest[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def initial_A(
    settings: Settings,
    shape: Sequence[int],
    fan_in: int,
    generator: torch.Generator,
) -> Tensor:
    """Return a random A: (rank, in), or (experts, rank, in) for a stack; float32, on the CPU.

    Args:
        settings: rank, init, init_std and pairs; each pair is drawn by itself.
        shape: of the matrix (out, in), or of the stack (experts, out, in).
        fan_in: number of inputs that are non-zero at once; 1 for an embedding, whose input is
            one-hot.
        generator: source of all randomness.

    Source: "kaiming" is uniform(±1/sqrt(fan_in)), as loralib and PEFT; "gaussian" is Hu et al.,
        arXiv 2106.09685, section 4.1, with standard deviation 1/rank unless given; "orthogonal" has
        orthonormal rows (or columns, if rank > inputs), scaled to the same variance as "kaiming".
    """
    inputs = shape[-1]
    size = (*shape[:-2], settings.rank, inputs)
    if settings.init == "gaussian":
        std = settings.init_std or 1 / settings.rank
        return torch.randn(size, generator=generator) * std
    if settings.init == "orthogonal":
        gain = (inputs / (3 * fan_in)) ** 0.5
        size_of_pair = (*shape[:-2], settings.rank // settings.pairs, inputs)
        pairs = [draw_orthonormal(size_of_pair, generator) for _ in range(settings.pairs)]
        return torch.cat(pairs, dim=-2) * gain
    unit = torch.rand(size, generator=generator)
    return unit.mul_(2).sub_(1).div_(fan_in**0.5)


def draw_orthonormal(size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return random matrices with orthonormal rows, or columns if there are fewer of those."""
    rows, columns = size[-2:]
    tall = (*size[:-2], max(rows, columns), min(rows, columns))
    gaussian = torch.randn(tall, generator=generator, dtype=torch.float64)
    orthonormal = torch.linalg.qr(gaussian)[0].float()
    if rows < columns:
        orthonormal = orthonormal.mT
    return orthonormal.contiguous()
