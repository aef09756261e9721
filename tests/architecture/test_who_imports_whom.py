"""The import rules that are lists of what is allowed; the layers are import-linter's (pyproject.toml)."""

import sys
from pathlib import Path

from tests.support.sources import ROOT, SERVICES, imports, python_files, where

DOMAIN_MAY_IMPORT = ("msgspec", "shared.contracts", "shared.problems")
TOUCHES_THE_WORLD = set(
    """
    asyncio concurrent ftplib http imaplib io logging multiprocessing os pathlib pickle poplib queue random secrets
    select selectors shelve shutil smtplib socket socketserver sqlite3 ssl subprocess tempfile threading time
    urllib.request webbrowser
    """.split()  # noqa: SIM905 - a word list reads better
)
CONTRACTS_MAY_IMPORT = ("msgspec", "shared.contracts")


def _is_within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def _is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def _domain_files(service: str) -> tuple[Path, ...]:
    return python_files(f"services/{service}/domain")


def test_domain_has_no_io_imports() -> None:
    breaches = [
        f"{where(path, node)} imports {name}"
        for service in SERVICES
        for path in _domain_files(service)
        for name, node in imports(path)
        if name in TOUCHES_THE_WORLD
        or not (
            _is_standard(name) or _is_within(name, DOMAIN_MAY_IMPORT) or name.startswith(f"services.{service}.domain")
        )
    ]
    assert not breaches, "\n".join(breaches)


def test_contracts_import_msgspec_and_the_standard_library_only() -> None:
    breaches = [
        f"{where(path, node)} imports {name}"
        for path in python_files("shared/contracts")
        for name, node in imports(path)
        if not (_is_standard(name) or _is_within(name, CONTRACTS_MAY_IMPORT))
    ]
    assert not breaches, "\n".join(breaches)


def test_trainer_imports_nothing_of_ours_but_contracts() -> None:
    breaches = [
        f"{where(path, node)} imports {name}"
        for path in python_files("trainer")
        for name, node in imports(path)
        if name.partition(".")[0] in {"shared", "services", "deploy", "tests"}
        and not _is_within(name, ("shared.contracts",))
    ]
    assert not breaches, "\n".join(breaches)


def test_services_never_import_each_other() -> None:
    breaches = [
        f"{where(path, node)} imports {name}"
        for path in python_files("services")
        for name, node in imports(path)
        if name.startswith("services.") and name.split(".")[1] != path.relative_to(ROOT / "services").parts[0]
    ]
    assert not breaches, "\n".join(breaches)


def test_product_never_imports_tests() -> None:
    breaches = [
        f"{where(path, node)} imports {name}"
        for path in python_files("shared", "services", "trainer", "deploy")
        for name, node in imports(path)
        if name.partition(".")[0] == "tests"
    ]
    assert not breaches, "\n".join(breaches)
