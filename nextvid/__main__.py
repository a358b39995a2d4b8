"""``python -m nextvid``: the command line."""

from nextvid.cli import main

if __name__ == "__main__":
    main()
