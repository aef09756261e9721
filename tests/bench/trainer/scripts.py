"""diffusers' example scripts, which are in its repository but not in its package: where they are, and which."""

import hashlib
from pathlib import Path

FLUX = "dreambooth/train_dreambooth_lora_flux.py"
SD1X = "text_to_image/train_text_to_image_lora.py"
SDXL = "text_to_image/train_text_to_image_lora_sdxl.py"

MEASURED_VERSION = "v0.40.0"
_SHA256 = {
    FLUX: "ea51c6843b1e27909a134de1eb59e6bc54ad99f4b349c55bdd62321cb5412885",
    SD1X: "f1bb3a672a224456ef8b82782378a80625055211d3a12ad30effc262fc118381",
    SDXL: "55edec3ed9d86d7fdcd665b0cac35f6cc6c324fcfc7949117dd9aac1e47d0d51",
}
"""Of the version whose figures are in docs/benchmarks.md; others run too, and their rows say so."""

HOW_TO_GET_THEM = (
    "git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers, "
    "then --diffusers-examples diffusers/examples, or DIFFUSERS_EXAMPLES"
)


class Scripts:
    """The scripts below one folder; None is a folder that was not given."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, name: str) -> Path | None:
        """The script, or None when it is not there."""
        path = self._folder / name if self._folder is not None else None
        return path if path is not None and path.is_file() else None

    def version(self, name: str) -> str:
        """`of v0.40.0`, or the first digits of the hash of another version."""
        path = self.find(name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else "absent"
        return MEASURED_VERSION if digest == _SHA256[name] else f"sha256 {digest[:12]}"
