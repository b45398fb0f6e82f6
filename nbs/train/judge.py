"""Train the judge on drawings only: all hands, a tuning for soft edges, and the proof on hands it never saw.

    python nbs/train/judge.py all
    python nbs/train/judge.py tune
    python nbs/train/judge.py loo --families noto fluent

The shipped judge was shown 64 different pictures a step, as one process does; under torchrun each process draws its
own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bierase.core import load_json, load_tensors, save_json, save_tensors
from bierase.emoji import BACKGROUNDS, CONCEPTS, HANDS, PEOPLE, Judge, art, blur, place, stylise
from common import LOGS, RANK, Training, optimisers, options, start, update
from data import drawings_by, some_styles

FAMILIES = {name: [name] for name in HANDS if not name.startswith("fluent")} | {"fluent": ["fluent flat", "fluent 3d"]}
NONE, NOBODY = len(CONCEPTS), len(PEOPLE)  # the last answers of the object and the identity head
KNOWN, UNSEEN = slice(0, 16), slice(16, 24)  # of a person's 24 pictures, when hands are left out
ANY = slice(0, 24)
TRAIN = {"object": 1.0, "style": 0.3, "identity": 0.5, "background": 0.3}  # weights of the heads in the loss
TUNE = {"object": 1.0, "style": 0.6, "identity": 0.5, "background": 0.4}


def recolour(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Mix the colour channels at random, each drawing in its own way; premultiplied stays premultiplied."""
    n = len(rgba)
    mix = torch.eye(3) + 0.12 * torch.randn(n, 3, 3, generator=generator)
    mix = mix / mix.sum(2, keepdim=True).clamp_min(0.3) * (1 + 0.08 * torch.randn(n, 1, 1, generator=generator))
    rgb = torch.einsum("nij,njhw->nihw", mix, rgba[:, :3])
    return torch.cat([rgb.clamp_min(0).minimum(rgba[:, 3:]), rgba[:, 3:]], 1)


def choose(mask: Tensor, a: Tensor | float, b: Tensor) -> Tensor:
    """Per picture: `a` where the (n,) mask says so, else `b`."""
    return torch.where(mask.view(-1, 1, 1, 1), a, b)


def batch(
    n: int,
    generator: torch.Generator,
    hands: list[str],
    moods: slice = ANY,  # which pictures of a person
    augment: bool = True,  # recolour, blur, noise
    wide: bool = True,  # larger movements, and halves of scenes
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures (n, 3, 64, 64) and the right answer of each head; 15 % are people, 3 % an empty ground."""
    tiles, concepts = drawings_by(*hands)
    people = art()[1][:, moods]
    index = torch.randint(0, len(tiles), (n,), generator=generator)
    person = torch.randint(0, len(people), (n,), generator=generator)
    portrait = people[person, torch.randint(0, people.shape[1], (n,), generator=generator)]
    dice = torch.rand(n, generator=generator)
    is_person, is_empty = dice < 0.15, dice > 0.97
    rgba = choose(is_empty, 0.0, choose(is_person, portrait, tiles[index]))
    if augment:  # people are their colours: leave them
        mixed = recolour(rgba, generator)
        rgba = choose((torch.rand(n, generator=generator) < 0.6) & ~is_person, mixed, rgba)
    is_half = torch.zeros(n, dtype=torch.bool)
    if wide:
        is_half = torch.rand(n, generator=generator) < 0.2
        whole = place(rgba, generator, scale=(0.75, 1.15), shift=0.12, angle=0.25)
        half = place(rgba, generator, size=0.45)[:, :, 16:48, 16:48]  # of a scene, as such pictures are judged
        rgba = choose(is_half, F.interpolate(half, scale_factor=2, mode="bilinear"), whole)
    else:
        rgba = place(rgba, generator)
    style = some_styles(n, generator, plain=4)
    if wide:  # scenes are mostly plain
        style = torch.where(is_half & (torch.rand(n, generator=generator) < 0.8), 0, style)
    background = torch.randint(0, len(BACKGROUNDS), (n,), generator=generator)
    images = stylise(rgba, style, background, generator)
    if augment:
        images = choose(torch.rand(n, generator=generator) < 0.25, blur(images, 1.0), images)
        images = some_noise(images, 0.02, generator)
    answers = {
        "object": torch.where(is_person | is_empty, NONE, concepts[index]),
        "style": style,
        "identity": torch.where(is_person, person, NOBODY),
        "background": background,
    }
    return images, answers


def some_noise(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """White noise on half of the pictures."""
    noise = strength * torch.randn(images.shape, generator=generator)
    return (images + noise * (torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5)).clamp(0, 1)


def soft_batch(n: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures with the edges an autoencoder leaves: a third sharp, a third soft, a third softer."""
    wide = bool(torch.rand(1, generator=generator) < 0.5)
    images, answers = batch(n, generator, HANDS, augment=False, wide=wide)
    softness = torch.randint(0, 3, (n,), generator=generator)
    images = choose(softness == 1, blur(images, 0.55), images)
    images = choose(softness == 2, (images + blur(images, 0.9)) / 2, images)
    return some_noise(images, 0.015, generator), answers


def losses(judge: Judge, images: Tensor, answers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy of each head, labels smoothed by 5 %."""
    return {h: F.cross_entropy(logits, answers[h], label_smoothing=0.05) for h, logits in judge(images).items()}


def train(
    name: str,
    args: argparse.Namespace,
    hands: list[str],
    seed: int,
    moods: slice = ANY,
    tune: bool = False,  # go on from the judge in the folder, with softer pictures and smaller steps
) -> Judge:
    """One training, resumable; returns the judge in evaluation mode."""
    torch.manual_seed(seed)
    judge, weights = Judge(), TUNE if tune else TRAIN
    if tune:
        judge.load_state_dict(load_tensors(args.work / "judge.safetensors"))
    opts = optimisers(judge.named_parameters(), skip=("heads", "stem"), **(dict(lr=0.006, adam_lr=5e-4) if tune else {}))
    training = Training(name, args, judge, opts, warm=10 if tune else 100)
    generator, _ = training.random(seed)
    for _ in training:
        images, answers = soft_batch(96, generator) if tune else batch(64, generator, hands, moods)
        each = losses(judge, images, answers)
        update(sum(weights[head] * loss for head, loss in each.items()), opts)
        if training.due(50 if tune else 200):
            training.log(**{head: round(loss.item(), 4) for head, loss in each.items()})
    return judge.eval()


@torch.no_grad()
def accuracies(judge: Judge, hands: list[str] = HANDS, moods: slice = ANY, n: int = 2560) -> dict[str, float]:
    """Share of right answers on fresh renderings, per head; of objects and people, only where there is one.

    "plain" is the object head on plain pictures.
    """
    generator, right = torch.Generator().manual_seed(7), {}
    for _ in range(n // 256):
        images, answers = batch(256, generator, hands, moods, augment=False, wide=False)
        for head, logits in judge(images).items():
            hit = (logits.argmax(1) == answers[head]).float()
            asked = answers[head] != {"object": NONE, "identity": NOBODY}.get(head, -1)
            right.setdefault(head, []).append(hit[asked])
            if head == "object":
                right.setdefault("plain", []).append(hit[asked & (answers["style"] == 0)])
    return {head: round(torch.cat(hits).mean().item(), 4) for head, hits in right.items()}


def leave_one_out(args: argparse.Namespace, results: Path) -> None:
    """For each family of hands, a judge that never saw it nor a third of the people's pictures; skips what is done."""
    done: dict[str, Any] = load_json(results) if results.exists() else {}
    for family in args.families:
        if family in done:
            print(f"{family}: done before")
            continue
        unseen = FAMILIES[family]
        seen = [hand for hand in HANDS if hand not in unseen]
        judge = train(f"judge-without-{family}", args, seen, seed=0, moods=KNOWN)
        done[family] = {"unseen": accuracies(judge, unseen, UNSEEN), "seen": accuracies(judge, seen)}
        if RANK == 0:
            save_json(done, results)
            print(family, done[family], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", "tune", "loo"])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="which hands to leave out")
    parser.add_argument("--results", type=Path, default=LOGS / "judge_loo.json", help="where loo writes")
    options(parser)
    args = parser.parse_args()
    start()
    if args.steps is None:
        args.steps = 220 if args.what == "tune" else 1000
    if args.what == "loo":
        leave_one_out(args, args.results)
        return
    name = {"all": "judge", "tune": "judge_tune"}[args.what]
    judge = train(name, args, HANDS, seed=77 if args.what == "tune" else 1, tune=args.what == "tune")
    if RANK == 0:
        save_tensors(judge.state_dict(), args.work / ("judge_tuned.safetensors" if args.what == "tune" else "judge.safetensors"))
        save_json(accuracies(judge), args.work / f"{name}_accuracy.json")


if __name__ == "__main__":
    main()
