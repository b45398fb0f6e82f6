"""Train the UNet on cached latents: v prediction, and the exact posterior mean as the target.

    torchrun --nproc_per_node 2 nbs/train/unet.py --minutes 60
    torchrun --nproc_per_node 2 nbs/train/unet.py --again --name unet_again    # go on from the finished one
    python nbs/train/unet.py --joint 0 --name unet_frozen --minutes 5    # does the text encoder's training help?
    python nbs/train/unet.py --name unet_joint --minutes 5
    python nbs/train/unet.py --compare unet_frozen unet_joint
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from bierase.core import load_metadata, load_tensors, save_json
from bierase.emoji import BACKGROUNDS, CONCEPTS, PEOPLE, STYLES
from common import LOGS, RANK, Average, Training, optimisers, options, part, start, update
from data import caption, scene_caption
from text import WIDTH, token_ids

BETAS = (1e-4, 0.02)  # linear, 1,000 steps
SCENES = 0.35  # share of the pictures
ALPHA_BAR = torch.cumprod(1 - torch.linspace(*BETAS, 1000, dtype=torch.float64), 0).float()


def make_unet(channels: int) -> UNet2DConditionModel:
    """Stable Diffusion's UNet in miniature: 8 × 8 and 4 × 4, cross-attention at both."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(64, 160),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # the number of heads
        norm_num_groups=16,
    )


def posterior_mean(z: Tensor, pool: Tensor, alpha: Tensor) -> Tensor:
    """E[x₀ | z] when x₀ is one of the `pool` (n, C, h, w) and z = √α x₀ + √(1 - α) ε, of shape (C, h, w).

    The weights are softmax(-‖z - √α xᵢ‖² / 2(1 - α)) (stable target field, Xu et al. 2023).
    """
    distance = ((z - alpha.sqrt() * pool) ** 2).flatten(1).sum(1)
    weights = torch.softmax(-distance / (2 * (1 - alpha)), 0)
    return torch.einsum("n,nchw->chw", weights, pool)


def velocity(z: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
    """v = √α ε - √(1 - α) x₀ from the noisy z and the clean x; ε is what is left of z."""
    return (alpha.sqrt() * z - x) / (1 - alpha).sqrt()


class Text:
    """Hidden states of captions. A frozen encoder computes each once, kept in half precision."""

    def __init__(self, work: Path, joint: bool, folder: str = "text_encoder") -> None:
        self.tokenizer, self.joint = CLIPTokenizer.from_pretrained(work / "tokenizer"), joint
        self.encoder = CLIPTextModelWithProjection.from_pretrained(work / folder).requires_grad_(joint)
        self.encoder.text_projection.requires_grad_(False)  # only the contrast needs it
        self.known: dict[str, Tensor] = {}

    def states(self, captions: list[str]) -> Tensor:
        """(n, tokens, width)"""
        return self.encoder.text_model(token_ids(self.tokenizer, captions)).last_hidden_state

    def __call__(self, captions: list[str]) -> Tensor:
        """(n, tokens, width)"""
        if self.joint:
            return self.states(captions)
        new = [text for text in dict.fromkeys(captions) if text not in self.known]
        if new:
            with torch.no_grad():
                self.known |= dict(zip(new, self.states(new).half()))
        return torch.stack([self.known[text] for text in captions]).float()


def batch(
    n: int, data: dict[str, Tensor], generator: torch.Generator, rng: random.Random
) -> tuple[Tensor, list[str], list[Tensor | None]]:
    """Latents (n, C, 8, 8), captions, and for each the pool of all latents with that caption, or None.

    First the scenes; of the rest 12 % people, 38 % styled. Half of the captions say the background,
    a tenth of all captions is empty.
    """
    scenes = max(1, round(SCENES * n))
    index = torch.randint(0, len(data["scene"]), (scenes,), generator=generator)
    x, pools = list(data["scene"][index]), [None] * scenes
    captions = [scene_caption(*pair, b if rng.random() < 0.5 else None, rng) for *pair, b in data["label"][index].tolist()]
    for _ in range(n - scenes):
        is_object = rng.random() < 0.88
        subject = rng.randrange(len(CONCEPTS)) if is_object else len(CONCEPTS) + rng.randrange(len(PEOPLE))
        background = rng.randrange(len(BACKGROUNDS))
        style = 0 if rng.random() < 0.62 else rng.randint(1, len(STYLES) - 1)
        said = rng.random() < 0.5
        same = data["styled"][subject, style - 1] if style else data["plain"][subject]
        x.append(same[background, rng.randrange(same.shape[1])])
        pools.append(same[background] if said else same.flatten(0, 1))
        captions.append(caption(subject, style, background if said else None, rng))
    for i in range(n):
        if rng.random() < 0.1:
            captions[i], pools[i] = "", None
    return torch.stack(x), captions, pools


def errors(
    unet: UNet2DConditionModel,
    text: Callable[[list[str]], Tensor],
    x: Tensor,
    captions: list[str],
    pools: list[Tensor | None],
    generator: torch.Generator,
) -> Tensor:
    """(n,) squared errors of the predicted v, every t equally likely, all weights 1."""
    noise = torch.randn(x.shape, generator=generator)
    t = torch.randint(0, len(ALPHA_BAR), (len(x),), generator=generator)
    alpha = ALPHA_BAR[t].view(-1, 1, 1, 1)
    z = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
    best = [one if pool is None else posterior_mean(zi, pool, a) for one, zi, a, pool in zip(x, z, ALPHA_BAR[t], pools)]
    target = velocity(z, torch.stack(best), alpha)
    return ((unet(z, t, text(captions)).sample - target) ** 2).mean((1, 2, 3))


def train(args: argparse.Namespace) -> None:
    """The training; writes the averaged weights to `unet/`."""
    torch.manual_seed(0)
    data = load_tensors(args.work / "latents.safetensors")
    unet, factor = make_unet(data["scene"].shape[1]), 0.5 if args.again else 1.0
    text = Text(args.work, args.joint > 0, "unet_text_encoder" if args.again else "text_encoder")
    if args.again:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(args.work / "unet").state_dict())
    rates = dict(lr=0.02 * factor, adam_lr=1e-3 * factor)
    opts = optimisers(unet.named_parameters(), skip=("conv_in", "conv_out", "embedding"), **rates)
    network = nn.ModuleDict({"unet": unet})
    if text.joint:  # from what the contrast has taught it, with smaller steps
        network["text"] = text.encoder
        named = [(name, p) for name, p in text.encoder.named_parameters() if p.requires_grad]
        opts += optimisers(named, skip=("embedding",), **{name: lr * args.joint for name, lr in rates.items()})
    average = Average(network, 0.999)
    training = Training(args.name, args, network, opts, average, every=1000)
    generator, rng = training.random(50)
    scenes, recent = max(1, round(SCENES * args.batch)), []
    for step in training:
        error = errors(unet, text, *batch(args.batch, data, generator, rng), generator)
        update(error.mean(), opts, clip=1.0)
        average.update(step + 1)
        recent.append((error[scenes:].mean().item(), error[:scenes].mean().item()))
        if training.due(200):
            single, scene = (round(sum(column) / len(recent), 4) for column in zip(*recent))
            training.log(single=single, scene=scene)
            recent.clear()
    if RANK == 0:
        with average.applied():
            unet.save_pretrained(args.work / args.name)
            if text.joint:
                text.encoder.save_pretrained(args.work / f"{args.name}_text_encoder")


@torch.no_grad()
def compare(work: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Trainings by their averaged weights, on the same 768 samples: steps, seconds, mean squared errors."""
    data, found = load_tensors(work / "latents.safetensors"), {}
    for name in names:
        path, text, unet = work / f"{name}.checkpoint.safetensors", Text(work, joint=False), make_unet(data["scene"].shape[1])
        average, known = part(load_tensors(path), "average."), load_metadata(path)
        unet.load_state_dict(part(average, "unet."))
        text.encoder.load_state_dict(text.encoder.state_dict() | part(average, "text."))
        generator, rng = torch.Generator().manual_seed(1), random.Random(1)
        each = torch.stack([errors(unet, text, *batch(64, data, generator, rng), generator) for _ in range(12)])
        scenes = round(SCENES * 64)
        found[name] = {"steps": int(known["step"]), "seconds": round(float(known["seconds"]))}
        found[name] |= {"single": round(each[:, scenes:].mean().item(), 4), "scene": round(each[:, :scenes].mean().item(), 4)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="samples of each process (default: 32)")
    parser.add_argument("--joint", type=float, default=0.2, help="the text encoder's learning rates, as a share; 0: frozen")
    parser.add_argument("--name", default="unet", help="of the checkpoint, the log and the finished parts")
    parser.add_argument("--again", action="store_true", help="go on from the finished unet/ at half the rates")
    parser.add_argument("--compare", nargs="+", metavar="NAME", help="measure trainings instead")
    options(parser, minutes=60)
    args = parser.parse_args()
    if args.compare:
        save_json(compare(args.work, args.compare), LOGS / "unet_text.json")
        return
    if args.steps is not None:
        args.minutes = None
    start()
    train(args)


if __name__ == "__main__":
    main()
