# pyright: basic
"""What an attempt hands over: checkpoints while training, the LoRA file and a manifest at the end."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer import __version__
from trainer.publish.publisher import Publication
from trainer.publish.upload import OutgoingFile, StoredFile
from trainer.session import Prepared, Session
from trainer.train.checkpoint import CheckpointWriter, prune, room_for

_EMA_FOLDER = "ema"


class Publishing:
    """Writes outputs into the work folder and queues them for delivery."""

    def __init__(self, session: Session, prepared: Prepared) -> None:
        self._job, self._work_dir, self.trainee = session.job, session.work_dir, prepared.trainee
        self._reporter, self._publisher = session.reporter, session.publisher
        self._model_facts, self._companions = prepared.facts, prepared.companions
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
        prune(root, self.trainee.spec.checkpoints_total_limit, self._publisher.folders_in_use())
        self._reporter.phase("training")

    def publish_results(self) -> None:
        """Write and queue the trained part, its average if there is one, what goes with it, and a manifest of all."""
        output, trainee = self._work_dir / "output", self.trainee
        with room_for(output):
            paths = self._write_part(output, trainee.part.tensors(), trainee.step)
            if trainee.average is not None:
                paths.extend(self._write_part(output / _EMA_FOLDER, trainee.average.tensors, trainee.step))
            paths.extend(self._companions(output))
        files = [OutgoingFile(path, path.relative_to(output).as_posix()) for path in paths]
        manifest = output / "manifest.json"
        manifest.write_text(json.dumps(self._manifest([file.name for file in files]), indent=1), encoding="utf-8")
        for file in [*files, OutgoingFile(manifest, manifest.name, "application/json")]:
            self._publisher.publish(Publication([file], self._report_artifact))

    def _report_artifact(self, stored: list[StoredFile]) -> None:
        for each in stored:
            self._reporter.emit("artifact", content_type=each.content_type, **each.reference())
            self.artifacts.append(each.reference())

    def _write_part(self, folder: Path, tensors: dict[str, Tensor], step: int) -> list[Path]:
        return self.trainee.part.write(folder, tensors, self._facts(step))

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
