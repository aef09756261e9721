"""The program of a RunPod serverless worker: `python deploy/runpod/handler.py`, with RunPod's own options.

It runs in the environment of `requirements.txt`; training happens in a child, in the trainer's environment.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer.entry.runpod_handler import RunPodHandler
from trainer.entry.settings import EntrySettings

# By name: the SDK lives in the worker's environment, and this folder bears its name.
serverless: Any = import_module("runpod.serverless")
rp_upload: Any = import_module("runpod.serverless.utils.rp_upload")


class RunPodSdk:
    """The two calls of the SDK that the handler makes while a job runs."""

    def progress_update(self, job: dict[str, Any], progress: Any) -> None:
        """Post the state of a running job; the SDK does it in a thread."""
        serverless.progress_update(job, progress)

    def upload_file_to_bucket(
        self, file_name: str, file_location: str, bucket_creds: dict[str, str] | None, bucket_name: str, prefix: str
    ) -> str:
        """Upload one file; its presigned URL, good for seven days."""
        return rp_upload.upload_file_to_bucket(
            file_name, file_location, bucket_creds=bucket_creds, bucket_name=bucket_name, prefix=prefix
        )


if __name__ == "__main__":
    worker = RunPodHandler(EntrySettings.from_environ(os.environ), RunPodSdk(), os.environ)
    worker.init()
    serverless.start({"handler": worker.handle})
