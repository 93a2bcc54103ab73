"""Reading the machine: what can be asked (`readings.py`), and what follows from the answers."""
