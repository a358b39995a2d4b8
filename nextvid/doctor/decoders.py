"""The decoders, tried on the film that comes with the package."""

import importlib.util
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from nextvid.data.clip import BrokenFile
from nextvid.doctor.check import Check, first_line

Clip = UInt8[np.ndarray, "frames height width 3"]
Backend = Literal["pyav", "torchcodec"]

FRAMES, STARTS = 16, 8
SECONDS = 1.5
"""How long a decoder's speed is measured at most."""
SAME = 3.0
"""Two decoders' frames are the same where they differ by less than this, on average, of 255 levels."""
TORCHCODEC_MEND = "apt-get install ffmpeg, and pip install 'nextvid[torchcodec]'"


@dataclass(frozen=True)
class Trial:
    """What a decoder gave: its first clip, and clips a second; or the problem, and then neither."""

    clip: Clip | None
    rate: float
    problem: str | None = None


def check_ffmpeg() -> Check:
    """The ``ffmpeg`` program, whose libraries TorchCodec needs; PyAV carries its own."""
    program = shutil.which("ffmpeg")
    if program is None:
        found = "there is no ffmpeg program; PyAV carries its own FFmpeg, TorchCodec would need one"
        return Check("FFmpeg", "note", found, "only for TorchCodec: apt-get install ffmpeg")
    said = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=20, check=False)
    if said.returncode != 0:
        found = f"{program} does not run ({(said.stderr.strip().splitlines() or ['no message'])[0]})"
        return Check("FFmpeg", "note", found, "only for TorchCodec: install FFmpeg anew")
    return Check("FFmpeg", "ok", f"{said.stdout.splitlines()[0].partition(' Copyright')[0]} at {program}")


def check_decoders() -> list[Check]:
    """PyAV and TorchCodec on clips of the built-in film, and which of them ``data.decoder=auto`` takes."""
    pyav = try_decoder("pyav")
    return [judge_pyav(pyav), _torchcodec(pyav), _choice()]


def judge_pyav(trial: Trial) -> Check:
    """How PyAV did: without it nothing can be decoded."""
    if trial.problem:
        mend = "install PyAV anew: pip install --force-reinstall av; if that is of no use, install nextvid anew"
        return Check("PyAV", "wrong", f"PyAV does not decode the built-in film: {trial.problem}", mend)
    return Check("PyAV", "ok", f"decodes the built-in film: {trial.rate:.0f} clips of {FRAMES} frames a second")


def judge_torchcodec(trial: Trial, pyav: Trial) -> Check:
    """How TorchCodec did beside PyAV; where it fails PyAV stands in, so that is a note, but wrong frames are wrong."""
    if trial.problem or trial.clip is None:
        return Check("TorchCodec", "note", f"TorchCodec does not decode here: {trial.problem}", TORCHCODEC_MEND)
    found = f"decodes the built-in film: {trial.rate:.0f} clips of {FRAMES} frames a second"
    if pyav.clip is None:
        return Check("TorchCodec", "ok", found)
    difference = mean_difference(trial.clip, pyav.clip)
    found += f"; its frames differ from PyAV's by {difference:.2f} of 255 levels"
    if difference < SAME:
        return Check("TorchCodec", "ok", found)
    return Check("TorchCodec", "wrong", found, "use data.decoder=pyav, or install the newest torchcodec")


def mean_difference(a: Clip, b: UInt8[np.ndarray, "..."]) -> float:
    """The mean absolute difference of two clips in levels of 255; infinite where their shapes differ."""
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean()) if a.shape == b.shape else float("inf")


def try_decoder(backend: Backend) -> Trial:
    """Decode clips from all over the built-in film, for a second or two at most."""
    clips, seconds = [], 0.0
    try:
        with _film() as (path, starts):
            for times in starts:
                started = time.perf_counter()
                clips.append(_decode(path, times, backend))
                seconds += time.perf_counter() - started
                if seconds > SECONDS:
                    break
    except Exception as error:
        return Trial(None, 0.0, _sentence(error))
    return Trial(clips[0], len(clips) / seconds)


def _torchcodec(pyav: Trial) -> Check:
    if importlib.util.find_spec("torchcodec") is None:
        return Check("TorchCodec", "note", "TorchCodec is not installed; PyAV decodes", f"if wanted: {TORCHCODEC_MEND}")
    return judge_torchcodec(try_decoder("torchcodec"), pyav)


def _choice() -> Check:
    from nextvid.data.backends import choose_backend  # noqa: PLC0415

    return Check("decoder", "ok", f"data.decoder=auto takes {choose_backend('auto')} here")


def _decode(path: Path, times: Float[np.ndarray, " frames"], backend: Backend) -> Clip:
    """By the back end itself: ``decode_clip`` would let PyAV stand in for a TorchCodec that fails."""
    from nextvid.data import backends, decode  # noqa: PLC0415
    from nextvid.data.locations import Place  # noqa: PLC0415

    if backend == "torchcodec":
        return backends.decode_torchcodec(Place(str(path)), times, None)
    return decode.decode_clip(str(path), times)


@contextmanager
def _film() -> Iterator[tuple[Path, Float[np.ndarray, "clips frames"]]]:
    """The film's file, and the times of clips spread over it."""
    assets = resources.files("nextvid.data") / "assets"
    facts = json.loads((assets / "film.json").read_text())
    last = (facts["frames"] - FRAMES) / facts["fps"]
    with resources.as_file(assets / "film.mp4") as path:
        yield path, np.linspace(0.0, last, STARTS)[:, None] + np.arange(FRAMES) / facts["fps"]


def _sentence(error: Exception) -> str:
    """What went wrong, with its cause: that of a broken file is what the decoder said."""
    cause = error.__cause__
    said = first_line(error).removesuffix(" Likely causes:")
    return said + (f" ({type(cause).__name__}: {first_line(cause)})" if isinstance(error, BrokenFile) and cause else "")
