"""Metrics of a worker that are recorded once per turn."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from order_service.worker.metrics import TurnHistogram

BUCKETS = (0.5, 1.0, 2.5)
VALUES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 2.5, 3.0, 1000.0]))


@given(st.lists(VALUES, max_size=3))
def test_values_that_are_observed_together_count_like_single_ones(turns):
    single = Histogram("single", "One by one.", buckets=BUCKETS, registry=CollectorRegistry())
    together = TurnHistogram("together", "All of a turn.", buckets=BUCKETS, registry=CollectorRegistry())
    for values in turns:
        for value in values:
            single.observe(value)
        together.observe_all(list(values))
    assert figures(together) == figures(single)


@given(st.lists(VALUES, max_size=3))
def test_exemplars_are_in_the_buckets_of_their_values(turns):
    single = Histogram("single", "One by one.", buckets=BUCKETS, registry=CollectorRegistry())
    together = TurnHistogram("together", "All of a turn.", buckets=BUCKETS, registry=CollectorRegistry())
    for values in turns:
        for value in values:
            single.observe(value, {"trace_id": f"{value}"})
        together.add_exemplars((value, {"trace_id": f"{value}"}) for value in values)
    assert exemplars(together) == exemplars(single)


def exemplars(histogram):
    [family] = histogram.collect()
    return [(sample.labels, sample.exemplar and sample.exemplar.labels) for sample in family.samples]


def figures(histogram):
    [family] = histogram.collect()
    return [
        (sample.name.rpartition("_")[2], sample.labels, sample.value)
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
