"""Feather's router inside Ray Serve, before replicas without an engine: what it does there, and what happens when they die, join or fall silent.

Where Ray is missing these are skipped; requirements/environment.sh installs it. Ray gives its processes seconds to start, so these run apart, on a machine that
does nothing else: ``./run_tests.sh tests/test_ray.py -m cluster``.
"""

from itertools import count

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install -r requirements/ray.txt")

from lab.routing import faults, fleet
from lab.routing.load import Prefixes
from lab.routing.real import Ask, Cell
from lab.routing.rules import RULES
from lab.routing.standin import StandIn

ROUTER = "feather.ray.router.FeatherRouter"
STUDY = "lab.routing.router.StudyRouter"
ASKED = Prefixes(6, 600, decode_tokens=(2, 6))
_seeds = count(1)
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.cluster]


def asks(asked=ASKED, cell=None, salt=None):
    return (Ask(prompt, decode, group, cell or Cell(), salt) for prompt, group, decode in fleet.texts(asked, next(_seeds)))


@pytest.fixture(scope="module")
def ray_cluster():
    with fleet.cluster():
        yield


@pytest.fixture
def up(ray_cluster):
    """Deploys; what was deployed is gone after the test."""
    from ray import serve

    yield lambda *arguments, **named: fleet.deploy(StandIn, *arguments, **{"router": ROUTER, "report_every": 0.2} | named)
    serve.delete(fleet.APP)


def run(handle, clients=8, seconds=None, most=None, requests=None):
    return fleet.wait_for(fleet.ask(handle, requests or asks(), clients, seconds, most))


def complete(outcome, most):
    assert (outcome.asked, outcome.lost, outcome.doubled, outcome.wrong) == (most, 0, 0, 0)


def test_prefixes_stay_where_they_are_cached_and_all_is_answered_once(up):
    handle = up(replicas=2)
    run(handle, most=50)
    outcome = run(handle, clients=12, most=300)
    complete(outcome, 300)
    assert outcome.retried == 0 and len(outcome.by_replica) == 2
    assert outcome.answered.hits > 0.85, "six prefixes, of which each of two replicas holds four: at random a third of them is missing"
    assert min(map(len, outcome.by_replica.values())) > 75


def test_without_reports_ray_chooses_and_all_is_well(up):
    handle = up(reports=0, replicas=2)
    outcome = run(handle, most=200)
    complete(outcome, 200)
    assert min(map(len, outcome.by_replica.values())) > 50


def test_statistics_that_grow_old_do_no_harm(up):
    handle = up(reports=5, replicas=2, router_options={"stale_after": 1.0})
    outcome = run(handle, seconds=5.0)
    complete(outcome, outcome.asked)
    late = [sum(when > 3.5 for when in times) for times in outcome.by_replica.values()]
    assert len(late) == 2 and min(late) > 0.25 * sum(late)


def test_a_replica_killed_in_mid_run_loses_and_doubles_nothing(up):
    handle = up(step=0.04, replicas=3)
    outcome, killed = fleet.wait_for(faults.soak(handle, asks(), 24, most=2500, kills=3, pause=2.0))
    complete(outcome, 2500)
    assert killed >= 2 and len(outcome.by_replica) >= 4, "those killed are replaced, and their successors answer"


def test_a_replica_added_takes_load_within_seconds_and_the_others_keep_their_prefixes(up):
    asked = Prefixes(4, 600, decode_tokens=(2, 6))
    handle = up(step=0.02, replicas=2, most=3)
    outcome, ready = fleet.wait_for(faults.grow(handle, asks(asked), 32, 3))
    complete(outcome, outcome.asked)
    took, share = faults.joined(outcome, ready)
    assert len(outcome.by_replica) == 3 and took < 60 and share > 0.1
    assert outcome.answered.hits > 0.9


def test_the_routers_of_the_study_answer_everything(up):
    handle = up(replicas=2, router=STUDY)
    for number, name in enumerate(RULES):
        outcome = run(handle, most=120, requests=asks(cell=Cell(number, name)))
        complete(outcome, 120)
        assert len(outcome.by_replica) == 2, name


def test_salts_keep_tenants_apart(up):
    handle = up(holds=100, replicas=2)
    one = Prefixes(1, 600, decode_tokens=(2, 3))
    outcomes = [run(handle, clients=1, most=20, requests=asks(one, salt=salt)) for salt in ("tenant 1", "tenant 2", "tenant 3", "tenant 4")]
    assert len({replica for outcome in outcomes for replica in outcome.by_replica}) == 2, "the same text, and not one home for all tenants"
