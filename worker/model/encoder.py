"""Image encoders: from uint8 pixels to unit vectors, numerically equivalent to open_clip.

OpenClipEncoder runs any open_clip image tower unchanged. FastViT runs the standard vision transformer with
fewer operations: normalization is folded into the patch embedding, the last block computes only the class
token, and attention and activation are fused operators. worker/model/parity.py compares its vectors with
open_clip's each time a model is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

import open_clip.transformer
import torch
from torch import Tensor
from torch.nn import functional

PIXEL_OFFSET: Final = 128  # pixels minus this are 8-bit integers, exact in fp16 and bf16
QUICK_GELU_FACTOR: Final = 1.702  # QuickGELU(x) = x · sigmoid(1.702 x) = silu(1.702 x) / 1.702
PACKED_ROWS: Final = 800  # 16 images of 50 tokens; packing is tuned for this many rows and works for all others
Activation = Literal["none", "gelu", "swish"]


class Linear:
    """x · weightᵀ + bias, then the activation; holds a converted copy of the weights, for inference only."""

    def __init__(
        self, weight: Tensor, bias: Tensor, device: torch.device, dtype: torch.dtype, activation: Activation = "none"
    ) -> None:
        """`weight` (out, in) and `bias` (out,) are fp32 on the CPU."""
        self._weight = weight.detach().to(device, dtype).contiguous()
        self._bias = bias.detach().to(device, dtype)
        self._activation: Activation = activation
        self._packed = _packed(self._weight, self._bias) if device.type == "cpu" else None
        if self._packed is not None:
            del self._weight  # the packed copy is enough

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if self._packed is not None:
            return _run_packed(x.contiguous(), self._packed, self._bias, self._activation)
        result = functional.linear(x, self._weight, self._bias)
        if self._activation == "gelu":
            return functional.gelu(result)
        return functional.silu(result, inplace=True) if self._activation == "swish" else result


def _packed(weight: Tensor, bias: Tensor) -> Any:
    """The weight in oneDNN's blocked layout, which is a tenth faster; None where this torch has no support.

    torch's compiler calls these two operators on CPUs. They are not a public interface, so they are
    tried once before they are relied on.
    """
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
        _run_packed(torch.zeros(1, weight.shape[1], dtype=weight.dtype), packed, bias, "gelu")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return packed


def _run_packed(x: Tensor, packed: Any, bias: Tensor, activation: Activation) -> Tensor:
    algorithm = "none" if activation == "gelu" else ""  # "none": exact GELU, not the tanh approximation
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], algorithm)
    return result


class OpenClipEncoder:
    """Any open_clip image tower, run with open_clip's own forward pass."""

    def __init__(
        self, tower: torch.nn.Module, mean: Tensor, std: Tensor, device: torch.device, dtype: torch.dtype
    ) -> None:
        """`mean` and `std`: (3,), per channel, in units of pixels. The tower is moved to the device, not copied."""
        self._tower, self._dtype = tower.to(device, dtype), dtype
        self._mean, self._std = (values.view(3, 1, 1).to(device) for values in (mean, std))

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (n, 3, height, width) on the device → float32 (n, dimension) of unit length."""
        images = pixels.to(torch.float32).sub_(self._mean).div_(self._std)
        features = self._tower(images.to(self._dtype))
        if isinstance(features, tuple):  # CoCa returns its tokens as well
            features = features[0]
        return functional.normalize(features.to(torch.float32), dim=-1)


class FastViT:
    """open_clip's VisionTransformer with class-token pooling (ViT-B, L, H, g, …), with fewer operations."""

    def __init__(
        self, tower: Any, mean: Tensor, std: Tensor, device: torch.device, dtype: torch.dtype, linear: Any = Linear
    ) -> None:
        """Copy the weights of a tower that `is_supported`, in fp32 on the CPU; the tower is not changed.

        `linear` computes the linear layers; bench/int8.py passes another.
        """

        def norm(module: torch.nn.Module) -> torch.nn.Module:
            return copy.deepcopy(module).to(device, dtype)

        def convert(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, dtype)

        kernel = tower.conv1.weight / std.view(1, 3, 1, 1)
        offset = (kernel * (PIXEL_OFFSET - mean).view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
        self._patches = linear(kernel.flatten(1), offset, device, dtype)
        self._patch_height, self._patch_width = tower.patch_size
        self._positions = convert(tower.positional_embedding[1:])
        self._class_token = convert(tower.class_embedding + tower.positional_embedding[0])
        self._norm_pre, self._norm_post = norm(tower.ln_pre), norm(tower.ln_post)
        blocks = list(tower.transformer.resblocks)
        make = partial(linear, device=device, dtype=dtype)
        self._blocks = [_Block(block, norm, make, last=block is blocks[-1]) for block in blocks]
        self._projection = convert(tower.proj)
        self._dtype = dtype

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (n, 3, height, width) on the device → float32 (n, dimension) of unit length."""
        count, _, height, width = pixels.shape
        down, across = height // self._patch_height, width // self._patch_width
        covered = pixels[:, :, : down * self._patch_height, : across * self._patch_width]
        grid = covered.to(self._dtype).sub_(PIXEL_OFFSET)
        grid = grid.reshape(count, 3, down, self._patch_height, across, self._patch_width)
        patches = self._patches(grid.permute(0, 2, 4, 1, 3, 5).reshape(count, down * across, -1))
        tokens = torch.cat([self._class_token.expand(count, 1, -1), patches + self._positions], dim=1)
        tokens = self._norm_pre(tokens)
        for block in self._blocks:
            tokens = block(tokens)
        features = self._norm_post(tokens[:, 0]) @ self._projection
        return functional.normalize(features.to(torch.float32), dim=-1)


class _Block:
    """A residual attention block; the last one computes the class token only."""

    def __init__(self, block: Any, norm: Callable[[Any], Any], linear: Callable[..., Linear], *, last: bool) -> None:
        attention, mlp = block.attn, block.mlp
        self._heads = attention.num_heads
        self._norm_1, self._norm_2 = norm(block.ln_1), norm(block.ln_2)
        weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, attention.embed_dim
        self._query = linear(weight[:width], bias[:width]) if last else None
        first = width if last else 0
        self._qkv = linear(weight[first:], bias[first:])
        self._attention_out = linear(*_scaled(attention.out_proj, block.ls_1))
        mlp_in = mlp.c_fc
        scale, activation = (QUICK_GELU_FACTOR, "swish") if _is_quick(mlp.gelu) else (1.0, "gelu")
        self._mlp_in = linear(mlp_in.weight * scale, mlp_in.bias * scale, activation=activation)
        self._mlp_out = linear(*_scaled(mlp.c_proj, block.ls_2, shrink=scale))

    def __call__(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        normed = self._norm_1(x)
        qkv = self._qkv(normed).view(count, length, 2 if self._query else 3, self._heads, -1)
        parts = qkv.permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[-2], parts[-1]
        if self._query:
            x = x[:, :1]
            query = self._query(normed[:, 0]).view(count, 1, self._heads, -1).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self._attention_out(attended.transpose(1, 2).flatten(2))
        return x + self._mlp_out(self._mlp_in(self._norm_2(x)))


def _scaled(linear: Any, scale: Any, *, shrink: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer with the LayerScale that follows folded in; `shrink` divides the weight."""
    gamma = getattr(scale, "gamma", torch.ones(1))
    return linear.weight * gamma.view(-1, 1) / shrink, linear.bias * gamma


def _is_quick(activation: object) -> bool:
    return isinstance(activation, open_clip.transformer.QuickGELU)


def is_supported(tower: Any) -> bool:
    """Whether FastViT can run the tower; all others need OpenClipEncoder."""
    kinds = open_clip.transformer
    if type(tower) is not kinds.VisionTransformer or tower.attn_pool is not None or tower.pool_type != "tok":
        return False
    if tower.output_tokens or tower.proj is None or tower.conv1.bias is not None:
        return False
    return all(
        type(block) is kinds.ResidualAttentionBlock
        and not hasattr(block, "ln_1_kv")
        and type(block.attn) is torch.nn.MultiheadAttention
        and block.attn.in_proj_weight is not None
        and block.attn.in_proj_bias is not None
        and block.attn.bias_k is None
        and not block.attn.add_zero_attn
        and all(isinstance(norm, torch.nn.LayerNorm | torch.nn.Identity) for norm in (block.ln_1, block.ln_2))
        and all(isinstance(scale, kinds.LayerScale | torch.nn.Identity) for scale in (block.ls_1, block.ls_2))
        and (_is_quick(gelu := block.mlp.gelu) or (type(gelu) is torch.nn.GELU and gelu.approximate == "none"))
        for block in tower.transformer.resblocks
    )
