"""Networks, weights, losses, and the contract of a model."""
