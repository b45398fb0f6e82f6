"""What every training here shares: processes, the Muon optimiser, averaged weights, budgets, logs and checkpoints."""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bierase.core import load_metadata, load_tensors, save_tensors

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
LOGS = Path(__file__).resolve().parent / "logs"  # committed: what the shipped weights' trainings wrote
WORK = LOGS.parents[2] / "runs" / "train"  # not committed: checkpoints, logs and finished parts


def start() -> None:
    """One thread a process, and the processes that torchrun started know each other."""
    torch.set_num_threads(1)
    if WORLD > 1:
        dist.init_process_group("gloo")


def options(parser: argparse.ArgumentParser, steps: int | None = None, minutes: float | None = None) -> None:
    """The options of every training: how long, and where its files go."""
    parser.add_argument("--work", type=Path, default=WORK, help="folder of checkpoints, logs and parts")
    parser.add_argument("--steps", type=int, default=steps, help=f"length in steps (default: {steps})")
    parser.add_argument("--minutes", type=float, default=minutes, help=f"length in minutes instead (default: {minutes})")


# ---------------------------------------------------------------- optimisers


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Nearly the closest matrix with orthonormal rows (or columns), as Muon's Newton-Schulz iteration finds it.

    With G = XXᵀ one iteration is X ← (aI + bG + cG²)X. All its factors are polynomials of the first G, so they
    commute and the work can be done on the small square matrices alone, with one large product at the end.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    gram, identity = x @ x.T, torch.eye(len(x))
    product = identity
    for step in range(iterations):
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor @ product if step else factor
        if step < iterations - 1:
            gram = factor @ gram @ factor
    x = product @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024): every direction of a weight matrix moves equally far.

    Convolutions count as matrices of (out, in·k·k). Each process orthogonalises its share of the matrices.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            by_cost = sorted(range(len(params)), key=lambda i: -min(params[i].shape[0], params[i][0].numel()))
            mine, updates = set(by_cost[RANK::WORLD]), []
            for i, p in enumerate(params):
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["momentum"]).add_(p.grad)
                update = (p.grad + group["momentum"] * momentum).flatten(1)  # Nesterov
                size = max(1, update.shape[0] / update.shape[1]) ** 0.5
                updates.append((size * orthogonalise(update) if i in mine else torch.zeros_like(update)).flatten())
            flat = torch.cat(updates)
            if WORLD > 1:
                dist.all_reduce(flat)
            for p, update in zip(params, flat.split([p.numel() for p in params])):
                p.add_(update.view_as(p), alpha=-group["lr"])


def optimisers(
    named: Iterable[tuple[str, nn.Parameter]],
    skip: tuple[str, ...] = (),  # parts of names that Muon leaves to AdamW: embeddings, first and last layers
    lr: float = 0.02,  # of Muon
    adam_lr: float = 1e-3,
) -> list[torch.optim.Optimizer]:
    """Muon for weights of two or more dimensions, AdamW for the rest."""
    matrices, rest = [], []
    for name, p in named:
        (matrices if p.ndim >= 2 and not any(part in name for part in skip) else rest).append(p)
    return [Muon(matrices, lr=lr), torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.99), weight_decay=1e-3)]


def rate(step: int, progress: float, warm: int = 100) -> float:
    """Factor on the learning rates: `warm` steps of warm-up, then (1 - progress)^0.8, but never below 2 %."""
    return min(1.0, (step + 1) / warm) * max(0.02, (1 - progress) ** 0.8)


def update(
    loss: Tensor,
    opts: list[torch.optim.Optimizer],
    clip: float | None = None,  # largest norm of the whole gradient
) -> None:
    """One step of the optimisers with the gradients averaged over the processes."""
    for o in opts:
        o.zero_grad()
    loss.backward()
    params = [p for o in opts for group in o.param_groups for p in group["params"] if p.grad is not None]
    if WORLD > 1:
        flat = torch.cat([p.grad.flatten() for p in params])
        dist.all_reduce(flat)
        for p, gradient in zip(params, (flat / WORLD).split([p.numel() for p in params])):
            p.grad = gradient.view_as(p)
    if clip:
        nn.utils.clip_grad_norm_(params, clip)
    for o in opts:
        o.step()


class Average:
    """An exponential moving average of a network's weights, warmed up: decay min(decay, (1 + i) / (10 + i))."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.values = {name: value.clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Let the average follow the network."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.network.state_dict().items():
            self.values[name].lerp_(value, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The network with the averaged weights, for as long as the block lasts."""
        live = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.values)
        try:
            yield self.network
        finally:
            self.network.load_state_dict(live)


# ---------------------------------------------------------------- one run


class Training:
    """The book-keeping of one run: how far it is, its learning rates, its log and its checkpoint.

    `for step in training:` runs until the steps or minutes are spent. The checkpoint is written every `every` steps
    and at the end; a run that finds one goes on from there, with new random numbers.
    """

    def __init__(
        self,
        name: str,  # of the checkpoint and of the log
        args: argparse.Namespace,  # with `options`: work, steps, minutes
        network: nn.Module,
        opts: list[torch.optim.Optimizer],
        average: Average | None = None,
        every: int = 200,  # steps between checkpoints
        warm: int = 100,  # steps of warm-up
    ) -> None:
        self.name, self.work, self.steps, self.minutes = name, args.work, args.steps, args.minutes
        self.network, self.opts, self.average, self.every, self.warm = network, opts, average, every, warm
        self.step, self.spent, self.began = 0, 0.0, time.time()
        self.rates = [[group["lr"] for group in o.param_groups] for o in opts]
        if self.checkpoint.exists():
            self._resume()

    @property
    def checkpoint(self) -> Path:
        return self.work / f"{self.name}.checkpoint.safetensors"

    @property
    def seconds(self) -> float:
        return self.spent + time.time() - self.began

    def progress(self) -> float:
        """The share of the budget that is spent; with minutes the first process says it for all."""
        if self.minutes is None:
            return self.step / self.steps
        progress = torch.tensor(self.seconds / 60 / self.minutes)
        if WORLD > 1:
            dist.broadcast(progress, 0)
        return float(progress)

    def __iter__(self) -> Iterator[int]:
        while (progress := self.progress()) < 1:
            for o, rates in zip(self.opts, self.rates):
                for group, lr in zip(o.param_groups, rates):
                    group["lr"] = lr * rate(self.step, progress, self.warm)
            yield self.step
            self.step += 1
            if self.step % self.every == 0:
                self.save()
        self.save()

    def random(self, seed: int) -> tuple[torch.Generator, random.Random]:
        """Sources of random numbers of this process; others after a resumption."""
        seed += RANK + (1000 + self.step if self.step else 0)
        return torch.Generator().manual_seed(seed), random.Random(seed)

    def due(self, every: int) -> bool:
        """Whether this process is to log after the present step."""
        return RANK == 0 and ((self.step + 1) % every == 0 or self.step + 1 == self.steps)

    def log(self, **values: Any) -> None:
        """Append a record to the log (one JSON object a line) and print it."""
        write_log(self.work / f"{self.name}.jsonl", step=self.step + 1, seconds=round(self.seconds), **values)

    def save(self) -> None:
        """Write the checkpoint: weights, averaged weights and the optimisers' state, as plain tensors."""
        if RANK:
            return
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        if self.average:
            tensors |= {f"average.{name}": value for name, value in self.average.values.items()}
        for number, o in enumerate(self.opts):
            for index, state in o.state_dict()["state"].items():
                tensors |= {f"optimiser.{number}.{index}.{key}": value for key, value in state.items()}
        save_tensors(tensors, self.checkpoint, {"step": str(self.step), "seconds": str(self.seconds)})

    def _resume(self) -> None:
        known = load_metadata(self.checkpoint)
        self.step, self.spent = int(known["step"]), float(known["seconds"])
        tensors = load_tensors(self.checkpoint)
        self.network.load_state_dict(part(tensors, "network."))
        if self.average:
            self.average.values = part(tensors, "average.")
        for number, o in enumerate(self.opts):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in part(tensors, f"optimiser.{number}.").items():
                index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
            o.load_state_dict({"state": state, "param_groups": o.state_dict()["param_groups"]})


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write_log(path: Path, **values: Any) -> None:
    """Append one record to a log of JSON lines, and print it."""
    line = json.dumps(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a log; a step that was repeated after an interruption counts once, as it was last written."""
    records = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return list({record["step"]: record for record in records}.values())


def curves(
    name: str,  # of a committed log
    panels: dict[str, list[str]],  # title of a panel -> what it shows
) -> Any:  # a matplotlib figure
    """The curves of a training that made the shipped weights, side by side."""
    import matplotlib.pyplot as plt

    records = read_log(LOGS / f"{name}.jsonl")
    fig, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 2.7), dpi=75, squeeze=False, layout="constrained")
    for ax, (title, keys) in zip(axes[0], panels.items()):
        for key in keys:
            ax.plot([r["step"] for r in records], [r[key] for r in records], marker=".", label=key)
        ax.set(title=title, xlabel="step")
        if len(keys) > 1:
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    plt.close(fig)  # shown once, by being returned
    return fig
