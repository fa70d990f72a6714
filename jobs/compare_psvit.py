"""`psvit compare` for `ray job submit --working-dir . -- python jobs/compare_psvit.py`."""

from psvit_ray.commands.compare import main

if __name__ == "__main__":
    main()
