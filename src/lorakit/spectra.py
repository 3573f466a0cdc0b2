"""What a change of low rank looks like: singular values and effective rank, from the factors alone."""

import torch
from torch import Tensor

from lorakit.errors import SpecError


def singular_values(A: Tensor, B: Tensor, scale: float = 1.0) -> Tensor:
    """Return the singular values of `scale * B @ A` without building it.

    With thin QR factors B = Qb Rb and A.T = Qa Ra the product is Qb (Rb Ra.T) Qa.T, and orthonormal columns change no
    singular value: those of the small core Rb Ra.T are the answer.

    Args:
        A: (rank, in), any floating dtype. The factor next to the input.
        B: (out, rank), same rank and device as A.
        scale: alpha / rank, or the rule the adapter was trained with; its sign is ignored.

    Returns:
        (min(rank, out, in),) float64, descending, on A's device.

    Raises:
        SpecError: the ranks of A and B differ; the message names both shapes.

    Cost: O(rank**2 (out + in)); the dense SVD is O(out in min(out, in)).
    Source: Golub and Van Loan, Matrix Computations, 4th ed., section 5.2 (QR).

    >>> A = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    >>> B = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> singular_values(A, B, scale=0.5).tolist()
    [2.0, 1.5]
    """
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
        raise SpecError(f"A (rank, in) and B (out, rank) must share a rank: A is {tuple(A.shape)}, B is {tuple(B.shape)}.")
    Ra = torch.linalg.qr(A.detach().double().T, mode="r").R
    Rb = torch.linalg.qr(B.detach().double(), mode="r").R
    return torch.linalg.svdvals(Rb @ Ra.T) * abs(scale)


def factorize(M: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B with B A as near to M as a product of this rank can be, and M itself where its rank is no higher.

    This is what a change of weights is written as; it is not how LoRA finds one, which learns A and B by gradient descent.

    Args:
        M: (out, in), any floating dtype.
        rank: from 1 to min(out, in).

    Returns:
        A (rank, in) and B (out, rank), float64, on M's device; the singular values are shared evenly between them.

    Raises:
        SpecError: M is no matrix, or the rank is out of range.

    Cost: one dense SVD, O(out in min(out, in)).
    Source: Eckart and Young, 1936: the error is the root of the sum of the squares of the singular values left out.

    >>> A, B = factorize(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), rank=1)
    >>> (B @ A).abs().round(decimals=6).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    if M.ndim != 2 or isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(M.shape):
        most = f", at most {min(M.shape)}" if M.ndim == 2 else ""
        raise SpecError(f"A matrix and a rank of at least 1{most} are needed: M is {tuple(M.shape)}, rank is {rank!r}.")
    U, S, Vh = torch.linalg.svd(M.detach().double(), full_matrices=False)
    root = S[:rank].sqrt()
    return root.unsqueeze(1) * Vh[:rank], U[:, :rank] * root


def effective_rank(values: Tensor) -> float:
    """Return exp(entropy) of the singular values' shares: the number of directions that really count; 0.0 of zeros.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.

    >>> effective_rank(torch.tensor([1.0, 1.0, 0.0]))
    2.0
    """
    total = values.sum()
    if total == 0:
        return 0.0
    share = (values / total)[values > 0]
    return round(float(torch.exp(-(share * share.log()).sum())), 12)
