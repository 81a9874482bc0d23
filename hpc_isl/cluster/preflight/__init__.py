"""Before anything is run: what this machine and the compute nodes have of what the site asks for."""
