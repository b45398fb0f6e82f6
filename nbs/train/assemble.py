"""Put the trained parts together: a pipeline folder in half precision, the image encoder, the judge, a card, the logs.

    python nbs/train/assemble.py
    python nbs/train/assemble.py --checkpoint    # the UNet as it is in the middle of its training
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from bierase.core import hash_tensors, load_json, load_tensors, save_json, save_tensors
from bierase.emoji import WEIGHTS
from common import LOGS, WORK, part
from unet import ALPHA_BAR, BETAS, make_unet

RECORDS = ("judge.jsonl", "judge_accuracy.json", "judge_tune.jsonl", "judge_tune_accuracy.json", "vae.jsonl", "text.jsonl", "unet.jsonl")


def text_encoder(folder: Path) -> CLIPTextModel:
    """The text encoder without the projection, which only the contrast needed."""
    full = CLIPTextModelWithProjection.from_pretrained(folder)
    text = CLIPTextModel(full.config)
    weights = {n: v for n, v in full.state_dict().items() if not n.startswith("text_projection")}
    if not any(name.startswith("text_model.") for name in text.state_dict()):
        weights = part(weights, "text_model.")
    text.load_state_dict(weights)
    return text


def pipeline(work: Path, checkpoint: bool = False) -> StableDiffusionPipeline:
    """The trained parts as a pipeline, in float32."""
    vae = AutoencoderKL.from_pretrained(work / "vae_white")
    if checkpoint:
        unet = make_unet(vae.config.latent_channels)
        unet.load_state_dict(part(load_tensors(work / "unet.checkpoint.safetensors"), "average."))
    else:
        unet = UNet2DConditionModel.from_pretrained(work / "unet")
    scheduler = DDIMScheduler(
        num_train_timesteps=len(ALPHA_BAR),
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # without effect on trailing timesteps, but the pipeline asks for it
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def replace(folder: Path, new: Path) -> None:
    """Put a finished folder in the place of an old one, its encoders marked to be loaded in single precision.

    transformers loads a model in the type that its config names; half beside diffusers' single would not run.
    """
    for path in (new / "config.json", new / "text_encoder" / "config.json"):
        if path.exists():
            save_json({**load_json(path), "dtype": "float32"}, path)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="folder of checkpoints, logs and parts")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the shipped weights are")
    parser.add_argument("--logs", type=Path, default=LOGS, help="where the committed logs are")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale, for the card")
    parser.add_argument("--checkpoint", action="store_true", help="take the UNet from its checkpoint")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipe, new = pipeline(args.work, args.checkpoint), args.out / ".new"
    pipe.to(torch.float16).save_pretrained(new)
    replace(args.out / "emoji", new)
    CLIPVisionModelWithProjection.from_pretrained(args.work / "image_encoder").half().save_pretrained(new)
    replace(args.out / "image_encoder", new)
    judge = load_tensors(args.work / "judge_tuned.safetensors")
    half = {name: value.half() if value.is_floating_point() else value for name, value in judge.items()}
    save_tensors(half, args.out / "judge.safetensors")
    shipped = StableDiffusionPipeline.from_pretrained(args.out / "emoji", dtype=torch.float32, local_files_only=True)
    hashes = {name: hash_tensors(getattr(shipped, name).state_dict()) for name in ("text_encoder", "unet", "vae")}
    save_json({"guidance_scale": args.guidance, **hashes}, args.out / "card.json")
    args.logs.mkdir(parents=True, exist_ok=True)
    for name in RECORDS:
        shutil.copy(args.work / name, args.logs)
    print(f"{args.out}: {sum(f.stat().st_size for f in args.out.rglob('*') if f.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
