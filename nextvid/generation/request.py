"""What was asked for, and what it comes to with a given model."""

from dataclasses import dataclass
from typing import Any, cast

from nextvid.config import Recipe
from nextvid.data.clip import ClipSpec
from nextvid.errors import UserError
from nextvid.evaluation.generation import SAMPLES
from nextvid.generation.material import Cut, Kind, Material
from nextvid.objectives.flow import DEFAULT_SAMPLING, Sampling, Solver
from nextvid.objectives.nextvid import NextVid

CLIPS = 24
ALIKE = ("patch", "tubelet")


@dataclass(frozen=True)
class Request:
    """What a user says; None where nothing is said.

    ``frames``: raw frames to draw by feeding back; without it each latent frame is drawn from the real ones before it.
    ``context``: raw frames before a roll-out; ``start``: seconds into the videos; ``clips``: of a benchmark or a folder.
    """

    frames: int | None = None
    mask: bool = False
    samples: int | None = None
    solver: str | None = None
    steps: int | None = None
    temperature: float | None = None
    tolerance: float | None = None
    seed: int | None = None
    start: float | None = None
    context: int | None = None
    fps: float | None = None
    size: int | None = None
    clips: int | None = None

    @property
    def sampling(self) -> Sampling:
        """How latents are drawn. Raises ``UserError`` for a solver or a number that there cannot be."""
        default = DEFAULT_SAMPLING
        return Sampling(
            cast(Solver, self.solver or default.solver),
            default.steps if self.steps is None else self.steps,
            default.temperature if self.temperature is None else self.temperature,
            default.tolerance if self.tolerance is None else self.tolerance,
        )


@dataclass(frozen=True)
class Plan:
    """What is done with the clips that are ``cut``, whose first ``context`` raw frames are real in any case.

    ``ahead``: raw frames that are rolled out after the context; None where every latent frame is drawn from real ones.
    ``window``: latent frames that the encoder reads in a roll-out.
    """

    cut: Cut
    context: int
    ahead: int | None
    window: int
    samples: int
    seed: int
    mask: bool
    sampling: Sampling


def plan_of(request: Request, objective: NextVid, recipe: Recipe, kind: Kind) -> Plan:
    """What a request comes to. Raises ``UserError`` where it cannot be met."""
    main, tubelet = recipe.main_stage, recipe.encoder.tubelet
    size = request.size or main.size
    if size % recipe.encoder.patch:
        raise UserError(f"--size {size} is not a multiple of the model's patch of {recipe.encoder.patch} pixels")
    fps = main.fps if request.fps is None else request.fps
    if not 0 < fps < float("inf"):
        raise UserError(f"--fps {fps} must be above 0")
    trained = max(1, main.frames // tubelet - 1)
    ahead = request.frames if kind != "picture" else request.frames or main.frames
    context = trained * tubelet if request.context is None else request.context
    if context < tubelet or context % tubelet:
        raise UserError(f"--context {context} must be a multiple of the {tubelet} frames that make one latent frame")
    spec = ClipSpec(main.frames if ahead is None else context + ahead, fps, size)
    return Plan(
        cut=Cut(spec, 2 * tubelet if ahead is None else context, request.start or 0.0, request.clips or CLIPS),
        context=tubelet if ahead is None else context,
        ahead=ahead,
        window=max(trained, context // tubelet),
        samples=draws_of(request, objective),
        seed=request.seed or 0,
        mask=request.mask,
        sampling=request.sampling,
    )


def draws_of(request: Request, objective: NextVid) -> int:
    """How many samples a model draws of each frame: one where they would all be the same."""
    alone = objective.config.generation == "regression" or request.temperature == 0
    return 1 if alone else request.samples or SAMPLES


def refuse_what_changes_nothing(request: Request, models: list[NextVid], material: Material) -> None:
    """Raise ``UserError`` for an option that was given and has no effect: whoever gives it expects another result."""
    kind = material.kind
    flows = any(model.config.generation == "flow" for model in models)
    of_noise = {"seed": None if request.mask else request.seed}
    if not flows:
        told = ("samples", "solver", "steps", "temperature", "tolerance")
        _refuse({name: getattr(request, name) for name in told} | of_noise, "a decoder that regresses has one answer")
    if request.temperature == 0:
        many = request.samples if request.samples != 1 else None
        _refuse({"samples": many} | of_noise, "at temperature 0 there is one sample")
    if request.solver == "adaptive":
        _refuse({"steps": request.steps}, "the adaptive solver chooses its steps: it has a --tolerance")
    else:
        _refuse({"tolerance": request.tolerance}, "only --solver adaptive has a tolerance")
    if request.frames is None and kind != "picture":
        _refuse(
            {"context": request.context},
            "each frame is drawn from all before it: --context is for a roll-out (--frames)",
        )
    if kind != "videos":
        _refuse({"start": request.start}, f"a {kind} has no beginning to count from")
    if len(material.places) == 1:
        _refuse({"clips": request.clips}, "there is one file")


def _refuse(given: dict[str, Any], why: str) -> None:
    useless = [f"--{name}" for name, value in given.items() if value is not None]
    if useless:
        verb = "changes" if len(useless) == 1 else "change"
        raise UserError(
            f"{' and '.join(useless)} {verb} nothing ({why}); leave {'it' if len(useless) == 1 else 'them'} out"
        )


def check_alike(run: str, recipe: Recipe, against: str, other: Recipe) -> None:
    """Raise ``UserError`` where two models do not cut a clip into the same tokens, and so cannot be drawn side by side."""
    for key in ALIKE:
        mine, theirs = getattr(recipe.encoder, key), getattr(other.encoder, key)
        if mine != theirs:
            raise UserError(
                f"--against {against} has encoder.{key}={theirs}, and {run} has {mine}: they can be compared where both are equal"
            )
