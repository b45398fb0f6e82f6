"""Train the autoencoder on all looks of the world, and measure what is lost in it.

    torchrun --nproc_per_node 2 nbs/train/vae.py train
    torchrun --nproc_per_node 2 nbs/train/vae.py train --widen FOLDER --minutes 24
    python nbs/train/vae.py ceiling
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from bierase.core import save_json
from bierase.emoji import (BACKGROUNDS, CONCEPTS, HANDS, PEOPLE, STYLES, Judge, art, load, load_judge, place, side_by_side,
                           stylise)
from common import LOGS, RANK, Average, Training, optimisers, options, start, update
from data import VARIATION, Source, drawings_by, some_styles

HANDS_SEEN = HANDS[:6]  # one more than the generator's: it need not know what it encodes


def make_vae(channels: int = 12) -> AutoencoderKL:
    """Stable Diffusion's autoencoder in miniature: factor 8, twelve latent channels, no attention."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def widened(vae: AutoencoderKL) -> AutoencoderKL:
    """The same autoencoder with more latent channels: what the new ones carry is still to be learned."""
    wide = make_vae()
    state, k, n = wide.state_dict(), vae.config.latent_channels, wide.config.latent_channels
    rows, eye = [*range(k), *range(n, n + k)], torch.eye(2 * n)[..., None, None]
    state["quant_conv.weight"], state["post_quant_conv.weight"] = eye, eye[:n, :n].clone()
    state["quant_conv.bias"], state["post_quant_conv.bias"] = torch.zeros(2 * n), torch.zeros(n)
    state["encoder.conv_out.bias"] = torch.full((2 * n,), -6.0) * (torch.arange(2 * n) >= n)
    state["encoder.conv_out.weight"][k:n] *= 6  # a spread near one, as the old channels have
    state["encoder.conv_out.weight"][n:] = 0
    for name, value in vae.state_dict().items():
        if name.startswith(("quant_conv", "encoder.conv_out")):
            if name == "quant_conv.weight":
                state[name][torch.tensor(rows)[:, None], torch.tensor(rows)] = value
            else:
                state[name][rows] = value
        elif name.startswith("post_quant_conv"):
            state[name][(slice(k),) * min(value.ndim, 2)] = value
        elif name == "decoder.conv_in.weight":
            state[name][:, :k], state[name][:, k:] = value, 0.1 * value.std() * torch.randn_like(state[name][:, k:])
        else:
            state[name] = value
    wide.load_state_dict(state)
    return wide


def batch(n: int, generator: torch.Generator) -> Tensor:
    """(n, 3, 64, 64) pictures in [-1, 1]: 15 % people, 30 % scenes, half of them plain."""
    tiles, portraits = drawings_by(*HANDS_SEEN)[0], art()[1].flatten(0, 1)

    def some(of: Tensor) -> Tensor:
        return of[torch.randint(0, len(of), (n,), generator=generator)]

    dice = torch.rand(n, generator=generator).view(-1, 1, 1, 1)
    left = torch.where(dice < 0.15, some(portraits), some(tiles))
    scene = side_by_side(left, some(tiles), generator, **VARIATION)[0]
    rgba = torch.where(dice > 0.7, scene, place(left, generator, **VARIATION))
    style, background = some_styles(n, generator), torch.randint(0, len(BACKGROUNDS), (n,), generator=generator)
    return stylise(rgba, style, background, generator) * 2 - 1


def gradients(x: Tensor) -> Tensor:
    """Differences of neighbouring pixels, across and down, as one row a picture."""
    return torch.cat([x.diff(dim=-1).flatten(1), x.diff(dim=-2).flatten(1)], 1)


def loss_of(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """L1 + MSE / 4 + L1 of the gradients / 2 + 1e-7 KL (summed over a picture)."""
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample
    sharp = (gradients(y) - gradients(x)).abs().mean()
    return (y - x).abs().mean() + 0.25 * ((y - x) ** 2).mean() + 0.5 * sharp + 1e-7 * posterior.kl().mean()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Pictures in [0, 1], there and back."""
    back = [vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample / 2 + 0.5 for x in images.split(64)]
    return torch.cat(back).clamp(0, 1)


def psnr(images: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], averaged over pictures."""
    return float(-10 * torch.log10(((images - truth) ** 2).mean((1, 2, 3))).mean())


def train(args: argparse.Namespace) -> None:
    """The training; writes the averaged weights to `vae/`."""
    torch.manual_seed(0)
    vae = widened(AutoencoderKL.from_pretrained(args.widen)) if args.widen else make_vae()
    rates = dict(lr=0.01, adam_lr=5e-4) if args.widen else {}
    opts, average = optimisers(vae.named_parameters(), skip=("encoder.conv_in", "decoder.conv_out"), **rates), Average(vae, 0.998)
    training = Training("vae_wide" if args.widen else "vae", args, vae, opts, average, every=250)
    generator, _ = training.random(100)
    held = batch(128, torch.Generator().manual_seed(5)) / 2 + 0.5
    for step in training:
        loss = loss_of(vae, batch(8, generator))
        update(loss, opts, clip=1.0)
        average.update(step)
        if training.due(250):
            with average.applied(), torch.no_grad():
                spread = vae.encode(held * 2 - 1).latent_dist.mode().std((0, 2, 3))
                quality = psnr(reconstruct(vae, held), held)
            std = [round(s, 3) for s in spread.tolist()]
            training.log(loss=round(loss.item(), 4), psnr=round(quality, 2), std=std)
    if RANK == 0:
        with average.applied():
            vae.save_pretrained(args.work / "vae")


def halves(images: Tensor) -> tuple[Tensor, Tensor]:
    """The two objects of scenes, each cut out and enlarged to 64 pixels."""
    cuts = (images[:, :, 16:48, :32], images[:, :, 16:48, 32:])
    return tuple(F.interpolate(cut, scale_factor=2, mode="bilinear") for cut in cuts)


@torch.no_grad()
def ceiling(
    vae: AutoencoderKL,
    judge: Judge,
    rounds: int = 2,  # pictures of each concept
) -> dict[str, dict[str, float]]:
    """What the judge recognises on fresh renderings, and on the same ones after the autoencoder.

    No generator that draws through this autoencoder can be expected to score higher.
    """
    source, generator, rng = Source(), torch.Generator().manual_seed(9), random.Random(9)
    n, found = len(CONCEPTS), {"drawn": {}, "decoded": {}}

    def views(rgba: Tensor, style: Tensor) -> list[tuple[str, Tensor]]:
        background = torch.randint(0, len(BACKGROUNDS), (len(rgba),), generator=generator)
        images = stylise(rgba, style, background, generator)
        return [("drawn", images), ("decoded", reconstruct(vae, images))]

    def share(hit: Tensor) -> float:
        return round(hit.float().mean().item(), 4)

    subject, plain = torch.arange(n).repeat(rounds), torch.zeros(n * rounds, dtype=torch.long)
    for kind, images in views(place(source.draw(subject, rng), generator, **VARIATION), plain):
        found[kind]["plain concept"] = share(judge(images)["object"].argmax(1) == subject)
    style = 1 + torch.arange(n * rounds) % (len(STYLES) - 1)
    for kind, images in views(place(source.draw(subject, rng), generator, **VARIATION), style):
        answers = judge(images)
        found[kind]["styled concept"] = share(answers["object"].argmax(1) == subject)
        found[kind]["style"] = share(answers["style"].argmax(1) == style)
    person = torch.arange(len(PEOPLE)).repeat(4 * rounds)
    for kind, images in views(place(source.draw(n + person, rng), generator, **VARIATION), torch.zeros_like(person)):
        found[kind]["identity"] = share(judge(images)["identity"].argmax(1) == person)
    left, right = torch.randint(0, n, (2, 96 * rounds), generator=generator)
    for kind, images in views(source.scene(left, right, generator, rng), torch.zeros_like(left)):
        hits = [judge(h)["object"].argmax(1) == truth for h, truth in zip(halves(images), (left, right))]
        found[kind]["both halves"] = share(hits[0] & hits[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "ceiling"])
    parser.add_argument("--widen", type=Path, help="an autoencoder with fewer latent channels to go on from, at half the rates")
    parser.add_argument("--results", type=Path, default=LOGS / "vae_ceiling.json", help="where ceiling writes")
    options(parser, steps=3000)
    args = parser.parse_args()
    start()
    if args.what == "train":
        train(args)
    else:
        save_json(ceiling(load().vae, load_judge()), args.results)


if __name__ == "__main__":
    main()
