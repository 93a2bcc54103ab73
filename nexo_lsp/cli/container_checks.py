"""What `nexo-lsp doctor` looks at where an engine may run in a container."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nexo_lsp.cli.check import Check
from nexo_lsp.errors import EngineUnavailable
from nexo_lsp.runtime.providers.containers.daemon import INSTALL_HINT, is_installed
from nexo_lsp.runtime.providers.containers.owners import Owner
from nexo_lsp.runtime.providers.containers.server import open_daemon
from nexo_lsp.settings import Settings

_AREA = "container"


def containers(settings: Settings, environ: Mapping[str, str]) -> Iterator[Check]:
    """Docker or Podman, the image, and what was left behind; nothing where no container is wanted."""
    wanted = {settings.engine.kind, settings.review.engine, settings.completion.engine}
    if not (settings.docker.enabled or "docker" in wanted):
        return
    if not is_installed():
        said, _, mend = INSTALL_HINT.partition("; ")
        yield Check(_AREA, "Docker SDK", "problem", said, mend)
        return
    try:
        daemon = open_daemon(settings.docker.socket, environ)
        try:
            yield Check(_AREA, "engine", "ok", f"{daemon.facts().name} at {daemon.url}")
            image = settings.docker.image
            if daemon.has_image(image):
                yield Check(_AREA, "image", "ok", image)
            elif settings.docker.pull:
                yield Check(_AREA, "image", "ok", f"{image} is fetched at its first use")
            else:
                mend = f"docker pull {image} (or podman pull), or set nexo.docker.pull to true"
                yield Check(_AREA, "image", "problem", f"{image} is not here", mend)
            left = [orphan.name for orphan in daemon.orphans(Owner.this())]
            if left:
                text = f"{', '.join(left)}: left behind by a server that died"
                yield Check(_AREA, "containers", "warning", text, "nexo-lsp docker prune")
        finally:
            daemon.close()
    except EngineUnavailable as error:
        yield Check(_AREA, "engine", "problem", str(error), "see the message")
