"""What wakes the job process: an event passed over by its type alone leads to nothing, whatever is in it."""

from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.domain import job_process
from services.scheduler.domain.job_process import LEADS_ON, Story, react, share
from services.scheduler.domain.placement import Market
from shared.contracts.catalogue import EVENT_TYPES
from shared.contracts.job import Event, JobSubmitted
from tests.support.contract_structs import BEGAN, any_of


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_event_of_a_type_that_leads_to_nothing_for_an_owner_never_asks_it(name: str, data: st.DataObject) -> None:
    kind = EVENT_TYPES[name]
    event: Event = data.draw(any_of(kind))
    story = job_process.evolve(Story(attempt_id=uuid4()), data.draw(any_of(JobSubmitted)))
    following = react(uuid4(), story, event, stream_id=uuid4(), at=BEGAN, market=Market())
    for owner, kinds in LEADS_ON.items():
        assert kind in kinds or share(following, owner) == []


def test_every_type_that_is_listed_is_in_the_catalogue() -> None:
    assert all(kinds <= set(EVENT_TYPES.values()) for kinds in LEADS_ON.values())
