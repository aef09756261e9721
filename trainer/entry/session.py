# pyright: basic
"""One attempt from input to `done`: prepare, resume, train, publish. Imported late, because it imports torch."""

from importlib.metadata import version

import torch

from shared.contracts.training.llm import LlmSpec
from trainer import __version__
from trainer.entry.publication import Publishing
from trainer.families.libraries import quieten_libraries
from trainer.gpu import Device
from trainer.gpu_watch import watching
from trainer.session import Prepared, Session
from trainer.train.checkpoint import checkpoints_in, damage_of
from trainer.train.loop import Hooks, train
from trainer.train.precision import Precision, choose_precision, make_deterministic
from trainer.train.trainee import Trainee


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
    device, gpu = _gpu(precision.device)
    with watching(device, gpu, reporter, session.control):
        publishing = _train(session, precision)
    reporter.phase("uploading")
    publishing.publish_results()
    return publishing


def _train(session: Session, precision: Precision) -> Publishing:
    spec, reporter, control = session.job.training, session.reporter, session.control
    prepared = _prepared(session, precision)
    trainee = prepared.trainee
    publishing = Publishing(session, prepared)
    _resume(session, trainee)
    reporter.phase("training")
    wanted = (trainee.step == 0 and not spec.disable_benchmark) or spec.validation_on_startup
    if wanted and control.ending("before training") is None:
        prepared.validate()
    hooks = Hooks(publishing.save_checkpoint, prepared.validate, prepared.evaluation)
    train(trainee, hooks, reporter, control)
    return publishing


def _gpu(device: torch.device) -> tuple[Device | None, str]:
    """What can be asked about the GPU, and its name; on a CPU nothing."""
    if device.type != "cuda":
        return None, device.type
    from trainer.nvml import open_device  # noqa: PLC0415 -- the driver's library is only where a GPU is

    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return open_device(uuid), f"{torch.cuda.get_device_name(device)} {uuid}"


def _prepared(session: Session, precision: Precision) -> Prepared:
    """The kinds of training are imported when they are asked for: each brings libraries that take seconds to load."""
    spec = session.job.training
    if isinstance(spec, LlmSpec):
        from trainer.llm.session import prepare  # noqa: PLC0415

        return prepare(session, spec, precision)
    from trainer.diffusion.session import prepare as prepare_diffusion  # noqa: PLC0415

    return prepare_diffusion(session, spec, precision)


def _say_hello(session: Session, precision: Precision) -> None:
    job, reporter = session.job, session.reporter
    if "hello" in reporter.spool.types:
        return  # a restart in the same folder: the spool goes on, and hello was said
    sources = [*job.datasets, *job.text_datasets]
    ignored = [*job.training.ignored_keys, *(f"{each.id}.{key}" for each in sources for key in each.ignored_keys)]
    reporter.emit(
        "hello",
        trainer_version=__version__,
        torch_version=version("torch"),
        device=torch.cuda.get_device_name() if precision.device.type == "cuda" else "cpu",
        ignored_keys=ignored,
        config=job.run.config,
    )


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
