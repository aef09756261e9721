"""Every provider that is held against the contract: add yours here."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from tests.contract.providers.case import Case
from tests.contract.providers.hf_spaces import hf_spaces_case
from tests.contract.providers.hugging_face import hugging_face_case
from tests.contract.providers.kaggle import kaggle_case
from tests.contract.providers.local import local_case
from tests.contract.providers.machines import lambda_case, runpod_case
from tests.contract.providers.replicate import replicate_case
from tests.contract.providers.runpod_serverless import runpod_serverless_case
from tests.contract.providers.skypilot import skypilot_case
from tests.contract.providers.worker import worker_case
from tests.support.log import LogDatabase

CASES: dict[str, Callable[[Path], AbstractAsyncContextManager[Case]]] = {
    "local": local_case,
    "replicate": replicate_case,
    "runpod": runpod_case,
    "lambda": lambda_case,
    "kaggle": kaggle_case,
    "runpod_serverless": runpod_serverless_case,
    "huggingface": hugging_face_case,
    "hf_spaces": hf_spaces_case,
    "skypilot": skypilot_case,
}

ON_DATABASE: dict[str, Callable[[Path, LogDatabase], AbstractAsyncContextManager[Case]]] = {"worker": worker_case}
"""Those whose other side is our own database."""
