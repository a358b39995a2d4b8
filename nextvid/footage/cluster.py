"""Shards made by Ray Data on many machines, each by the function that makes them on one."""

import importlib
import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from nextvid.errors import UserError
from nextvid.footage.crew import make_shards
from nextvid.footage.shard import ShardFacts, ShardTask

LOCAL = "local"


def make_shards_on_ray(
    tasks: Sequence[ShardTask], address: str, workers: int, patience: float
) -> Iterator[tuple[ShardTask, ShardFacts]]:
    """Make the shards on the Ray cluster at ``address``; yields what each holds once it is there.

    Every machine must have nextvid installed and see the manifest, its footage and the shards' folder under the same
    paths (a shared file system). ``local`` starts Ray on this machine with ``workers`` processors. The shards are the
    same, byte for byte, as those of :func:`nextvid.footage.crew.make_shards`. Raises ``UserError`` where Ray is not
    installed or not reached, or the disk cannot take a shard, ``RuntimeError`` where a worker fails.
    """
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise UserError(f"--ray needs Ray Data ({error}): pip install nextvid[ray]") from error
    started = _connect(ray, address, workers)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        items = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
        made = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _make, fn_kwargs={"patience": patience}, num_cpus=1
        )
        for row in made.iter_rows():
            if row["failure"]:
                raise UserError(row["failure"])
            yield tasks[row["number"]], pickle.loads(row["facts"])
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str, workers: int) -> bool:
    """Connect unless this program already is; returns whether it did."""
    if ray.is_initialized():
        return False
    try:
        if address == LOCAL:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"No Ray cluster was reached at {address}: {error}") from error
    return True


def _make(row: dict[str, Any], patience: float) -> dict[str, Any]:
    """A shard, on whichever machine; what the user can mend comes back as a sentence, since Ray wraps exceptions."""
    try:
        for _, said in make_shards([pickle.loads(row["task"])], workers=1, patience=patience):
            if isinstance(said, ShardFacts):
                return {"number": row["number"], "facts": pickle.dumps(said), "failure": ""}
    except UserError as error:
        return {"number": row["number"], "facts": b"", "failure": f"{os.uname().nodename}: {error}"}
    raise RuntimeError("a shard ended without a word")
