"""`psvit tune` for `ray job submit --working-dir . -- python jobs/tune_psvit.py`."""

from psvit_ray.commands.tune import main

if __name__ == "__main__":
    main()
