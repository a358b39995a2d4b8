"""Make a finished autoencoder a released one: its weights in half precision, its recipe, curves, figures and pictures.

python scripts/release_vae.py runs/vae-film --name vae-film
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from nextvid.files import replace_json
from nextvid.models.autoencoder import Autoencoder
from nextvid.targets.vae_file import RELEASES, VAE_FILE, load_vae, read_vae_config, write_vae

COPIED = ("recipe.yaml", "metrics.jsonl", "metrics.json", "reconstructions.png")


def main() -> None:
    """Copy what the run leaves, and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    folder = RELEASES / arguments.name
    folder.mkdir(parents=True, exist_ok=True)
    config, facts = read_vae_config(arguments.run / VAE_FILE)
    network = Autoencoder(config)
    mean, std = load_vae(arguments.run / VAE_FILE, network)
    half = {name: tensor.to(torch.float16) for name, tensor in network.state_dict().items()}
    said = {key: value for key, value in facts.items() if key not in ("format_version", "model")}
    write_vae(half, mean, std, config, said, folder / VAE_FILE)
    for name in COPIED:
        shutil.copy(arguments.run / name, folder / name)
    environment = json.loads((arguments.run / "environment.json").read_text())
    environment["command"] = ["nextvid", "vae", "train", str(facts["recipe"])]
    replace_json(folder / "environment.json", environment)
    print(f"{folder}: step {facts['step']}, {(folder / VAE_FILE).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
