"""The package: lrfc alone, every file once, the same from tree, sdist and editable install."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in (
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
        if "==" in line
    )
}


def python(code: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def tracked() -> list[str]:
    """The files under version control, and new ones that git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: the list of tracked files is unknown")
    command = [
        "git",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "--deduplicate",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [
        name
        for name in listed.split("\0")
        if name and ((ROOT / name).exists() or (ROOT / name).is_symlink())
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files, links as links."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build(kind: str, source: Path, out: Path) -> Path:
    done = python(
        f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})", source
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


def modules(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name)


def test_wheel_holds_the_tracked_files_under_lrfc_alone(source: Path, tmp_path: Path) -> None:
    own = [
        name
        for name in tracked()
        if name.startswith(("lrfc/", "passes/", "targets/")) and not (ROOT / name).is_symlink()
    ]
    expected = sorted(name if name.startswith("lrfc/") else f"lrfc/{name}" for name in own)
    found = modules(build("wheel", source, tmp_path))
    assert found == expected
    assert {name.partition("/")[0] for name in found} == {"lrfc"}


def test_wheel_from_the_sdist_is_the_same(source: Path, tmp_path: Path) -> None:
    for name in ("sdist", "direct", "again"):
        (tmp_path / name).mkdir()
    sdist = build("sdist", source, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert modules(build("wheel", unpacked, tmp_path / "again")) == modules(
        build("wheel", source, tmp_path / "direct")
    )


def test_editable_install_gives_lrfc_alone(source: Path, tmp_path: Path) -> None:
    wheel = build("editable", source, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import lrfc.passes,"
        " lrfc.targets, lrfc.errors, sys; print(lrfc.errors.__file__); import passes"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert Path(done.stdout.strip()).resolve() == (source / "lrfc" / "errors.py").resolve(), (
        done.stderr
    )
    assert "No module named 'passes'" in done.stderr


@pytest.mark.parametrize("folder", ["passes", "targets"])
def test_the_folders_are_not_packages_of_their_own(folder: str) -> None:
    done = python(f"import {folder}")
    assert done.returncode != 0
    assert f"lrfc.{folder}" in done.stderr.splitlines()[-1]


def test_import_lrfc_is_cheap_and_lazy() -> None:
    done = python(
        "import sys, lrfc; print(sorted({m.partition('.')[0] for m in sys.modules} & {'numpy',"
        " 'keras', 'tensorflow', 'pydantic', 'networkx'}), 'build' in dir(lrfc))"
    )
    assert done.stdout.strip() == "[] True"


def test_the_first_line_comes_before_the_import_of_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "net.keras").write_bytes(b"PK")
    done = python(
        "import sys\n"
        "from lrfc import api\n"
        "from lrfc.errors import ModelError\n"
        "from lrfc.state import Progress\n"
        "def log(line):\n"
        "    print(line, sorted({'tensorflow', 'keras', 'scipy', 'numpy'} & set(sys.modules)))\n"
        "for run in (api.build, api.explore):\n"
        "    try:\n"
        f"        run({str(tmp_path / 'net.keras')!r}, progress=Progress(log=log),"
        f" out={str(tmp_path / 'out')!r})\n"
        "    except ModelError:\n"
        "        pass"
    )
    assert done.stdout.splitlines()[0] == f"reading model {tmp_path / 'net.keras'} []", done.stderr
    assert done.stdout.count("reading model") == 2


def test_unknown_names_are_refused() -> None:
    import lrfc

    with pytest.raises(AttributeError, match="'lrfc' has no attribute 'biuld'"):
        lrfc.biuld  # noqa: B018


def imported(file: Path) -> set[str]:
    """The top-level names that a file imports, by statement or by a call with a literal name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "need",
            "import_module",
            "find_spec",
        ):
            names |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return {name.partition(".")[0] for name in names}


def test_every_import_is_declared_and_every_dependency_is_used() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    extras = {
        canonicalize_name(Requirement(line).name)
        for name in ("micro", "npu", "qat")
        for line in PROJECT["optional-dependencies"][name]
    }
    found = set().union(
        *(
            imported(ROOT / name)
            for name in tracked()
            if name.startswith(("lrfc/", "passes/", "targets/")) and name.endswith(".py")
        )
    )
    installed = packages_distributions()
    distributions = {
        name: {canonicalize_name(dist) for dist in installed.get(name, [])}
        for name in found - sys.stdlib_module_names - {"lrfc"}
    }
    assert [name for name, dists in distributions.items() if not dists & (declared | extras)] == []
    assert declared - set().union(*distributions.values()) == set()


def test_constraints_pin_every_requirement_within_its_bounds() -> None:
    requirements = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    for requirement in map(Requirement, requirements):
        pinned = PINS.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned), (
            f"{requirement} does not allow the tested version {pinned}"
        )


def test_quickstart_is_two_commands_of_one_line() -> None:
    section = re.search(
        r"^## Quickstart$(.*?)(?=^## |\Z)",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    assert section is not None
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section.group(1), re.MULTILINE | re.DOTALL)
    assert [(language, len(text.splitlines())) for language, text in blocks] == [
        ("sh", 1),
        ("sh", 1),
    ]
    assert (
        "lrfc build examples/digits.keras --target tflite --data digits --max-macs 50%"
        in blocks[0][1]
    )
    assert "pytest" in blocks[1][1]


def test_readme_shows_the_support_matrix_of_the_code():
    from lrfc.factorization import METHODS, support_table

    assert f"<!-- lrfc ops -->\n\n{support_table(METHODS)}\n\n<!-- end -->" in (
        ROOT / "README.md"
    ).read_text(encoding="utf-8")
