"""The page: well-formed, from nowhere else, whatever the rows are; and what its sentences say."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from coproc.report import verdict, write
from coproc.report.contest import contests_of, trials_of
from coproc.report.drawing import CPU_BOUND, EMULATED, SIGNS
from coproc.report.moments import losses
from coproc.trials.metrics import metrics_of

from . import made_rows

SVG = "{http://www.w3.org/2000/svg}"
ATTACK = "<script>alert('x')</script>\"'&]]>--><svg onload=y>\x00\x1b\ud800"


def page_of(folder, rows, **more):
    return write(folder, rows, title=more.pop("title", "A comparison"), **more).read_text(encoding="utf-8")


def tree_of(page):
    """The page as XML, which it is too."""
    assert page.startswith("<!doctype html>\n")
    return ET.fromstring(page.removeprefix("<!doctype html>\n"))


def text_of(element):
    return re.sub(r"\s+", " ", "".join(element.itertext()).replace("\N{NO-BREAK SPACE}", " "))


def section(tree, anchor):
    return next((each for each in tree.iter("section") if each.get("id") == anchor), None)


def lines_of(tree):
    """The verdict table: text of the cells by the name of the line."""
    found = {}
    for line in section(tree, "verdict").iter("tr"):
        cells = [text_of(cell).strip() for cell in line]
        found[cells[0]] = cells[1:]
    return found


def contests(rows):
    return contests_of(trials_of(rows, metrics_of))


def steady(name, steps_per_s, repeat=0, **fields):
    """A run of just so many steps a second."""
    row = made_rows.row(name, repeat, steps=20, workers=2, epochs=2, **fields)
    rate = metrics_of(row)["steps_per_s"]
    slower = rate / steps_per_s
    row["groups"] = [[e, g, began * slower, ended * slower] for e, g, began, ended in row["groups"]]
    row["samples"] = [
        [worker, step, *(value * slower for value in spent), *rest]
        for worker, step, *both in row["samples"]
        for spent, rest in [(both[:4], both[4:])]
    ]
    assert metrics_of(row)["steps_per_s"] == pytest.approx(steps_per_s)
    return row


@pytest.fixture(scope="module")
def rows():
    return made_rows.comparison()


@pytest.fixture(scope="module")
def page(rows, tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("page"), rows)


@pytest.fixture(scope="module")
def tree(page):
    return tree_of(page)


def test_the_page_is_well_formed_and_every_drawing_of_it_too(page, tree):
    drawings = list(tree.iter(f"{SVG}svg"))
    assert len(drawings) > 10
    for drawing in drawings:
        again = ET.fromstring(ET.tostring(drawing))
        numbers = re.findall(r"-?\d+\.?\d*", " ".join(str(each.get("d", "")) for each in again.iter()))
        assert "nan" not in ET.tostring(again, "unicode").lower()
        assert all(-5000 < float(number) < 5000 for number in numbers)
    parser = HTMLParser()
    parser.feed(page)
    parser.close()


def test_nothing_comes_from_elsewhere(page, tree):
    assert set(re.findall(r"[a-z]+://[^\"'\s)<]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert "url(" not in page
    assert "@import" not in page
    fetching = {"script", "link", "iframe", "img", "object", "embed", "base", "form", "video", "audio"}
    for element in tree.iter():
        assert element.tag.rpartition("}")[2] not in fetching
        assert not {name for name in element.attrib if name in ("src", "href", "srcset", "action") or name[:2] == "on"}


def test_every_figure_has_its_numbers_and_a_name(tree):
    figures = [each for each in tree.iter("section") if (each.get("id") or "").startswith("figure")]
    assert len(figures) == 4
    for figure in figures:
        table = figure.find("figure/details//table")
        assert table is not None
        columns = len(table.findall("thead/tr/th"))
        body = table.findall("tbody/tr")
        assert len(body) >= 9
        assert all(len(line) == columns for line in body)
        for drawing in figure.iter(f"{SVG}svg"):
            assert text_of(drawing.find(f"{SVG}title"))
            assert drawing.get("role") == "img"
            assert len(list(drawing.iter(f"{SVG}text"))) > 4


def test_the_words_of_a_drawing_are_text(tree):
    first = next(section(tree, "figure-1").iter(f"{SVG}svg"))
    told = {text_of(each).strip() for each in first.iter(f"{SVG}text")}
    assert {"coproc", "broadcast", "training loss"} < told


def test_a_drawing_stands_for_a_wide_page_and_for_a_narrow_one(tree):
    figure = section(tree, "figure-1")
    widths = {
        each.get("class"): float(each.find(f"{SVG}svg").get("width"))
        for each in figure.iter("div")
        if each.get("class") in ("wide", "narrow")
    }
    assert widths["narrow"] < 400 < widths["wide"]


def test_labels_errors_and_notes_are_text_whatever_is_in_them(tmp_path):
    rows = [made_rows.row("coproc", repeat, label=ATTACK, target_accuracy=0.5, steps=5) for repeat in range(2)]
    rows += [made_rows.lost("http", ATTACK, workload="mnist"), made_rows.lost("ray", ATTACK, status="skipped")]
    rows[0] |= {"notes": [ATTACK], "versions": {ATTACK: ATTACK}, "commit": ATTACK, "checksum": ATTACK, "origin": ATTACK}
    rows[0]["host"] = {"cores": 2, "memory_bytes": 1, "kernel": ATTACK}
    page = page_of(tmp_path, rows, title=ATTACK)
    tree = tree_of(page)
    assert "<script" not in page
    assert "<svg onload" not in page
    assert {each.tag for each in tree.iter()} & {"script", f"{SVG}script"} == set()
    assert "<script>alert('x')</script>" in text_of(tree.find("body/main/h1"))
    assert "<script>alert('x')</script>" in text_of(section(tree, "lost"))


def test_no_rows_and_rows_without_numbers_are_pages_too(tmp_path):
    assert "no rows yet" in page_of(tmp_path, [])
    rows = [made_rows.lost("ray", "pip install 'coproc[bench]'", "skipped"), made_rows.lost("http", "Timeout: late")]
    tree = tree_of(page_of(tmp_path, rows))
    assert not list(tree.iter("figure"))
    assert "pip install 'coproc[bench]'" in text_of(section(tree, "lost"))
    assert lines_of(tree)["http"][0] == "failed: Timeout: late"
    assert "no numbers" in text_of(tree.find("body/main/div"))


def test_what_failed_stands_in_the_table_and_below_it(tree):
    lines = lines_of(tree)
    assert lines["ray"][0].startswith("skipped: ")
    assert "pip install 'coproc[bench]'" in lines["ray"][0]
    assert lines["coproc ssp"][0].startswith("failed: Timeout")
    assert "waiting for version 40" in text_of(section(tree, "lost"))


def test_the_same_rows_make_the_same_bytes(rows, page, tmp_path):
    assert page_of(tmp_path, rows) == page
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(rows, tmp_path, monkeypatch):
    old = page_of(tmp_path, [])
    for name in ("coproc.report.verdict.sentences", "pathlib.Path.replace"):
        with monkeypatch.context() as patched:
            patched.setattr(name, lambda *given: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                page_of(tmp_path, rows)
    assert [each.read_text() for each in tmp_path.iterdir()] == [old]


def test_sections_with_nothing_in_them_do_not_appear(tmp_path):
    tree = tree_of(page_of(tmp_path, [made_rows.row("coproc", steps=8)]))
    titles = [text_of(each) for each in tree.iter("h2")]
    assert "Scaling" not in titles
    assert "What came to nothing" not in titles
    assert "What to know of a contestant" not in titles
    assert not any("seconds to" in text_of(each) for each in tree.iter("th"))


def test_scaling_appears_where_there_are_several_numbers_of_workers(tmp_path):
    rows = [made_rows.row("coproc", workers=workers, steps=8) for workers in (1, 2, 4)]
    tree = tree_of(page_of(tmp_path, rows))
    assert "Scaling" in [text_of(each) for each in tree.iter("h2")]


def test_doubtful_rows_are_marked_wherever_they_show(tmp_path):
    rows = [made_rows.row("coproc", idle=0.1, steps=30, epochs=2), made_rows.row("http", steps=30, epochs=2)]
    rows.append(made_rows.row("allreduce", steps=30, epochs=2, emulate_compute=True))
    tree = tree_of(page_of(tmp_path, rows))
    names = set(lines_of(tree))
    assert {f"coproc {SIGNS[CPU_BOUND]}", "http"} <= names
    assert any(name.startswith(f"allreduce {SIGNS[EMULATED]}") for name in names)
    for figure in (each for each in tree.iter("section") if (each.get("id") or "").startswith("figure")):
        told = text_of(figure)
        if "coproc" in told:
            assert f"coproc {SIGNS[CPU_BOUND]}" in told
            assert "less than 20 % idle" in told
        if "allreduce" in told:
            assert f"allreduce {SIGNS[EMULATED]}" in told
            assert "calibrated wait" in told
        for drawing in figure.iter(f"{SVG}svg"):
            mentioned = [text_of(each) for each in drawing.iter(f"{SVG}text")]
            assert not {"coproc", "allreduce"} & {each.strip() for each in mentioned}
        assert any("hollow" in (each.get("class") or "") for each in figure.iter()) or "Loss" in told
    assert f"coproc ({SIGNS[CPU_BOUND]})" in text_of(tree.find("body/main/div"))


def test_the_promises_are_those_of_the_mode(tree):
    lines = lines_of(tree)
    assert lines["coproc"][-3:] == ["yes", "yes", "yes"]
    assert lines["allreduce"][-1] == "no"
    assert lines["torchdist"][-3:] == ["\N{EN DASH}"] * 3


def test_overlapping_repeats_are_a_tie_and_others_are_not():
    tie = [steady("coproc", rate, n) for n, rate in enumerate((50, 60))]
    tie += [steady("http", rate, n) for n, rate in enumerate((55, 52))]
    assert "Tied for speed" in verdict.sentences(contests(tie))[0]
    apart = [*tie[:2], *(steady("http", rate, n) for n, rate in enumerate((20, 25)))]
    told = verdict.sentences(contests(apart))
    assert told[0].startswith("Fastest is coproc at 55")


def test_of_single_runs_nobody_can_say_whether_they_are_tied():
    told = verdict.sentences(contests([steady("coproc", 50), steady("http", 49)]))
    assert told[0].startswith("Fastest is coproc")
    assert any("ran once" in sentence for sentence in told)


def test_a_ratio_is_taken_within_a_repeat_first():
    # The machine is four times slower in the second repeat: the medians alone would say something else.
    rows = [steady("coproc", rate, n) for n, rate in enumerate((80, 20, 80))]
    rows += [steady("http", rate, n) for n, rate in enumerate((40, 10, 4))]
    (contest,) = contests(rows)
    ours, theirs = contest.entries
    assert theirs.ratio("steps_per_s", ours) == pytest.approx(0.5)


def test_who_trains_alone_is_the_ceiling_of_every_contest_of_its_data_and_never_the_choice():
    rows = [steady("coproc", 50), made_rows.row("coproc", workers=4, epochs=2, steps=20)]
    rows += [made_rows.row("single", epochs=2, steps=20), made_rows.row("single", epochs=2, steps=20, workload="higgs")]
    two, four, other = contests(rows)
    assert [entry.name for entry in two.finished] == [entry.name for entry in four.finished] == ["coproc", "single"]
    assert [entry.name for entry in other.finished] == ["single"]
    assert [entry.name for entry in two.choices] == ["coproc"]
    speed = two.alone.median("examples_per_s")
    steps = [contest.alone.median("steps_per_s") * contest.entries[0].point.workers for contest in (two, four)]
    assert steps[0] == pytest.approx(steps[1])
    assert verdict.of_ceiling(two.entries[0], two.alone) == pytest.approx(2 * 128 * 50 / (2 * speed))


def test_who_did_not_reach_the_target_is_named():
    rows = [made_rows.row("coproc", epochs=4, steps=8, target_accuracy=0.975)]
    rows.append(made_rows.row("http", epochs=4, steps=8, target_accuracy=0.975))
    rows[1]["epochs"] = [{**each, "accuracy": 0.5} for each in rows[1]["epochs"]]
    told = " ".join(verdict.sentences(contests(rows)))
    assert "First at 97.5" in told
    assert "http did not reach it" in told


def test_one_contestant_has_one_colour_and_others_have_others(tree):
    dots = {}
    for line in section(tree, "verdict").iter("tr"):
        dots |= {
            text_of(line[0]).strip(): each.get("class").split()[1]
            for each in line.iter("span")
            if each.get("class")[:3] == "dot"
        }
    assert len(set(dots.values())) == len(dots) == 12
    for drawing in (each for figure in ("figure-1", "figure-2") for each in section(tree, figure).iter(f"{SVG}svg")):
        for group in drawing.iter(f"{SVG}g"):
            names = [each.text.replace("\N{NO-BREAK SPACE}", " ") for each in group.iter(f"{SVG}text")]
            if names and group.get("class") != "guide":
                whole = [name for name in dots if name.startswith(names[0].strip().rstrip("…"))]
                assert group.get("class") in {dots[name] for name in whole}


def test_runs_that_failed_beside_others_that_did_not_are_counted(tmp_path):
    rows = [made_rows.row("coproc", 0, steps=8), made_rows.lost("coproc", "Timeout", repeat=1)]
    tree = tree_of(page_of(tmp_path, rows))
    assert any("1 of 2 runs" in name for name in lines_of(tree))


def test_what_the_links_of_hosts_have_carried_is_told_of_the_busiest(tmp_path):
    row = made_rows.row("coproc", steps=10, hosts=2, link="1gbit")
    row["link"] = {"0": {"in_bytes": 10_000_000, "out_bytes": 20_000_000}, "1": {"in_bytes": 1, "out_bytes": 2}}
    tree = tree_of(page_of(tmp_path, [row]))
    columns = [text_of(each) for each in section(tree, "verdict").iter("th")]
    at = columns.index("MB a step, busiest link")
    assert lines_of(tree)["coproc"][at - 1] == "3"


def test_a_line_of_losses_puts_repeats_together_by_what_was_done():
    rows = [steady("coproc", rate, n) for n, rate in enumerate((10, 40, 20))]
    for row in rows:
        row["samples"] = [[*each[:7], 1.0 if each[1] < 20 else 0.25, 0] for each in row["samples"]]
    marks = losses(contests(rows)[0].entries[0])
    assert [mark.y for mark in marks] == [1.0] * (len(marks) // 2) + [0.25] * (len(marks) // 2)
    assert all(mark.first <= mark.x <= mark.last for mark in marks)
    first, last = marks[0], marks[-1]
    # The slowest repeat takes twice as long as the middle one, and that twice as long as the fastest.
    assert (last.x / last.first, last.last / last.x) == pytest.approx((2, 2), rel=0.1)
    assert first.x < last.x


def test_what_did_not_compute_has_no_loss(tmp_path):
    rows = [made_rows.row("coproc", steps=20, emulate_compute=True)]
    titles = [text_of(each) for each in tree_of(page_of(tmp_path, rows)).iter("h2")]
    assert "Where a step goes" in titles
    assert not {"Loss over time", "Test accuracy over time"} & set(titles)


def test_who_takes_other_steps_is_not_called_fastest_alone():
    rows = [steady("localsgd", 90), steady("coproc", 50), steady("http", 20), steady("coproc", 95, preset="downpour")]
    told = verdict.sentences(contests(rows))
    assert told[0].startswith("Fastest is coproc downpour at 95")
    assert told[1].startswith("coproc downpour need not learn as much")
    assert "fastest is coproc at 50 steps/s: 2.5\N{MULTIPLICATION SIGN} the speed of http" in told[1].replace(
        "50.0", "50"
    )
    same = [verdict.takes_same_steps(entry) for entry in contests(rows)[0].entries]
    assert same == [False, True, True, False]
