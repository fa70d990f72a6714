"""A folder like those that people have: drawn photographs of several sizes in unequal classes, JPEG
and PNG, some of them broken.

python -m tests.helpers.photographs /tmp/photos 3000 20
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.helpers.drawn import CLASS_NAMES, drawn

SHARES = {"discs": 0.4, "rings": 0.25, "squares": 0.18, "stars": 0.12, "triangles": 0.05}
SIZES = ((96, 72), (80, 80), (64, 96), (120, 90), (72, 72))
SHAPE_OF = {"discs": "disc", "rings": "ring", "squares": "square", "stars": "star"}
SHAPE_OF["triangles"] = "triangle"


def photographs(
    path: Path,
    images: int,
    *,
    broken: int = 0,
    grey: bool = False,
    sizes: tuple[tuple[int, int], ...] = SIZES,
) -> Path:
    """Writes class folders with so many images, of which `broken` cannot be read. Returns
    `path`."""
    counts = {name: max(2, round(share * images)) for name, share in SHARES.items()}
    to_break = {index * images // broken for index in range(broken)}
    number = 0
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        kinds = [kind for kind in CLASS_NAMES if kind.endswith(SHAPE_OF[name])]
        for index in range(count):
            width, height = sizes[number % len(sizes)]
            picture = drawn(kinds[index % len(kinds)], index, size=max(width, height))
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
            if grey:
                picture = picture.convert("L")
            file = path / name / f"{index:05}.{'png' if number % 4 == 3 else 'jpg'}"
            picture.save(file)
            if number in to_break:
                file.write_bytes(file.read_bytes()[:100])
            number += 1
    return path


if __name__ == "__main__":
    photographs(Path(sys.argv[1]), int(sys.argv[2]), broken=int(sys.argv[3]))
