"""Small tensor operations, each a faster spelling of a plain one, the same to the bit."""
import torch
from torch import Tensor


def pick(rows: Tensor, *values: Tensor) -> list[Tensor]:
    """values[rows] of several values (N, ...) at one index (M,); faster than indexing."""
    return [value.index_select(0, rows) for value in values]


def rows_of(values: Tensor, index: Tensor) -> Tensor:
    """values[index] of values (K, ...) and an index (N,); a view without copy if K is 1."""
    if len(values) == 1:
        return values.expand(len(index), *values.shape[1:])
    return values.index_select(0, index)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(N, 3), (N, 3) -> (N, 1), by columns: three times as fast as a sum over rows of three."""
    x, y, z = (a * b).split(1, dim=-1)
    return x + y + z


def mix(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """torch.lerp of (N, 3) by a weight (N, 1), which is expanded first: much faster."""
    return torch.lerp(start, end, weight.expand(-1, 3).contiguous())


def ragged_arange(counts: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) counts -> owner and number within its owner of each of their sum."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - first.index_select(0, owner)
