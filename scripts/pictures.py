"""The pictures of the README and the docs, and the figures of what a released encoder draws.

    python scripts/pictures.py nextvid-tiny --clips 200 --out docs/images

Sprites over still pictures, test clips: the figures go to ``generation.json`` beside the weights.
"""

import argparse
from pathlib import Path

from nextvid.demo import draw_over_stills
from nextvid.files import replace_json
from nextvid.inference.load import load
from nextvid.inference.released import find_released
from nextvid.report import save_figures


def main() -> None:
    """Draw, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    folder = find_released(arguments.name).parent
    figures, pictures = draw_over_stills(arguments.name, arguments.clips)
    step = load(arguments.name).settings["step"]
    replace_json(folder / "generation.json", {"format_version": 1, "step": step, **figures})
    for file in save_figures(folder, pictures, arguments.out):
        print(file)


if __name__ == "__main__":
    main()
