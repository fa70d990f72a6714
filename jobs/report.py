"""`psvit report` for `ray job submit --working-dir . -- python jobs/report.py`."""

from psvit_ray.commands.report import main

if __name__ == "__main__":
    main()
