"""Make a file of healthy curves out of finished runs of one recipe that differ in their seeds only.

python scripts/healthy_curves.py runs/tiny-0 runs/tiny-1 runs/tiny-2 -o nextvid/doctor/healthy/tiny.json
"""

import argparse
from pathlib import Path

from nextvid.doctor.healthy import healthy_file
from nextvid.files import replace_json


def main() -> None:
    """Read the runs, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = healthy_file(arguments.runs)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    replace_json(arguments.out, found)
    print(f"{arguments.out}: {', '.join(found['columns'])} at {len(found['steps'])} steps of {found['name']}")


if __name__ == "__main__":
    main()
