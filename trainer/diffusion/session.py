# pyright: basic
"""Prepare a diffusion training: find pictures, cache latents and texts, put the adapter on the denoiser."""

import gc
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shared.contracts.training.diffusion import DiffusionSpec
from trainer.data.buckets import rule_for
from trainer.data.cache import TensorCache
from trainer.data.discover import Picture, discover
from trainer.data.prepare import CachedTensors, Encoding, cache_latents, cache_texts, fingerprint_of
from trainer.data.sampler import Sampler, plan_for
from trainer.diffusion.task import DiffusionTask
from trainer.failures import AttemptFailed
from trainer.families.base_model import fingerprint, locate, text_parts, with_other_parts
from trainer.families.protocol import BaseModel, Family
from trainer.families.registry import family_entries, load_family
from trainer.session import Prepared, Session
from trainer.train.checkpoint import room_for
from trainer.train.lora import Adapter, begin_with
from trainer.train.precision import Precision
from trainer.train.quantise import quantise
from trainer.train.speed import make_adapters_lean, speed_up
from trainer.train.task import Evaluation
from trainer.train.trainee import Trainee
from trainer.train.whole import WholeModel
from trainer.validate.render import Renderer, planned_samples, validation_prompts


@dataclass(frozen=True)
class _Material:
    """What there is to train on, with everything cached."""

    pictures: list[Picture]
    cached: CachedTensors
    vae: Any


def prepare(session: Session, spec: DiffusionSpec, precision: Precision) -> Prepared:
    """Everything up to the first step. Raises AttemptFailed or Superseded."""
    family: Family = load_family(spec.model_family)
    located = locate(spec.pretrained_model_name_or_path, spec.revision)
    folder = with_other_parts(located, _other_parts(spec), session.work_dir / "base")
    base = BaseModel(folder, precision.device, precision.dtype, spec.variant, _schedule(spec))
    pictures = _pictures(session, spec, family.side_multiple(base))
    session.reporter.phase("caching")
    with room_for(session.cache_dir):
        material = _material(session, spec, family, base, pictures)
    trainee = _trainee(session, spec, family, base, material, precision)
    renderer = Renderer(
        trainee=trainee,
        spec=spec,
        family=family,
        base=base,
        vae=material.vae,
        cached=material.cached,
        samples=planned_samples(spec, family.side_multiple(base)),
        folder=session.work_dir / "samples",
        reporter=session.reporter,
        publisher=session.publisher,
    )
    facts = _facts(spec, family.objective(base))
    return Prepared(trainee, renderer.render, facts, evaluation=_evaluation(session, spec, material, trainee))


def _other_parts(spec: DiffusionSpec) -> dict[str, str]:
    given = {
        "transformer": spec.pretrained_transformer_model_name_or_path,
        "unet": spec.pretrained_unet_model_name_or_path,
        "vae": spec.pretrained_vae_model_name_or_path,
        "t5": spec.pretrained_t5_model_name_or_path,
    }
    return {kind: place for kind, place in given.items() if place}


def _pictures(session: Session, spec: DiffusionSpec, side_multiple: int) -> list[Picture]:
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
        rule = rule_for(spec, dataset, side_multiple)
        found.extend(discover(dataset, folder, rule, session.reporter))
    return found


def _material(
    session: Session, spec: DiffusionSpec, family: Family, base: BaseModel, pictures: list[Picture]
) -> _Material:
    """Cache texts, then latents; each encoder leaves memory before the next part is loaded."""
    cache = TensorCache(session.cache_dir)
    encoding = Encoding(
        text_id=f"{family.name} {fingerprint(base.folder, text_parts(base.folder))}",
        vae_id=f"{family.name} {fingerprint(base.folder, ('vae',))}" + (" in tiles" if spec.vae_enable_tiling else ""),
        max_length=spec.tokenizer_max_length,
        dtype=str(base.dtype),
    )
    prompts = [caption for picture in pictures for caption in picture.captions]
    drawn = [*validation_prompts(spec).values(), spec.validation_negative_prompt]
    cache_texts(family, base, encoding, ["", *prompts, *drawn], cache, session.control)
    gc.collect()
    vae = family.load_vae(base)
    if spec.vae_enable_tiling:
        vae.enable_tiling()
    usable = cache_latents(
        family, vae, encoding, pictures, spec.vae_batch_size, cache, session.reporter, session.control
    )
    if not validation_prompts(spec):
        vae = None
        gc.collect()
    return _Material(usable, CachedTensors(cache, encoding), vae)


def _trainee(
    session: Session, spec: DiffusionSpec, family: Family, base: BaseModel, material: _Material, precision: Precision
) -> Trainee:
    sampler = _sampler(session, spec, material)
    identity = {
        "base": fingerprint(base.folder, (family.part,)),
        "precision": spec.base_model_precision,
        "dataset": fingerprint_of(sampler.pictures),
        "order": sampler.identity,
    }
    whole = spec.model_type == "full"
    denoiser = family.load_denoiser(replace(base, dtype=torch.float32) if whole else base)
    quantise(denoiser, spec.base_model_precision, base.device)
    # Seeded here and not earlier: what was loaded or cached before must not change the adapter's first values.
    torch.manual_seed(spec.seed)
    noise = torch.Generator().manual_seed(spec.seed)
    part = WholeModel(denoiser) if whole else _adapter(family, denoiser, spec)
    speed_up(part.model, base.device, spec)
    task = DiffusionTask(family, base, part.model, spec, sampler, material.cached, identity)
    return Trainee(part, task, spec, precision, noise, _total_steps(spec, sampler))


def _adapter(family: Family, denoiser: Any, spec: DiffusionSpec) -> Adapter:
    part = Adapter(family, denoiser, spec)
    make_adapters_lean(denoiser)
    if spec.init_lora is not None:
        begin_with(part, spec.init_lora)
    return part


def _sampler(session: Session, spec: DiffusionSpec, material: _Material) -> Sampler:
    plans = {dataset.id: plan_for(spec, dataset) for dataset in session.job.datasets if dataset.dataset_type == "image"}
    sampler = Sampler(
        [picture for picture in material.pictures if picture.dataset_id in plans],
        plans,
        spec.seed,
        spec.caption_dropout_probability,
        uniform=spec.data_backend_sampling == "uniform",
    )
    for sentence in sampler.notes:
        session.reporter.warning("bucket_pruned", sentence)
    return sampler


def _evaluation(session: Session, spec: DiffusionSpec, material: _Material, trainee: Trainee) -> Evaluation | None:
    """The loss on the pictures of the eval datasets, as often as asked for, else with the samples."""
    wanted = [
        dataset.id
        for dataset in session.job.datasets
        if dataset.dataset_type == "eval" and spec.eval_dataset_id in (None, dataset.id)
    ]
    if spec.eval_loss_disable or not wanted:
        return None
    held_out = [
        picture
        for dataset in wanted
        for picture in [each for each in material.pictures if each.dataset_id == dataset][: spec.num_eval_images]
    ]
    task: Any = trainee.task
    every_steps, every_epochs = spec.eval_steps_interval, spec.eval_epoch_interval
    if every_steps is None and every_epochs is None:
        every_steps, every_epochs = spec.validation_step_interval, spec.validation_epoch_interval
    return Evaluation(lambda: task.held_out_loss(held_out, spec.eval_timesteps), every_steps, every_epochs)


def _total_steps(spec: DiffusionSpec, sampler: Sampler) -> int:
    """The updates that are asked for; the shorter of steps and epochs where both are."""
    limits = [spec.max_train_steps] if spec.max_train_steps else []
    if spec.num_train_epochs:
        limits.append(math.ceil(sampler.batches_in(spec.num_train_epochs) / spec.gradient_accumulation_steps))
    return min(limits)


def _schedule(spec: DiffusionSpec) -> dict[str, Any]:
    """What the config changes in the base's noise schedule."""
    changes: dict[str, Any] = {}
    if spec.prediction_type in ("epsilon", "v_prediction"):
        changes["prediction_type"] = spec.prediction_type
    if spec.rescale_betas_zero_snr:
        # Drawing must then begin at the last step, which has no signal.
        changes.update(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    return changes


def _facts(spec: DiffusionSpec, objective: str) -> dict[str, str]:
    """What other tools read in the file (`modelspec.*`, `ss_*`)."""
    entry = family_entries()[spec.model_family]
    facts = {
        "modelspec.architecture": entry.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": entry.title,
        "modelspec.resolution": f"{spec.resolution:g}x{spec.resolution:g}",
        "modelspec.prediction_type": objective,
        "ss_base_model_version": entry.architecture,
    }
    if spec.model_type == "full":
        return facts
    return {
        **facts,
        "modelspec.architecture": f"{entry.architecture}/lora",
        "modelspec.title": f"{entry.title} LoRA",
        "ss_network_dim": str(spec.lora_rank),
        "ss_network_alpha": f"{spec.effective_lora_alpha:g}",
    }
