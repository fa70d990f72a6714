"""`psvit export` for `ray job submit --working-dir . -- python jobs/export.py`."""

from psvit_ray.commands.app import run

if __name__ == "__main__":
    run("export")
