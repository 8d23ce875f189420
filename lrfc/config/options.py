"""The options of a build by name, as BuildConfig declares them."""

from __future__ import annotations

from lrfc.config import declare
from lrfc.config.build import BuildConfig

#: Declaration by name, as in lrfc.toml; on the command line with - for _.
OPTIONS = {name: declare.option(field) for name, field in declare.fields(BuildConfig).items()}
#: Field of BuildConfig by the name of its option, where the two differ.
FIELDS = declare.renamed(BuildConfig)


def text(name: str) -> str:
    """Return the help of an option."""
    return OPTIONS[name].help
