"""Named specs."""

from __future__ import annotations

from difflib import get_close_matches

from psvit_ray.arch.spec import ArchSpec, StageSpec, parse_pattern


def _spec(pooling: str, pattern: str, head_dim: int, *dims: int) -> ArchSpec:
    stages = tuple(
        StageSpec(embed_dim=dim, num_heads=dim // head_dim, hidden_dim=4 * dim, share_groups=groups)
        for dim, groups in zip(dims, parse_pattern(pattern), strict=True)
    )
    return ArchSpec(pooling=pooling, stages=stages)


_DEIT = "1-1-1-1-1-1-1-1-1-1-1-1"

PRESETS: dict[str, ArchSpec] = {
    "psvit_1d_tiny": _spec("1d", "2|2-2-2-2|2-2", 64, 192, 256, 384),
    "psvit_2d_tiny": _spec("2d", "2|2-2-2-2|2-2", 64, 192, 320, 512),
    "deit_tiny": _spec("1d", _DEIT, 64, 192),
    "deit_small": _spec("1d", _DEIT, 64, 384),
    "deit_base": _spec("1d", _DEIT, 64, 768),
}


def preset(name: str) -> ArchSpec:
    """The spec of that name. Raises ValueError, with the nearest name, if there is none."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1, cutoff=0.0)
        raise ValueError(f"no preset is called {name!r}; nearest is {near[0]!r}")
    return PRESETS[name]
