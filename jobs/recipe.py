"""`psvit recipe` for `ray job submit --working-dir . -- python jobs/recipe.py`."""

from psvit_ray.commands.app import run

if __name__ == "__main__":
    run("recipe")
