"""`psvit train` for `ray job submit --working-dir . -- python jobs/train_psvit.py`."""

from psvit_ray.commands.app import run

if __name__ == "__main__":
    run("train")
