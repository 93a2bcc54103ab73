"""May this be sent, may this be written."""
