"""The parts of a release that need no build: versions, the changelog, and what supported versions the project names."""

import gzip
import io
import re
import tarfile
import tomllib

import pytest

from order_service.wire.schemas.files import ReleasedFile, digest_of, entries, folder
from tests.support.service import ROOT
from tools.release import CHANGELOG, HEADINGS, VERSIONED, faults, normalise, released, set_version, unpinned, versions

[CURRENT] = versions(ROOT)["pyproject.toml"]
POLICY = ROOT / "docs" / "reference" / "versioning.md"
CHANGES = "# Changelog\n\n## [Unreleased]\n\n### Added\n- A page.\n\n## [0.9.0] - 2026-01-05\n\n### Fixed\n- A fault.\n"


@pytest.fixture
def tree(tmp_path):
    for path, _ in VERSIONED:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / path).read_text(encoding="utf-8")
        (tmp_path / path).write_text(text.replace(CURRENT, "0.1.0"))
    (tmp_path / CHANGELOG).write_text(CHANGES)
    return tmp_path


def test_all_files_of_the_project_name_one_version():
    [version] = set().union(*versions(ROOT).values())
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_a_prepared_release_has_its_version_everywhere_and_a_section_of_its_changes(tree):
    set_version(tree, "1.0.0", "2026-12-01")
    assert set(versions(tree)) == {path for path, _ in VERSIONED}
    assert set().union(*versions(tree).values()) == {"1.0.0"}
    assert (
        "## [Unreleased]\n\n## [1.0.0] - 2026-12-01\n\n### Added\n- A page.\n\n## [0.9.0]"
        in (tree / CHANGELOG).read_text()
    )
    assert faults(tree, changes="") == []


@pytest.mark.parametrize("version", ["", "1", "1.0", "v1.0.0", "1.0.0rc1", "01.0.0", "0.1.0", "0.0.9", "1.0.0\n"])
def test_a_version_that_does_not_follow_changes_nothing(tree, version):
    before = {path: (tree / path).read_text() for path, _ in VERSIONED}
    with pytest.raises(ValueError, match=r"must be X\.Y\.Z and higher than 0\.1\.0"):
        set_version(tree, version, "2026-12-01")
    assert {path: (tree / path).read_text() for path, _ in VERSIONED} == before


@pytest.mark.parametrize(
    "changelog",
    ["# Changelog\n", "# Changelog\n\n## [Unreleased]\n\n", "## [Unreleased]\n\n## [0.9.0] - 2026-01-05\n- X\n"],
)
def test_a_release_without_changes_is_refused(changelog):
    with pytest.raises(ValueError, match="has nothing under"):
        released(changelog, "1.0.0", "2026-12-01")


def test_each_reason_against_a_build_is_a_line(tree):
    (tree / "Dockerfile").write_text("ARG VERSION=0.0.9\nARG VERSION=0.1.0\n")
    assert faults(tree, changes=" M README.md\n") == [
        "Dockerfile has version 0.0.9, 0.1.0, pyproject.toml has 0.1.0",
        "CHANGELOG.md has no section for 0.1.0: run `make version VERSION=X.Y.Z` and commit",
        "the tree differs from its commit: commit first\n M README.md",
    ]


def test_a_new_schema_is_pinned_before_it_is_released():
    """Else a later commit could change it, and records of this version would be decoded incorrectly."""
    listed = [*entries(folder()), ReleasedFile(1_000_000_099, "OrderPaid.v9.avsc", "0" * 64)]
    [line] = unpinned(listed)
    assert f'add {len(listed)}: "{digest_of(listed)}" to RELEASED' in line


def test_two_sdists_of_the_same_files_are_equal_after_all(tmp_path):
    sdists = []
    for number, names in enumerate((["a/b", "a/c"], ["a/c", "a/b"])):
        sdist = tmp_path / f"{number}.tar.gz"
        with tarfile.open(sdist, "w:gz") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.uname = 1, number, f"user-{number}"
                member.mode = 0o775 if name == "a/c" else 0o600
                archive.addfile(member, io.BytesIO(b"x"))
        normalise(sdist, 1_767_603_600)
        sdists.append(sdist)
    assert sdists[0].read_bytes() == sdists[1].read_bytes()
    with tarfile.open(sdists[0]) as archive:
        assert [(each.name, each.mode, each.mtime, each.uname) for each in archive] == [
            ("a/b", 0o644, 1_767_603_600, ""),
            ("a/c", 0o755, 1_767_603_600, ""),
        ]
    assert gzip.decompress(sdists[0].read_bytes())[:3] == b"a/b"


def test_the_changelog_has_only_the_headings_of_keepachangelog():
    text = (ROOT / CHANGELOG).read_text(encoding="utf-8")
    assert text.startswith("# Changelog\n")
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert sections[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", section) for section in sections[1:])
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert set(headings) <= set(HEADINGS)
        assert len(set(headings)) == len(headings), "each once"
        assert not section.partition("### ")[0].strip(), "every change is under a heading"


def test_the_supported_versions_of_python_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [each.removeprefix("Programming Language :: Python :: ") for each in project["classifiers"]]
    named = [each for each in listed if re.fullmatch(r"3\.\d+", each)]
    assert project["requires-python"] == f">={named[0]}"
    assert f"| Python | {', '.join(named)} |" in POLICY.read_text(encoding="utf-8")
