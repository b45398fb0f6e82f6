"""Count how often the shipped model draws what it is asked for, and write it into its card.

    python nbs/train/quality.py
    python nbs/train/quality.py --seeds 1 --guidance 3 4 5    # a quick look, written nowhere

Eight seeds a prompt, judged by the shipped judge. What is counted already, of the same weights, is not counted again.
"""

from __future__ import annotations

import argparse
import time

import torch

from bierase import generate, load
from bierase.core import load_json, save_json
from bierase.emoji import BACKGROUNDS, CONCEPTS, HELD_OUT, PEOPLE, STYLES, SYNONYMS, WEIGHTS, label, load_judge, prompt, scene_prompt
from common import WORK
from vae import halves

GROUNDS = list(BACKGROUNDS)


def examination() -> dict[str, list[tuple[str, list[tuple[str, int]]]]]:
    """For each kind its prompts, each with what the judge should answer: (head, number); a scene's halves in turn."""
    pairs = [(CONCEPTS[i], CONCEPTS[(37 * i + 11) % 128]) for i in range(128)]
    return {
        "concept": [(prompt(c), [("object", label(c))]) for c in CONCEPTS],
        "style": [(prompt(c, STYLES[k]), [("style", k)]) for i, c in enumerate(CONCEPTS) for k in [1 + i % 5]],
        "identity": [(prompt(p), [("identity", label(p))]) for p in PEOPLE],
        "background": [(prompt(c, background=GROUNDS[i % 8]), [("background", i % 8)]) for i, c in enumerate(CONCEPTS)],
        "scene": [(scene_prompt(a, b), [("object", label(a)), ("object", label(b))]) for a, b in pairs],
        "synonyms": [(prompt(s), [("object", label(c))]) for c in CONCEPTS for s in SYNONYMS[c] + HELD_OUT[c]],
    }


@torch.no_grad()
def count(
    pipe: object,
    asked: list[tuple[str, list[tuple[str, int]]]],
    seeds: int,  # pictures of each prompt
    guidance: float,
    first: int = 7000,  # seed of the first picture
) -> dict[str, int]:
    """Pictures that show all they should, of how many."""
    questions = [question for question in asked for _ in range(seeds)]
    images = generate(pipe, [text for text, _ in questions], seed=first, guidance_scale=guidance, progress=asked[0][0])
    views = halves(images) if len(asked[0][1]) == 2 else (images,)
    right = torch.ones(len(images), dtype=torch.bool)
    for place, view in enumerate(views):
        head = asked[0][1][place][0]
        answers = torch.cat([load_judge()(part)[head].argmax(1) for part in view.split(256)])
        right &= answers == torch.tensor([truth[place][1] for _, truth in questions])
    return {"hits": int(right.sum()), "n": len(right)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="pictures of each prompt (default: 8, which the card gets)")
    parser.add_argument("--guidance", type=float, nargs="+", help="guidance scales to try (default: the card's)")
    parser.add_argument("--kinds", nargs="+", choices=list(examination()), default=list(examination()))
    args = parser.parse_args()
    pipe, card, into = load(), load_json(WEIGHTS / "card.json"), args.seeds == 8 and not args.guidance
    memory = WORK / f"quality-{card['unet'][:12]}.json"
    found = load_json(memory) if into and memory.exists() else {}
    for guidance in args.guidance or [card["guidance_scale"]]:
        for kind in args.kinds:
            started = time.perf_counter()
            if not into or kind not in found:
                found[kind] = count(pipe, examination()[kind], args.seeds, guidance)
            share, seconds = found[kind]["hits"] / found[kind]["n"], time.perf_counter() - started
            print(f"guidance {guidance:g}  {kind:11}{found[kind]['hits']:5} of {found[kind]['n']:5}  {share:6.1%}  {seconds:.0f} s", flush=True)
            if into:
                save_json(found, memory)
    if into and set(found) == set(examination()):
        save_json(card | {"quality": found}, WEIGHTS / "card.json")


if __name__ == "__main__":
    main()
