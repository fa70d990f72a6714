"""`psvit prepare` for `ray job submit --working-dir . -- python jobs/prepare_data.py`."""

from psvit_ray.commands.app import run

if __name__ == "__main__":
    run("prepare")
