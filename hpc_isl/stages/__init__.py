"""The verbs that compute, one package each; stages speak through files."""
