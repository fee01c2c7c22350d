"""The paper's tables and figures as commands; `README.md` in this folder holds the results."""
