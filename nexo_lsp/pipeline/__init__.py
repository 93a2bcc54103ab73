"""What is done: review, code actions, hover, completion."""
