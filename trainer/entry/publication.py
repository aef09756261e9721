# pyright: basic
"""What an attempt hands over: checkpoints while training, the LoRA file and a manifest at the end."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from shared.contracts.training.diffusion import DiffusionSpec
from shared.contracts.training.spec import TrainingSpec
from trainer import __version__
from trainer.failures import AttemptFailed
from trainer.files import settle_header
from trainer.patience import Patience
from trainer.publish.card import CARD_NAME, CardFacts, base_card_of, model_card, newest_samples
from trainer.publish.kohya import KOHYA_FILE_NAME, NoKohyaName, to_kohya
from trainer.publish.publisher import Publication
from trainer.publish.upload import OutgoingFile, StoredFile
from trainer.session import Prepared, Session
from trainer.train.checkpoint import CheckpointWriter, prune, room_for

_EMA_FOLDER = "ema"
_CHECKPOINT_WAIT_S = 600.0
"""How long training waits for a checkpoint to be at the hub, where the config does not let that run behind."""


class Publishing:
    """Writes outputs into the work folder and queues them for delivery."""

    def __init__(self, session: Session, prepared: Prepared) -> None:
        self._job, self._work_dir, self.trainee = session.job, session.work_dir, prepared.trainee
        self._reporter, self._publisher, self._control = session.reporter, session.publisher, session.control
        self._model_facts, self._companions = prepared.facts, prepared.companions
        self._deliveries = session.deliveries
        if self._job.training.delivery.lora_format == "kohya":
            # A layer without a name is told now, not after the training.
            self._kohya_tensors(self.trainee.part.tensors())
        self.artifacts: list[dict[str, Any]] = []
        """References of the delivered results, complete once the publisher is idle."""

    def save_checkpoint(self) -> None:
        """Save, queue the upload (manifest last) and delete what is beyond the limit."""
        root = self._work_dir / "checkpoints"
        self._reporter.phase("saving", f"step {self.trainee.step}")
        with room_for(root, self.trainee.spec.disk_low_bytes):
            folder = self.trainee.save(CheckpointWriter(root, self.trainee.step), self._write_part)
        files = [OutgoingFile(folder.path / name, f"{folder.path.name}/{name}") for name in folder.file_names()]

        def report(stored: list[StoredFile]) -> None:
            self._reporter.emit("checkpoint", step=folder.step, files=[each.reference() for each in stored])

        self._publisher.publish(Publication(files, report, folder=folder.path, replaceable=True))
        self._deliveries.publish_checkpoint(folder.path, files, Patience(self._control, _CHECKPOINT_WAIT_S, grace_s=0))
        in_use = self._publisher.folders_in_use() | self._deliveries.folders_in_use()
        prune(root, self.trainee.spec.checkpoints_total_limit, in_use)
        self._reporter.phase("training")

    def publish_results(self) -> None:
        """Write and queue the trained part, its average if there is one, what goes with it, and a manifest of all."""
        output, trainee = self._work_dir / "output", self.trainee
        with room_for(output):
            paths = self._write_part(output, trainee.part.tensors(), trainee.step)
            if trainee.average is not None:
                paths.extend(self._write_part(output / _EMA_FOLDER, trainee.average.tensors, trainee.step))
            paths.extend(self._companions(output))
            if self._job.training.delivery.lora_format == "kohya":
                paths.append(self._write_kohya(output / KOHYA_FILE_NAME))
        files = [OutgoingFile(path, path.relative_to(output).as_posix()) for path in paths]
        manifest = output / "manifest.json"
        manifest.write_text(json.dumps(self._manifest([file.name for file in files]), indent=1), encoding="utf-8")
        for file in [*files, OutgoingFile(manifest, manifest.name, "application/json")]:
            self._publisher.publish(Publication([file], self._report_artifact))
        outside = self._with_card(output, files)
        if self._deliveries.wanted:
            self._deliveries.publish_results(outside)

    def _report_artifact(self, stored: list[StoredFile]) -> None:
        for each in stored:
            self._reporter.emit("artifact", content_type=each.content_type, **each.reference())
            self.artifacts.append(each.reference())

    def _write_part(self, folder: Path, tensors: dict[str, Tensor], step: int) -> list[Path]:
        return self.trainee.part.write(folder, tensors, self._facts(step))

    def _write_kohya(self, path: Path) -> Path:
        spec = self._job.training
        facts = {
            **self._facts(self.trainee.step),
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(spec.lora_rank),
            "ss_network_alpha": f"{spec.effective_lora_alpha:g}",
        }
        save_file(self._kohya_tensors(self.trainee.part.tensors()), path, metadata=facts)
        settle_header(path)
        return path

    def _kohya_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        model, spec = self.trainee.part.model, self._job.training
        widths = {
            name: module.out_features for name, module in model.named_modules() if hasattr(module, "out_features")
        }
        try:
            family = spec.model_family if isinstance(spec, DiffusionSpec) else ""
            return to_kohya(family, tensors, spec.effective_lora_alpha, widths)
        except NoKohyaName as error:
            raise AttemptFailed("bad_config", str(error), "Set lora_format to diffusers, or other targets.") from error

    def _with_card(self, output: Path, files: list[OutgoingFile]) -> list[OutgoingFile]:
        """The files that go to targets outside: the card that tells of them, the newest pictures, the results."""
        spec, run, trainee = self._job.training, self._job.run, self.trainee
        base = spec.pretrained_model_name_or_path
        samples = newest_samples(self._work_dir / "samples", _prompts(spec))
        facts = CardFacts(
            title=f"{self._model_facts['modelspec.title']} of job {run.job_id}",
            kind="diffusion" if isinstance(spec, DiffusionSpec) else "llm",
            base=Path(base).name if Path(base).expanduser().exists() else base,
            base_card=base_card_of(base, spec.revision),
            spec=spec,
            delivery=spec.delivery,
            steps=trainee.step,
            final_loss=trainee.last_loss,
            job_id=run.job_id,
            config_hash=self._job.config_hash,
            files=files,
            datasets=[each.id for each in self._job.datasets],
            samples=samples,
            instance_prompt=_instance_prompt(list(self._job.datasets)),
        )
        card = output / CARD_NAME
        card.write_text(model_card(facts), encoding="utf-8")
        pictures = [each.file for each in samples]
        return [OutgoingFile(card, CARD_NAME, "text/markdown"), *pictures, *files]

    def _facts(self, step: int) -> dict[str, str]:
        """The model's facts, and where the file comes from."""
        spec, run = self._job.training, self._job.run
        facts = {
            **self._model_facts,
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.title": f"{self._model_facts['modelspec.title']} of job {run.job_id}",
            "modelspec.date": datetime.now(UTC).date().isoformat(),
            "ss_learning_rate": f"{spec.learning_rate:g}",
            "ss_steps": str(step),
            "ss_seed": str(spec.seed),
            "tunewright.trainer_version": __version__,
            "tunewright.job_id": run.job_id,
            "tunewright.config_hash": self._job.config_hash,
        }
        return {**facts, "modelspec.comment": spec.modelspec_comment} if spec.modelspec_comment else facts

    def _manifest(self, names: list[str]) -> dict[str, Any]:
        run = self._job.run
        return {
            "job_id": run.job_id,
            "attempt_id": run.attempt_id,
            "config_hash": self._job.config_hash,
            "steps": self.trainee.step,
            "final_loss": self.trainee.last_loss,
            "base_model": self._job.training.pretrained_model_name_or_path,
            "files": names,
        }


def _instance_prompt(datasets: list[Any]) -> str | None:
    """The first instance prompt of the datasets; data of other kinds has none."""
    return next((prompt for each in datasets if (prompt := getattr(each, "instance_prompt", None))), None)


def _prompts(spec: TrainingSpec) -> dict[str, str]:
    """Validation prompts by id, where the kind of training draws pictures."""
    if not isinstance(spec, DiffusionSpec):
        return {}
    single = {"validation": spec.validation_prompt} if spec.validation_prompt else {}
    return {**(spec.user_prompt_library or {}), **single}
