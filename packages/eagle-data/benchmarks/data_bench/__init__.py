"""The benchmark harness of eagle-data; `run.py` beside it is the command."""
