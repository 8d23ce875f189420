"""Options from flags, the environment and lrfc.toml: their precedence, and their errors."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from lrfc import api
from lrfc.cli import app as cli
from lrfc.cli.build_options import parameters as parameters_of
from lrfc.cli.build_options import with_options
from lrfc.cli.project import flags
from lrfc.config import resolve as settings
from lrfc.config.build import BuildConfig, parse
from lrfc.config.declare import Option
from lrfc.config.keywords import BuildOptions
from lrfc.config.options import FIELDS, OPTIONS
from lrfc.config.resolve import Setting, build_options, resolve
from lrfc.errors import UsageError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str) -> Path:
    path = Path("lrfc.toml")
    path.write_text(text, encoding="utf-8")
    return path


def parameters(command: Any) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in command.params}


def test_every_field_is_an_option_everywhere_with_the_same_help() -> None:
    assert sorted(FIELDS.get(name, name) for name in OPTIONS) == sorted(BuildConfig.model_fields)
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    flags_of_build = parameters(commands["build"])
    template, properties = settings.template(), settings.schema()["properties"]
    for name, option in OPTIONS.items():
        assert option.help.endswith("."), name
        assert flags_of_build[name].help == option.help
        assert f"# {option.help}\n# " in template
        separate = f"# {option.help}\n# Default: " in template
        assert separate != ("By default" in option.help), "the default is stated once"
        assert f"# {name} = " in template
        assert properties[name]["description"] == option.help
    others = set(flags_of_build) - set(OPTIONS)
    assert others == {"model", "config", "locked", "as_json"}
    of_explore = parameters(commands["explore"])
    for name in ("data", "keep", "only", "rank_multiple", "unsafe_load", "resume"):
        assert of_explore[name].help == OPTIONS[name].help


def test_the_command_line_has_the_defaults_of_the_configuration() -> None:
    app = typer.main.get_command(cli.app)
    build = parameters(app.commands["build"])  # type: ignore[attr-defined]
    defaults = parse().model_dump(mode="json")
    for name in OPTIONS:
        default, shown = defaults[FIELDS.get(name, name)], build[name].default
        assert (shown.split(",") if OPTIONS[name].commas else shown) == default, name


def test_a_field_that_is_added_is_an_option_of_the_command() -> None:
    class More(BuildConfig):
        rounds: Annotated[Annotated[int, Field(ge=1)] | None, Option("Rounds.", before="keep")] = (
            None
        )
        labels: Annotated[tuple[str, ...], Option("Labels.", name="label")] = ("a",)
        fast: Annotated[bool, Option("Be fast.")] = False
        slow: Annotated[bool, Option("Be slow.")] = True
        kinds: Annotated[tuple[str, ...], Option("Kinds.", commas=True)] = ("x", "y")

    app = typer.Typer(add_completion=False)
    seen: dict[str, Any] = {}

    @app.command()
    @with_options(More)
    def command(model: str, *, last: bool = False, **options: Any) -> None:
        seen.update(options, model=model, last=last)

    generated = parameters(typer.main.get_command(app))
    names = list(generated)
    assert names[0] == "model"
    assert names[-5:-1] == ["label", "fast", "slow", "kinds"]
    assert names.index("last") == len(names) - 1
    assert names[names.index("rounds") + 1] == "keep"
    assert generated["label"].opts == ["--label"]
    assert (generated["fast"].opts, generated["fast"].secondary_opts) == (["--fast"], [])
    assert generated["slow"].secondary_opts == ["--no-slow"]
    given = ["net", "--rounds", "3", "--label", "b", "--label", "c", "--fast", "--no-slow"]
    assert CliRunner().invoke(app, given).exit_code == 0
    assert (seen["model"], seen["rounds"], seen["label"]) == ("net", 3, ["b", "c"])
    assert (seen["fast"], seen["slow"], seen["kinds"]) == (True, False, "x,y")
    assert CliRunner().invoke(app, ["net", "--rounds", "few"]).exit_code == 2


def test_a_field_without_a_help_is_refused() -> None:
    class Silent(BaseModel):
        seed: int = 0

    with pytest.raises(TypeError, match="declared by one Option, not 0"):
        parameters_of(Silent)


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default() -> None:
    write('max_macs = "50%"\nseed = 1\nepochs = 1\n')
    found = resolve(
        {"seed": 3}, None, {"LRFC_BUILD_SEED": "2", "LRFC_BUILD_EPOCHS": "2", "LRFC_CACHE": "/x"}
    )
    assert found["seed"] == Setting(3, "flag")
    assert found["epochs"] == Setting("2", "environment (LRFC_BUILD_EPOCHS)")
    assert found["max_macs"] == Setting("50%", "lrfc.toml")
    assert found["threads"] == Setting(None, "default")
    options = build_options(found)
    assert options == {"seed": 3, "epochs": "2", "max_macs": "50%"}
    assert parse(**options).epochs == 2
    assert settings.described(found) == [
        "from lrfc.toml: max_macs",
        "from environment (LRFC_BUILD_EPOCHS): epochs",
    ]


def test_only_what_stands_on_the_command_line_is_a_flag() -> None:
    app = typer.Typer()
    seen: dict[str, Any] = {}

    @app.command()
    def build(
        ctx: typer.Context,
        methods: str | None = None,
        keep: list[str] = [],  # noqa: B006
        epochs: int = 3,
        resume: bool = True,
        other: int = 0,
    ) -> None:
        seen.update(flags(ctx))

    assert (
        CliRunner()
        .invoke(
            app,
            ["--methods", "svd,tt", "--keep", "a", "--keep", "b", "--epochs", "3", "--other", "1"],
        )
        .exit_code
        == 0
    )
    assert seen == {"methods": ("svd", "tt"), "keep": ("a", "b"), "epochs": 3}


@pytest.mark.parametrize("text", ['target = "onnx"', 'target = ["onnx"]'])
def test_lists_may_be_single_and_are_split_in_the_environment(text: str) -> None:
    write(text)
    found = resolve({}, None, {"LRFC_BUILD_KEEP": "head*, stem"})
    assert found["target"].value == ("onnx",)
    assert found["keep"].value == ("head*", "stem")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_mac = '50%'", "lrfc.toml: unknown option 'max_mac': did you mean 'max_macs'?"),
        ("max-macs = '50%'", "did you mean 'max_macs'?"),
        ("zzzzzz = 1", "lrfc.toml: unknown option 'zzzzzz'; known are target, device"),
        ("max_macs = '120%'", "lrfc.toml: max_macs: 120% is out of range"),
        ("max_drop = 1", "max_drop: 1 has no unit: write 1pp"),
        ("max_macs = 50", "lrfc.toml: max_macs: 50 has no unit: write 50%"),
        ("time_budget = 10", 'lrfc.toml: time_budget: 10 has no unit: write "10s" or "10m"'),
        ("memory = 4", 'lrfc.toml: memory: 4 has no unit: write "4GiB" or "4MB"'),
        (
            "metric = 'acuracy'",
            "lrfc.toml: metric: unknown metric 'acuracy': did you mean 'accuracy'?",
        ),
        ("target = ['coreml']", "lrfc.toml: target: "),
        ("methods = 'magic'", "unknown method magic"),
        ("epochs = -1", "lrfc.toml: epochs: "),
        ("epochs = ", "lrfc.toml is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, message: str) -> None:
    write(text)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        resolve({}, None, {})
    assert "\n" not in str(caught.value)


def test_a_wrong_environment_and_a_missing_file_are_refused() -> None:
    with pytest.raises(UsageError, match=r"LRFC_BUILD_MAXMACS.* did you mean 'max_macs'"):
        resolve({}, None, {"LRFC_BUILD_MAXMACS": "50%"})
    for variable, meant in (
        ("LRFC_SEED", "LRFC_BUILD_SEED"),
        ("LRFC_BUIDL_MAX_MACS", "LRFC_BUILD_MAX_MACS"),
    ):
        with pytest.raises(
            UsageError, match=f"unknown variable '{variable}': did you mean '{meant}'"
        ):
            resolve({}, None, {variable: "1"})
    resolve(
        {},
        None,
        {"LRFC_DATA": "/x", "LRFC_CACHE": "/y", "LRFC_OF_SOMEBODY_ELSE": "1", "MAX_MACS": "1"},
    )
    with pytest.raises(UsageError, match="LRFC_BUILD_EPOCHS: "):
        resolve({}, None, {"LRFC_BUILD_EPOCHS": "many"})
    with pytest.raises(UsageError, match=r"gone.toml: no such file.*lrfc init"):
        resolve({}, Path("gone.toml"), {})


def test_the_written_file_sets_nothing_until_a_line_is_uncommented() -> None:
    path = settings.init(Path("lrfc.toml"))
    assert settings.read(path) == {}
    with pytest.raises(UsageError, match="exists already; --force"):
        settings.init(path)
    text = re.sub(r"^# (\w+ = )", r"\1", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert list(tomllib.loads(text)) == list(OPTIONS)
    write(text)
    found = settings.read(path)
    assert set(found) == set(OPTIONS)
    parse(**{FIELDS.get(name, name): each.value for name, each in found.items()})


def test_the_published_schema_is_that_of_the_options() -> None:
    assert settings.SCHEMA.read_text(encoding="utf-8") == settings.schema_text(), (
        "run: python -m lrfc.config.resolve"
    )
    schema = json.loads(settings.schema_text())
    assert list(schema["properties"]) == list(OPTIONS)
    assert schema["additionalProperties"] is False
    assert "null" not in settings.schema_text(), "TOML has no null"
    assert schema["properties"]["max_macs"]["anyOf"] == [{"type": "string"}, {"type": "number"}]
    assert schema["properties"]["objective"]["enum"] == ["latency", "cycles", "macs", "size", "ram"]
    assert schema["properties"]["seed"] == {
        "default": 0,
        "maximum": 2**32 - 1,
        "minimum": 0,
        "type": "integer",
        "description": OPTIONS["seed"].help,
    }
    assert schema["properties"]["epochs"] == {
        "maximum": 100_000,
        "minimum": 0,
        "type": "integer",
        "description": OPTIONS["epochs"].help,
    }


def test_the_function_has_every_option_as_a_keyword_with_its_type() -> None:
    regenerate = "run: python -m lrfc.config.resolve"
    assert settings.KEYWORDS.read_text(encoding="utf-8") == settings.keywords_text(), regenerate
    keywords = get_type_hints(BuildOptions)
    named = list(inspect.signature(api.build).parameters)
    assert sorted([*keywords, *settings.NAMED]) == sorted(OPTIONS)
    assert set(settings.NAMED) < set(named)
    assert not set(keywords) & set(named)
    assert keywords["max_macs"] == str | float | None
    assert keywords["out"] == str | Path | None
    assert keywords["keep"] == list[str] | tuple[str, ...]
    assert keywords["prune"] == Literal["auto", "off", "on", "only"]
    assert keywords["seed"] is int


def test_lrfc_config_says_where_a_value_comes_from(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write('max_macs = "50%"')
    monkeypatch.setenv("LRFC_BUILD_SEED", "4")

    def lrfc(*args: str) -> str:
        assert CliRunner().invoke(cli.app, ["config", *args]).exit_code == 0
        return capfd.readouterr().out

    given = lrfc("--json")
    assert json.loads(given) == {
        "max_macs": {"value": "50%", "source": "lrfc.toml"},
        "seed": {"value": "4", "source": "environment (LRFC_BUILD_SEED)"},
    }
    assert set(json.loads(lrfc("--resolved", "--json"))) == set(OPTIONS)
    assert re.search(r"max_macs +50% +lrfc.toml", lrfc("--resolved"))
    assert json.loads(lrfc("--schema"))["title"] == "lrfc.toml"
