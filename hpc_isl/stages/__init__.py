"""The corridor: one file per verb that computes; stages speak to each other through files."""
