"""`psvit prepare` for `ray job submit --working-dir . -- python jobs/prepare_data.py`."""

from psvit_ray.commands.prepare import main

if __name__ == "__main__":
    main()
