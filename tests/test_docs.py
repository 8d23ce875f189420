"""The commands of README.md and docs/ run, and their options, links and figures exist."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from lrfc import errors
from lrfc.cli import app as cli
from lrfc.config.options import OPTIONS
from lrfc.data import readers as sources
from lrfc.factorization import METHODS
from lrfc.results import manifest
from lrfc.results.compare import parse
from lrfc.targets.devices import device

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Pages whose blocks run in every test run; the others, whose builds take a minute each, run with
#: -m slow.
FAST = {"device-over-ssh.md", "add-a-device.md"}
#: What a developer's clone has besides the examples: pages that change the code run in one.
SOURCES = ("lrfc", "passes", "targets", "tests", "pyproject.toml")
#: Options of other programs, which the text names with their program.
OTHERS = {
    "--accelerator-config",
    "--arena-cache-size",
    "--strict",
    "--hypothesis-profile",
    "--logdir",
}
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?:"
    r" title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
NOTHING = "set -euo pipefail"
_NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")


@dataclass(frozen=True)
class Block:
    """A block of code: it is run, or written to the file ``title``.

    ``told``: a comment ``<!-- not run: why -->`` before it says that it cannot be run.
    """

    language: str
    title: str | None
    text: str
    told: bool


def blocks(text: str) -> list[Block]:
    found = []
    for match in _FENCE.finditer(text):
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines()]
        found.append(
            Block(
                match["language"],
                match["title"],
                "\n".join(lines) + "\n",
                _NOT_RUN.search(text, 0, match.start()) is not None,
            )
        )
    return found


def script(page: Path) -> str:
    """A page's blocks as one shell script."""
    parts = [NOTHING]
    for number, block in enumerate(blocks(page.read_text(encoding="utf-8"))):
        if block.told:
            continue
        if block.title is not None:
            parts.append(f"cat > {block.title} <<'END-{number}'\n{block.text}END-{number}")
        elif block.language == "sh":
            parts.append(block.text)
        elif block.language == "diff":
            parts.append(f"git apply - <<'END-{number}'\n{block.text}END-{number}")
        elif block.language == "python":
            parts.append(f"python - <<'END-{number}'\n{block.text}END-{number}")
    return "\n".join(parts)


RUN = [
    pytest.param(
        page, id=str(page.relative_to(ROOT)), marks=[] if page.name in FAST else [pytest.mark.slow]
    )
    for page in PAGES
    if script(page) != NOTHING
]


@pytest.mark.parametrize("page", RUN)
def test_what_a_page_tells_to_type_runs(
    page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for option, module, extra in (
        ("--qat", "tensorflow_model_optimization", "qat"),
        ("ethos-u", "ethosu", "npu"),
    ):
        if option in script(page) and importlib.util.find_spec(module) is None:
            pytest.skip(f"the extra {extra} is not installed")
    programs, folder = tmp_path / "bin", tmp_path / "clone"
    programs.mkdir()
    # Whether so small a network becomes faster depends on the processor and on what else it does; a
    # build that finds no gain (8) keeps the original, and the page goes on with its folder.
    lrfc = f'"{sys.executable}" -m lrfc "$@"; code=$?; [ $code -eq 8 ] || exit $code'
    python = f'exec "{sys.executable}"'
    for name, command in (
        ("lrfc", lrfc),
        ("python", f'{python} "$@"'),
        ("pytest", f'{python} -m pytest "$@"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{command}\n")
        (programs / name).chmod(0o755)
    shutil.copytree(ROOT / "examples", folder / "examples")
    if page.name.startswith("add-a-"):
        for source in SOURCES:
            copy(ROOT / source, folder / source)
    if page.name == "README.md":
        own_files(folder)
    env = {name: value for name, value in os.environ.items() if not name.startswith("LRFC_BUILD_")}
    env |= {
        "PATH": f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "PYTHONPATH": str(folder if (folder / "lrfc").exists() else ROOT),
        # What one page has found out about the example, the next one reads.
        "LRFC_CACHE": str(tmp_path_factory.getbasetemp() / "cache"),
        # Fewer candidates, plans and epochs, where a page does not say what it wants.
        "LRFC_BUILD_METHODS": "spatial_svd,svd",
        "LRFC_BUILD_EPOCHS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", script(page)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


def copy(source: Path, to: Path) -> None:
    """Copy a file, or a folder with its links as links."""
    if source.is_file():
        shutil.copyfile(source, to)
    else:
        shutil.copytree(source, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))


def own_files(folder: Path) -> None:
    """The files that stand for the reader's own."""
    shutil.copy(ROOT / "examples" / "digits.keras", folder / "model.keras")
    parts = sources.digits().parts
    for name, part in (("train.npz", "train"), ("test.npz", "test")):
        data = parts[part]
        np.savez(folder / name, x=data.x, y=data.y)


def test_a_block_is_run_written_or_told_why_not() -> None:
    text = (
        '<!-- not run: a board -->\n```sh\na\n```\n\n1. x\n\n    ```toml title="f.toml"\n    b ='
        " 1\n    ```\n\n```python\nif c:\n    d\n```\n"
    )
    assert blocks(text) == [
        Block("sh", None, "a\n", told=True),
        Block("toml", "f.toml", "b = 1\n", told=False),
        Block("python", None, "if c:\n    d\n", told=False),
    ]


def tree() -> dict[str, Any]:
    """Every command of the command line, and its options."""
    return generated("generate").commands()  # type: ignore[no-any-return]


def generated(name: str) -> Any:
    """The module docs/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags(command: Any) -> set[str]:
    return {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("-")
    } | {"--help"}


def commands_in(text: str) -> list[list[str]]:
    """The words behind 'lrfc' of every command: in `code`, in blocks, and in indented lines."""
    lines = [
        line
        for block in blocks(text)
        if block.language == "sh"
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"^ {4,}(lrfc .+)$", text, re.MULTILINE) + re.findall(
        r"`(lrfc [^`]+)`", text
    )
    return [
        shlex.split(command)[1:]
        for line in lines
        for command in re.findall(r"(?:^|/|&& )(lrfc .+?)(?= && | \|\| |$)", line)
    ]


def test_every_command_and_option_that_is_named_exists() -> None:
    known = {name.removeprefix("lrfc "): command for name, command in tree().items()}
    general = {"--help", "--version", "--install-completion"}
    every = set().union(*map(flags, known.values())) | general | OTHERS
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        for words in commands_in(text):
            name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in known), None)
            if name is None:
                assert words[0] in general | {
                    "COMMAND",
                    "devices",
                }, f"{page.name}: lrfc {' '.join(words)}"
                assert len(words) == 1 or words[0] == "COMMAND", (
                    f"{page.name}: lrfc {' '.join(words)}"
                )
            else:
                unknown = {
                    word.partition("=")[0] for word in words if word.startswith("--")
                } - flags(known[name])
                assert not unknown, f"{page.name}: lrfc {' '.join(words)}"
        named = set(
            re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
        )
        assert named <= every, f"{page.name}: {named - every}"
        for limit in re.findall(r"--max-regress (\w+=\S+?)[`\s]", text):
            parse(limit)


def test_commands_are_found_wherever_they_stand() -> None:
    text = (
        "lrfc is `lrfc ops --json`.\n\n    lrfc inspect a.keras\n\n```sh\nx && .venv/bin/lrfc build"
        " b --out 'c d' && lrfc doctor\n```\n"
    )
    assert commands_in(text) == [
        ["build", "b", "--out", "c d"],
        ["doctor"],
        ["inspect", "a.keras"],
        ["ops", "--json"],
    ]


def test_links_of_pages_resolve() -> None:
    made = {ROOT / "docs" / path for path in generated("generate").pages()} | {
        ROOT / "docs" / path for path in generated("generate").SHOWN.values()
    }
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if ":" not in link:
                place = Path(os.path.normpath(page.parent / link))
                assert place.exists() or place in made, f"{page.name}: {link}"


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:benchmarks|examples|lrfc|passes|targets|tests)/[\w./-]+)`",
            page.read_text(encoding="utf-8"),
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
        for name in re.findall(r"[`(](\w+\.csv)\b", page.read_text(encoding="utf-8")):
            assert (ROOT / "benchmarks" / name).exists() or name in (
                "layers.csv",
                "candidates.csv",
            ), f"{page.name}: {name}"


def test_the_reference_has_all_that_the_code_has() -> None:
    made = generated("generate").pages()
    for name, command in tree().items():
        assert f"\n## {name}\n" in made["reference/cli.md"]
        section = made["reference/cli.md"].split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert {flag for flag in flags(command) if f"`{flag}" not in section} <= {"--help"}, name
    assert all(f"`{name}`" in made["reference/lrfc-toml.md"] for name in OPTIONS)
    assert all(
        f"| `{field}` |" in made["reference/manifest.md"]
        for field in (*manifest.Manifest.model_fields, *manifest.Layer.model_fields)
    )
    assert all(
        f"| `{key}` |" in made["reference/device-profile.md"] for key in device.Device.model_fields
    )
    assert all(
        f"### {path.stem}\n" in made["reference/device-profile.md"]
        for path in device.SHIPPED.glob("*.toml")
    )
    assert all(f" {method} |" in made["reference/support-matrix.md"] for method in METHODS)
    codes = {
        int(code)
        for code in re.findall(r"^\| (\d+) \|", made["reference/exit-codes.md"], re.MULTILINE)
    }
    assert codes == {
        0,
        1,
        130,
        143,
        *(each.exit_code for each in vars(errors).values() if hasattr(each, "exit_code")),
    }
    named = re.findall(
        r"^\| (\d+) \| ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(map(int, named)) == codes - {1}
    assert "### lrfc.build\n" in made["reference/python.md"]
    assert "|  |  |" not in made["reference/cli.md"], "an option without a word about it"


def test_figures_are_drawn_from_the_benchmarks() -> None:
    draw = generated("draw")
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    wanted = re.findall(r"^<!-- figure: (\w+) -->$", text, re.MULTILINE)
    assert set(wanted) == set(draw.FIGURES)
    drawn = draw.placed(text)
    assert "<!-- figure" not in drawn
    assert drawn.count('<figure><svg viewBox="0 0 480 300" role="img"') == len(wanted)
    assert "Nothing to draw" not in drawn
    for name in re.findall(
        r"\((\w+\.csv)[;)]", " ".join(re.findall(r"<figcaption>(.*?)</figcaption>", drawn))
    ):
        assert (draw.BENCHMARKS / name).exists()
    with pytest.raises(KeyError):
        draw.placed("<!-- figure: none -->")


def test_the_manual_is_in_the_menu() -> None:
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def paths(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for each in entry.values() if isinstance(entry, dict) else entry:
                yield from paths(each)

    written = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert set(paths(config["nav"])) == written | set(generated("generate").pages())


def test_the_command_line_is_that_of_typer() -> None:
    command: Any = typer.main.get_command(cli.app)
    assert {name.split()[1] for name in tree()} == set(command.commands)


def test_the_notice_names_the_licence_of_every_package_that_is_installed_beside() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        re.split(r"[^\w-]", line, maxsplit=1)[0]
        for line in (*project["dependencies"], *extras["npu"], *extras["qat"])
    ]
    named = dict(
        re.findall(
            r"^ {4}(\S+) +(\S+)", (ROOT / "NOTICE").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    assert set(named) == set(wanted)
    assert "NOTICE" in project["license-files"]
    kinds = {"Apache-2.0": r"apache", "MIT": r"\bmit\b", "BSD-3-Clause": r"\bbsd\b"}
    for name, licence in named.items():
        try:
            found = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed here
            continue
        told = " ".join(
            [
                found.get("License-Expression", ""),
                found.get("License", "")[:40],
                *found.get_all("Classifier", []),
            ]
        )
        assert re.search(kinds[licence], told, re.IGNORECASE), f"{name}: {told}"
