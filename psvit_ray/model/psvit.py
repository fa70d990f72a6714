"""The network of an ArchSpec, with timm's names and interface.

Shapes: B images of S x S pixels, N tokens (patches; in `1d` the class token comes first and is
counted), C channels of a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from math import isqrt
from typing import Any, NoReturn, cast

import torch
from timm.layers import (
    LayerNorm,
    PatchEmbed,
    calculate_drop_path_rates,
    resample_abs_pos_embed,
    trunc_normal_,
    use_fused_attn,
)
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.model.layers import (
    Block,
    Stage,
    Strategy,
    TokenPool2d,
    run_group,
    token_pool,
)


class PSViT(nn.Module):
    """A vision transformer with token pooling between stages and attention sharing within them.

    In `2d` tokens keep their grid, which a pool halves, and the head takes their mean. In `1d` a
    class token bypasses the pools, and the head takes it; with one stage of all-ones groups this is
    DeiT, with timm's parameter names but for `blocks`, here `stages.0.blocks`.
    """

    pretrained_cfg: dict[str, Any]
    """timm's description of weights and images; of networks from `timm.create_model` and of loaded
    ones."""

    def __init__(
        self,
        spec: ArchSpec,
        *,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        attention: Strategy = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Builds the network with initial weights.

        Args:
            spec: Architecture.
            drop_rate: Dropout rate before the head.
            attn_drop_rate: Dropout rate of the attention weights.
            drop_path_rate: Stochastic depth of the last layer; that of earlier layers grows
                linearly from 0.
            attention: Strategy for computing attention maps; every one computes the same function
                (`layers.choose_strategy`). With `timm.layers.set_fused_attn(False)`, `auto` is
                `explicit`.
            device: Device of the parameters; None takes torch's default.
            dtype: Dtype of the parameters; None takes torch's default.

        Raises ValueError for rates outside [0, 1) and for an unknown strategy.
        """
        super().__init__()
        for name, rate in (
            ("drop_rate", drop_rate),
            ("attn_drop_rate", attn_drop_rate),
            ("drop_path_rate", drop_path_rate),
        ):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1, got {rate}")
        if attention not in ("auto", "explicit", "fused"):
            raise ValueError(f"attention must be auto, explicit or fused, got {attention!r}")
        if attention == "auto" and not use_fused_attn():
            attention = "explicit"

        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        first, last = spec.stages[0].embed_dim, spec.stages[-1].embed_dim
        self.spec = spec
        self._given_args: dict[str, Any] = {}
        self.num_classes = spec.num_classes
        self.in_chans = spec.in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = last
        self.num_prefix_tokens = 1 if spec.pooling == "1d" else 0
        self.global_pool = "token" if spec.pooling == "1d" else "avg"
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.patch_embed = PatchEmbed(spec.img_size, spec.patch_size, spec.in_chans, first, **dd)
        self.cls_token = (
            nn.Parameter(torch.empty(1, 1, first, **dd)) if self.num_prefix_tokens else None
        )
        length = spec.num_tokens[0] + self.num_prefix_tokens
        self.pos_embed = nn.Parameter(torch.empty(1, length, first, **dd))

        rates: Iterator[Any] = iter(calculate_drop_path_rates(drop_path_rate, spec.depth))
        self.stages = nn.ModuleList()
        for i, stage in enumerate(spec.stages):
            blocks = [
                Block(
                    stage.embed_dim,
                    stage.num_heads,
                    stage.hidden_dim,
                    group_size=group_size,
                    layer_scale=spec.layer_scale,
                    attn_drop=attn_drop_rate,
                    drop_path=next(rates),
                    strategy=attention,
                    **dd,
                )
                for group_size in group_sizes(stage)
            ]
            pool = pool_before(spec, i, partial(token_pool, **dd)) if i else nn.Identity()
            self.stages.append(Stage(pool, blocks, stage.share_groups))
        self.feature_info = _feature_info(spec)
        self.norm: nn.Module = LayerNorm(last, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(last, spec.num_classes, **dd)
        self.init_weights(needs_reset=False)

    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialises all weights as timm's ViT: truncated normal of deviation 0.02, zero biases,
        torch's default in convolutions. It is for a network from the meta device after `to_empty`.

        `needs_reset` is False where modules have just drawn torch's default.
        """
        if self.pos_embed.is_meta:
            return  # initialising on the meta device takes torch longer than on the CPU
        if needs_reset:
            for module in self.modules():
                if hasattr(module, "reset_parameters"):
                    cast(Any, module).reset_parameters()
        trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _init_linear(module)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, S, S)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, N, C) of the last stage for images (B, in_chans, S, S)."""
        x = self._embed(x)
        for stage in self.stages:
            x = stage(x, self.grad_checkpointing)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of tokens (B, N, C), or with `pre_logits` the classifier's input
        (B, C)."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x.mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | tuple[int, ...] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Outputs of the stages, as timm's: `(features, intermediates)`, or only intermediates.

        Args:
            x: Images (B, in_chans, S, S).
            indices: Stages to return; None returns all, an int so many last ones.
            norm: Apply the last norm to the output of the last stage, the only one of its width.
            stop_early: Run no stage after the last one returned.
            output_fmt: "NCHW" for grids (B, C, G, G), "NLC" for patch tokens (B, N, C), both
                without the class token.
            intermediates_only: Return the intermediates alone.
            return_prefix_tokens: Return pairs of each intermediate and its class token (B, 1, C),
                in `2d` (B, 0, C).

        Raises ValueError for another format, and for "NCHW" where a 1-D pool left no grid.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt}")
        taken, last = feature_take_indices(len(self.stages), cast(Any, indices))
        if output_fmt == "NCHW" and self.num_prefix_tokens and last > 0:
            raise ValueError(
                f"output_fmt must be NLC after a 1d pool, which leaves no grid; got NCHW for "
                f"stages {taken}"
            )
        x = self._embed(x)
        intermediates: list[Any] = []
        for i, stage in enumerate(self.stages):
            if stop_early and i > last:
                return intermediates if intermediates_only else (x, intermediates)
            x = stage(x, self.grad_checkpointing)
            if i in taken:
                y = self.norm(x) if norm and i == len(self.stages) - 1 else x
                prefix, y = y[:, : self.num_prefix_tokens], y[:, self.num_prefix_tokens :]
                if output_fmt == "NCHW":
                    side = isqrt(self.spec.num_tokens[i])
                    y = y.transpose(1, 2).unflatten(2, (side, side)).contiguous()  # (B, C, G, G)
                intermediates.append((y, prefix) if return_prefix_tokens else y)
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | list[int] | tuple[int, ...] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """Outputs of the last `n` stages, or of the stages `n`, as DINO and timm's ViT call them:
        patch tokens (B, N, C), or with `reshape` grids (B, C, G, G); the rest is as in
        `forward_intermediates`."""
        return cast(
            list[Any],
            self.forward_intermediates(
                x,
                n,
                norm=norm,
                output_fmt="NCHW" if reshape else "NLC",
                intermediates_only=True,
                return_prefix_tokens=return_prefix_tokens,
            ),
        )

    def prune_intermediate_layers(
        self,
        indices: int | list[int] | tuple[int, ...] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes the stages after the last of `indices`, and the norm and the head with them, as
        these have the last stage's width. Returns `indices` counted from the first stage."""
        taken, last = feature_take_indices(len(self.stages), cast(Any, indices))
        cut = last + 1 < len(self.stages)
        if cut:
            self.stages = self.stages[: last + 1]
            self._respec(stages=self.spec.stages[: last + 1])
            self.num_features = self.head_hidden_size = self.embed_dim = self.spec.stages[
                -1
            ].embed_dim
        if cut or prune_norm:
            self.norm = nn.Identity()
        if cut or prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a new one of `num_classes`, or by none with 0. `global_pool` ""
        passes all tokens on, None keeps the pooling of the head.

        `spec` is updated; without a head it keeps its `num_classes`, as a spec always has a head.
        Raises ValueError for a pooling of the head that this kind of PSViT does not have.
        """
        own = "token" if self.spec.pooling == "1d" else "avg"
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, got {num_classes}")
        if global_pool not in (None, "", own):
            raise ValueError(
                f"global_pool must be {own!r} or '' in {self.spec.pooling}, got {global_pool!r}"
            )
        if num_classes > 0:
            self._respec(num_classes=num_classes)
            like = self.pos_embed
            head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            self.head = _init_linear(head).train(self.training)
        else:
            self.head = nn.Identity()
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool

    def set_input_size(
        self,
        img_size: int | Sequence[int] | None = None,
        patch_size: int | Sequence[int] | None = None,
    ) -> None:
        """Changes the sides of the images and of the patches, of which None keeps one. Positions
        and the patch kernel are resized as those of timm's ViT.

        Raises ValueError, and changes nothing, for sides that differ and where no spec has the
        size.
        """
        sizes = {"img_size": img_size, "patch_size": patch_size}
        self._respec(**{n: square_side(n, size) for n, size in sizes.items() if size is not None})
        embed, spec = self.patch_embed, self.spec
        grid_before = embed.grid_size
        embed.set_input_size((spec.img_size,) * 2, (spec.patch_size,) * 2)
        positions = resample_abs_pos_embed(
            self.pos_embed,
            new_size=list(embed.grid_size),
            old_size=list(grid_before),
            num_prefix_tokens=self.num_prefix_tokens,
        )
        self.pos_embed = nn.Parameter(positions, requires_grad=self.pos_embed.requires_grad)
        for stage, tokens in zip(cast(Any, self.stages)[1:], spec.num_tokens, strict=False):
            if isinstance(stage.pool, TokenPool2d):
                stage.pool.grid_size = isqrt(tokens)
        self.feature_info = _feature_info(spec)
        update_model_input_size(self, embed.img_size, patch_size=patch_size and spec.patch_size)

    @property
    def _model_args(self) -> dict[str, Any]:
        """Arguments of `timm.create_model` that make this network again, which timm's `save_for_hf`
        writes: those that it was made with, and the spec that it has now."""
        args = self._given_args
        if not {"spec", "pattern"} & args.keys():
            return args
        described = {*ArchSpec.model_fields, "pattern"} - {"img_size", "in_chans", "num_classes"}
        kept = {name: value for name, value in args.items() if name not in described}
        return kept | {"spec": self.spec.model_dump(mode="json", exclude_defaults=True)}

    @_model_args.setter
    def _model_args(self, args: dict[str, Any]) -> None:
        self._given_args = args

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuses `torch.jit.script`, which has no words for maps that are passed on."""
        raise NotImplementedError("a PSViT cannot be scripted; use torch.export or torch.compile")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each share group in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @property
    def blocks(self) -> list[Block]:
        """All layers, from input to output."""
        stages = cast(Iterable[Stage], self.stages)
        return [cast(Block, block) for stage in stages for block in stage.blocks]

    def pieces(self) -> list[Callable[[Tensor], Tensor]]:
        """The functions that `forward` runs one after the other, one for each name in
        `arch.parts.parts`."""
        pieces: list[Callable[[Tensor], Tensor]] = [self._embed]
        for i, stage in enumerate(cast(Iterable[Stage], self.stages)):
            pieces += [stage.pool] if i > 0 else []
            blocks = iter(stage.blocks)
            pieces += [
                partial(run_group, list(islice(blocks, size))) for size in stage.share_groups
            ]
        return [*pieces, lambda x: self.forward_head(self.norm(x))]

    def compile_blocks(self, **options: Any) -> None:
        """Compiles each block in place with `torch.compile` and `options`. Needs torch 2.13.

        Each block has compiled code of its own: blocks share one code object, for which torch by
        default falls back to eager at the ninth variant, and three stages with leaders and
        followers, in training and evaluation, have more.
        """
        for block in self.blocks:
            block.compile(isolate_recompiles=True, **options)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay, for timm's optimizers."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters into layers, for timm's layer decay: a pool belongs to the
        first block after it. With `coarse` a layer is a whole stage."""
        blocks = [
            (r"^stages\.(\d+)\.pool", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": r"^stages\.(\d+)" if coarse else blocks,
        }

    def _embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # (B, 1 + N, C)
        return x + self.pos_embed

    def _respec(self, **changes: Any) -> None:
        self.spec = ArchSpec.model_validate({**dict(self.spec), **changes})


def group_sizes(stage: StageSpec) -> Iterator[int | None]:
    """For each layer of a stage the size of the share group that it leads, or None for a
    follower."""
    for size in stage.share_groups:
        yield size
        yield from [None] * (size - 1)


def pool_before(
    spec: ArchSpec, stage: int, make: Callable[..., nn.Module] = token_pool
) -> nn.Module:
    """The token pooling before stage `stage`, counted from 0; `make` builds it."""
    dims = spec.stages[stage - 1].embed_dim, spec.stages[stage].embed_dim
    grid_size = isqrt(spec.num_tokens[stage - 1]) if spec.pooling == "2d" else None
    return make(*dims, grid_size=grid_size, op=spec.pool_op)


def square_side(name: str, size: int | Sequence[int]) -> int:
    """The side of a square, given as an int or a pair. Raises ValueError, naming the argument, for
    sides that differ."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"{name} must be one side of a square image, got {size}")
    return sides.pop()


def _feature_info(spec: ArchSpec) -> list[dict[str, Any]]:
    """timm's description of the stages. Reduction is the side, in pixels, of the area that a token
    represents."""
    shrink = 2.0**0.5 if spec.pooling == "1d" else 2
    return [
        {
            "num_chs": stage.embed_dim,
            "reduction": spec.patch_size * shrink**i,
            "module": f"stages.{i}",
        }
        for i, stage in enumerate(spec.stages)
    ]


def _init_linear(linear: nn.Linear) -> nn.Linear:
    trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
