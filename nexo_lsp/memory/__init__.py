"""What is remembered: answers by content, dismissed findings."""
