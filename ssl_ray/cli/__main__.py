"""`python -m ssl_ray.cli`: the same as `ssl-ray`."""

from ssl_ray.cli import main

if __name__ == "__main__":
    main()
