"""`psvit export` for `ray job submit --working-dir . -- python jobs/export.py`."""

from psvit_ray.commands.export import main

if __name__ == "__main__":
    main()
