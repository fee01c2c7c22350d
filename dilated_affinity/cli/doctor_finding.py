"""A line of `doctor`."""

import dataclasses

OK, MISSING, FAILED = "ok", "missing", "FAILED"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        status: `OK`, `MISSING` for what only some uses need, or `FAILED`.
        text: What was checked and found.
        remedy: What to do; empty where there is nothing to do.
    """

    status: str
    text: str
    remedy: str = ""

    def line(self) -> str:
        """The line to print.

        Example:

        >>> Finding(MISSING, "extra jax: jax", "pip install -e '.[jax]'").line()
        "missing  extra jax: jax. To do: pip install -e '.[jax]'"
        """
        remedy = f". To do: {self.remedy}" if self.remedy else ""
        return f"{self.status:<7}  {self.text}{remedy}"
