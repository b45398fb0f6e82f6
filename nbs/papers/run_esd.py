"""Erase with four variants of ESD, evaluate each, and collect the numbers for the notebook on `erase`.

    python nbs/papers/run_esd.py --seeds 0 1 2

Resumable: a run that is in the results already, of the same model, settings and counts, is skipped. Every run is
written as soon as it is done. The arms: the default; the paper's loss without a retain term; the retained prompts
scored at the target's latents; and the released order, its defects included.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bierase import ESD, emoji, erase, evaluate, load
from bierase.core import hash_tensors, load_json, save_json, write_atomic
from bierase.metrics import generate
from bierase.viz import contact_sheet

ARMS = {
    "default": ESD(),
    "no retain": ESD(retain=None),
    "retain at the target's z": ESD(retain_latents="target"),
    "released order": ESD(retain=None, reference=True),
}


def prompts(target: str) -> list[str]:
    """What the pictures show: the target in four ways, then six others."""
    words = [target, target, (emoji.HELD_OUT.get(target) or emoji.SYNONYMS.get(target) or [target])[0]]
    others = [emoji.prompt(noun) for noun in ("bomb", "knife", "trumpet", "fox", "pizza")]
    return [*map(emoji.prompt, words), emoji.prompt(target, "sketch"), *others, emoji.prompt("fox", "sketch")]


def strip(pipe: Any, target: str, path: Path) -> None:
    """Draw the ten pictures, always from the same noise, as one row."""
    page = contact_sheet([*generate(pipe, prompts(target), seed=5000)], columns=10, scale=1)
    write_atomic(path, lambda p: page.save(p, quality=90))


def run(pipe: Any, arm: str, method: ESD, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Erase, evaluate and draw once."""
    erasure = erase(pipe, args.target, method, seed=seed)
    scores = evaluate(pipe, erasure, n_target=args.n_target, n_other=args.n_other, n_synonym=args.n_synonym)
    pictures = f"esd-{'-'.join(arm.replace(chr(39), '').split())}-{seed}.webp"
    with erasure.applied(pipe):
        strip(pipe, args.target, args.results.parent / pictures)
    keep = ("target", "settings", "seed", "base_unet", "versions", "seconds", "unet_passes", "steps")
    counts = [args.n_target, args.n_other, args.n_synonym]
    return {"arm": arm, "counts": counts, "pictures": pictures, "scores": scores} | {name: erasure.card[name] for name in keep}


def same(done: dict[str, Any] | None, method: ESD, args: argparse.Namespace, base: str) -> bool:
    """Whether a finished run is the one asked for."""
    if not done:
        return False
    counts = [args.n_target, args.n_other, args.n_synonym]
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(method).items()}
    return (done["base_unet"], done["counts"], done["settings"]) == (base, counts, settings)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run of every arm for each")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--target", default="gun")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: each arm's own)")
    parser.add_argument("--n-target", type=int, default=200, help="pictures of the target")
    parser.add_argument("--n-other", type=int, default=8, help="pictures of every other subject")
    parser.add_argument("--n-synonym", type=int, default=64, help="pictures of the held-out synonyms")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "esd.json")
    args = parser.parse_args()
    pipe = load("emoji")
    base, results = hash_tensors(pipe.unet.state_dict()), load_json(args.results) if args.results.is_file() else {"runs": {}}
    todo = []
    for seed in args.seeds:
        for arm in args.arms:
            method = ARMS[arm] if args.steps is None else replace(ARMS[arm], steps=args.steps)
            key = f"{args.target}, seed {seed:03}, {list(ARMS).index(arm)} {arm}"  # sorts by seed, then in the order of ARMS
            if not same(results["runs"].get(key), method, args, base):
                todo.append((key, arm, method, seed))
    print(f"{len(args.seeds) * len(args.arms) - len(todo)} runs done before, {len(todo)} to do", file=sys.stderr)
    if todo:
        strip(pipe, args.target, args.results.parent / "esd-original.webp")
    for key, arm, method, seed in todo:
        print(key, file=sys.stderr)
        results["runs"][key] = run(pipe, arm, method, args, seed)
        save_json(results, args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
