"""What the model is shown: gathered from the open documents, cut to a budget, put into words."""
