"""The network. Importing this registers the presets with timm."""

from psvit_ray.model import entrypoints as entrypoints
from psvit_ray.model.layers import AttentionMap, Strategy
from psvit_ray.model.pretrained import from_timm
from psvit_ray.model.psvit import PSViT

__all__ = ["AttentionMap", "PSViT", "Strategy", "from_timm"]
