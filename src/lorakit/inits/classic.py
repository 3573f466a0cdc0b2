"""Starts that look at no weight and no data: A random, B zero, so that nothing changes at first."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.spec import Settings


def generator_for(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the layer's name alone.

    So the start of a layer does not change with the order of attaching, the device or the global
    random state.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def initial_A(
    settings: Settings, shape: Sequence[int], fan_in: int, generator: torch.Generator
) -> Tensor:
    """Return a random A: (rank, in), or (experts, rank, in) for a stack; float32, on the CPU.

    Args:
        settings: rank, init and init_std.
        shape: of the matrix (out, in), or of the stack (experts, out, in).
        fan_in: inputs that are non-zero at once; 1 for an embedding, whose input is one-hot.
        generator: all randomness comes from it.

    Source: "kaiming" is uniform(±1/sqrt(fan_in)), as loralib and PEFT; "gaussian" is Hu et al.,
        arXiv 2106.09685, section 4.1, with standard deviation 1/rank unless given; "orthogonal" has
        orthonormal rows (or columns, where rank > inputs), scaled to the same variance as
        "kaiming".
    """
    stack, size = shape[:-2], (settings.rank, shape[-1])
    if settings.init == "gaussian":
        return torch.randn((*stack, *size), generator=generator) * (
            settings.init_std or 1 / settings.rank
        )
    if settings.init == "orthogonal":
        tall = torch.randn((*stack, max(size), min(size)), generator=generator, dtype=torch.float64)
        Q = torch.linalg.qr(tall)[0].float()
        return (Q if Q.shape[-2:] == size else Q.mT).contiguous() * (
            shape[-1] / (3 * fan_in)
        ) ** 0.5
    return torch.rand((*stack, *size), generator=generator).mul_(2).sub_(1).div_(fan_in**0.5)
