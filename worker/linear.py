"""One linear layer at its fastest: weights packed once for the processor, the activation in the same step."""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
from torch.nn import functional

ROWS_EXPECTED: Final = 800  # 16 images of 50 tokens; packing is for about so many rows, and serves all others

Activation = Literal["none", "gelu", "swish"]


class Linear:
    """x · weightᵀ + bias, then the activation; a snapshot of numbers, not a module to train."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        device: torch.device,
        dtype: torch.dtype,
        *,
        activation: Activation = "none",
    ) -> None:
        """`weight` (out, in) and `bias` (out,), fp32 on the CPU; converted here."""
        self._weight = weight.detach().to(device, dtype).contiguous()
        self._bias = bias.detach().to(device, dtype)
        self._activation: Activation = activation
        self._packed = _packed(self._weight, self._bias) if device.type == "cpu" else None
        if self._packed is not None:
            del self._weight  # the packed copy holds the same numbers

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        if self._packed is not None:
            return _run_packed(x.contiguous(), self._packed, self._bias, self._activation)
        result = functional.linear(x, self._weight, self._bias)
        if self._activation == "gelu":
            return functional.gelu(result)
        return functional.silu(result, inplace=True) if self._activation == "swish" else result


def _packed(weight: torch.Tensor, bias: torch.Tensor) -> Any:
    """The weight in oneDNN's own order, which is a tenth faster; None where this torch cannot do that.

    These two operators are what torch's own compiler calls on a CPU; they are not a public interface,
    so they are tried before they are relied on.
    """
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_EXPECTED)
        _run_packed(torch.zeros(1, weight.shape[1], dtype=weight.dtype), packed, bias, "gelu")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return packed


def _run_packed(x: torch.Tensor, packed: Any, bias: torch.Tensor, activation: Activation) -> torch.Tensor:
    algorithm = "none" if activation == "gelu" else ""  # exact, by the error function
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], algorithm)
    return result
