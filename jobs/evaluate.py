"""`psvit evaluate` for `ray job submit --working-dir . -- python jobs/evaluate.py`."""

from psvit_ray.commands.evaluate import main

if __name__ == "__main__":
    main()
