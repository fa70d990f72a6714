"""`psvit train` for `ray job submit --working-dir . -- python jobs/train_psvit.py`."""

from psvit_ray.commands.train import main

if __name__ == "__main__":
    main()
