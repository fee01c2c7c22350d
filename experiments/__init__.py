"""The paper's tables and figures, one module each; `README.md` beside them holds the results."""
