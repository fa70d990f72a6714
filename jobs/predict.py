"""`psvit predict` for `ray job submit --working-dir . -- python jobs/predict.py`."""

from psvit_ray.commands.predict import main

if __name__ == "__main__":
    main()
