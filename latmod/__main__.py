"""Run as `python -m latmod`."""

from latmod.cli import main

if __name__ == "__main__":
    main()
