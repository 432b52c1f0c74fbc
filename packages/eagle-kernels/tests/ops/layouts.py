"""The same values in memory that is not contiguous: every way in which a caller's tensors come strided."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def _sliced_columns(x: Tensor) -> Tensor:
    """Columns cut out of a longer row, starting at an odd address."""
    room = x.new_zeros((*x.shape[:-1], x.shape[-1] + 4))
    room[..., 1:-3] = x
    return room[..., 1:-3]


def _strided_columns(x: Tensor) -> Tensor:
    room = x.new_zeros((*x.shape, 2))
    room[..., 0] = x
    return room[..., 0]


def _strided_rows(x: Tensor) -> Tensor:
    """Every third row of a longer tensor."""
    if x.dim() < 2:
        return x
    room = x.new_zeros((*x.shape[:-2], 3 * x.shape[-2], x.shape[-1]))
    room[..., ::3, :] = x
    return room[..., ::3, :]


def _transposed(x: Tensor) -> Tensor:
    """The last dimension is not the fastest."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def _swapped_rows(x: Tensor) -> Tensor:
    """The last two leading dimensions are the other way round in memory, as after transpose(1, 2) of attention heads."""
    return x.transpose(-3, -2).contiguous().transpose(-3, -2) if x.dim() > 2 else x


def _expanded(x: Tensor) -> Tensor:
    """One entry of the first dimension seen many times."""
    return x[:1].expand(x.shape) if x.dim() > 1 else x


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__.strip("_"): function
    for function in (_sliced_columns, _strided_columns, _strided_rows, _transposed, _swapped_rows, _expanded)
}
