"""Rows of several loops compared with a baseline: differences, a paired test, the gap closed."""
import statistics
from dataclasses import dataclass

ALPHA = 0.05  # below this corrected p, a row is called better


@dataclass(frozen=True)
class Comparison:
    """A row's scores less the baseline's, over loops of different seeds.

    differences: one per loop.
    t, p:        of the one-sided paired t test that the mean is above 0 (n - 1 degrees of freedom);
                 None where there is no test: one loop, or equal differences.
    p_holm:      p corrected for the number of rows that are compared.
    """

    differences: list[float]
    t: float | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def better(self) -> bool:
        return self.p_holm is not None and self.p_holm < ALPHA


def compare(rows: dict[str, list[float]], baseline: list[float]) -> dict[str, Comparison]:
    """Each row's scores, one per loop, against the baseline's in the same loops."""
    differences = {name: [a - b for a, b in zip(scores, baseline, strict=True)]
                   for name, scores in rows.items()}
    tests = {name: t_test(values) for name, values in differences.items()}
    tested = [name for name, test in tests.items() if test]
    corrected = dict(zip(tested, holm([tests[name][1] for name in tested])))
    return {name: Comparison(values, *(tests[name] or (None, None)), corrected.get(name))
            for name, values in differences.items()}


def t_test(differences: list[float]) -> tuple[float, float] | None:
    """t and p of the one-sided paired t test; None for a single or for equal differences."""
    from scipy.stats import ttest_1samp
    if len(differences) < 2 or max(differences) - min(differences) < 1e-12:
        return None
    result = ttest_1samp(differences, 0.0, alternative="greater")
    return float(result.statistic), float(result.pvalue)


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): an error in any is as rare as in one."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def gap_closed(row: list[float], baseline: list[float], oracle: list[float]) -> float | None:
    """(row - baseline) / (oracle - baseline) of the means over loops.

    The fraction of what labels of the target would gain; None if they gain nothing.
    """
    low, high = statistics.mean(baseline), statistics.mean(oracle)
    return (statistics.mean(row) - low) / (high - low) if high > low else None
