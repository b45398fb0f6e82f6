"""What the networks are shown: drawings by the generator's hands, and the captions that belong to them."""

from __future__ import annotations

import random
from functools import cache

import torch
from torch import Tensor

from bierase.emoji import (BACKGROUNDS, CLUES, CONCEPTS, HANDS, HELD_OUT, PEOPLE, STYLES, SYNONYMS, WORDS, art, prompt,
                           scene_prompt, side_by_side)

SUBJECTS = CONCEPTS + PEOPLE  # 128 + 16; a subject's number is its place here
GROUNDS = list(BACKGROUNDS)
VARIATION = dict(scale=(0.97, 1.03), shift=0.015, angle=0.02, mirror=False)  # of `place`: what the generator learns
GENERATOR_HANDS = 3  # the UNet learns from the first three hands: what it draws it must know by heart


def drawn(tiles: Tensor) -> Tensor:
    """Which of the drawings (..., 4, 64, 64) exist: an empty one was never made."""
    return tiles[..., 3, :, :].amax((-2, -1)) > 0


@cache
def drawings_by(*hands: str) -> tuple[Tensor, Tensor]:
    """All drawings of concepts by some hands, (n, 4, 64, 64), and the number of the concept of each, (n,)."""
    tiles = art()[0][:, [HANDS.index(hand) for hand in hands]]
    there = drawn(tiles)
    return tiles[there], torch.nonzero(there)[:, 0]


def some_styles(n: int, generator: torch.Generator, plain: int = 5) -> Tensor:
    """Numbers of styles at random: `plain` parts plain, one part of each other look."""
    style = torch.randint(0, plain + 5, (n,), generator=generator)
    return torch.where(style > 5, 0, style)


class Source:
    """Drawings by the number of their subject, each by one of the generator's hands at random."""

    def __init__(self) -> None:
        self.objects, self.people = art()
        self.hands = [torch.nonzero(row).flatten().tolist() for row in drawn(self.objects[:, :GENERATOR_HANDS])]

    def draw(self, subjects: Tensor, rng: random.Random) -> Tensor:
        """(n, 4, 64, 64) premultiplied drawings of the (n,) subjects."""
        return torch.stack([
            self.people[s - len(CONCEPTS), rng.randrange(self.people.shape[1])] if s >= len(CONCEPTS)
            else self.objects[s, rng.choice(self.hands[s])]
            for s in subjects.tolist()
        ])

    def scene(self, left: Tensor, right: Tensor, generator: torch.Generator, rng: random.Random) -> Tensor:
        """(n, 4, 64, 64): two subjects side by side."""
        return side_by_side(self.draw(left, rng), self.draw(right, rng), generator, **VARIATION)[0]


def wordings(noun: str, style: str = "plain", background: str | None = None) -> list[str]:
    """Every prompt of the grammar about one subject in one style."""
    plain = WORDS["person_templates" if noun in PEOPLE else "templates"]
    count = len(plain if style == "plain" else WORDS["style_templates"][style])
    return [prompt(noun, style, background, i) for i in range(count)]


def caption(
    subject: int,  # its place in SUBJECTS
    style: int,  # its place in STYLES
    background: int | None,  # its place in BACKGROUNDS, or unsaid
    rng: random.Random,
) -> str:
    """A caption for a picture. Plain: 8 % riddles, 22 % synonyms, half of the rest bare nouns; styled: 30 % synonyms."""
    ground = None if background is None else GROUNDS[background]
    noun, look = SUBJECTS[subject], STYLES[style]
    if noun in PEOPLE:
        return rng.choice(wordings(noun, look, ground))
    chance = rng.random()
    if chance < 0.08 and look == "plain":
        return CLUES[noun] + (f" on a {ground} background" if ground else "")
    if chance < 0.30:
        noun = rng.choice(SYNONYMS[noun] + HELD_OUT[noun])
    if look == "plain" and rng.random() < 0.5:
        return prompt(noun, background=ground)
    return rng.choice(wordings(noun, look, ground))


def scene_caption(left: int, right: int, background: int | None, rng: random.Random) -> str:
    """A caption for two objects side by side; 12 % of the nouns are synonyms."""
    nouns = []
    for subject in (left, right):
        noun = CONCEPTS[subject]
        nouns.append(rng.choice(SYNONYMS[noun] + HELD_OUT[noun]) if rng.random() < 0.12 else noun)
    return scene_prompt(*nouns, background=None if background is None else GROUNDS[background])
