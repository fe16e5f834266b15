"""The verdict: a table with a line a contestant, and sentences that say no more than its numbers.

Two whose repeats overlap are tied. Who ran once has no repeats to overlap, and the sentence says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from coproc.modes import base as modes
from coproc.report import words
from coproc.report.bars import strip
from coproc.report.contest import LINK, Contest, Entry, tied
from coproc.report.drawing import CPU_BOUND, EMULATED, SIGNS, signs
from coproc.report.marks import Markup, el, together
from coproc.report.tables import Table
from coproc.training.config import PRESETS

SPEED = "examples_per_s"
# Of an error in the table; the whole of it stands further down.
ERROR_LETTERS = 110
_PROMISES = (("exactly once", "exactly_once"), ("whole versions", "whole_versions"), ("elastic", "elastic"))


def table(contests: Sequence[Contest], *, ordered: bool) -> Table:
    """A line an entry, the fastest of a contest first if `ordered`; contests one below the other."""
    lines = [(contest, entry) for contest in contests for entry in _lines(contest, ordered)]
    known = [entry for _, entry in lines if entry.trials]
    most = max((value for entry in known for value in entry.values("steps_per_s")), default=0.0)
    per_worker, per_driver = (
        words.size_unit(entry.median(f"{role}_bytes_per_step") for entry in known) for role in ("worker", "driver")
    )
    links = [entry.median(LINK) for entry in known]
    per_link = words.size_unit(links)
    memory = words.size_unit(memory_of(entry) for entry in known)
    references = {contest.reference.name for contest in contests if contest.reference is not None}
    targets = {target for contest in contests if (target := target_of(contest))}
    rivals = any(len(contest.finished) > 1 for contest in contests)
    ceiling = any(contest.alone is not None for contest in contests)
    columns = ["contestant", "", "steps/s"]
    columns += [f"speed against {' or '.join(sorted(references))}" if references else "speed"] if rivals else []
    columns += ["of the ceiling"] if ceiling else []
    columns += [f"seconds to {' or '.join(sorted(name for _, name in targets))} (and with start-up)"] if targets else []
    columns += [f"{per_link[1]} a step, busiest link"] if any(links) else []
    columns += [f"{per_worker[1]} a step, worker", f"{per_driver[1]} a step, driver", "Spark jobs a step"]
    columns += [f"memory, {memory[1]}", *(name for name, _ in _PROMISES)]
    # Where nobody has a rival, a heading above every line would be half of the table.
    apart = len(contests) > 1 and any(len(contest.entries) > 1 for contest in contests)
    rows: list[tuple[object, ...]] = []
    told: Contest | None = None
    for contest, entry in lines:
        if apart and contest is not told:
            rows.append((contest.work,))
            told = contest
        name = _name(entry, contest.work if len(contests) > 1 and not apart else "")
        if not entry.trials:
            last = entry.lost[-1].row
            why = words.shortened(" ".join(str(last.get("error") or "no reason was told").split()), ERROR_LETTERS)
            rows.append((name, f"{last.get('status')}: {why}"))
            continue
        low, high = entry.spread("steps_per_s")
        middle = entry.median("steps_per_s")
        cells: list[object] = [name, strip(middle, low, high, most, entry.look, entry.kinds)]
        cells += [_two(words.number(middle), words.span(low, high) if low is not None else "")]
        reference = contest.reference
        cells += [words.times(entry.ratio(SPEED, reference)) if reference else words.NOTHING] if rivals else []
        cells += ["alone" if entry.alone else words.percent(of_ceiling(entry, contest.alone))] if ceiling else []
        target = target_of(contest)
        cells += [_to_target(entry, target[0]) if target else words.NOTHING] if targets else []
        cells += [_in(entry.median(LINK), per_link[0])] if any(links) else []
        cells += [_in(entry.median("worker_bytes_per_step"), per_worker[0])]
        cells += [_in(entry.median("driver_bytes_per_step"), per_driver[0])]
        cells += [words.number(entry.median("jobs_per_step")), _in(memory_of(entry), memory[0]), *_promises(entry)]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows))


def sentences(contests: Sequence[Contest]) -> list[str]:
    """What the numbers of the contests say; of several, what is said of each begins with its work."""
    found = []
    for contest in contests:
        told = [*_speed(contest), *_target(contest)]
        if len(contests) > 1:
            found += [f"{contest.work}: {' '.join(told)}"] if told else []
        else:
            found += [*told, *_ceiling(contest)]
    found += noise([entry for contest in contests for entry in contest.entries])
    return found


def target_of(contest: Contest) -> tuple[str, str] | None:
    """(the metric, its words) of what was to be reached, if all had the same to reach."""
    for field, metric, unit in (
        ("target_accuracy", "seconds_to_accuracy", "accuracy"),
        ("target_loss", "seconds_to_loss", "loss"),
    ):
        targets = {getattr(entry.point, field) for entry in contest.choices}
        if len(targets) == 1 and (value := targets.pop()) is not None:
            return (
                metric,
                f"{words.percent(value)} accuracy" if unit == "accuracy" else f"a loss of {words.number(value)}",
            )
    return None


def of_ceiling(entry: Entry, alone: Entry | None) -> float | None:
    """Examples/s a worker, through those of a process that trains alone: 1 is exchanging for nothing."""
    if alone is None or entry.alone:
        return None
    ratio = entry.ratio(SPEED, alone)
    return ratio / entry.point.workers if ratio is not None else None


def memory_of(entry: Entry) -> float | None:
    """Peak bytes of all roles together."""
    told = [entry.median(f"memory_{role}_bytes") for role in ("worker", "driver", "server")]
    return sum(value for value in told if value is not None) if any(value is not None for value in told) else None


def ranked(entries: Sequence[Entry], metric: str, *, least: bool) -> tuple[list[Entry], list[Entry]]:
    """(the best with all who are tied with it, the others) in their order; who has no number is in neither."""
    sign = 1 if least else -1
    known = [(sign * value, n, entry) for n, entry in enumerate(entries) if (value := entry.median(metric)) is not None]
    order = [entry for _, _, entry in sorted(known, key=lambda each: each[:2])]
    first = [entry for entry in order if entry is order[0] or tied(entry, order[0], metric)]
    return first, [entry for entry in order if entry not in first]


def _speed(contest: Contest) -> list[str]:
    """Who is fastest; and, if that one takes other steps, who is of those that take the same."""
    first, others = ranked(contest.choices, SPEED, least=False)
    if not first or (len(first) == 1 and not others):
        return []
    told = [f"{_ranking(first, others)}."]
    same = [entry for entry in contest.choices if takes_same_steps(entry)]
    if same and not all(entry in same for entry in first):
        other = words.joined([entry.name for entry in first if entry not in same])
        ranking = _ranking(*ranked(same, SPEED, least=False))
        told.append(
            f"{other} need not learn as much from a step as one process would. Of those that take its very steps: "
            f"{ranking[0].lower()}{ranking[1:]}."
        )
    return told


def _ranking(first: Sequence[Entry], others: Sequence[Entry]) -> str:
    """Who is first, or tied, and by how much."""
    told = [f"{entry.name} at {words.number(entry.median('steps_per_s'))} steps/s{_range(entry)}" for entry in first]
    text = (
        f"Tied for speed, for their repeats overlap: {words.joined(told)}" if len(told) > 1 else f"Fastest is {told[0]}"
    )
    further = [others[0], others[-1]] if len(others) > 1 else others
    against = [f"{words.times(first[0].ratio(SPEED, entry))} the speed of {entry.name}" for entry in further]
    return text + (f": {words.joined(against)}" if against else "")


def takes_same_steps(entry: Entry) -> bool:
    """Whether its model is what one process would have after as many steps: synchronous, each gradient descended."""
    point = entry.point
    settings = {"consistency": point.consistency, "n_send": point.n_send, **PRESETS.get(point.preset or "", {})}
    if settings["consistency"] != "bsp" or settings["n_send"] != 1:
        return False
    known = point.contestant in modes.names()
    return bool(modes.load(point.contestant).CAPABILITIES.same_answer) if known else True


def _target(contest: Contest) -> list[str]:
    target = target_of(contest)
    if target is None:
        return []
    metric, called = target
    first, others = ranked(contest.choices, metric, least=True)
    never = [entry.name for entry in contest.choices if entry.median(metric) is None]
    if not first:
        return [f"Nobody reached {called}."]
    told = [_when(entry, metric) for entry in first]
    text = f"First at {called} are, tied, {words.joined(told)}" if len(first) > 1 else f"First at {called} is {told[0]}"
    text += f"; then {_when(others[0], metric)}." if others else "."
    if never:
        text += f" {words.joined(never)} did not reach it."
    return [text]


def _ceiling(contest: Contest) -> list[str]:
    alone, first = contest.alone, ranked(contest.choices, SPEED, least=False)[0]
    share = of_ceiling(first[0], alone) if first else None
    if share is None or alone is None:
        return []
    return [
        f"Were exchanging free, each worker would do what {alone.name} does alone; with {first[0].name} it does "
        f"{words.percent(share)} of that."
    ]


def noise(entries: Sequence[Entry]) -> list[str]:
    """What one has to know of the numbers of these: their spread, what limited them, what is missing."""
    found = []
    chosen = [entry for entry in entries if entry.trials and not entry.alone]
    if chosen and all(len(entry.trials) == 1 for entry in chosen):
        found.append("Each ran once: how far another run would lie from these numbers is not known.")
    wide = []
    for entry in chosen:
        low, high = entry.spread(SPEED)
        middle = entry.median(SPEED)
        if low is not None and high is not None and middle:
            wide.append(((high - low) / middle, entry.name))
    if wide:
        share, name = max(wide, key=lambda each: each[0])
        found.append(f"Speeds of one contestant's repeats lie up to {words.percent(share)} apart ({name}).")
    finished = list({entry.point: entry for entry in entries if entry.trials}.values())
    for kind, what in (
        (CPU_BOUND, "the processors of this machine were the limit"),
        (EMULATED, "computing was a wait"),
    ):
        marked = [entry.name for entry in finished if kind in entry.kinds]
        if marked:
            who = "All" if len(marked) == len(finished) else words.joined(list(dict.fromkeys(marked)))
            found.append(f"{who} ({SIGNS[kind]}): {what}.")
    lost = [
        f"{entry.name} ({entry.lost[-1].row.get('status')})" for entry in entries if not entry.trials and entry.lost
    ]
    if lost:
        found.append(f"{words.joined(list(dict.fromkeys(lost)))}: no numbers, see below.")
    return found


def _when(entry: Entry, metric: str) -> str:
    text = f"{entry.name} after {words.seconds(entry.median(metric))} of training"
    whole = entry.median(f"{metric}_with_startup")
    return text + (f" ({words.seconds(whole)} with start-up)" if whole is not None else "")


def _range(entry: Entry) -> str:
    low, high = entry.spread("steps_per_s")
    return f" ({words.span(low, high)})" if low is not None else ""


def _lines(contest: Contest, ordered: bool) -> list[Entry]:
    """Those with numbers, then those without."""
    finished = contest.finished
    if ordered:
        finished.sort(key=lambda entry: -(entry.median(SPEED) or 0.0))
    return [*finished, *(entry for entry in contest.entries if not entry.trials)]


def _name(entry: Entry, work: str) -> Markup:
    runs = len(entry.trials) + len(entry.lost)
    some = f"{len(entry.trials)} of {runs} runs" if entry.trials and entry.lost else ""
    name = entry.name + signs(entry.kinds)
    return _two(together(el("span", class_=f"dot {entry.look}"), name), ", ".join(filter(None, [work, some])))


def _to_target(entry: Entry, metric: str) -> object:
    reached = entry.values(metric)
    if not reached:
        return "not reached"
    whole = entry.median(f"{metric}_with_startup")
    below = f"({words.number(whole)})" if whole is not None else ""
    if len(reached) < len(entry.trials):
        below = f"{len(reached)} of {len(entry.trials)} runs"
    return _two(words.number(entry.median(metric)), below)


def _promises(entry: Entry) -> list[object]:
    told = promises(entry)
    if told is None:
        return [words.NOTHING] * len(_PROMISES)
    return ["yes" if told[field] else el("span", "no", class_="no") for _, field in _PROMISES]


def promises(entry: Entry) -> dict[str, bool] | None:
    """What the architecture promises, of a mode of this project; of others nobody here can say."""
    if entry.point.contestant not in modes.names():
        return None
    capabilities = modes.load(entry.point.contestant).CAPABILITIES
    return {field: bool(getattr(capabilities, field)) for _, field in _PROMISES}


def _in(value: float | None, factor: float) -> str:
    return words.number(value / factor if value is not None else None)


def _two(above: object, below: str) -> Markup:
    return together(above, el("small", below) if below else None)
