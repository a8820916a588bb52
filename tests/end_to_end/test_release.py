"""A release as a maintainer makes it: prepared, committed, built twice, compared, installed and run."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.support.service import ROOT
from tools.release import BUILD_LOCK, RUN_LOCK, VERSIONED, versions

FOLDERS = ("order_service", "schemas", "tools")
FILES = ("pyproject.toml", "README.md", "LICENSE", ".gitignore", BUILD_LOCK, RUN_LOCK)
CHANGES = "# Changelog\n\n## [Unreleased]\n\n### Added\n- All.\n"
[CURRENT] = versions(ROOT)["pyproject.toml"]
NEXT = f"{int(CURRENT.partition('.')[0]) + 1}.0.0"
IDENTITY = {f"GIT_{role}_{part}": "release@example" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a repository with what a release is made of, and nothing else."""
    root = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in {*FILES, *(path for path, _ in VERSIONED)}:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "CHANGELOG.md").write_text(CHANGES)
    git(root, "init", "--quiet")
    return root


def git(root, *arguments):
    subprocess.run(["git", *arguments], cwd=root, env=os.environ | IDENTITY, check=True, capture_output=True)


def release(root, *arguments, code=0):
    ended = subprocess.run(
        [sys.executable, "-m", "tools.release", *arguments],
        cwd=root, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    return ended


@pytest.mark.timeout(330)
def test_a_release_is_prepared_built_the_same_twice_and_runs(checkout):
    said = release(checkout, "build", code=1).stderr
    assert "CHANGELOG.md has no section for" in said
    assert "the tree differs from its commit" in said
    release(checkout, "version", NEXT)
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", f"Release {NEXT}")
    names = [f"order_service-{NEXT}-py3-none-any.whl", f"order_service-{NEXT}.tar.gz"]
    assert release(checkout, "build").stdout.splitlines() == ["dist/SHA256SUMS", *(f"dist/{name}" for name in names)]
    digests = [hashlib.sha256((checkout / "dist" / name).read_bytes()).hexdigest() for name in names]
    listed = [f"{digest}  {name}" for digest, name in zip(digests, names, strict=True)]
    assert (checkout / "dist" / "SHA256SUMS").read_text().splitlines() == listed
    wheel, sdist = (checkout / "dist" / name for name in names)
    assert "order_service/schemas/ids.json" in zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(commit_time(checkout), 0, "")}


def commit_time(root):
    shown = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=root, check=True, capture_output=True, text=True)
    return int(shown.stdout)


def test_a_wrong_call_is_a_usage_error(checkout):
    assert "python -m tools.release" in release(checkout, code=2).stderr
    assert "must be X.Y.Z and higher than" in release(checkout, "version", "0.0.1", code=1).stderr
