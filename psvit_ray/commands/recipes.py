"""The recipes that come with the package, listed and printed."""

from __future__ import annotations

from psvit_ray.commands.command_line import RECIPES, recipe_names
from psvit_ray.commands.options import RecipesJob
from psvit_ray.text.messages import nearest, short_repr


def work(job: RecipesJob) -> int:
    texts = {name: (RECIPES / f"{name}.yaml").read_text("utf-8") for name in recipe_names()}
    if job.name in texts:
        print(texts[job.name], end="")
        return 0
    if job.name:
        raise ValueError(
            f"recipe must be one of {', '.join(texts)}, got {short_repr(job.name)}; nearest is "
            f"{nearest(job.name, texts)!r}"
        )
    width = max(map(len, texts))
    for name, text in texts.items():
        headline = text.partition("\n")[0].removeprefix("# ")
        print(f"{name:<{width}}  {headline}")
    return 0
