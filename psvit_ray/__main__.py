"""`python -m psvit_ray` is `psvit`."""

from psvit_ray.commands.app import main

if __name__ == "__main__":
    main()
