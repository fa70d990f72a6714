"""`psvit report` for `ray job submit --working-dir . -- python jobs/report.py`."""

from psvit_ray.commands.app import run

if __name__ == "__main__":
    run("report")
