"""Inside a rank: the worker, its environment, requeueing, system metrics."""
