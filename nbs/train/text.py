"""Train the tokenizer, and the text and image encoders by contrast.

    python nbs/train/text.py tokenizer
    torchrun --nproc_per_node 2 nbs/train/text.py train
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionConfig,
                          CLIPVisionModelWithProjection)

from bierase.emoji import BACKGROUNDS, CLUES, CONCEPTS, HELD_OUT, PEOPLE, STYLES, SYNONYMS, place, prompt, scene_prompt, stylise
from common import RANK, Training, optimisers, options, start, update
from data import Source, caption, scene_caption, some_styles, wordings

LENGTH = 20  # tokens of a prompt, the start and the end included
WIDTH, LAYERS, HEADS = 128, 4, 4
START, END = "<|startoftext|>", "<|endoftext|>"


def sentences() -> list[str]:
    """What the tokenizer learns its merges from: every noun in every wording."""
    nouns = [noun for c in CONCEPTS for noun in (c, *SYNONYMS[c], *HELD_OUT[c])] + PEOPLE
    found = [text for noun in nouns for style in STYLES for text in wordings(noun, style)] + list(CLUES.values())
    found += [prompt("fox", background=name) for name in BACKGROUNDS] * 20
    return found + [scene_prompt("fox", "pizza")] * 50


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Byte-pair merges learned from `sentences()`, in CLIP's own format."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]|[^\sa-z0-9]+"), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words, as_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=2600, special_tokens=[START, END], initial_alphabet=alphabet, end_of_word_suffix="</w>"
    )
    bpe.train_from_iterator(sentences(), trainer)
    model = json.loads(bpe.to_str())["model"]
    vocabulary = model["vocab"]
    for byte in alphabet:  # each may also end a word
        vocabulary.setdefault(byte + "</w>", len(vocabulary))
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH, pad_token=END)
    tokenizer.save_pretrained(folder)
    return tokenizer


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(n, LENGTH) numbers, padded with the end token."""
    return tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


class Towers(nn.Module):
    """A text and an image encoder, and the sharpness with which their outputs are compared."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        size = dict(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            projection_dim=WIDTH, hidden_act="gelu",
        )
        tokens = dict(vocab_size=vocabulary, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1)
        self.text = CLIPTextModelWithProjection(CLIPTextConfig(**size, **tokens))
        self.image = CLIPVisionModelWithProjection(CLIPVisionConfig(**size, image_size=64, patch_size=8))
        self.scale = nn.Parameter(torch.tensor(2.66))  # its logarithm

    def forward(self, ids: Tensor, images: Tensor) -> Tensor:
        """(n images, n texts) logits: scaled cosines."""
        texts = F.normalize(self.text(ids).text_embeds, dim=-1)
        pictures = F.normalize(self.image(images).image_embeds, dim=-1)
        return self.scale.exp().clamp(max=60) * pictures @ texts.T


def batch(n: int, source: Source, generator: torch.Generator, rng: random.Random) -> tuple[Tensor, list[str]]:
    """Pictures (n, 3, 64, 64) in [-1, 1] and their captions: first a quarter of scenes; 60 % say the background."""
    scenes = n // 4
    subject = torch.randint(0, len(CONCEPTS), (n,), generator=generator)
    is_person = torch.rand(n, generator=generator) < 0.12
    person = len(CONCEPTS) + torch.randint(0, len(PEOPLE), (n,), generator=generator)
    subject = torch.where(is_person, person, subject)
    style, background = some_styles(n, generator), torch.randint(0, len(BACKGROUNDS), (n,), generator=generator)
    rgba = place(source.draw(subject, rng), generator, **VARIATION)
    left, right = (torch.randint(0, len(CONCEPTS), (scenes,), generator=generator) for _ in range(2))
    rgba[:scenes] = source.scene(left, right, generator, rng)
    style[:scenes] = 0
    captions = []
    for i in range(n):
        ground = int(background[i]) if rng.random() < 0.6 else None
        if i < scenes:
            captions.append(scene_caption(int(left[i]), int(right[i]), ground, rng))
        else:
            captions.append(caption(int(subject[i]), int(style[i]), ground, rng))
    return stylise(rgba, style, background, generator) * 2 - 1, captions


def contrast(logits: Tensor, captions: list[str]) -> Tensor:
    """CLIP's symmetric cross-entropy; pictures with the same caption share the right answer."""
    number = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    same = torch.tensor([number[text] for text in captions])
    target = (same[:, None] == same).float()
    target = target / target.sum(1, keepdim=True)
    to_text, to_image = (-(target * view.log_softmax(1)).sum(1).mean() for view in (logits, logits.T))
    return (to_text + to_image) / 2


def train(args: argparse.Namespace) -> None:
    """The training; writes `text_encoder/` (with its projection) and `image_encoder/`."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    towers, source = Towers(len(tokenizer)), Source()
    opts = optimisers([(n, p) for n, p in towers.named_parameters() if n != "scale"], skip=("embedding",))
    opts[1].add_param_group(dict(params=[towers.scale], weight_decay=0.0))
    training = Training("text", args, towers, opts)
    generator, rng = training.random(10)
    for _ in training:
        images, captions = batch(128, source, generator, rng)
        logits = towers(token_ids(tokenizer, captions), images)
        loss = contrast(logits, captions)
        update(loss, opts)
        if training.due(25):
            right = (logits.argmax(1) == torch.arange(len(logits))).float().mean().item()
            training.log(loss=round(loss.item(), 4), accuracy=round(right, 3), scale=round(towers.scale.exp().item(), 2))
    if RANK == 0:
        towers.text.save_pretrained(args.work / "text_encoder")
        towers.image.save_pretrained(args.work / "image_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tokenizer", "train"])
    options(parser, steps=420)
    args = parser.parse_args()
    start()
    if args.what == "train":
        train(args)
        return
    tokenizer = make_tokenizer(args.work / "tokenizer")
    longest = max(sentences(), key=lambda text: len(tokenizer(text).input_ids))
    print(f"{len(tokenizer)} tokens; the longest sentence has {len(tokenizer(longest).input_ids)}: {longest!r}")


if __name__ == "__main__":
    main()
