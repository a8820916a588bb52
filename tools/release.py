"""Make a release: `python -m tools.release version X.Y.Z` prepares its commit, and `… build` makes its files.

`build` makes the wheel and the sdist twice from the commit, and compares them byte by byte. Then it installs the wheel
in a fresh environment and runs it. Anyone can make the same files from the same commit.
"""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Final

from order_service.wire.schemas.files import RELEASED, ReleasedFile, digest_of, entries

UV: Final = Path(sys.prefix) / "uv" / "bin" / "uv"
VERSION: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
"""Source: semver.org 2.0.0, without pre-releases, which we do not make."""
VERSIONED: Final = (
    ("pyproject.toml", r'^version = "(.+)"$'),
    ("order_service/__init__.py", r'^__version__ = "(.+)"$'),
    ("Dockerfile", r"^ARG VERSION=(.+)$"),
    ("deploy/helm/order-service/Chart.yaml", r"^version: (.+)$"),
    ("deploy/helm/order-service/Chart.yaml", r'^appVersion: "(.+)"$'),
    ("deploy/helm/order-service/ci/production.yaml", r"^  tag: (.+)$"),
    ("deploy/helm/order-service/ci/everything.yaml", r"^  image: \{tag: (.+)\}$"),
)
"""Where the version is written by hand; `make openapi contracts` writes it into the generated documents."""
CHANGELOG: Final = "CHANGELOG.md"
UNRELEASED: Final = "## [Unreleased]\n"
HEADINGS: Final = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
"""Source: keepachangelog.com 1.1.0."""
BUILD_LOCK: Final = "requirements-image.lock"
"""It pins setuptools, which builds both."""
RUN_LOCK: Final = "requirements-cli.lock"


def versions(root: Path) -> dict[str, set[str]]:
    """Return the versions that each file names."""
    found: dict[str, set[str]] = {}
    for path, pattern in VERSIONED:
        text = (root / path).read_text(encoding="utf-8")
        found.setdefault(path, set()).update(re.findall(pattern, text, re.MULTILINE))
    return found


def set_version(root: Path, version: str, date: str) -> None:
    """Write the version into all files that name it, and begin its section of the changelog.

    Raises ValueError for a version that does not follow on the current one, or without changes.
    """
    [current] = versions(root)["pyproject.toml"]
    if not VERSION.fullmatch(version) or _numbers(version) <= _numbers(current):
        raise ValueError(f"the version must be X.Y.Z and higher than {current}, not {version}")
    changelog = root / CHANGELOG
    changed = released(changelog.read_text(encoding="utf-8"), version, date)
    for path, pattern in VERSIONED:
        file = root / path
        text = file.read_text(encoding="utf-8")
        file.write_text(re.sub(pattern, lambda found: _replaced(found, version), text, flags=re.MULTILINE), "utf-8")
    changelog.write_text(changed, encoding="utf-8")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def _replaced(found: re.Match[str], version: str) -> str:
    start, end = found.start(1) - found.start(), found.end(1) - found.start()
    return found[0][:start] + version + found[0][end:]


def released(changelog: str, version: str, date: str) -> str:
    """Return the changelog, in which what was unreleased is in the section of this version.

    Raises ValueError if nothing was unreleased.
    """
    before, heading, after = changelog.partition(UNRELEASED)
    section = re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]
    if not heading or not section.strip():
        raise ValueError(f"{CHANGELOG} has nothing under {UNRELEASED.strip()}")
    return f"{before}{heading}\n## [{version}] - {date}\n{after}"


def faults(root: Path, *, changes: str) -> list[str]:
    """Return why no release can be built; `changes` are the files that differ from the commit."""
    found = versions(root)
    [version] = found["pyproject.toml"]
    lines = [
        f"{path} has version {', '.join(sorted(others)) or 'none'}, pyproject.toml has {version}"
        for path, others in found.items()
        if others != {version}
    ]
    section = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    if not re.search(section, (root / CHANGELOG).read_text(encoding="utf-8"), re.MULTILINE):
        lines.append(f"{CHANGELOG} has no section for {version}: run `make version VERSION=X.Y.Z` and commit")
    if changes:
        lines.append(f"the tree differs from its commit: commit first\n{changes.rstrip()}")
    return lines


def unpinned(listed: list[ReleasedFile]) -> list[str]:
    """Return what to do before a release of these lines of `ids.json`: a schema never changes after it."""
    if len(listed) in RELEASED:
        return []
    line = f'{len(listed)}: "{digest_of(listed)}"'
    return [f"the newest schemas are not pinned: add {line} to RELEASED in order_service/wire/schemas/files.py"]


def build(root: Path, output: Path) -> list[Path]:
    """Build twice, compare, install and run. Return the files in `output`. Raises RuntimeError if anything differs."""
    epoch = int(_run(["git", "log", "-1", "--format=%ct"], root))
    with tempfile.TemporaryDirectory() as directory:
        first, second = (_built(root, Path(directory, name), epoch) for name in ("first", "second"))
        if (digests := _digests(first)) != _digests(second):
            raise RuntimeError(f"two builds differ: {digests} and {_digests(second)}")
        [version] = versions(root)["pyproject.toml"]
        _check_runs(root, next(first.glob("*.whl")), version, Path(directory))
        output.mkdir(exist_ok=True)
        for file in output.iterdir():
            file.unlink()
        for file in first.iterdir():
            shutil.move(file, output / file.name)
    sums = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    (output / "SHA256SUMS").write_text(sums, encoding="ascii")
    return sorted(output.iterdir())


def _built(root: Path, folder: Path, epoch: int) -> Path:
    """Build the wheel and the sdist of the commit of `root`, and return their folder."""
    source, made = folder / "source", folder / "made"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(source, filter="data")
    for path in source.rglob("*"):  # else the files would have the rights that the umask of this process allows
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    options: list[str | Path] = ["--quiet", "--no-create-gitignore", "--python", sys.executable]
    pinned: list[str | Path] = ["--build-constraints", root / BUILD_LOCK, "--require-hashes"]
    _run([UV, "build", *options, *pinned, "--out-dir", made, source], root, {"SOURCE_DATE_EPOCH": str(epoch)})
    [sdist] = made.glob("*.tar.gz")
    normalise(sdist, epoch)
    return made


def normalise(sdist: Path, epoch: int) -> None:
    """Write an sdist again with one time for all files, in the order of their names, and owned by no user.

    setuptools writes the time and the user of the build into it.
    """
    with tarfile.open(sdist) as archive:
        members = [(member, archive.extractfile(member)) for member in archive.getmembers()]
        contents = [(member, b"" if file is None else file.read()) for member, file in members]
    with (
        sdist.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=epoch) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for member, content in sorted(contents, key=lambda each: each[0].name):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime = member.type, len(content), epoch
            plain.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            archive.addfile(plain, BytesIO(content))


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def _check_runs(root: Path, wheel: Path, version: str, directory: Path) -> None:
    """Install a wheel with the command line into a fresh environment. Raises RuntimeError for another version."""
    environment = directory / "environment"
    _run([sys.executable, "-m", "venv", "--without-pip", environment], directory)
    install: list[str | Path] = [UV, "pip", "install", "--quiet", "--python", environment / "bin" / "python"]
    _run([*install, "--constraint", root / RUN_LOCK, f"{wheel}[cli]"], directory)
    said = _run([environment / "bin" / "order-service", "--version"], directory)
    if said != f"order-service {version}\n":
        raise RuntimeError(f"the installed wheel says {said!r}, expected order-service {version}")


def _run(command: list[str | Path], directory: Path, environment: Mapping[str, str] | None = None) -> str:
    """Return what a command writes to stdout; what it writes to stderr is shown."""
    environment = {**os.environ, **(environment or {})}
    ended = subprocess.run(command, cwd=directory, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return ended.stdout


def main(arguments: list[str]) -> int:
    """Run the command that the arguments name. Return 1 if it cannot be done, and print why."""
    root = Path.cwd()
    match arguments:
        case ["version", version]:
            if lines := unpinned(entries(root / "schemas")):
                return _refused(lines)
            try:
                set_version(root, version, datetime.now(UTC).date().isoformat())
            except ValueError as error:
                return _refused([str(error)])
            print(f"{version} is prepared: run `make openapi contracts`, read {CHANGELOG}, test and commit")
        case ["build"]:
            changes = _run(["git", "status", "--porcelain"], root)
            if lines := [*faults(root, changes=changes), *unpinned(entries(root / "schemas"))]:
                return _refused(lines)
            for file in build(root, root / "dist"):
                print(file.relative_to(root))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


def _refused(reasons: list[str]) -> int:
    print("\n".join(f"release: {reason}" for reason in reasons), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
