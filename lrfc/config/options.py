"""The options of a build by name, as its configuration declares them."""

from __future__ import annotations

from lrfc.config import declare
from lrfc.config.build import BuildConfig

#: By name on the command line and in lrfc.toml, with _ in the place of -.
OPTIONS = {name: declare.option(field) for name, field in declare.fields(BuildConfig).items()}
#: Option to field of BuildConfig, where the names differ.
FIELDS = declare.renamed(BuildConfig)


def text(name: str) -> str:
    """The help of an option."""
    return OPTIONS[name].help
