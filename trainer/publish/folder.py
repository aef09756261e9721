"""Files to a folder of the training machine, by a name that cannot leave the roots its owner allows."""

import os
import shutil
from pathlib import Path

from shared.contracts.training.delivery import FolderTarget
from trainer.files import fsync_path, sha256_of
from trainer.publish.upload import OutgoingFile, StoredFile, UploadDelayed, UploadRefused, described


class FolderStore:
    """Copies files below the first root. Readers see a whole file or none; what is there already is left alone."""

    def __init__(self, target: FolderTarget, roots: tuple[Path, ...]) -> None:
        self._name = target.name
        self._roots = roots

    @property
    def target(self) -> str:
        """`folder:name`."""
        return f"folder:{self._name}"

    @property
    def url(self) -> None:
        """None: a path of a machine says nothing to anybody else."""
        return

    def put(self, file: OutgoingFile) -> StoredFile:
        """Copy one file. Raises UploadRefused when no root is allowed, or the name leads out of it."""
        stored = described(file, f"{self._name}/{file.name}")
        place = self._place(file.name)
        if place.is_file() and place.stat().st_size == stored.size_bytes and sha256_of(place) == stored.sha256:
            return stored
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            scratch = place.with_name(f".{place.name}.{os.getpid()}.tmp")
            shutil.copyfile(file.path, scratch)
            fsync_path(scratch)
            scratch.replace(place)
            fsync_path(place.parent)
        except OSError as error:
            raise UploadDelayed(error.strerror or type(error).__name__) from error
        return stored

    def complete(self) -> None:
        """Nothing to do: each file is whole by itself."""

    def _place(self, name: str) -> Path:
        if not self._roots:
            raise UploadRefused("no folder is allowed on this machine; its owner sets TRAINER_PUBLISH_ROOTS")
        root = self._roots[0].resolve()
        place = (root / self._name / name).resolve()
        if not place.is_relative_to(root / self._name) or place == root / self._name:
            raise UploadRefused(f"{self._name}/{name} leads out of the folder that is allowed")
        return place
