"""The cost model: closed forms of its bytes, numbers put into rows that it finds again, and what it says."""

from __future__ import annotations

import math

import pytest

from coproc.errors import ConfigError
from coproc.trials.base import Point
from coproc.trials.project import FORMULAS, hosts_in, project

PARAMETERS = 2_500_000
VECTOR = 4 * PARAMETERS
GBIT = 125e6
COMPUTE_S = 0.1


def row(contestant, hosts, step_s, update_s=0.0, *, idle=0.5, status="ok", compute_s=COMPUTE_S, **fields):
    """A run of steps that take `step_s` each, of which every worker computes so long; updates of a step by all."""
    fields = {"servers": hosts if contestant == "coproc" else 1, "link": "1gbit", **fields}
    point = Point(contestant, workers=hosts, hosts=hosts, **fields)
    steps = 4
    groups = [[epoch, 0, epoch * steps * step_s, (epoch + 1) * steps * step_s] for epoch in range(2)]
    samples = [
        [worker, step, step * step_s, 0.0, compute_s, 0.0, point.batch_size * point.n_send, 1.0, 0]
        for step in range(2 * steps)
        for worker in range(hosts)
    ]
    return {
        "point": point.to_json_values(),
        "status": status,
        "groups": groups,
        "samples": samples,
        "epochs": [],
        "costs": {"update_s": update_s * 2 * steps},
        "memory": {},
        "cpu_idle": idle,
        "parameters": PARAMETERS,
        "startup_s": None,
        "checksum": "",
    }


def test_numbers_of_hosts():
    assert hosts_in("16..1024") == (16, 32, 64, 128, 256, 512, 1024)
    assert hosts_in("3..20") == (3, 6, 12, 20)
    assert hosts_in("7..7") == (7,)
    assert hosts_in("64,16") == (16, 64)
    for wrong in ("", "0..4", "9..4", "0", "a..b", "1,,2", "1..99999999999"):
        with pytest.raises(ConfigError):
            hosts_in(wrong)


@pytest.mark.parametrize("hosts", [1, 2, 16, 1024])
def test_bytes_of_the_busiest_link_are_those_of_the_formulas(hosts):
    def of(contestant, servers=1):
        flow = FORMULAS[contestant][0](hosts, servers, VECTOR)
        return flow.gradients, flow.parameters

    part = VECTOR * (hosts - 1) / hosts
    assert of("coproc", hosts) == pytest.approx((part, part))
    assert of("allreduce") == of("torchdist") == pytest.approx((part, part))
    assert of("http") == of("storage") == of("ray") == of("coproc") == (VECTOR * (hosts - 1),) * 2
    assert of("single") == (0, 0)
    assert of("broadcast") == ((0, 0) if hosts == 1 else (2 * math.ceil(math.sqrt(hosts)) * VECTOR, 2 * VECTOR))


def test_with_fewer_servers_than_hosts_a_worker_without_one_sends_all_of_its_gradient():
    flow = FORMULAS["coproc"][0](4, 4, VECTOR)
    assert flow.own == pytest.approx(2 * VECTOR * 3 / 4)
    flow = FORMULAS["coproc"][0](4, 2, VECTOR)
    assert (flow.gradients, flow.own) == (VECTOR * 3 / 2, 2 * VECTOR)


def test_what_was_put_into_rows_is_found_again():
    slack, fixed_s, more_s, update_s = 1.25, 0.03, 0.002, 0.004

    def step_s(hosts):
        moved = 2 * VECTOR * (hosts - 1) / hosts
        return COMPUTE_S + slack * moved / GBIT + update_s + fixed_s + more_s * (hosts - 1)

    measured = (1, 2, 4, 8)
    rows = [row("allreduce", hosts, step_s(hosts), hosts * update_s) for hosts in measured]
    [curve] = project(rows, (16, 1024))
    assert [each.hosts for each in curve.measured] == list(measured)
    assert max(abs(each.error) for each in curve.measured) < 1e-6
    for each in curve.expected:
        assert each.step_s == pytest.approx(step_s(each.hosts), rel=1e-3)
        assert each.step_s == pytest.approx(each.compute_s + each.link_s + each.update_s + each.other_s)
        assert each.compute_s == pytest.approx(COMPUTE_S)
        assert each.update_s == pytest.approx(update_s)
        assert each.efficiency == pytest.approx(COMPUTE_S / each.step_s)
    assert any("links give 80 % of their rate" in sentence for sentence in curve.assumptions)


def test_one_point_gives_what_a_step_costs_beyond_and_two_also_how_links_are_used():
    net_s = COMPUTE_S + 2 * VECTOR * 0.5 / GBIT
    [curve] = project([row("coproc", 2, net_s + 0.05)], (2, 4))
    assert [each.other_s for each in curve.expected] == pytest.approx([0.05, 0.05])
    assert curve.measured[0].error == pytest.approx(0)
    rows = [row("coproc", hosts, COMPUTE_S + 0.01 + 1.5 * 2 * VECTOR * (hosts - 1) / hosts / GBIT) for hosts in (2, 4)]
    [curve] = project(rows, (8,))
    assert curve.expected[0].other_s == pytest.approx(0.01, rel=1e-3)
    assert curve.expected[0].link_s == pytest.approx(1.5 * 2 * VECTOR * 7 / 8 / GBIT, rel=1e-3)


def test_nothing_below_zero_is_fitted_and_the_error_is_told():
    [curve] = project([row("http", 4, 0.11)], (4,))  # quicker than its bytes allow
    [found] = curve.measured
    expected_s = COMPUTE_S + 2 * 3 * VECTOR / GBIT
    assert found.expected_s == pytest.approx(expected_s)
    assert found.error == pytest.approx(expected_s / 0.11 - 1)


def test_updates_grow_where_one_server_makes_them_and_stay_where_each_host_has_its_part():
    update_s = 0.02  # of each gradient, onto the whole vector
    for contestant, factor in (("http", 64), ("coproc", 1), ("allreduce", 1)):
        [curve] = project([row(contestant, 4, 9.0, 4 * update_s)], (64,))
        assert curve.expected[0].update_s == pytest.approx(factor * update_s)


def test_an_asynchronous_worker_hides_the_others_until_the_link_is_full():
    rows = [row("coproc", hosts, 9.0, consistency="asp", servers=1) for hosts in (2, 4)]
    [curve] = project(rows, (2, 64))
    few, many = curve.expected
    a_byte_s = (few.step_s - few.other_s - COMPUTE_S) / (2 * VECTOR)
    assert many.step_s - many.other_s == pytest.approx(63 * VECTOR * a_byte_s)
    for same in ({"preset": "downpour"}, {"preset": "ssp"}):
        [other] = project([row("coproc", hosts, 9.0, servers=1, **same) for hosts in (2, 4)], (2, 64))
        assert other.expected == curve.expected


def test_steps_between_exchanges_and_compressions_divide_the_bytes():
    [plain] = project([row("coproc", 4, 9.0)], (16,))
    [fewer] = project([row("coproc", 4, 9.0, compression="bf16")], (16,))
    assert fewer.expected[0].link_s == pytest.approx(plain.expected[0].link_s / 2)
    [rare] = project([row("coproc", 4, 9.0, n_send=5, compute_s=5 * COMPUTE_S)], (16,))
    assert rare.expected[0].link_s == pytest.approx(plain.expected[0].link_s / 5)
    [local] = project([row("localsgd", 4, 9.0, tau=20)], (16,))
    assert local.expected[0].link_s == pytest.approx(2 * 15 * VECTOR / GBIT / 20)


def test_repeats_give_one_point_and_settings_a_curve_each():
    rows = [row("coproc", 2, step_s) for step_s in (0.3, 0.5, 0.4)]
    rows += [row("coproc", 4, 0.6), row("http", 4, 2.0), row("coproc", 4, 0.7, consistency="asp")]
    curves = project(rows, (16,))
    assert [[each.hosts for each in curve.measured] for curve in curves] == [[2, 4], [4], [4]]
    assert curves[0].measured[0].step_s == pytest.approx(0.4)
    assert len({curve.label for curve in curves}) == 3


def test_points_bound_by_the_processors_are_shown_and_not_fitted_to():
    rows = [row("allreduce", hosts, 0.5, idle=0.5) for hosts in (2,)] + [row("allreduce", 8, 5.0, idle=0.05)]
    [curve] = project(rows, (2,))
    assert [each.cpu_bound for each in curve.measured] == [False, True]
    assert curve.expected[0].step_s == pytest.approx(0.5)
    assert any("of 8 hosts were bound" in sentence for sentence in curve.assumptions)
    [curve] = project(rows[1:], (8,))
    assert curve.expected[0].step_s == pytest.approx(5.0)
    assert any("All points were bound" in sentence for sentence in curve.assumptions)
    # What this machine's processors add for each host it plays is not carried on to more of them.
    grown = [row("allreduce", hosts, 1.0 + 0.5 * hosts, idle=0.05) for hosts in (2, 4, 8)]
    [curve] = project(grown, (2, 1024))
    assert curve.expected[0].other_s == curve.expected[1].other_s


def test_emulated_compute_is_told():
    [curve] = project([row("coproc", 2, 0.5, emulate_compute=True)], (16,))
    assert "(emulated)" in curve.assumptions[0]


def test_rows_that_say_nothing_of_hosts_are_left_out():
    failed, single_host = row("coproc", 2, 0.5, status="failed"), row("coproc", 2, 0.5)
    single_host["point"] |= {"hosts": None, "link": None}
    with pytest.raises(ConfigError, match="starts from measured runs"):
        project([failed, single_host], (16,))
