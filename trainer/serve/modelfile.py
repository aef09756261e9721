"""The Modelfile that does by hand what `trainer.serve.ollama` does over HTTP."""

from pathlib import Path

MODELFILE_NAME = "Modelfile"


def modelfile_text(base: str, name: str, gguf: Path | None = None) -> str:
    """FROM and ADAPTER. Without a GGUF file the adapter is the two PEFT files beside the Modelfile."""
    return (
        f"# In this folder: ollama create {name} -f {MODELFILE_NAME}\n"
        "# The prompt template and the parameters are those of the base; add TEMPLATE, SYSTEM or PARAMETER lines to\n"
        "# change them.\n"
        f"FROM {base}\n"
        f"ADAPTER {gguf.resolve() if gguf else '.'}\n"
    )


def write_modelfile(folder: Path, base: str, name: str, gguf: Path | None = None) -> Path:
    """Writes the Modelfile beside the adapter's files and returns its path."""
    path = folder / MODELFILE_NAME
    path.write_text(modelfile_text(base, name, gguf), encoding="utf-8")
    return path
