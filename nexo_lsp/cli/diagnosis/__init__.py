"""What `nexo-lsp doctor` finds out, as data, and how it is drawn."""
