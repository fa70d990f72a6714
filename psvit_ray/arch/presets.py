"""Named specs: DeiT, and PSViTs at 0.85 to 1.02 of its MACs. The paper's own are not public; these
are ours, for the reasons below, and none was trained on ImageNet.

All PSViTs have three stages, as FDViT's authors (section 4.3) report two pools in PSViT.
Neighbouring layers share a map, mostly in pairs. Heads are 64 channels wide, as DeiT's.

`1d`: a pool halves the tokens, and widths grow by 1/3 and 1/2 (about the root of 2), so that the
MACs of a layer stay about the same: PiT's rule (halve each side, double the width) carried over to
a sequence. Small and base double the widths, as DeiT's do.

`psvit_2d_tiny`: DeiT's width times 1, 2, 3, and depths near PiT-S's (2, 6, 4; timm's pit.py). Of
about twenty shapes measured beside timm's deit_tiny_patch16_224 (one x86 core, batch 32, forward,
interleaved medians), patch 8 ran at 0.8 to 1.0 of its images/s, as 784 tokens cost bandwidth, and a
first width of 256 at 1.1 to 1.3, 0.05 below 192 in the same runs. Past that the time is that of the
matrix products, so this one has few MACs: 1.2, with fewer parameters than widths that double.

`psvit_2d_small`, `psvit_2d_base`: at so few tokens MACs are paid in parameters, and a shape like
tiny's grown to base would have over 400 M. They start from DeiT's width, gain a third of it at each
pool and keep more layers on the large grid: 2.3 times DeiT's parameters.
"""

from __future__ import annotations

from psvit_ray.arch.spec import ArchSpec, Pooling, StageSpec, parse_pattern
from psvit_ray.text.messages import nearest, short_repr


def _spec(pooling: Pooling, pattern: str, *dims: int) -> ArchSpec:
    stages = tuple(
        StageSpec(embed_dim=dim, num_heads=dim // 64, hidden_dim=4 * dim, share_groups=groups)
        for dim, groups in zip(dims, parse_pattern(pattern), strict=True)
    )
    return ArchSpec(pooling=pooling, stages=stages)


_DEIT = "-".join(["1"] * 12)

PRESETS: dict[str, ArchSpec] = {
    "psvit_1d_tiny": _spec("1d", "2|2-2-2-2|2-2", 192, 256, 384),
    "psvit_1d_small": _spec("1d", "2|2-2-2-2|2-2", 384, 512, 768),
    "psvit_1d_base": _spec("1d", "2|2-2-2-2|2-2", 768, 1024, 1536),
    "psvit_2d_tiny": _spec("2d", "2|2-2-3|2-2", 192, 384, 576),
    "psvit_2d_small": _spec("2d", "2-2-2-2|2-2-2-2|2", 384, 512, 640),
    "psvit_2d_base": _spec("2d", "2-2-2-2|2-2-2-2|2", 768, 1024, 1280),
    "deit_tiny": _spec("1d", _DEIT, 192),
    "deit_small": _spec("1d", _DEIT, 384),
    "deit_base": _spec("1d", _DEIT, 768),
}


def preset(name: str) -> ArchSpec:
    """The preset called `name`. Raises ValueError, with the nearest name, if there is none."""
    if name not in PRESETS:
        near = nearest(name, PRESETS)
        raise ValueError(f"no preset is called {short_repr(name)}; nearest is {near!r}")
    return PRESETS[name]
