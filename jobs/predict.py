"""`psvit predict` for `ray job submit --working-dir . -- python jobs/predict.py`."""

from psvit_ray.commands.app import run

if __name__ == "__main__":
    run("predict")
