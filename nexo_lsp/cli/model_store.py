"""The models folder of this user, with the models that they added, for every command that names one."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rich.console import Console

from nexo_lsp.folders import folders
from nexo_lsp.models.catalog import load_catalog
from nexo_lsp.models.store import ModelStore
from nexo_lsp.settings import effective


def open_store(environ: Mapping[str, str] = os.environ) -> ModelStore:
    """The models folder of this user; what is wrong in their catalogue is told on stderr."""
    where = folders(environ)
    catalog = load_catalog(where.catalog_file)
    for problem in catalog.problems:
        Console(stderr=True).print(problem, highlight=False, markup=False, soft_wrap=True, style="yellow")
    store = ModelStore(where.models, environ, catalog=catalog.entries)
    store.follow(effective(where.settings_file, environ).settings)
    return store
