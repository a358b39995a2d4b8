"""k nearest neighbours on pooled features: DINO's vote, weighted by cosine similarity (Caron et al. 2021, section 4.1)."""

from collections.abc import Iterator, Sequence

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

KS = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07
BLOCK_VALUES = 1 << 25
"""Similarities that are held at once: 128 MiB of them."""

Votes = Float[Tensor, "ks queries classes"]


def nearest_neighbours(
    train: Pooled,
    test: Pooled,
    config: ProbeConfig | None = None,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    standardise: bool = True,
    groups: Groups | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Reading:
    """``k`` is chosen on the held-out part of train, whose neighbours lie in the rest; test's lie in all of train.

    Each of the ``k`` most similar train clips votes for its class with ``exp(cosine / temperature)``. Of ``config`` only
    ``held_out`` and ``seed`` are read; a ``k`` beyond the clips that are learnt from is left out. ``standardise`` (not in
    DINO's protocol): by the statistics of the train clips whose votes count. Raises ``UserError`` for too few clips, no
    possible ``k``, or splits that do not belong together.
    """
    check_pooled(train, test)
    learn, held = train.parts(config or ProbeConfig(), groups)
    possible = [k for k in ks if 1 <= k <= len(learn)]
    if not possible:
        raise UserError(
            f"none of k = {', '.join(map(str, ks))} lies between 1 and {len(learn)} clips: choose smaller ks"
        )
    correct = torch.zeros(len(possible), dtype=torch.int64)
    for rows, votes in _voted(
        train.vectors[held], train, learn, possible, temperature, standardise, device, "choosing k", progress
    ):
        correct += (votes.argmax(-1) == train.labels[held][rows]).sum(1)
    place = int(correct.argmax())
    everyone = torch.arange(len(train))
    answers = [
        votes[0]
        for _, votes in _voted(
            test.vectors,
            train,
            everyone,
            possible[place : place + 1],
            temperature,
            standardise,
            device,
            "neighbours",
            progress,
        )
    ]
    return Reading(
        scores=score(torch.cat(answers), test.labels, train.names),
        setting="k",
        chosen=possible[place],
        held_out_top1=int(correct[place]) / len(held),
        held_out={str(k): right / len(held) for k, right in zip(possible, correct.tolist(), strict=True)},
        held_out_clips=len(held),
        train_clips=len(train),
        standardised=standardise,
    )


def _voted(
    queries: Vectors,
    train: Pooled,
    voters: Int64[Tensor, " voters"],
    ks: Sequence[int],
    temperature: float,
    standardise: bool,
    device: torch.device | str,
    title: str,
    progress: bool,
) -> Iterator[tuple[Int64[Tensor, " block"], Votes]]:
    """Blocks of queries, by their rows, with their votes on the CPU."""
    gallery, labels = train.vectors[voters], train.labels[voters].to(device)
    known = (standardised(gallery, gallery) if standardise else gallery).to(device)
    known = F.normalize(known, dim=-1)
    blocks = torch.arange(len(queries)).split(max(1, BLOCK_VALUES // len(gallery)))
    for rows in track(blocks, len(blocks), title, progress):
        asked = standardised(gallery, queries[rows]) if standardise else queries[rows]
        similar = F.normalize(asked.to(device), dim=-1) @ known.T
        yield rows, votes_of(similar, labels, len(train.names), ks, temperature).cpu()


def votes_of(
    similar: Float[Tensor, "queries gallery"],
    labels: Int64[Tensor, " gallery"],
    classes: int,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
) -> Votes:
    """For every ``k`` the summed weights ``exp(similarity / temperature)`` of each class among the ``k`` most similar."""
    best, places = similar.topk(max(ks), dim=-1)
    weights, named = (best / temperature).exp(), labels[places]
    votes = similar.new_zeros(len(ks), len(similar), classes)
    for row, k in zip(votes, ks, strict=True):
        row.scatter_add_(1, named[:, :k], weights[:, :k])
    return votes
