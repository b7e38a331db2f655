"""Priorities of jobs where time is short."""

from hypothesis import given
from hypothesis import strategies as st

from harness.plan.job import make_job
from harness.plan.priority import priorities

EXPERIMENTS = ("first", "second", "third")


def job(name, experiment, needs=(), after=()):
    return make_job("compute", name, [], gpu=False, experiment=experiment, needs=needs, after=after)


@st.composite
def graphs(draw):
    """Jobs of some experiment, or of several, that need or follow others."""
    jobs = {}
    for index in range(draw(st.integers(1, 8))):
        earlier = st.lists(st.sampled_from(sorted(jobs)), unique=True) if jobs else st.just([])
        experiment = draw(st.sampled_from((*EXPERIMENTS, None)))
        one = job(f"job{index}", experiment, tuple(draw(earlier)), tuple(draw(earlier)))
        jobs[one.name] = one
    return {name: jobs[name] for name in draw(st.permutations(list(jobs)))}


@given(graphs())
def test_a_job_comes_no_later_than_its_experiment_and_what_waits_for_it(jobs):
    found = priorities(jobs, EXPERIMENTS)
    own = {"first": 3, "second": 2, "third": 1, None: 0}
    for name, one in jobs.items():
        waiting = [found[n] for n, other in jobs.items() if name in (*other.needs, *other.after)]
        assert found[name] == max([own[one.experiment], *waiting])


def test_experiments_come_in_the_order_of_the_scale_and_what_they_share_before():
    data = job("data", None)
    third = job("slow", "third", needs=(data.name,))
    first = job("quick", "first", after=(third.name,))
    alone = job("other", "second")
    jobs = {one.name: one for one in (data, third, first, alone)}
    assert list(priorities(jobs, EXPERIMENTS).values()) == [3, 3, 3, 2]
