"""`psvit latency` for `ray job submit --working-dir . -- python jobs/latency.py`."""

from psvit_ray.commands.latency import main

if __name__ == "__main__":
    main()
