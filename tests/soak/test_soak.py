"""A short soak, and that what is wrong would be noticed."""

from __future__ import annotations

import pytest

from tests.soak.__main__ import main
from tests.soak.figures import Figures, Sample, slope


def test_a_server_that_is_asked_too_much_stays_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--requests", "150"]) == 0, capsys.readouterr().out
    assert "left before their answer" in capsys.readouterr().out


def sample(requests: int, resident: int = 0, **more: int) -> Sample:
    return Sample(requests, resident, **{"files": 9, "running": 0, "waiting": 0, **more})


def figures(growth: int = 0) -> Figures:
    """Of a server that grows by so many bytes for each request, once it is warm."""
    figures = Figures(slots=2, queue=8)
    figures.statuses.update({200: 9000, 503: 1000})
    figures.samples = [
        sample(number, 10**8 + max(0, number - 2000) * growth + min(number, 2000) * 10**4)
        for number in range(0, 10_000, 100)
    ]
    return figures


def test_what_holds_is_no_problem() -> None:
    assert not list(figures().problems(sample(0), sample(10_000)))
    assert not list(figures(900).problems(sample(0), sample(10_000)))


def test_memory_that_grows_is_noticed() -> None:
    (problem,) = figures(1100).problems(sample(0), sample(10_000))
    assert problem == "memory grows by 1.10 MB for each 1,000 requests"
    assert slope([sample(0, 0), sample(500, 100), sample(1000, 200)]) == pytest.approx(200)


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        ({"running": 1}, "1 requests run"),
        ({"waiting": 3}, "3 wait"),
        ({"files": 99}, "99 files are open, before 9"),
    ],
)
def test_what_is_not_given_back_is_noticed(after: dict[str, int], problem: str) -> None:
    (found,) = figures().problems(sample(0), sample(10_000, **after))
    assert problem in found


def test_other_answers_and_errors_are_noticed() -> None:
    seen = figures()
    seen.statuses[500] += 1
    seen.errors.append("the log has: Traceback")
    seen.samples.append(sample(9999, 10**8 + 2 * 10**7, running=3, waiting=9))
    found = "\n".join(seen.problems(sample(0), sample(10_000)))
    for problem in (
        "1 answers of status 500",
        "the log has: Traceback",
        "more than 2 requests ran",
    ):
        assert problem in found
    assert "more than 8 requests waited" in found
