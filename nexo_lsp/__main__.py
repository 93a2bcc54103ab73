"""`python -m nexo_lsp` is `nexo-lsp`."""

from __future__ import annotations

from nexo_lsp.cli import main

if __name__ == "__main__":
    main()
