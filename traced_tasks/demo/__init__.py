"""The story that `python -m traced_tasks` tells. Needs the extra `demo`."""
