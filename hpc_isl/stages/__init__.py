"""The corridor: one file per verb that computes, its parts in a folder; stages speak through files."""
