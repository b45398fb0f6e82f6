"""Put the trained parts together: a pipeline folder in half precision, the image encoder, the judge, a card, the logs.

    python nbs/train/assemble.py pack
    python nbs/train/assemble.py pack --checkpoint    # the UNet as it is in the middle of its training
    python nbs/train/assemble.py unpack               # the shipped parts into the work folder, to train one of them anew

Parts that the work folder lacks stay as they are shipped.
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

RECORDS = ("judge.jsonl", "judge_accuracy.json", "judge_tune.jsonl", "judge_tune_accuracy.json", "vae.jsonl", "vae_wide.jsonl", "text.jsonl", "unet.jsonl")


def text_encoder(full: CLIPTextModelWithProjection) -> CLIPTextModel:
    """The text encoder without the projection, which only the contrast needed."""
    text = CLIPTextModel(full.config)
    text.load_state_dict(full.text_model.state_dict())
    return text


def pipeline(work: Path, checkpoint: bool = False) -> StableDiffusionPipeline:
    """The trained parts as a pipeline, in float32."""
    vae = AutoencoderKL.from_pretrained(work / "vae_white")
    if checkpoint:
        unet = make_unet(vae.config.latent_channels)
        average = part(load_tensors(work / "unet.checkpoint.safetensors"), "average.")
        unet.load_state_dict(part(average, "unet."))
        full = CLIPTextModelWithProjection.from_pretrained(work / "text_encoder")
        full.load_state_dict(full.state_dict() | part(average, "text."))
    else:
        unet = UNet2DConditionModel.from_pretrained(work / "unet")
        full = CLIPTextModelWithProjection.from_pretrained(work / "unet_text_encoder")
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
        text_encoder=text_encoder(full),
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


def pack(work: Path, out: Path, logs: Path, guidance: float, checkpoint: bool) -> None:
    """Write what ships."""
    pipe, new = pipeline(work, checkpoint), out / ".new"
    pipe.to(torch.float16).save_pretrained(new)
    replace(out / "emoji", new)
    if (work / "image_encoder").exists():
        CLIPVisionModelWithProjection.from_pretrained(work / "image_encoder").half().save_pretrained(new)
        replace(out / "image_encoder", new)
    if (work / "judge_tuned.safetensors").exists():
        judge = load_tensors(work / "judge_tuned.safetensors")
        half = {name: value.half() if value.is_floating_point() else value for name, value in judge.items()}
        save_tensors(half, out / "judge.safetensors")
    shipped = StableDiffusionPipeline.from_pretrained(out / "emoji", dtype=torch.float32, local_files_only=True)
    hashes = {name: hash_tensors(getattr(shipped, name).state_dict()) for name in ("text_encoder", "unet", "vae")}
    save_json({"guidance_scale": guidance, **hashes}, out / "card.json")
    for name in RECORDS:
        if (work / name).exists():
            shutil.copy(work / name, logs)
    print(f"{out}: {sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB")


def unpack(work: Path, out: Path) -> None:
    """Put the shipped parts where the trainings look for them; the text encoder's projection starts anew."""
    pipe = StableDiffusionPipeline.from_pretrained(out / "emoji", dtype=torch.float32, local_files_only=True)
    pipe.tokenizer.save_pretrained(work / "tokenizer")
    pipe.vae.save_pretrained(work / "vae_white")
    full = CLIPTextModelWithProjection(pipe.text_encoder.config)
    full.text_model.load_state_dict(pipe.text_encoder.state_dict())
    for name in ("text_encoder", "unet_text_encoder"):
        full.save_pretrained(work / name)
    pipe.unet.save_pretrained(work / "unet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pack", "unpack"])
    parser.add_argument("--work", type=Path, default=WORK, help="folder of checkpoints, logs and parts")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the shipped weights are")
    parser.add_argument("--logs", type=Path, default=LOGS, help="where the committed logs are")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale, for the card")
    parser.add_argument("--checkpoint", action="store_true", help="take the UNet from its checkpoint")
    args = parser.parse_args()
    for folder in (args.work, args.out, args.logs):
        folder.mkdir(parents=True, exist_ok=True)
    if args.what == "pack":
        pack(args.work, args.out, args.logs, args.guidance, args.checkpoint)
    else:
        unpack(args.work, args.out)


if __name__ == "__main__":
    main()
