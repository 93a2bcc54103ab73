"""Our engine side by side with what users could take instead, on the work that an editor does."""
