"""How long to wait after the n-th failure in a row: full jitter under a growing bound. The arithmetic is tenacity's.

For loops that never give up; calls that do are tenacity's to repeat (see client).
"""

from tenacity import RetryCallState, wait_random_exponential


class Backoff:
    """`multiplier` and `longest` in seconds."""

    def __init__(self, *, multiplier: float, longest: float) -> None:
        self._wait = wait_random_exponential(multiplier=multiplier, max=longest)
        # tenacity's waits read the number of the attempt from here, and nothing else.
        self._failures = RetryCallState(None, None, (), {})  # type: ignore[arg-type]

    def draw(self) -> float:
        """Seconds to wait after one more failure."""
        seconds = self._wait(self._failures)
        self._failures.attempt_number += 1
        return seconds

    def reset(self) -> None:
        """Something went well: the next failure is a first one."""
        self._failures.attempt_number = 1
