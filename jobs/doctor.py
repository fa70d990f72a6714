"""`psvit doctor` for `ray job submit --working-dir . -- python jobs/doctor.py`."""

from psvit_ray.commands.doctor import main

if __name__ == "__main__":
    main()
