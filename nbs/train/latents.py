"""Encode renderings once, drop the dead latent channel and whiten the rest, inside the autoencoder.

    torchrun --nproc_per_node 2 nbs/train/latents.py encode
    python nbs/train/latents.py fold
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from bierase.core import load_tensors, save_tensors
from bierase.emoji import BACKGROUNDS, CONCEPTS, STYLES, place, stylise
from common import RANK, WORK, WORLD, start
from data import SUBJECTS, VARIATION, Source

ALIVE = 0.15  # smallest spread of a latent channel that carries anything
LOG_VARIANCE = -6.0  # of the new posterior, everywhere: the encoder is all but exact


@torch.no_grad()
def encode(
    vae: AutoencoderKL,
    part: int,  # which share of the subjects
    parts: int,  # of how many
    plain: int = 12,  # pictures of each subject on each background
    styled: int = 3,  # and in each other style
    scenes: int = 20000,  # of all parts together
) -> dict[str, Tensor]:
    """Latents of fresh renderings, sorted by what they show (s subjects, C channels of 8 × 8).

    plain (s, 8 backgrounds, plain, C, 8, 8); styled (s, 5 styles, 8 backgrounds, styled, C, 8, 8);
    scene (n, C, 8, 8) with label (n, 3) = left, right, background.
    """
    source, generator, rng = Source(), torch.Generator().manual_seed(part), random.Random(part)
    grounds, looks = len(BACKGROUNDS), len(STYLES) - 1

    def latents(rgba: Tensor, style: Tensor, background: Tensor) -> Tensor:
        return vae.encode(stylise(rgba, style, background, generator) * 2 - 1).latent_dist.mode()

    subjects = list(range(part, len(SUBJECTS), parts))
    found: dict[str, list[Tensor]] = {"plain": [], "styled": [], "scene": [], "label": []}
    for subject in subjects:
        background = torch.arange(grounds).repeat_interleave(plain)
        rgba = place(source.draw(torch.full((grounds * plain,), subject), rng), generator, **VARIATION)
        z = latents(rgba, torch.zeros_like(background), background)
        found["plain"].append(z.view(grounds, plain, *z.shape[1:]))
        background = torch.arange(grounds).repeat_interleave(styled).repeat(looks)
        style = torch.arange(1, looks + 1).repeat_interleave(grounds * styled)
        z = latents(place(source.draw(torch.full((len(style),), subject), rng), generator, **VARIATION), style, background)
        found["styled"].append(z.view(looks, grounds, styled, *z.shape[1:]))
    for n in [200] * (scenes // parts // 200) or [scenes // parts]:
        left, right = (torch.randint(0, len(CONCEPTS), (n,), generator=generator) for _ in range(2))
        background = torch.randint(0, grounds, (n,), generator=generator)
        rgba = source.scene(left, right, generator, rng)
        found["scene"].append(latents(rgba, torch.zeros_like(background), background))
        found["label"].append(torch.stack([left, right, background], 1))
    stack = {"plain": torch.stack, "styled": torch.stack, "scene": torch.cat, "label": torch.cat}
    return {name: stack[name](values) for name, values in found.items()} | {"subjects": torch.tensor(subjects)}


def merged(work: Path) -> dict[str, Tensor]:
    """The parts together, the subjects in order."""
    parts = [load_tensors(path) for path in sorted(work.glob("latents-[0-9]*.safetensors"))]
    order = torch.cat([p["subjects"] for p in parts]).argsort()
    found = {name: torch.cat([p[name] for p in parts]) for name in ("plain", "styled", "scene", "label")}
    return found | {name: found[name][order] for name in ("plain", "styled")}


def whitening(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean m and the symmetric W = C^(-1/2) and its inverse, so that W(z - m) has the covariance 1 (ZCA)."""
    mean = vectors.mean(0)
    variance, axes = torch.linalg.eigh(torch.cov((vectors - mean).T))
    return mean, axes @ torch.diag(variance**-0.5) @ axes.T, axes @ torch.diag(variance**0.5) @ axes.T


def folded(vae: AutoencoderKL, keep: Tensor, mean: Tensor, white: Tensor, colour: Tensor) -> AutoencoderKL:
    """The same autoencoder with the latents W(z - m) of its channels `keep`; the others stay at their mean.

    Exact but for the dead channels: z ↦ W(z - m) becomes `quant_conv` and its inverse `post_quant_conv`, both of
    1 × 1. What these layers did before moves into the convolutions beside them.
    """
    old = {name: value.double() for name, value in vae.state_dict().items()}
    new, k, every = dict(old), len(keep), vae.config.latent_channels
    dead = torch.tensor([i for i in range(every) if i not in keep.tolist()], dtype=torch.long)
    rows = torch.cat([keep, keep + every])  # means, log-variances
    quant, back = old["quant_conv.weight"][:, :, 0, 0], old["post_quant_conv.weight"][:, :, 0, 0]
    new["encoder.conv_out.weight"] = torch.einsum("ij,jabc->iabc", quant, old["encoder.conv_out.weight"])[rows]
    new["encoder.conv_out.bias"] = (quant @ old["encoder.conv_out.bias"] + old["quant_conv.bias"])[rows]
    first = torch.zeros(2 * k, 2 * k, dtype=torch.double)
    first[:k, :k] = white
    new["quant_conv.weight"] = first[..., None, None]
    new["quant_conv.bias"] = torch.cat([-white @ mean[keep], torch.full((k,), LOG_VARIANCE, dtype=torch.double)])
    # Before the decoder: back[:, keep] z + constant. The share of the constant that back[:, keep] can reach goes
    # into its input, so that padding sees it too; the rest becomes a bias.
    constant = back[:, dead] @ mean[dead] + old["post_quant_conv.bias"]
    reached = torch.linalg.pinv(back[:, keep]) @ constant
    kernel = old["decoder.conv_in.weight"]
    new["decoder.conv_in.weight"] = torch.einsum("oiab,ij->ojab", kernel, back[:, keep])
    rest = torch.einsum("oiab,i->o", kernel, constant - back[:, keep] @ reached)
    new["decoder.conv_in.bias"] = old["decoder.conv_in.bias"] + rest
    new["post_quant_conv.weight"] = colour[..., None, None]
    new["post_quant_conv.bias"] = mean[keep] + reached
    result = AutoencoderKL.from_config({**vae.config, "latent_channels": k, "scaling_factor": 1.0})
    result.load_state_dict({name: value.float() for name, value in new.items()})
    return result.eval()


def fold(work: Path) -> None:
    """Write `vae_white/` and the whitened `latents.safetensors`."""
    vae, found = AutoencoderKL.from_pretrained(work / "vae").eval(), merged(work)
    everything = torch.cat([found[name].flatten(0, -4) for name in ("plain", "styled", "scene")])
    vectors = everything.movedim(1, -1).flatten(0, -2)[::7].double()
    spread = vectors.std(0)
    keep = torch.nonzero(spread > ALIVE).flatten()
    print("spread", [round(s, 3) for s in spread.tolist()], "kept", keep.tolist())
    _, white, colour = whitening(vectors[:, keep])
    mean = vectors.mean(0)
    folded(vae, keep, mean, white, colour).save_pretrained(work / "vae_white")

    def whiten(z: Tensor) -> Tensor:
        centred = z.index_select(-3, keep) - mean[keep].float().view(-1, 1, 1)
        return torch.einsum("ij,...jhw->...ihw", white.float(), centred)

    whitened = {name: whiten(found[name]) for name in ("plain", "styled", "scene")}
    save_tensors(whitened | {"label": found["label"]}, work / "latents.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["encode", "fold"])
    parser.add_argument("--work", type=Path, default=WORK, help="folder of checkpoints, logs and parts")
    parser.add_argument("--plain", type=int, default=12, help="plain pictures of each subject on each background")
    parser.add_argument("--styled", type=int, default=3, help="pictures in each other style")
    parser.add_argument("--scenes", type=int, default=20000, help="scenes of two objects")
    args = parser.parse_args()
    start()
    if args.what == "fold":
        fold(args.work)
        return
    target = args.work / f"latents-{RANK}.safetensors"
    if target.exists():
        print(f"{target}: done before")
        return
    vae = AutoencoderKL.from_pretrained(args.work / "vae").eval()
    save_tensors(encode(vae, RANK, WORLD, args.plain, args.styled, args.scenes), target)


if __name__ == "__main__":
    main()
