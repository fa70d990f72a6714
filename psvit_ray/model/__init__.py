"""The network. Importing this registers the presets with timm."""

from psvit_ray.model import entrypoints as entrypoints
from psvit_ray.model.layers import AttentionMap, Strategy
from psvit_ray.model.pretrained import LoadedWeights, load_pretrained
from psvit_ray.model.psvit import PSViT
from psvit_ray.model.timm_vit import from_timm

__all__ = ["AttentionMap", "LoadedWeights", "PSViT", "Strategy", "from_timm", "load_pretrained"]
