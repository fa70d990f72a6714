"""Draws a preset for the pages: its token grids, poolings and shared attention maps.

python docs/draw_network.py psvit_2d_tiny docs/images/network.svg
"""

from __future__ import annotations

import sys

import matplotlib

from psvit_ray.arch.presets import preset
from psvit_ray.report import network_picture


def main() -> None:
    name, path = sys.argv[1:]
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name})
    figure = network_picture.picture(name, preset(name))
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
