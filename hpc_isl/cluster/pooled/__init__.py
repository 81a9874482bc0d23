"""What `pool` is made of: the flow of tasks, processes, shares of a node, and where nodes meet."""
