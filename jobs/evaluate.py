"""`psvit evaluate` for `ray job submit --working-dir . -- python jobs/evaluate.py`."""

from psvit_ray.commands.app import run

if __name__ == "__main__":
    run("evaluate")
