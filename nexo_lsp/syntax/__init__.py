"""tree-sitter behind one seam: languages, incremental trees, and outlines as plain values."""
