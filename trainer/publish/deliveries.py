"""Results to targets outside: each at its own pace, tried a bounded number of times, told apart from training."""

from collections.abc import Sequence
from pathlib import Path

from shared.contracts.training.delivery import BucketTarget, DeliverySpec, FolderTarget
from trainer.control import Control
from trainer.patience import Patience
from trainer.publish.credentials import Outside
from trainer.publish.folder import FolderStore
from trainer.publish.publisher import Publication, Publisher
from trainer.publish.upload import OutgoingFile, OutsideStore, StoredFile
from trainer.report.events import Reporter

TRIES = 6
"""With the usual back-off that is about a minute of an outage."""
RESULTS = "results"
_HUB = "hub:"


class Deliveries:
    """The targets of one attempt, each with a thread of its own. Without targets there is nothing and no thread."""

    def __init__(self, spec: DeliverySpec, outside: Outside, reporter: Reporter, control: Control) -> None:
        self._spec = spec
        self._reporter = reporter
        self._control = control
        self._publishers = [
            (store, Publisher(store, reporter, control, tries=TRIES)) for store in stores_for(spec, outside)
        ]
        for _, publisher in self._publishers:
            publisher.start()

    @property
    def wanted(self) -> bool:
        """Whether results go anywhere outside."""
        return bool(self._publishers)

    def publish_results(self, files: Sequence[OutgoingFile]) -> None:
        """Queue the results for every target and return at once."""
        for store, publisher in self._publishers:
            publisher.publish(self._publication(store, RESULTS, files))

    def publish_checkpoint(self, folder: Path, files: Sequence[OutgoingFile], patience: Patience) -> None:
        """Queue a checkpoint for the hub if the config asks for it; wait for it unless that may run behind."""
        if not self._spec.push_checkpoints_to_hub:
            return
        for store, publisher in self._publishers:
            if store.target.startswith(_HUB):
                publisher.publish(self._publication(store, folder.name, files, folder=folder))
                if not self._spec.push_to_hub_background:
                    publisher.wait_until_idle(patience)

    def folders_in_use(self) -> set[Path]:
        """Folders whose files are still to be sent."""
        return {folder for _, publisher in self._publishers for folder in publisher.folders_in_use()}

    def wait(self, patience: Patience) -> None:
        """Wait for every target; what is not delivered then is reported as failed. Training is not touched by it."""
        for _, publisher in self._publishers:
            publisher.wait(patience)

    def close(self) -> None:
        """Stop the threads; what is still queued is not sent."""
        for _, publisher in self._publishers:
            publisher.close()

    def _publication(
        self, store: OutsideStore, what: str, files: Sequence[OutgoingFile], folder: Path | None = None
    ) -> Publication:
        names = [file.name for file in files]

        def delivered(_stored: list[StoredFile]) -> None:
            self._tell(store, what, names, status="delivered", url=store.url)

        def refused(reason: str) -> None:
            self._tell(store, what, names, status="failed", message=reason)

        # Sent in the order of results; a newer checkpoint makes a waiting one pointless.
        return Publication(list(files), delivered, folder=folder, replaceable=folder is not None, refused=refused)

    def _tell(self, store: OutsideStore, what: str, names: list[str], **outcome: str | None) -> None:
        self._reporter.emit("delivery", target=store.target, what=what, files=names, **outcome)


def stores_for(spec: DeliverySpec, outside: Outside) -> list[OutsideStore]:
    """One store for each target of a config."""
    pushes = spec.push_to_hub or spec.push_checkpoints_to_hub
    hub = [_hub(spec, spec.hub_model_id, outside)] if pushes and spec.hub_model_id else []
    return [*hub, *(_place(target, outside) for target in spec.publishing_config)]


def _hub(spec: DeliverySpec, repo_id: str, outside: Outside) -> OutsideStore:
    # Imported here, and the other one below: an attempt without such a target does not need its client.
    from trainer.publish.hub import HubStore  # noqa: PLC0415

    return HubStore(repo_id, private=spec.model_card_private, outside=outside)


def _place(target: BucketTarget | FolderTarget, outside: Outside) -> OutsideStore:
    if isinstance(target, FolderTarget):
        return FolderStore(target, outside.roots)
    from trainer.publish.bucket import BucketStore  # noqa: PLC0415

    keys = outside.backblaze if target.provider in {"backblaze_b2", "b2"} else None
    return BucketStore(target, keys or outside.bucket)
