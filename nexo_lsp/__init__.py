"""nexo-lsp: a language server that gives any LSP editor private, local-first AI help."""

__version__ = "0.1.0"
