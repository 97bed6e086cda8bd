"""The training loop: one page.

    python -m training fit CONFIG.toml --run runs/NAME

A batch is drawn label-balanced, augmented in torch, and given sentences; both encoders learn to bring every image to
the sentences that are true of it. The averaged weights are evaluated on the val split through `labeler.score`, the
best are kept, and a killed run goes on where its last checkpoint was.
"""

from __future__ import annotations

import copy
import json
import math
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Generator, Tensor, nn

from labeler.model import AnatomyCLIP, Encoders
from labeler.vocabulary import vocabulary
from training.augment import pictures
from training.captions import Sentence, Shown, caption, label_sentences, matches
from training.config import Config
from training.corpus import UNKNOWN, LabelledStack, of_split
from training.evaluate import Metrics, evaluate, uncalibrated
from training.labelmaps import bodies_by_kind
from training.loss import LabelSigmoid, balanced_contrastive, plain_contrastive
from training.plots import curves
from training.sampling import Canvases, Drawn, Planes, positive_weights
from training.start import save_checkpoint, starting_encoders
from training.synthesis import Body, synthesise

#: Beside a checkpoint: its step, and the bias that the label sigmoid learnt for every label.
LEARNT = "learnt.json"
#: A classifier's learnt vectors, beside its checkpoint.
DIRECTIONS = "label_directions.npy"


class Trainer:
    """State of one run; everything that a checkpoint must bring back, but for pictures that were painted ahead."""

    def __init__(self, config: Config, stacks: Sequence[LabelledStack], run: Path, bodies: Sequence[Body] = ()) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.run = config, run
        self.kinds = bodies_by_kind(bodies)
        self.words = vocabulary()
        self.encoders = starting_encoders(config)
        self.averaged: AnatomyCLIP = copy.deepcopy(self.encoders.model).eval()
        train = list(of_split(stacks, "train"))
        self.val = list(of_split(stacks, "val"))
        both = [model.state_dict().values() for model in (self.averaged, self.encoders.model)]
        pairs = list(zip(*both, strict=True))
        self._smooth = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        self._counting = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.planes = Planes.of(train, config.data.ct_share, config.preprocess)
        if fits(self.planes.values.nbytes, self.encoders.device):
            self.planes.values = self.planes.values.to(self.encoders.device)
        width = self.encoders.model.config.projection_dim if config.recipe.classifier else 0
        self.criterion = LabelSigmoid(positive_weights(self.planes.states, self.planes.weights), directions=width)
        self.criterion.to(self.encoders.device)
        self.encoders.model.logit_scale.data.fill_(math.log(10.0))
        if not config.train.stem_rate:
            self.encoders.model.stem.requires_grad_(False)
        if config.train.compile:
            self.encoders.model.vision_model.compile()
        self.optimizer = self._optimizer()
        self.generator = torch.Generator(self.encoders.device).manual_seed(config.train.seed)
        self.random = Random(config.train.seed)
        self._spare: Drawn | None = None
        self.step = 0
        self.history: list[dict[str, Any]] = []

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.config.train
        of_stem = {id(parameter) for parameter in self.encoders.model.stem.parameters()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
        for parameter in (*self.encoders.model.parameters(), *self.criterion.parameters()):
            groups[id(parameter) in of_stem, parameter.ndim > 1].append(parameter)
        return torch.optim.AdamW(
            [
                {
                    "params": members,
                    "rate": settings.stem_rate if gentle else 1.0,
                    "weight_decay": settings.weight_decay if decayed else 0.0,
                }
                for (gentle, decayed), members in groups.items()
            ],
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            fused=self.encoders.device.type == "cuda",
        )

    def fit(self) -> Metrics:
        """Train to the last step; returns the metrics of the best averaged weights."""
        self._resume()
        settings = self.config.train
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with bar:
            task = bar.add_task(self.config.name, total=settings.steps, completed=self.step, note="")
            while self.step < settings.steps and not self._stalled():
                losses = self._one_step()
                due = self.step % settings.evaluate_every == 0 or self.step == settings.steps
                bar.update(task, advance=1)
                # reading a number waits for the GPU
                if due or self.step % 10 == 0:
                    told = {name: loss.item() for name, loss in losses.items()}
                    bar.update(task, note=" ".join(f"{k} {v:.3f}" for k, v in told.items()))
                if due:
                    self._evaluate(told)
        return Metrics(**max(self.history, key=score_of)["metrics"])

    def _stalled(self) -> bool:
        """The best checkpoint is `patience` evaluations old."""
        best = max(range(len(self.history)), key=lambda i: score_of(self.history[i]), default=0)
        return len(self.history) - 1 - best >= self.config.train.patience

    def _one_step(self) -> dict[str, Tensor]:
        config, model, device = self.config, self._in_training(), self.encoders.device
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(self.step, config)
        drawn = self._drawn().to(device)
        augment = config.augment if config.recipe.image_augmentation else None
        seen, still_ct = pictures(*drawn.canvases, config.preprocess, augment, self.generator)
        batch = [
            image if image.modality == "MR" or ct else Shown("MR", image.plane, image.states)
            for image, ct in zip(drawn.shown, still_ct.tolist(), strict=True)
        ]
        loss, parts = self._loss(model, seen, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.train.clip)
        self.optimizer.step()
        model.logit_scale.data.clamp_(0, math.log(50.0))
        self.step += 1
        self._average()
        return parts

    def _in_training(self) -> AnatomyCLIP:
        """The model, its stem as it is where nothing of it is to be learnt."""
        model: AnatomyCLIP = self.encoders.model.train()
        if not self.config.train.stem_rate:
            model.stem.eval()
        return model

    def _drawn(self) -> Drawn:
        """Canvases of this step: real ones by their weights, and some painted from label maps."""
        settings, planes = self.config.train, self.planes
        random = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)
        painted = round(settings.batch * self.config.data.synthetic_share) if self.kinds else 0
        chosen = torch.multinomial(planes.weights, settings.batch - painted, replacement=True, generator=random)
        share = self.config.augment.close_up if self.config.recipe.image_augmentation else 0.0
        close = torch.rand(len(chosen), generator=random) < share
        real = planes.drawn(chosen, close)
        return real.joined(self._painted(painted, random)) if painted else real

    def _painted(self, count: int, random: Generator) -> Drawn:
        """Pictures of label maps; a GPU paints one body for several steps in the time of one."""
        if self._spare is None or len(self._spare.shown) < count:
            shares = torch.tensor([share for share, _ in self.kinds])
            _, members = self.kinds[int(torch.multinomial(shares, 1, generator=random))]
            body = members[int(torch.randint(len(members), (1,), generator=random))]
            config, many = self.config, count * self.config.train.paint_ahead
            made = synthesise(body, many, self.words, config.preprocess, config.synthesis, self.generator)
            never = torch.zeros_like(made.is_ct)
            fresh = Drawn(Canvases(made.values, made.is_ct, never, made.ruler, never), made.shown)
            self._spare = fresh if self._spare is None else self._spare.joined(fresh)
        taken, self._spare = self._spare.split(count)
        return taken

    def _loss(self, model: AnatomyCLIP, seen: Tensor, batch: list[Shown]) -> tuple[Tensor, dict[str, Tensor]]:
        recipe, device = self.config.recipe, self.encoders.device
        mean, spread = self._normalisation
        with self._precision():
            images = _unit(model.get_image_features((seen - mean) / spread))
        scale = model.logit_scale.exp()
        if recipe.classifier:
            states = torch.from_numpy(np.stack([image.states for image in batch])).to(device)
            loss = self.criterion.classified(images, states, scale)
            return loss, {"labels": loss.detach()}
        told = [
            caption(image, self.words, self.random, stations=recipe.stations, augment=recipe.language_augmentation)
            for image in batch
        ]
        asked = label_sentences(batch, self.words, self.random) if recipe.label_sigmoid else []
        texts = self._embedded(model, [*told, *asked])
        if recipe.loss == "plain":
            contrastive = plain_contrastive(images, texts[: len(told)], scale)
        else:
            match = torch.from_numpy(matches(batch, told)).to(device)
            contrastive = balanced_contrastive(images, texts[: len(told)], match, scale, recipe.balance)
        parts = {"contrastive": contrastive.detach()}
        if not asked:
            return contrastive, parts
        label = torch.tensor([sentence.labels[0] for sentence in asked], device=device)
        match = torch.from_numpy(matches(batch, asked, mismatch=UNKNOWN)).to(device)
        sigmoid = self.criterion(images, texts[len(told) :], label, match, scale)
        return contrastive + recipe.label_sigmoid * sigmoid, {**parts, "labels": sigmoid.detach()}

    @cached_property
    def _normalisation(self) -> tuple[Tensor, Tensor]:
        processor, device = self.encoders.processor, self.encoders.device
        mean, spread = (torch.tensor(v, device=device) for v in (processor.image_mean, processor.image_std))
        return mean.view(1, 3, 1, 1), spread.view(1, 3, 1, 1)

    @cached_property
    def _tokens(self) -> Tokenizer:
        """The tokenizer's backend: what transformers wraps around it takes longer than the tokens."""
        tokenizer = self.encoders.tokenizer
        backend: Tokenizer = tokenizer.backend_tokenizer
        backend.enable_truncation(tokenizer.model_max_length)
        backend.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
        return backend

    def _embedded(self, model: AnatomyCLIP, sentences: list[Sentence]) -> Tensor:
        device = self.encoders.device
        encoded = self._tokens.encode_batch_fast([sentence.text for sentence in sentences])
        ids, mask = (torch.tensor([getattr(e, part) for e in encoded]) for part in ("ids", "attention_mask"))
        return _unit(model.get_text_features(input_ids=ids.to(device), attention_mask=mask.to(device)))

    def _precision(self) -> Any:
        wanted, device = self.config.train.precision, self.encoders.device
        if wanted == "float32" or (wanted == "auto" and not native_bfloat16(device)):
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential average of the weights; the first steps count less of their past."""
        decay = min(self.config.train.average, (1 + self.step) / (10 + self.step))
        mine, theirs = zip(*self._smooth, strict=True)
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for kept, current in self._counting:
            kept.copy_(current)

    def averaged_encoders(self) -> Encoders:
        return Encoders(self.averaged, self.encoders.tokenizer, self.encoders.processor, self.encoders.device)

    def _evaluate(self, losses: dict[str, float]) -> None:
        calibration = uncalibrated(self.averaged.logit_scale.exp().item(), self.criterion.bias)
        directions = self.criterion.unit_directions()
        metrics = evaluate(self.averaged_encoders(), self.val, self.config.preprocess, calibration, directions)
        best = not self.history or metrics.score >= max(score_of(row) for row in self.history)
        self.history.append({"step": self.step, "at": time.time(), "losses": losses, "metrics": metrics.to_json()})
        (self.run / "metrics.json").write_text(json.dumps(self.history, indent=1))
        curves(self.history, self.run / "curves.png")
        print(f"step {self.step}: {metrics}", flush=True)
        if best:
            save_checkpoint(self.averaged_encoders(), self.run / "best")
            learnt = {"step": self.step, "bias": self.criterion.bias.detach().tolist()}
            (self.run / "best" / LEARNT).write_text(json.dumps(learnt))
            if directions is not None:
                np.save(self.run / "best" / DIRECTIONS, directions.cpu().numpy())
        self._save()

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self.encoders.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "random": self.random.getstate(),
            "history": self.history,
        }
        torch.save(state, self.run / "last.tmp")
        (self.run / "last.tmp").rename(self.run / "last.pt")

    def _resume(self) -> None:
        path = self.run / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.encoders.device, weights_only=False)
        self.step, self.history = state["step"], state["history"]
        self.encoders.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.criterion.load_state_dict(state["criterion"])
        wanted = [{key: group[key] for key in ("rate", "weight_decay")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        # what the recipe says now counts, not what it said when the checkpoint was written
        for group, said in zip(self.optimizer.param_groups, wanted, strict=True):
            group.update(said)
        self.generator.set_state(state["generator"].cpu())
        self.random.setstate(state["random"])


def score_of(row: dict[str, Any]) -> float:
    return float(row["metrics"]["score"])


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes of planes leave a GPU room to train."""
    return device.type != "cuda" or size < torch.cuda.mem_get_info(device)[0] / 4


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself; a torch too old to tell of a CPU counts as no."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    settings = config.train
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _unit(features: Any) -> Tensor:
    pooled: Tensor = getattr(features, "pooler_output", features)
    return nn.functional.normalize(pooled.float(), dim=-1)


def fit(config: Config, stacks: Sequence[LabelledStack], run: Path, bodies: Sequence[Body] = ()) -> Metrics:
    """Train as `config` says; everything a run leaves lies in the folder `run`."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(config.to_json(), indent=1))
    (run / "commit.txt").write_text(commit_of_code())
    return Trainer(config, stacks, run, bodies).fit()


def commit_of_code() -> str:
    """The commit that this code stands at, as git describes it."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "no repository"
