"""`psvit compare` for `ray job submit --working-dir . -- python jobs/compare_psvit.py`."""

from psvit_ray.commands.app import run

if __name__ == "__main__":
    run("compare")
