"""A linear layer in int8, for comparison only: the worker does not use it (see docs/performance.md)."""

from __future__ import annotations

import torch

from worker.model.encoder import Activation, Linear


class Int8Linear(Linear):
    """Weights quantized per output channel; inputs quantized per call to their actual range."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        device: torch.device,
        dtype: torch.dtype,
        *,
        activation: Activation = "none",
    ) -> None:
        """As Linear; for CPUs only, through oneDNN."""
        self._scales = (weight.detach().abs().amax(dim=1) / 127).float()
        rounded = (weight.detach() / self._scales[:, None]).round().clamp(-127, 127).to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias, self._dtype, self._activation = bias.detach().float(), dtype, activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        low, high = torch.aminmax(x)
        lowest, highest = min(float(low), 0.0), max(float(high), 0.0)
        scale = (highest - lowest) / 255 or 1.0
        zero = round(-lowest / scale)
        codes = x.float().mul_(1 / scale).add_(zero).round_().clamp_(0, 255).to(torch.uint8)
        result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            codes.contiguous(), scale, zero, self._packed, self._scales, self._zeros, self._bias, 1.0, 0, self._dtype,
            self._activation, [], "none" if self._activation == "gelu" else "",
        )  # fmt: skip
        return result
