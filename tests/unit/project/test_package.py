"""What is installed is what is in the checkout."""

import tomllib

from tests.support.service import ROOT


def test_every_folder_of_code_and_the_schemas_are_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "order_service").rglob("*.py")}
    assert set(listed) == folders | {"order_service.schemas"}


def test_the_locks_name_no_host():
    for name in ("requirements.lock", "requirements-dev.lock", "bench/peers/quix.lock"):
        text = (ROOT / name).read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text
