"""What a trainer process may see of the environment of whoever starts it: the bridge, or a provider's entry."""

from collections.abc import Mapping

_PASSED_ON = frozenset(
    {"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "XDG_CACHE_HOME"}
)
_PASSED_ON_PREFIXES = (
    "LC_",
    "HF_",
    "TRANSFORMERS_",
    "TORCH",
    "PYTORCH_",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "ROCR_",
    "HIP_",
    "OMP_",
    "MKL_",
    "SSL_CERT_",
    "REQUESTS_CA_",
    "TRAINER_",
)
_HANDED_ON = "TRAINER_DELIVERY_"
"""`TRAINER_DELIVERY_AWS_ACCESS_KEY_ID` reaches the trainer as `AWS_ACCESS_KEY_ID`: the variable of that name may be the
control plane's own, so what a bucket of results needs is set for that."""


def trainer_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of `environ` that a trainer is given: no database, no bus, no provider's key, no token."""
    passed = {
        name: value
        for name, value in environ.items()
        if (name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)) and name != "TRAINER_TOKEN"
    }
    handed_on = {name.removeprefix(_HANDED_ON): passed.pop(name) for name in [*passed] if name.startswith(_HANDED_ON)}
    return {**passed, **handed_on, "PYTHONUNBUFFERED": "1"}
