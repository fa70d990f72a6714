"""`psvit redundancy` for `ray job submit --working-dir . -- python jobs/redundancy.py`."""

from psvit_ray.commands.redundancy import main

if __name__ == "__main__":
    main()
