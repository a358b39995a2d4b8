"""The linear probe: multinomial logistic regression on pooled features, its strength chosen on held-out train clips."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from nextvid.errors import UserError
from nextvid.evaluation.features import track
from nextvid.evaluation.fitting import Groups
from nextvid.evaluation.probe import ProbeConfig
from nextvid.evaluation.readers.pooled import Pooled, Reading, Vectors, check_pooled, standardised
from nextvid.evaluation.scores import score

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Values of scikit-learn's ``C``: the weight of the summed loss beside half the squared norm of the weights."""
MOST_STEPS = 1000


def linear_probe(
    train: Pooled,
    test: Pooled,
    config: ProbeConfig | None = None,
    *,
    strengths: Sequence[float] = STRENGTHS,
    standardise: bool = True,
    groups: Groups | None = None,
    progress: bool = True,
) -> Reading:
    """scikit-learn's ``LogisticRegression`` (L2, L-BFGS) for every ``C`` of ``strengths``; the best meets test, once.

    Of ``config`` only ``held_out`` and ``seed`` are read, so that those who learn and those who choose are the attentive
    probe's; the chosen model is not fitted again on both. ``standardise``: by the statistics of the clips that are learnt
    from. Raises ``UserError`` for too few clips, or splits that do not belong together.
    """
    config = config or ProbeConfig()
    check_pooled(train, test)
    learn, held = train.parts(config, groups)
    reference = train.vectors[learn]
    prepared = [
        standardised(reference, vectors) if standardise else vectors
        for vectors in (reference, train.vectors[held], test.vectors)
    ]
    truth = train.labels[held]
    best: tuple[tuple[float, float], float, Any] | None = None
    table = {}
    for strength in track(strengths, len(strengths), "linear probe", progress):
        model = fit_logistic(prepared[0], train.labels[learn], strength)
        probabilities = probabilities_of(model, prepared[1], len(train.names))
        top1 = float((probabilities.argmax(-1) == truth).double().mean())
        loss = float(F.nll_loss(probabilities.clamp_min(1e-30).log(), truth))
        table[f"{strength:g}"] = top1
        if best is None or (top1, -loss) > best[0]:
            best = (top1, -loss), strength, model
    if best is None:
        raise UserError("a linear probe needs at least one strength C to try: give strengths")
    (top1, _), strength, model = best
    return Reading(
        scores=score(probabilities_of(model, prepared[2], len(train.names)), test.labels, train.names),
        setting="C",
        chosen=strength,
        held_out_top1=top1,
        held_out=table,
        held_out_clips=len(held),
        train_clips=len(train),
        standardised=standardise,
    )


def fit_logistic(vectors: Vectors, labels: Int64[Tensor, " samples"], strength: float) -> Any:
    """The fitted scikit-learn model, in float64. Raises ``UserError`` where all clips are of one class."""
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    if len(labels.unique()) < 2:
        raise UserError(
            "all clips that a linear probe learns from are of one class: give clips of at least two classes"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, solver="lbfgs", max_iter=MOST_STEPS)
        return model.fit(vectors.double().numpy(), labels.numpy())


def probabilities_of(model: Any, vectors: Vectors, classes: int) -> Float[Tensor, "samples {classes}"]:
    """Class probabilities in float64; 0 for a class that the model has not learnt from."""
    found = torch.zeros(len(vectors), classes, dtype=torch.float64)
    found[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba(vectors.double().numpy()))
    return found
