"""Topics are created once with their settings, and what differs is told with its cure."""

from __future__ import annotations

import pytest

from headrace.streams import topics
from headrace.streams.errors import BrokerError, TopicsError
from headrace.streams.settings import Settings


def changed(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update={"topics": settings.topics.model_copy(update=values)})


@pytest.mark.kafka
def test_created_once_and_as_wanted(settings):
    mine = settings(create=False)
    assert len(topics.check(mine)) == len(topics.table(mine))
    assert "headrace topics create" in topics.check(mine)[0]

    assert topics.create(mine) == [topic.name for topic in topics.table(mine)]

    assert topics.create(mine) == []
    assert topics.check(mine) == []
    topics.require(mine)


@pytest.mark.kafka
def test_another_number_of_interactions_partitions_is_refused_by_roles(settings):
    mine = settings(topics={"interactions_partitions": 2})

    with pytest.raises(
        TopicsError, match=r"interactions has 2 partitions .* say 3: .*topics.interactions_partitions = 2"
    ):
        topics.require(changed(mine, interactions_partitions=3))


@pytest.mark.kafka
def test_the_shop_may_choose_its_own_number_of_partitions(settings):
    mine = settings(topics={"events_partitions": 2})

    topics.require(changed(mine, events_partitions=7))
    assert topics.check(changed(mine, events_partitions=7)) == []


@pytest.mark.kafka
def test_a_missing_topic_is_named(settings):
    mine = settings(create=False)

    with pytest.raises(TopicsError, match=r"events is missing: create it with `headrace topics create` \(and 16 more"):
        topics.require(mine)


@pytest.mark.kafka
def test_a_differing_setting_comes_with_the_command_that_mends_it(settings):
    mine = settings(topics={"retention": "1d"})

    found = topics.check(changed(mine, retention=3_600_000))

    assert any("interactions has retention.ms=86400000" in line and "kafka-configs.sh" in line for line in found)
    assert not any(".events " in line for line in found), "how long the shop keeps its topics is its own business"


def test_no_broker_is_one_line_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(topics, "_TIMEOUT_S", 0.5)
    nobody = Settings(data_dir=tmp_path, kafka={"bootstrap.servers": "127.0.0.1:1"})

    with pytest.raises(BrokerError, match=r"127.0.0.1:1 does not answer .*headrace broker.*bootstrap.servers"):
        topics.check(nobody)
