# pyright: basic
"""One attempt from input to `done`: gather, cache, build, train, publish. Imported late, because it imports torch."""

import gc
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer import __version__
from trainer.config.job import Job
from trainer.control import Control
from trainer.data.buckets import rule_for
from trainer.data.cache import TensorCache
from trainer.data.discover import Picture, discover
from trainer.data.prepare import CachedTensors, Encoding, cache_latents, cache_texts, fingerprint_of
from trainer.data.sampler import Sampler
from trainer.entry.publication import Publishing
from trainer.failures import AttemptFailed
from trainer.families.base_model import fingerprint, locate
from trainer.families.libraries import quieten_libraries
from trainer.families.protocol import BaseModel, Family
from trainer.families.registry import load_family
from trainer.fetch import Fetcher
from trainer.publish.publisher import Publisher
from trainer.report.events import Reporter
from trainer.train.checkpoint import checkpoints_in, damage_of
from trainer.train.loop import Hooks, train
from trainer.train.precision import Precision, choose_precision, make_deterministic
from trainer.train.trainee import Trainee
from trainer.validate.render import Renderer, planned_samples, validation_prompts

_DEFAULT_TEXT_LENGTH = 512


@dataclass(frozen=True)
class Session:
    """The attempt's surroundings. `fetcher` is None when run alone."""

    job: Job
    work_dir: Path
    cache_dir: Path
    device: str
    reporter: Reporter
    publisher: Publisher
    fetcher: Fetcher | None
    control: Control

    @property
    def checkpoints(self) -> Path:
        """Where finished checkpoints lie."""
        return self.work_dir / "checkpoints"


@dataclass(frozen=True)
class Material:
    """What there is to train on, with everything cached."""

    pictures: list[Picture]
    cached: CachedTensors
    vae: Any


def run(session: Session) -> Publishing:
    """Train to the end and queue the results; the caller waits for delivery. Raises AttemptFailed or Superseded."""
    spec, reporter = session.job.training, session.reporter
    precision = choose_precision(session.device, spec.mixed_precision)
    make_deterministic(precision.device)
    quieten_libraries()
    _say_hello(session, precision)
    reporter.phase("preparing")
    for note in precision.notes:
        reporter.warning("precision_changed", note)
    family: Family = load_family(spec.model_family)
    base = BaseModel(
        locate(spec.pretrained_model_name_or_path, spec.revision), precision.device, precision.dtype, spec.variant
    )
    pictures = _pictures(session, family.side_multiple(base))
    reporter.phase("caching")
    material = _material(session, family, base, pictures)
    trainee = _trainee(session, family, base, material)
    publishing = Publishing(session.job, session.work_dir, trainee, reporter, session.publisher)
    samples = planned_samples(spec, family.side_multiple(base))
    renderer = Renderer(
        trainee, material.vae, material.cached, samples, session.work_dir / "samples", reporter, session.publisher
    )
    _resume(session, trainee)
    reporter.phase("training")
    wanted = (trainee.step == 0 and not spec.disable_benchmark) or spec.validation_on_startup
    if wanted and not session.control.stop.is_set():
        renderer.render()
    train(trainee, Hooks(save=publishing.save_checkpoint, render=renderer.render), reporter, session.control)
    reporter.phase("uploading")
    publishing.publish_results()
    return publishing


def _say_hello(session: Session, precision: Precision) -> None:
    job, reporter = session.job, session.reporter
    if "hello" in reporter.spool.types:
        return  # a restart in the same folder: the spool goes on, and hello was said
    ignored = [*job.training.ignored_keys, *(f"{each.id}.{key}" for each in job.datasets for key in each.ignored_keys)]
    reporter.emit(
        "hello",
        trainer_version=__version__,
        torch_version=version("torch"),
        device=torch.cuda.get_device_name() if precision.device.type == "cuda" else "cpu",
        ignored_keys=ignored,
        config=job.run.config,
    )


def _pictures(session: Session, side_multiple: int) -> list[Picture]:
    refs = {ref.id: ref for ref in session.job.run.datasets}
    found: list[Picture] = []
    for dataset in session.job.datasets:
        ref = refs.get(dataset.id)
        if ref is not None and session.fetcher is not None:
            folder = session.fetcher.dataset(ref, session.work_dir / "datasets")
        else:
            folder = Path(dataset.instance_data_dir).expanduser()
        if not folder.is_dir():
            message = f"dataset {dataset.id}: there is no folder {dataset.instance_data_dir} on this machine"
            raise AttemptFailed("bad_data", message, "Upload the dataset with the job, or correct instance_data_dir.")
        rule = rule_for(session.job.training, dataset, side_multiple)
        found.extend(discover(dataset, folder, rule, session.reporter))
    return found


def _material(session: Session, family: Family, base: BaseModel, pictures: list[Picture]) -> Material:
    """Cache texts, then latents; each encoder leaves memory before the next part is loaded."""
    spec, cache = session.job.training, TensorCache(session.cache_dir)
    encoding = Encoding(
        text_id=fingerprint(base.folder, ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
        vae_id=fingerprint(base.folder, ("vae",)),
        max_length=spec.tokenizer_max_length or _DEFAULT_TEXT_LENGTH,
        dtype=str(base.dtype),
    )
    prompts = [caption for picture in pictures for caption in picture.captions]
    cache_texts(family, base, encoding, ["", *prompts, *validation_prompts(spec).values()], cache, session.control)
    gc.collect()
    vae = family.load_vae(base)
    usable = cache_latents(
        family, vae, encoding, pictures, spec.vae_batch_size, cache, session.reporter, session.control
    )
    if not validation_prompts(spec):
        vae = None
        gc.collect()
    return Material(usable, CachedTensors(cache, encoding), vae)


def _trainee(session: Session, family: Family, base: BaseModel, material: Material) -> Trainee:
    spec = session.job.training
    repeats = {dataset.id: dataset.repeats for dataset in session.job.datasets}
    sampler = Sampler(material.pictures, repeats, spec.train_batch_size, spec.seed, spec.caption_dropout_probability)
    for sentence in sampler.pruned:
        session.reporter.warning("bucket_pruned", sentence)
    updates_per_epoch = sampler.batches_per_epoch / spec.gradient_accumulation_steps
    total_steps = spec.max_train_steps or math.ceil(spec.num_train_epochs * updates_per_epoch)
    identity = {
        "base": fingerprint(base.folder, ("transformer",)),
        "rank": spec.lora_rank,
        "alpha": spec.lora_alpha if spec.lora_alpha is not None else spec.lora_rank,
        "targets": family.lora_targets(spec),
        "dataset": fingerprint_of(material.pictures),
    }
    return Trainee(family, base, spec, material.pictures, sampler, material.cached, total_steps, identity)


def _resume(session: Session, trainee: Trainee) -> None:
    """Restore the newest sound checkpoint, of this folder or the one the run spec names."""
    point = session.job.run.resume
    if point is not None and session.fetcher is not None:
        session.fetcher.checkpoint(point, session.checkpoints)
    for folder in checkpoints_in(session.checkpoints):
        damage = damage_of(folder)
        if damage is None:
            trainee.restore(folder)
            session.reporter.step = trainee.step
            session.reporter.phase("preparing", f"resumed from checkpoint-{folder.step}")
            return
        session.reporter.warning("damaged_checkpoint", f"checkpoint-{folder.step} is skipped: {damage}")
